"""Results of a fitted model by blocks of cells: latents and expected expression.

``model`` is an autoencoder of :mod:`anncoder.models`: its network, genes, library size and batches are read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from anncoder.config import NetworkConfig, unknown_key
from anncoder.data.adata import batch_name
from anncoder.data.genes import columns_of
from anncoder.data.sources import PerCell, Source
from anncoder.data.summary import size_factors
from anncoder.errors import ConfigError
from anncoder.training.inference import infer, put_in_order
from anncoder.training.prepare import batches_in, covariates_in
from anncoder.types import Batch

Scale = Literal["counts", "normalized", "log1p"]
Array = np.ndarray[Any, np.dtype[np.float32]]

BLOCK = 1024  # cells at a time: a few (1024, n_vars) blocks are all that is ever dense


def refuse_no_decoder(config: NetworkConfig) -> None:
    """Raise a ConfigError if the model cannot give expected expression."""
    if not config.decodes:
        what = "the model has no decoder: it gives a latent, not expected expression"
        raise ConfigError("no-decoder", what, "denoise", "use a model that reconstructs, such as CountAutoencoder")


def refuse_scale(config: NetworkConfig, scale: str) -> None:
    """Raise a ConfigError unless the model can give expected expression, and on this scale."""
    refuse_no_decoder(config)
    if scale not in get_args(Scale) or (scale != "normalized" and not config.reads_counts):
        allowed = "'counts', 'normalized' or 'log1p'" if config.reads_counts else "'normalized' (transform='none')"
        raise ConfigError("bad-value", f"scale = {scale!r} is not {allowed}", "scale", f"pass scale={allowed}")


def expecting(
    model: Any,
    scale: str,
    genes: list[str] | None,
    batch: object | None = None,
    covariates: Mapping[str, Any] | None = None,
) -> Callable[[Batch], Tensor]:
    """Return the function from a minibatch to expected expression, (b, n_genes); see ``denoise``."""
    refuse_scale(model.config, scale)
    network, columns = model._network(), columns_of(model.var_names_, genes)
    code = None if batch is None else _code_of(model, batch)
    at = _set_to(model, covariates) if covariates else {}

    def expected(cells: Batch) -> Tensor:
        decoded = cells if code is None else cells._replace(batch_code=torch.full_like(cells.rows, code))
        if at and cells.covariates is not None:
            values = cells.covariates.clone()
            values[:, list(at)] = values.new_tensor(list(at.values()))
            decoded = decoded._replace(covariates=values)
        whole: Tensor = network.denoise(cells) if decoded is cells else network.denoise_as(cells, decoded)
        mean = whole[:, columns]
        if scale != "counts":
            return mean.log1p() if scale == "log1p" else mean
        filled = cells.counts.row_sums() > 0  # a cell without counts has a library size of 0, but no such size factor
        return mean * (cells.size_factor * filled).unsqueeze(1)

    return expected


def observed(model: Any, adata: Any) -> Array:
    """Return the expected counts at the median library size, zero inflation included, (n_obs, n_vars) float32."""
    network = model._network()
    found: Array = model._apply(adata, getattr(network, "observed", network.denoise), "X", 0.0)
    return found


def denoised(model: Any, source: Source, compute: Callable[[Batch], Tensor], batch: object | None) -> Iterator[Array]:
    """Yield expected expression, block by block; ``compute`` is of :func:`expecting`, for the same ``batch``."""
    by_batch = None if batch is None else model.config.embeds_batches
    return blocks(model, source, compute, by_batch=by_batch, with_covariates=True)


def latents(model: Any, source: Source) -> Iterator[Array]:
    """Yield the latent of cells, (b, k), as :func:`blocks`; batches are read only if the encoder reads them."""
    read = model.config.embeds_batches
    return blocks(model, source, model._network().encode, by_batch=read, with_covariates=read)


def blocks(
    model: Any,
    source: Source,
    compute: Callable[[Batch], Tensor],
    *,
    by_batch: bool | None = None,
    with_covariates: bool = True,
) -> Iterator[Array]:
    """Yield a function of minibatches, (b, ...), in the order of the cells; all at once where a reader has its own.

    ``by_batch``: whether the experimental batch of each cell is read; None for the model's ``encodes_batches``.
    ``with_covariates``: whether its covariates are, if the model has any.
    """
    by_batch = model.config.encodes_batches if by_batch is None else by_batch
    factors = size_factors(source.sizes, model.library_size_ if model.reads_counts else 1.0)
    key = model.training_.batch_key if by_batch else None
    codes, _ = batches_in(source, key, model.batches_, others=model.config.other_batches)
    values = covariates_in(source, model.covariates_) if with_covariates else None
    loader = source.loader(PerCell(factors, codes, values), np.ones(source.n_obs, dtype=bool), batch_size=BLOCK)
    found = infer(model._network(), loader, compute)
    if source.in_order:
        yield from (values for _, values in found)
    else:
        yield put_in_order(found, source.n_obs)


def _set_to(model: Any, covariates: Mapping[str, Any]) -> dict[int, float]:
    if not model.covariates_.keys:
        what = f"covariates = {covariates!r}, but this model was fitted without"
        remedy = "leave covariates out, or fit the model with categorical_keys or continuous_keys"
        raise ConfigError("covariates-unused", what, "covariates", remedy)
    found: dict[int, float] = model.covariates_.at(covariates)
    return found


def _code_of(model: Any, batch: object) -> int:
    if not model.config.decodes_as or not model.batches_:
        what = f"batch = {batch!r}, but this model (as it was fitted) does not decode by batch"
        remedy = "leave batch out, or fit the model with batch_key"
        raise ConfigError("batches-unused", what, "batch", remedy)
    name = batch_name(batch)
    if name == "mean" and name not in model.batches_ and model.config.other_batches:
        return len(model.batches_)
    if name not in model.batches_:
        raise unknown_key(name, model.batches_, where="batch")
    return int(model.batches_.index(name))
