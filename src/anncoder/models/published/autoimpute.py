"""AutoImpute: one wide hidden layer, fitted to the non-zero values to impute zeros.

Talwar et al. 2018, doi 10.1038/s41598-018-34688-x: ``||M * (X - X_hat)||^2 + lambda / 2 (||W_e||^2 + ||W_d||^2)`` over
the whole matrix of log-normalised expression X, M its non-zero entries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import anndata
import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from anncoder.config import LatentUnits, NetworkConfig, Probability, TrainingConfig, TransformName, Weight, arguments
from anncoder.data.adata import genes_of, open_data, resolve_layer
from anncoder.data.sources import MemorySource
from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.models.base import Autoencoder
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import linear
from anncoder.nn.sparse import SparseLinear
from anncoder.types import CSR, Batch, Loader, Loss, Noise, Shape, Summary

WHOLE = 1 << 20  # cells: a minibatch as large as the data, for all but the largest


class AutoImputeConfig(NetworkConfig):
    """Hyper-parameters of :class:`anncoder.AutoImpute`."""

    compresses: ClassVar[bool] = False

    n_latent: LatentUnits = 200
    lambda_w: Annotated[
        Weight | None, Field(description="weight of the squared weights; null for 100, and with faithful for 1")
    ] = None
    replace: Annotated[
        Literal["zeros", "all"], Field(description="values that denoise gives anew; the others stay as observed")
    ] = "zeros"
    valid_mask: Annotated[
        Probability,
        Field(description="share of the values of held-out cells that are hidden, and scored; 0 to score all"),
    ] = 0.1
    faithful: Annotated[bool, Field(description="the published initial weights and training, with their quirks")] = (
        False
    )

    @property
    def weight_penalty(self) -> float:
        """Weight of the squared weights."""
        if self.lambda_w is None:
            return 1.0 if self.faithful else 100.0
        return self.lambda_w

    @property
    def defaults(self) -> dict[str, Any]:
        """Adam on minibatches; with ``faithful=True`` RMSProp on the whole matrix, all cells fitted."""
        if not self.faithful:
            return {**super().defaults, "batch_size": 64, "learning_rate": 1e-3}
        published = {"max_epochs": 7000, "batch_size": WHOLE, "optimizer": "rmsprop", "learning_rate": 1e-4}
        published |= {"epsilon": 1e-10, "clip_norm": 0.0, "valid_fraction": 0.0, "keep_best": False}
        return {**super().defaults, **published, "patience": 1, "reduce_lr_patience": 0}


class AutoImputeNetwork(nn.Module):
    """One sigmoid layer, a linear decoder and the masked objective; see :mod:`anncoder.models` for the interface.

    The loss is the published one over the numbers of fitted cells and genes.
    """

    n_fitted: Tensor

    def __init__(self, config: AutoImputeConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, self.noise = config, noise
        self.inputs = LogNormalize(config.transform)
        self.standardize = Standardize(shape.n_vars, scaled=False)
        self.hidden = SparseLinear(shape.n_vars, config.n_latent, noise)
        self.output = linear(config.n_latent, shape.n_vars, noise)
        self.register_buffer("n_fitted", torch.ones(()))
        if config.faithful:
            for parameter in self.parameters():
                if not parameter.is_meta:
                    nn.init.normal_(parameter, generator=noise.on(parameter.device))

    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Start the output at the mean of the non-zero values of each gene, and centre the input.

        Raises
        ------
        InputError
            There are negative values: zeros are then not missing values.
        """
        if summary.smallest < 0:
            what = (
                f"the smallest value is {summary.smallest:g}: zeros mean missing values here, and the others are above"
            )
            remedy = "give raw counts, or log-normalised expression that is neither centred nor scaled"
            raise InputError("negative", what, "the fitted cells", remedy)
        self.n_fitted.fill_(summary.n_obs)
        if not self.config.faithful:
            self.standardize.mean.copy_(summary.x_mean)
            with torch.no_grad():
                self.output.bias.copy_(_nonzero_means(self.inputs, cells, summary.x_mean.numel()))

    def finish(self, batch: Batch) -> None:
        """Do nothing: the hidden layer is the latent, in its own axes."""

    def forward(self, batch: Batch) -> Loss:
        """Return the squared error of the non-zero values and the penalty on the weights.

        In evaluation a share of the values is hidden from the network, and they are scored in place of all: an
        autoencoder as wide as this one can copy its input. They are a function of the minibatch.
        """
        x = self.inputs(batch)
        seen, scored = self._hide(x, batch) if not self.training and self.config.valid_mask else (x, x)
        error = nonzero_error(scored, self.output(self._encode(seen))).sum()
        whole = x.values.count_nonzero() / scored.values.count_nonzero().clamp(min=1)
        n_entries = x.n_rows * x.n_vars
        squares = self.hidden.weight.square().sum() + self.output.weight.square().sum()
        weights = self.config.weight_penalty / 2 * squares
        terms = {"reconstruction": error * whole / n_entries, "weights": weights / (self.n_fitted * x.n_vars)}
        return Loss.of(terms)

    def encode(self, batch: Batch) -> Tensor:
        """Return the hidden layer, (b, k), between 0 and 1."""
        return self._encode(self.inputs(batch))

    def denoise(self, batch: Batch) -> Tensor:
        """Return expression at the median library size, (b, g): imputed where it is zero, or everywhere."""
        imputed = self.inputs.inverse(self.output(self.encode(batch)))
        if self.config.replace == "all":
            return imputed
        counts, flat = batch.counts, batch.counts.flat()
        per_cell = 1 if self.config.transform == "none" else batch.size_factor[counts.rows()]
        given = imputed.reshape(-1)
        given[flat] = torch.where(counts.values != 0, counts.values / per_cell, given[flat])
        return given.view_as(imputed)

    def _encode(self, x: CSR) -> Tensor:
        latent: Tensor = self.hidden(x, self.standardize.mean).sigmoid()
        return latent

    def _hide(self, x: CSR, batch: Batch) -> tuple[CSR, CSR]:
        # each value is either an input of the network, or hidden and scored
        generator = Noise(self.noise.seed + int(batch.rows[0])).on(x.values.device)
        hidden = torch.rand(x.values.shape, generator=generator, device=x.values.device) < self.config.valid_mask
        return x.with_values(x.values * ~hidden), x.with_values(x.values * hidden)


