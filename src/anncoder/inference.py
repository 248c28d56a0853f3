"""What a fitted model computes of cells, block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import torch
from torch import Tensor

from anncoder.config import unknown_key
from anncoder.data.adata import batch_name
from anncoder.data.genes import columns_of
from anncoder.device import one_thread_here, usual_torch
from anncoder.errors import ConfigError
from anncoder.preparation import batches_in
from anncoder.refusals import refuse_scale
from anncoder.sources import PerCell, Source
from anncoder.types import Batch

if TYPE_CHECKING:
    from anncoder.autoencoder import Autoencoder

Array = np.ndarray[Any, Any]

BLOCK = 1024  # cells at a time: a few (1024, n_vars) blocks are all that is ever dense
MOST_BLOCKS = 8  # computed at once


def expecting(
    model: Autoencoder, scale: str, genes: list[str] | None, batch: object | None = None
) -> Callable[[Batch], Tensor]:
    """Return what gives the expected expression of cells, (b, n_genes); see :meth:`Autoencoder.denoise`."""
    refuse_scale(model.config, scale)
    network, columns = model._network(), columns_of(model.var_names_, genes)
    code = None if batch is None else _code_of(model, batch)

    def expected(cells: Batch) -> Tensor:
        whole: Tensor = network.denoise(cells) if code is None else network.denoise_as(cells, code)
        mean = whole[:, columns]
        return mean * cells.size_factor.unsqueeze(1) if scale == "counts" else mean

    return expected


def observed(model: Autoencoder, adata: anndata.AnnData) -> Array:
    """Return what is expected to be counted in each cell, at the median library size, (n_obs, n_vars) float32.

    That is :meth:`Autoencoder.denoise` but for zero inflation, which takes its share of each expectation here.
    """
    network = model._network()
    source = model._source(adata, "X", 0.0)
    return np.concatenate(list(blocks(model, source, getattr(network, "observed", network.denoise))))


def denoised(
    model: Autoencoder, source: Source, compute: Callable[[Batch], Tensor], batch: object | None
) -> Iterator[Array]:
    """Yield what :func:`expecting` gives of the cells; where it is of a chosen batch, their own is not needed."""
    return blocks(model, source, compute, by_batch=None if batch is None else model.config.embeds_batches)


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

    def computed(batch: Batch) -> tuple[Array, Array]:
        with usual_torch(), torch.inference_mode():  # of the thread that computes, not of the caller's
            return batch.rows.numpy(), compute(batch.to(device)).cpu().numpy()

    return _in_turn(computed, loader.epoch(0)) if device.type == "cpu" else map(computed, loader.epoch(0))


def _in_turn(compute: Callable[[Batch], Any], batches: Iterator[Batch]) -> Iterator[Any]:
    """Yield what is computed of each minibatch on the CPU: several at a time, each by one thread.

    The last bits of a product depend on how many threads share it. A block that one thread computes has the same bits
    on any number of them, so a model says the same of a cell wherever it is loaded.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield from map(compute, batches)
        return
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(min(n_threads, MOST_BLOCKS), "anncoder-inference", initializer=one_thread_here) as pool:
        for batch in batches:
            waiting.append(pool.submit(compute, batch))
            if len(waiting) >= min(n_threads, MOST_BLOCKS):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _code_of(model: Autoencoder, batch: object) -> int:
    if not model.config.decodes_as or not model.batches_:
        raise ConfigError(
            f"batch = {batch!r}, but this model (as it was fitted) does not decode by batch",
            code="batches-unused",
            where="batch",
            remedy="leave batch out, or fit a VariationalAutoencoder with batch_key",
        )
    name = batch_name(batch)
    if name not in model.batches_:
        raise unknown_key(name, model.batches_, where="batch")
    return model.batches_.index(name)


def _put_in_order(found: Iterator[tuple[Array, Array]], n_obs: int) -> Array:
    whole: Array | None = None
    for rows, values in found:
        if whole is None:
            whole = np.empty((n_obs, *values.shape[1:]), values.dtype)
        whole[rows] = values
    assert whole is not None
    return whole
