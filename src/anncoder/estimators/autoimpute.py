"""AutoImpute as an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.autoencoder import Autoencoder
from anncoder.config import TrainingConfig, TransformName, arguments
from anncoder.data.adata import meant, open_data
from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError
from anncoder.models.autoimpute import AutoImputeConfig
from anncoder.sources import MemorySource


class AutoImpute(Autoencoder):
    """Fitted to the non-zero values alone, to fill in the zeros.

    Talwar et al. 2018, doi 10.1038/s41598-018-34688-x; see docs/models/autoimpute.md. It is meant for data in which
    most zeros are missing values; it cannot say that a gene is off.

    Parameters
    ----------
    n_latent
        Units of the hidden layer, which is the latent; may be above the number of genes. The publication has 2,000.
    lambda_w
        Weight of the squared weights, halved, beside the squared error of the whole matrix; None for 100, and with
        ``faithful`` for the published 1.
    replace
        What ``denoise`` gives anew: ``"zeros"``, the others as observed, or ``"all"`` (as published).
    valid_mask
        Share of the values of the held-out cells that is hidden from the network and scored, to know when to stop; 0 to
        score all of them.
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here. ``"none"``: they are expression values, none
        of them negative.
    faithful
        The published start (standard normal weights and biases, input not centred) and training (RMSProp on the whole
        matrix); it does worse than leaving the zeros.
    """

    name = "autoimpute"
    config: AutoImputeConfig

    def __init__(
        self,
        *,
        n_latent: int = 200,
        lambda_w: float | None = None,
        replace: Literal["zeros", "all"] = "zeros",
        valid_mask: float = 0.1,
        transform: TransformName = "log1p",
        faithful: bool = False,
    ) -> None:
        super().__init__(AutoImputeConfig(**arguments(locals())))

    def masked_test(
        self,
        data: anndata.AnnData | str | Path,
        *,
        mask_frac: float = 0.1,
        seed: int = 0,
        layer: str | None = None,
        max_epochs: int | None = None,
    ) -> pd.DataFrame:
        """Hide some of the non-zero values, fit another model of these settings to the rest, and score what it imputes.

        All of it on the scale of the network input: log-normalised counts (hidden after the normalisation), or
        expression as it is.

        Parameters
        ----------
        data
            AnnData, or the path of one that fits into memory; never written to.
        mask_frac
            Share of the non-zero values that is hidden.
        seed
            Start of the mask; the fit has the seed of the model's own, if that is fitted, else this.
        layer
            Where the values are; None for where they were in ``fit``, ``"X"`` for ``X``.
        max_epochs
            Most passes over the data; None for those of the model's own fit.

        Returns
        -------
        DataFrame
            Rows ``model``, ``gene_mean`` (of the non-zero values that are left) and ``zeros`` (left as they are);
            columns ``rmse``, ``mae`` and ``nrmse`` (length of the error over length of the truth, which the publication
            calls NMSE).

        Raises
        ------
        ConfigError
            ``mask_frac`` is not between 0 and 1.
        InputError
            As :meth:`fit` does.
        """
        if not 0 < mask_frac < 1:
            raise ConfigError(
                f"mask_frac = {mask_frac:g} is not between 0 and 1",
                code="bad-value",
                where="mask_frac",
                remedy="give the share of values to hide, such as 0.1",
            )
        adata = open_data(data)
        matrix = self._network_input(adata, self.layer_ if layer is None and self.network_ is not None else layer)
        hidden = hidden_values(matrix, mask_frac, seed)
        kept = csr_matrix((matrix.data * ~hidden, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        kept.eliminate_zeros()
        model = AutoImpute(**{**dict(self.config), "transform": "none", "replace": "all"})
        settings = self._settings(seed)
        if max_epochs is not None:
            settings["max_epochs"] = max_epochs
        cells = anndata.AnnData(kept, obs=adata.obs, var=pd.DataFrame(index=adata.var_names))
        imputed = model.fit(cells, progress=False, **settings).denoise(cells, scale="normalized")
        return _scores(matrix, hidden, imputed, _gene_means(kept))

    def _settings(self, seed: int) -> dict[str, Any]:
        fitted = self.training_ if self.network_ is not None else TrainingConfig(seed=seed)
        return fitted.model_dump() | {"valid_stratify": None, "valid_groups": None}  # columns these cells may lack

    def _network_input(self, adata: anndata.AnnData, layer: str | None) -> csr_matrix:
        matrix = MemorySource(adata, meant(layer, adata.layers), counts=self.reads_counts, to_fit=True).matrix.copy()
        matrix.eliminate_zeros()
        if self.config.transform != "none":
            sizes = library_sizes(matrix)
            matrix.data /= np.repeat(sizes / np.median(sizes), np.diff(matrix.indptr)).astype(np.float32)
        if self.config.transform == "log1p":
            np.log1p(matrix.data, out=matrix.data)
        return matrix


def hidden_values(matrix: csr_matrix, share: float, seed: int) -> Any:
    """Return which stored values of a matrix a masked test hides, (nnz,) bool: exactly that share of them."""
    hidden = np.zeros(matrix.nnz, dtype=bool)
    chosen = np.random.default_rng([seed, 6]).choice(matrix.nnz, max(round(share * matrix.nnz), 1), replace=False)
    hidden[chosen] = True
    return hidden


def _gene_means(matrix: csr_matrix) -> Any:
    found = np.bincount(matrix.indices, minlength=matrix.shape[1])
    total = np.bincount(matrix.indices, weights=matrix.data.astype(np.float64), minlength=matrix.shape[1])
    # a gene of which nothing is left has the mean of all values
    return np.where(found > 0, total / np.maximum(found, 1), matrix.data.mean())


def _scores(matrix: csr_matrix, hidden: Any, imputed: Any, gene_mean: Any) -> pd.DataFrame:
    entries = matrix.tocoo()
    rows, columns, truth = (values[hidden] for values in (entries.row, entries.col, entries.data.astype(np.float64)))
    found = {"model": imputed[rows, columns], "gene_mean": gene_mean[columns], "zeros": np.zeros(len(truth))}
    errors = {name: values - truth for name, values in found.items()}
    return pd.DataFrame(
        {
            name: {
                "rmse": np.sqrt(np.square(error).mean()),
                "mae": np.abs(error).mean(),
                "nrmse": np.linalg.norm(error) / np.linalg.norm(truth),
            }
            for name, error in errors.items()
        }
    ).T
