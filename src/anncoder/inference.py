"""What a fitted model computes of cells, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anncoder.data.genes import columns_of
from anncoder.device import threads_set
from anncoder.preparation import batches_in
from anncoder.refusals import refuse_scale
from anncoder.sources import PerCell, Source
from anncoder.types import Batch

if TYPE_CHECKING:
    from anncoder.autoencoder import Autoencoder

Array = np.ndarray[Any, Any]

BLOCK = 1024  # cells at a time: a (1024, n_vars) block is all that is ever dense


def expecting(model: Autoencoder, scale: str, genes: list[str] | None) -> Callable[[Batch], Tensor]:
    """Return what gives the expected expression of cells, (b, n_genes); see :meth:`Autoencoder.denoise`."""
    refuse_scale(model.config, scale)
    network, columns = model._network(), columns_of(model.var_names_, genes)

    def expected(batch: Batch) -> Tensor:
        mean: Tensor = network.denoise(batch)[:, columns]
        return mean * batch.size_factor.unsqueeze(1) if scale == "counts" else mean

    return expected


def latents(model: Autoencoder, source: Source) -> Iterator[Array]:
    """Yield the latent of cells, (b, k), as :func:`blocks` does; batches are read only if the encoder reads them."""
    return blocks(model, source, model._network().encode, by_batch=model.config.embeds_batches)


def blocks(
    model: Autoencoder, source: Source, compute: Callable[[Batch], Tensor], *, by_batch: bool | None = None
) -> Iterator[Array]:
    """Yield what is computed of the cells, (b, ...), in their order; all at once where they come in another.

    ``by_batch`` says whether the experimental batch of each cell is needed; None for as the model has it.
    """
    found = _located(model, source, compute, model.config.encodes_batches if by_batch is None else by_batch)
    if source.in_order:
        yield from (values for _, values in found)
    else:
        yield _put_in_order(found, source.n_obs)


def _located(
    model: Autoencoder, source: Source, compute: Callable[[Batch], Tensor], by_batch: bool
) -> Iterator[tuple[Array, Array]]:
    network = model._network()
    device = next(network.parameters()).device
    factors = (source.sizes / (model.library_size_ if model.reads_counts else 1)).astype(np.float32)
    codes, _ = batches_in(source, model.training_.batch_key if by_batch else None, model.batches_)
    loader = source.loader(PerCell(factors, codes), np.ones(source.n_obs, dtype=bool), batch_size=BLOCK)
    network.eval()
    with threads_set(None), torch.inference_mode():
        for batch in loader.epoch(0):
            yield batch.rows.numpy(), compute(batch.to(device)).cpu().numpy()


def _put_in_order(found: Iterator[tuple[Array, Array]], n_obs: int) -> Array:
    whole: Array | None = None
    for rows, values in found:
        if whole is None:
            whole = np.empty((n_obs, *values.shape[1:]), values.dtype)
        whole[rows] = values
    assert whole is not None
    return whole
