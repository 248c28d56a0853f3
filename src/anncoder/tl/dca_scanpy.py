"""``tl.dca``: the function that scanpy had, with DCA's published keywords and slots.

``scanpy.external.pp.dca`` was removed in scanpy 1.13; :func:`dca` takes its keywords and fills its slots, with
:class:`anncoder.DCA` behind them. What does not exist here is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.config import split_settings, unknown_key
from anncoder.data.adata import read_matrix, slot_label
from anncoder.data.check import check
from anncoder.data.matrix.notes import said_once
from anncoder.data.matrix.problems import use
from anncoder.data.summary import library_sizes
from anncoder.device import refuse_size
from anncoder.errors import ConfigError, InputError
from anncoder.models.base import Array
from anncoder.models.published.dca import DCA, DCAConfig
from anncoder.tl.slots import target_of

# by our name of a setting, the words for it: of the function, and of the command where it is another
WORDS: dict[str, tuple[str, ...]] = {
    "ae_type": ("ae_type",),
    "size_factors": ("normalize_per_cell", "sizefactors"),
    "standardize": ("scale", "norminput"),
    "transform": ("log1p", "loginput"),
    "n_hidden": ("hidden_size", "hiddensize"),
    "dropout_rate": ("hidden_dropout", "dropoutrate"),
    "input_dropout": ("input_dropout", "inputdropout"),
    "norm": ("batchnorm",),
    "activation": ("activation",),
    "init": ("init",),
    "l1": ("l1_coef", "l1"),
    "l2": ("l2_coef", "l2"),
    "l1_encoder": ("l1_enc_coef", "l1enc"),
    "l2_encoder": ("l2_enc_coef", "l2enc"),
    "ridge_pi": ("ridge",),
    "check_counts": ("check_counts", "checkcounts"),
    "faithful": ("faithful",),
    "max_epochs": ("epochs",),
    "reduce_lr_patience": ("reduce_lr", "reducelr"),
    "patience": ("early_stop", "earlystop"),
    "batch_size": ("batch_size", "batchsize"),
    "optimizer": ("optimizer",),
    "learning_rate": ("learning_rate", "learningrate"),
    "clip_value": ("clip_grad", "gradclip"),
    "valid_fraction": ("validation_split",),
    "seed": ("random_state", "seed"),
    "threads": ("threads",),
}
OURS = {word: name for name, words in WORDS.items() for word in words}
NETWORK_WORDS = ("l1_coef", "l2_coef", "l1_enc_coef", "l2_enc_coef", "ridge", "input_dropout")
TRAINING_WORDS = ("clip_grad", "validation_split")
ACTIVATIONS = {"LeakyReLU": "leaky_relu", "PReLU": "prelu"}  # Keras's names, where ours are others
OPTIMIZERS = {"rmsprop": "RMSprop", "adam": "Adam"}
MODES = ("denoise", "latent")
COUNTS_LAYER = "dca_counts"


class Results(NamedTuple):
    """Results of a fitted model; None for those that are not asked for, or that its type does not have."""

    denoised: Array | None = None  # (n_obs, n_vars) at each cell's own library size
    latent: Array | None = None  # (n_obs, n_latent)
    dispersion: Array | None = None  # (n_vars,), (n_obs, 1) or (n_obs, n_vars)
    dropout: Array | None = None  # (n_obs, 1) or (n_obs, n_vars)


@said_once()
def dca(
    adata: anndata.AnnData,
    mode: Literal["denoise", "latent"] = "denoise",
    *,
    ae_type: str = "nb-conddisp",
    normalize_per_cell: bool = True,
    scale: bool = True,
    log1p: bool = True,
    hidden_size: Sequence[int] = (64, 32, 64),
    hidden_dropout: float = 0.0,
    batchnorm: bool = True,
    activation: str = "relu",
    init: str = "glorot_uniform",
    network_kwds: Mapping[str, Any] | None = MappingProxyType({}),
    epochs: int = 300,
    reduce_lr: int | None = 10,
    early_stop: int | None = 15,
    batch_size: int = 32,
    optimizer: str = "RMSprop",
    random_state: int = 0,
    threads: int | None = None,
    learning_rate: float | None = None,
    verbose: bool = False,
    training_kwds: Mapping[str, Any] | None = MappingProxyType({}),
    return_model: bool = False,
    return_info: bool = False,
    copy: bool = False,
    check_counts: bool = True,
    faithful: bool = False,
) -> Any:
    """Denoise counts with a deep count autoencoder, or embed them: ``scanpy.external.pp.dca``, which scanpy removed.

    Eraslan et al. 2019, doi 10.1038/s41467-018-07931-2. As there, ``mode="denoise"`` puts the denoised counts into
    ``adata.X``; the raw counts are kept in ``adata.raw``, or, where that holds something else already, in
    ``adata.layers["dca_counts"]``. To have ``X`` left alone, use ``tl.autoencode(adata, "dca", denoise=True)``.

    Parameters
    ----------
    adata
        Raw counts in ``X``, (n_obs, n_vars), without all-zero genes. Cells without counts are left out of the fit.
    mode
        ``"denoise"``, or ``"latent"`` for the low-dimensional representation.
    ae_type
        ``"normal"``, ``"poisson"``, ``"nb"`` and ``"zinb"`` with or without ``"-conddisp"``, ``"-shared"``,
        ``"-fork"``, and ``"zinb-elempi"``: see :class:`anncoder.DCA`.
    normalize_per_cell, log1p, scale
        Whether the network reads counts divided by size factors, their logarithm, their z-score.
    hidden_size
        Widths of the hidden layers; the middle one is the latent.
    hidden_dropout, batchnorm, activation, init
        Of the hidden layers, by Keras's names.
    network_kwds
        ``l1_coef``, ``l2_coef``, ``l1_enc_coef``, ``l2_enc_coef``, ``ridge``, ``input_dropout``.
    epochs, reduce_lr, early_stop, batch_size, optimizer, learning_rate
        Passes over the data; epochs without improvement until the step size falls to a tenth, and until training
        stops (0 or None: never); cells in a minibatch; ``"RMSprop"`` or ``"Adam"``, and its step size.
    random_state
        Start of every random stream.
    threads
        CPU threads; None for torch's choice.
    verbose
        Show a progress bar.
    training_kwds
        ``clip_grad``, ``validation_split``.
    return_model, return_info
        Return the fitted :class:`anncoder.DCA`; write dispersion, dropout probability and loss history too.
    copy
        Leave ``adata`` alone and return a copy with the results.
    check_counts
        Refuse counts that are not integers.
    faithful
        As published: every mean starts at 1, the last cells are held out, the last weights are kept. Else every mean
        starts at its gene's, random cells are held out, and the best weights are kept.

    Returns
    -------
    AnnData, DCA, tuple or None
        The copy with ``copy=True``, the model with ``return_model=True``, a pair of both in this order with both.

    Sets the following fields:

    ``adata.X`` : (n_obs, n_vars) float32
        ``mode="denoise"``: expected counts at each cell's library size.
    ``adata.obsm["X_dca"]`` : (n_obs, n_latent) float32
        ``mode="latent"``: the centre layer before normalisation and activation.
    ``adata.raw``
        The raw counts, if there was none.
    ``adata.obs["size_factors"]``, ``adata.obs["n_counts"]``, ``adata.obs["dca_split"]``
        Library size over its median in the fitted cells, library size, ``"train"``. A column of that name that says
        something else is kept as ``"{name}_before_dca"``.
    ``adata.obsm["X_dca_dispersion"]`` or ``adata.var["X_dca_dispersion"]``, ``adata.obsm["X_dca_dropout"]``
        ``return_info=True``: inverse dispersion, of entries (or cells) or of genes; dropout probability.
    ``adata.uns["dca_loss_history"]`` : dict
        ``return_info=True``: ``loss``, ``val_loss``, ``lr`` of each epoch.

    Raises
    ------
    ConfigError
        A word or a value that does not exist here; a layer ``"dca_counts"`` that holds something else.
    InputError
        The data are not raw counts, or have all-zero genes.

    Examples
    --------
    >>> import anncoder as ac
    >>> adata = ac.datasets.simulate(n_obs=100, n_vars=80, seed=0)
    >>> ac.tl.dca(adata, mode="latent", epochs=2)
    >>> adata.obsm["X_dca"].shape
    (100, 32)
    """
    words = {word: value for word, value in locals().items() if word in OURS}
    if mode not in MODES:
        raise unknown_key(str(mode), MODES, where="mode")
    for where, given, known in (
        ("network_kwds", network_kwds, NETWORK_WORDS),
        ("training_kwds", training_kwds, TRAINING_WORDS),
    ):
        for word, value in (given or {}).items():
            if word not in known:
                raise unknown_key(str(word), sorted(known), where=where)
            words[word] = value
    model, training = in_our_words(words)
    _refuse_backed(adata, copy=copy)
    target = target_of(adata, copy=copy)
    _refuse_data_in_x(target, check_counts=check_counts)
    place = _place_for_counts(target, mode)
    refuse_size(target.n_obs * target.n_vars * 4 * (1 + 2 * return_info))
    model.fit(target, progress=verbose, **training | {"mask_var": None})
    found = results(model, target, denoise=mode == "denoise", latent=mode == "latent", info=return_info)
    sizes = library_sizes(read_matrix(target, None))
    write_obs(target, sizes, model, np.full(target.n_obs, "train"))
    _keep_counts(target, place)
    if found.denoised is not None:
        target.X = found.denoised
    if found.latent is not None:
        target.obsm["X_dca"] = found.latent
    if return_info:
        write_info(target, found, model)
    returned = (target,) * copy + (model,) * return_model
    return returned if len(returned) == 2 else (returned or (None,))[0]


def in_our_words(words: Mapping[str, Any]) -> tuple[DCA, dict[str, Any]]:
    """Return the model, unfitted, and the settings of its fit that DCA's words ask for (the keys of ``OURS``).

    Of the hidden layers the middle one is the latent; a patience or a clipping of 0 or None is none.

    Raises
    ------
    ConfigError
        A value does not exist here.
    """
    ours = {OURS[word]: value for word, value in words.items()}
    widths, optimizer = ours["n_hidden"], str(ours["optimizer"]).lower()
    if isinstance(widths, str) or not isinstance(widths, Sequence) or not len(widths):
        remedy = "hidden_size=(64, 32, 64) (--hiddensize 64,32,64)"
        raise ConfigError("bad-value", f"hidden_size = {widths!r} names no layers", "hidden_size", remedy)
    if optimizer not in OPTIMIZERS:
        raise unknown_key(str(ours["optimizer"]), sorted(OPTIMIZERS.values()), where="optimizer")
    centre = len(widths) // 2
    ours |= {
        "n_hidden": tuple(widths[:centre]),
        "n_latent": widths[centre],
        "n_hidden_decoder": tuple(widths[centre + 1 :]),
        "activation": ACTIVATIONS.get(str(ours["activation"]), ours["activation"]),
        "norm": "batch-shift" if ours["norm"] else "none",
        "transform": "log1p" if ours["transform"] else "normalize",
        "optimizer": optimizer,
        "early_stopping": bool(ours["patience"]),
        "patience": ours["patience"] or None,
    }
    ours |= {name: 0 for name in ("reduce_lr_patience", "clip_value") if not ours.get(name, True)}
    hyper, training = split_settings(ours, DCAConfig)
    return DCA(**hyper), training


def results(model: DCA, adata: anndata.AnnData, *, denoise: bool, latent: bool, info: bool) -> Results:
    """Return the results of a fitted model for raw counts; ``info`` is dispersion and dropout probability."""
    parts = model.config.parts
    by_gene = parts.dispersion == "gene"
    return Results(
        model.denoise(adata) if denoise else None,
        model.embed(adata) if latent else None,
        model.dispersion(None if by_gene else adata) if info and parts.dispersion else None,
        model.dropout_probability(adata) if info and parts.likelihood == "zinb" else None,
    )


def write_obs(adata: anndata.AnnData, sizes: Any, model: DCA, split: Any) -> None:
    """Write library sizes, (n_obs,), size factors (over the median of the fit) and the split, (n_obs,) names."""
    columns = {"size_factors": np.ones(len(sizes))}
    if model.config.size_factors:
        columns = {"size_factors": sizes / model.library_size_, "n_counts": sizes}
    for name, values in columns.items():
        if name in adata.obs and not _alike(adata.obs[name].to_numpy(), values):
            adata.obs[f"{name}_before_dca"] = adata.obs[name]
        adata.obs[name] = values
    adata.obs["dca_split"] = pd.Categorical(split)


def _alike(there: Any, values: Any) -> bool:
    # the same numbers, in the digits of a float32, as others may have stored them
    return there.dtype.kind in "biuf" and bool(np.allclose(there, values, rtol=1e-6, atol=0))


def write_info(adata: anndata.AnnData, found: Results, model: DCA) -> None:
    """Write dispersion, dropout probability and the history of the loss, as DCA does."""
    if found.dispersion is not None and found.dispersion.ndim == 1:
        adata.var["X_dca_dispersion"] = found.dispersion
    elif found.dispersion is not None:
        adata.obsm["X_dca_dispersion"] = found.dispersion
    if found.dropout is not None:
        adata.obsm["X_dca_dropout"] = found.dropout
    names = {"loss": "train_loss", "val_loss": "valid_loss", "lr": "learning_rate"}
    history = model.history_
    adata.uns["dca_loss_history"] = {k: history[v].to_numpy() for k, v in names.items() if v in history}


def refuse_data(adata: anndata.AnnData, *, check_counts: bool) -> None:
    """Raise an InputError unless ``X`` has raw counts, and some of every gene, whose z-score is else 0 / 0."""
    report = check(adata, integers=check_counts)
    report.raise_if_bad()
    for problem in report.problems:
        if problem.code == "empty-genes":
            remedy = "remove them: sc.pp.filter_genes(adata, min_counts=1)"
            raise InputError(problem.code, problem.what, problem.where, remedy)


def _refuse_data_in_x(adata: anndata.AnnData, *, check_counts: bool) -> None:
    # X is what is read here, as it was in scanpy's function: other counts have to be put there
    try:
        refuse_data(adata, check_counts=check_counts)
    except InputError as error:
        for slot in ("raw.X", *(slot_label(name) for name in adata.layers if name is not None)):
            if error.remedy == use(slot):
                put = "adata = adata.raw.to_adata()" if slot == "raw.X" else f"adata.X = adata.{slot}.copy()"
                error.remedy = f"{put}, which holds counts"
        raise


def _refuse_backed(adata: Any, *, copy: bool) -> None:
    if isinstance(adata, anndata.AnnData) and adata.isbacked and not copy:
        what = "this AnnData is backed by a file, whose X would be overwritten"
        raise InputError("unexpected-data", what, "adata", "adata = adata.to_memory(), or copy=True")


def _place_for_counts(adata: anndata.AnnData, mode: str) -> str:
    # "raw", the name of a layer, or nothing where the counts stand already; decided before the fit
    if adata.raw is None:
        return "raw"
    same_genes = adata.raw.var_names.equals(adata.var_names)
    if mode == "latent" or (same_genes and _equal(adata.raw.X, adata.X)):
        return ""
    if COUNTS_LAYER not in adata.layers:
        return COUNTS_LAYER
    if _equal(adata.layers[COUNTS_LAYER], adata.X):
        return ""
    what = f"the raw counts cannot be kept: adata.raw and adata.layers[{COUNTS_LAYER!r}] hold something else"
    remedy = "rename that layer, or use tl.autoencode(adata, 'dca', denoise=True), which leaves X alone"
    raise ConfigError("key-taken", what, f"layers[{COUNTS_LAYER!r}]", remedy)


def _keep_counts(adata: anndata.AnnData, place: str) -> None:
    if place == "raw":
        adata.raw = anndata.AnnData(adata.X.copy(), adata.obs[[]].copy(), adata.var.copy())
    elif place:
        adata.layers[place] = adata.X.copy()


def _equal(left: Any, right: Any) -> bool:
    return left.shape == right.shape and not (csr_matrix(left) - csr_matrix(right)).data.any()
