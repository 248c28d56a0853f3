"""scikit-learn's interface of an estimator: parameters, transform, score, containers, tags.

These functions are methods of :class:`anncoder.models.base.Autoencoder`: ``self`` is a model. scikit-learn is imported
only where it asks for something of its own (tags, its configuration): importing a model does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.config import TrainingConfig, split_settings, unknown_key
from anncoder.data.adata import open_data
from anncoder.data.matrix.arrays import near_whole, nearest_whole
from anncoder.data.sources import Data, MemorySource
from anncoder.data.summary import library_sizes
from anncoder.data.tables import is_table, made_names
from anncoder.errors import InputError
from anncoder.training.results import denoised, expecting

Array = np.ndarray[Any, Any]

ASIDE = 0.1  # share of the molecules that a score predicts, and
FLOOR = 0.01  # of the gene means in every expectation: none is zero
CONTAINERS = ("default", "pandas", "polars")


def get_params(self: Any, deep: bool = True) -> dict[str, Any]:
    """Return hyper-parameters and settings of the fit by name, those of :meth:`set_params`; None for the model's own.

    Parameters
    ----------
    deep
        Of no meaning here: no parameter is an estimator.
    """
    return {**dict(self.config), **dict(TrainingConfig()), **self.fit_settings}


def set_params(self: Any, **params: Any) -> Any:
    """Set hyper-parameters, and settings that :meth:`fit` then has where it is called without them; return the model.

    Other hyper-parameters make a fitted model one that is not: its network has the old ones.

    Parameters
    ----------
    **params
        Arguments of the constructor, and settings of :meth:`fit`, by name.

    Raises
    ------
    ConfigError
        Unknown name or a value out of range; the model is as it was.
    """
    known = get_params(self)
    changed = {name: value for name, value in params.items() if name not in known or value is not known[name]}
    hyper, training = split_settings(changed, type(self.config), where=type(self).__name__)
    if hyper:
        checked = type(self.config)(**(dict(self.config) | hyper))
        # the others stay the objects that they are
        self.config = self.config.model_copy(update={name: getattr(checked, name) for name in hyper})
        self.network_ = None
    if training:
        checked_fit = dict(TrainingConfig(**(self.fit_settings | training)))
        self.fit_settings = self.fit_settings | {name: checked_fit[name] for name in training}
    return self


def settings_of_fit(self: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a fit: those of :meth:`set_params` in place of those that have their default."""
    defaults = TrainingConfig()
    return given | {name: value for name, value in self.fit_settings.items() if given[name] == getattr(defaults, name)}


def clone_of(self: Any) -> Any:
    """Return an unfitted model with the same parameters, for ``sklearn.base.clone``."""
    again = type(self)(**dict(self.config))
    again.config = self.config
    for name in ("fit_settings", "container"):
        if name in vars(self):
            setattr(again, name, copy(vars(self)[name]))
    return again


def fit_transform(self: Any, data: Data, y: object = None, **settings: Any) -> Any:
    """Fit the model, and return :meth:`transform` of the cells.

    Parameters
    ----------
    data
        Raw counts, (n_obs, n_vars): AnnData, matrix, data frame or paths.
    y
        Ignored: scikit-learn passes labels.
    **settings
        Those of :meth:`fit`.
    """
    return transform(self.fit(data, y, **settings), data)


def transform(self: Any, data: Data) -> Any:
    """Return :meth:`embed` of cells, (n_obs, n_latent) float32, in the container of :meth:`set_output`.

    Parameters
    ----------
    data
        Raw counts, (n_obs, n_vars): AnnData, matrix, data frame or paths.
    """
    latent, container = self.embed(data), _container(self)
    if container == "default":
        return latent
    names = get_feature_names_out(self)
    if container == "polars":
        import polars

        return polars.DataFrame(latent, schema=list(names), orient="row")
    index = getattr(data, "obs_names", data.index if isinstance(data, pd.DataFrame) else None)
    return pd.DataFrame(latent, columns=names, index=index)


def set_output(self: Any, *, transform: str | None = None) -> Any:
    """Choose what :meth:`transform` returns, and return the model.

    Parameters
    ----------
    transform
        ``"default"`` for arrays, ``"pandas"`` or ``"polars"`` for data frames; None for what it was.
    """
    if transform is not None and transform not in CONTAINERS:
        raise unknown_key(transform, CONTAINERS, where="set_output")
    if transform is not None:
        self.container = transform
    return self


def get_feature_names_out(self: Any, input_features: Sequence[str] | None = None) -> Array:
    """Return the names of the latent units, (n_latent,): ``"countautoencoder0"`` and so on.

    Parameters
    ----------
    input_features
        None, or the genes of the fit.

    Raises
    ------
    ConfigError
        The model is not fitted.
    InputError
        These are not the genes of the fit.
    """
    self._network()
    n, remedy = n_features_in(self), "leave it out"
    if input_features is not None and len(input_features) != n:
        what = f"input_features should have length equal to number of features ({n}), got {len(input_features)}"
        raise InputError("shape-mismatch", what, "input_features", remedy)
    named = input_features is not None and hasattr(self, "feature_names_in_")
    if named and list(map(str, input_features or ())) != list(self.feature_names_in_):
        raise InputError("other-genes", "input_features is not equal to feature_names_in_", "input_features", remedy)
    return np.array([f"{type(self).__name__.lower()}{unit}" for unit in range(self.config.width)], dtype=object)