def nonzero_error(x: CSR, reconstruction: Tensor) -> Tensor:
    """Return the squared error of the non-zero values of each cell, (b,); zeros, stored or not, count for nothing."""
    error = (reconstruction.reshape(-1)[x.flat()] - x.values).square()
    return x.with_values(error * (x.values != 0)).row_sums()


def _nonzero_means(inputs: LogNormalize, cells: Loader, n_vars: int) -> Tensor:
    # (g,); 0 for a gene without any
    total = torch.zeros(n_vars, dtype=torch.float64)
    found = torch.zeros_like(total)
    for batch in cells.epoch(0):
        x: CSR = inputs(batch)
        total += torch.bincount(x.indices, weights=x.values.double(), minlength=n_vars)
        found += torch.bincount(x.indices, weights=(x.values != 0).double(), minlength=n_vars)
    return (total / found.clamp(min=1)).float()


class AutoImpute(Autoencoder):
    """An autoencoder fitted to the non-zero values alone, to impute the zeros.

    Talwar et al. 2018, doi 10.1038/s41598-018-34688-x; see docs/models/autoimpute.md. It is meant for data in which
    most zeros are missing values; it cannot tell that a gene is off.

    Parameters
    ----------
    n_latent
        Units of the hidden layer, which is the latent; may be above the number of genes. The publication has 2,000.
    lambda_w
        Weight of the squared weights, halved, beside the squared error of the whole matrix; None for 100, and with
        ``faithful`` for the published 1.
    replace
        Values that ``denoise`` imputes: ``"zeros"``, the others as observed, or ``"all"`` (as published).
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
    config_class, network_class = AutoImputeConfig, AutoImputeNetwork
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
        """Hide some non-zero values, fit another model of these settings to the rest, and score the imputed ones.

        All of it on the scale of the network input: log-normalised counts (hidden after the normalisation), or
        expression as it is.

        Parameters
        ----------
        data
            AnnData, or the path of one that fits into memory; never written to.
        mask_frac
            Share of the non-zero values that is hidden.
        seed
            Start of the mask; the fit has the seed of this model's fit, or this one if it is not fitted.
        layer
            Where the values are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
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
            ``mask_frac`` is not between 0 and 1. Else as :meth:`fit`.
        """
        if not 0 < mask_frac < 1:
            what = f"mask_frac = {mask_frac:g} is not between 0 and 1"
            raise ConfigError("bad-value", what, "mask_frac", "give the share of values to hide, such as 0.1")
        adata = open_data(data)
        layer = resolve_layer(self.layer_ if layer is None and self.network_ is not None else layer, adata.layers)
        matrix = self._network_input(adata, layer)
        hidden = hidden_values(matrix, mask_frac, seed)
        left = csr_matrix((matrix.data * ~hidden, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        left.eliminate_zeros()
        model = AutoImpute(**{**dict(self.config), "transform": "none", "replace": "all"})
        fitted = self.training_ if self.network_ is not None else TrainingConfig(seed=seed)
        # without columns that these cells may lack
        settings = fitted.model_dump() | dict.fromkeys(("valid_stratify", "valid_groups", "mask_var"))
        if max_epochs is not None:
            settings["max_epochs"] = max_epochs
        cells = anndata.AnnData(left, obs=adata.obs, var=pd.DataFrame(index=genes_of(adata, layer)))
        imputed = model.fit(cells, progress=False, **settings).denoise(cells, scale="normalized")
        return _scores(matrix, hidden, imputed, _gene_means(left))

    def _network_input(self, adata: anndata.AnnData, layer: str | None) -> csr_matrix:
        matrix = MemorySource(adata, layer, counts=self.reads_counts, to_fit=True).matrix.copy()
        matrix.eliminate_zeros()
        if self.config.transform != "none":
            sizes = library_sizes(matrix)
            matrix.data /= np.repeat(sizes / np.median(sizes[sizes > 0]), np.diff(matrix.indptr)).astype(np.float32)
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
    # a gene without values left has the mean of all values
    return np.where(found > 0, total / np.maximum(found, 1), matrix.data.mean())


def _scores(matrix: csr_matrix, hidden: Any, imputed: Any, gene_mean: Any) -> pd.DataFrame:
    entries = matrix.tocoo()
    rows, columns, truth = (values[hidden] for values in (entries.row, entries.col, entries.data.astype(np.float64)))
    found = {"model": imputed[rows, columns], "gene_mean": gene_mean[columns], "zeros": np.zeros(len(truth))}
    errors = {name: values - truth for name, values in found.items()}
    scores = {
        "rmse": {name: np.sqrt(np.square(error).mean()) for name, error in errors.items()},
        "mae": {name: np.abs(error).mean() for name, error in errors.items()},
        "nrmse": {name: np.linalg.norm(error) / np.linalg.norm(truth) for name, error in errors.items()},
    }
    return pd.DataFrame(scores)


MODEL = AutoImpute