def n_features_in(self: Any) -> int:
    """Return the number of genes that the model was fitted on."""
    if not is_fitted(self):
        raise AttributeError("n_features_in_ is known once the model is fitted")
    return len(self.var_names_)


def feature_names_in(self: Any) -> Array:
    """Return the names of these genes, (n_vars,), where they have some."""
    if not is_fitted(self) or list(self.var_names_) == made_names(len(self.var_names_)):
        raise AttributeError("feature_names_in_ is known of a model that was fitted to named genes")
    return np.array(self.var_names_, dtype=object)


def is_fitted(self: Any) -> bool:
    """Tell whether the model is fitted."""
    return bool(self.network_ is not None)


def tags_of(self: Any) -> Any:
    """Return what scikit-learn (1.6 and later) asks of an estimator."""
    from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

    return Tags(
        estimator_type="transformer",
        target_tags=TargetTags(required=False),
        transformer_tags=TransformerTags(preserves_dtype=["float32"]),
        input_tags=InputTags(sparse=True, positive_only=self.reads_counts),
    )


def score(self: Any, data: Data, y: object = None, *, layer: str | None = None) -> float:
    """Return how well the model predicts cells that it need not have seen: higher is better.

    The mean Poisson log-likelihood, in nats a cell, of a tenth of the molecules, which are set aside at random (Batson,
    Royer, Webber 2019, doi 10.1101/786269) and predicted from the others: minus ``heldout_nll`` of
    :func:`anncoder.evaluate`, but that the factors of the genes are those of the same cells' other molecules. Of a
    model of expression values (``transform="none"``) minus the mean squared error of the reconstruction.

    Parameters
    ----------
    data
        Raw counts, (n_obs, n_vars): AnnData, matrix, data frame or path.
    y
        Ignored: scikit-learn passes labels.
    layer
        Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.

    Raises
    ------
    ConfigError
        The model has no decoder.
    InputError
        As :meth:`embed`; or the counts are not whole.
    """
    self._network()
    expected = expecting(self, "normalized", None)
    source = self._source(data if is_table(data) else open_data(data), layer, 0.0)
    assert isinstance(source, MemorySource)
    if not self.reads_counts:
        blocks = _with_rows(denoised(self, source, expected, None))
        squares = [np.square(b - source.matrix[rows].toarray(), dtype=np.float64).sum() for b, rows in blocks]
        return -float(sum(squares)) / int(source.n_obs * len(self.var_names_))
    if not near_whole(source.matrix.data).all():
        what = "the counts are not whole: no molecules can be set aside"
        raise InputError("not-integer", what, source.where, "give raw counts")
    kept, aside = _set_aside(source.matrix, self.training_.seed)
    thinned = source.with_matrix(kept, counts=True)
    total = _log_likelihood(lambda: denoised(self, thinned, expected, None), kept, aside)
    return total / int(source.n_obs)


def _set_aside(matrix: csr_matrix, seed: int) -> tuple[csr_matrix, csr_matrix]:
    molecules = nearest_whole(matrix.data).astype(np.int64)
    aside = np.random.default_rng([seed, 9]).binomial(molecules, ASIDE)
    parts = [
        csr_matrix((values.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        for values in (molecules - aside, aside)
    ]
    for part in parts:
        part.eliminate_zeros()
    return parts[0], parts[1]


def _log_likelihood(expected: Any, kept: csr_matrix, aside: csr_matrix) -> float:
    # expected() yields (b, g) at any scale of the cells; of counts set aside, (n, g), given those kept
    from scipy.special import gammaln

    sizes, of_genes = library_sizes(kept), np.asarray(kept.sum(axis=0, dtype=np.float64)).ravel()
    floor = (of_genes + 1) / (of_genes.sum() + len(of_genes))
    found = np.zeros(len(of_genes))
    for block, rows in _with_rows(expected()):
        found += sizes[rows] @ _shares(block)
    factor, total = (of_genes + 1) / (found + 1), 0.0
    for block, rows in _with_rows(expected()):
        share = (1 - FLOOR) * _shares(_shares(block) * factor) + FLOOR * floor
        rate = share * (sizes[rows] * ASIDE / (1 - ASIDE) / share.sum(axis=1))[:, None]
        molecules = aside[rows].tocoo()
        rates = rate[molecules.row, molecules.col]
        total += float((molecules.data * np.log(np.where(rates > 0, rates, 1)) - gammaln(molecules.data + 1)).sum())
        total -= float(rate.sum())
    return total


def _shares(block: Array) -> Array:
    block = np.maximum(block, 0).astype(np.float64)
    totals = block.sum(axis=1, keepdims=True)
    shares: Array = block / np.where(totals > 0, totals, 1)
    return shares


def _with_rows(blocks: Iterator[Array]) -> Iterator[tuple[Array, slice]]:
    start = 0
    for block in blocks:
        yield block, slice(start, start + len(block))
        start += len(block)


def _container(self: Any) -> str:
    import sklearn

    chosen: str = self.container or sklearn.get_config()["transform_output"]
    return chosen
