"""Inference: a network applied to cells by blocks, with bits free of the thread count."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anncoder.device import one_thread_here, usual_torch
from anncoder.types import Batch, Loader

Array = np.ndarray[Any, Any]
MOST_BLOCKS = 8  # computed at once,
MOST_BYTES = 2**28  # and no more than this, as dense matrices of cells x genes


def infer(network: nn.Module, loader: Loader, compute: Callable[[Batch], Tensor]) -> Iterator[tuple[Array, Array]]:
    """Yield row numbers, (b,), and the results of each minibatch, (b, ...), in the order of the loader.

    On the CPU several minibatches are computed at a time, each by one thread: the last bits of a product depend on the
    number of threads that share it.
    """
    device = next(network.parameters()).device
    network.eval()

    def computed(batch: Batch) -> tuple[Array, Array]:
        with usual_torch(), torch.inference_mode():  # settings of the computing thread, not of the caller's
            return batch.rows.numpy(), compute(batch.to(device)).cpu().numpy()

    n_threads = min(torch.get_num_threads(), MOST_BLOCKS) if device.type == "cpu" else 1
    if n_threads == 1:
        yield from map(computed, loader.epoch(0))
        return
    waiting: deque[Future[tuple[Array, Array]]] = deque()
    with ThreadPoolExecutor(n_threads, "anncoder-inference", initializer=one_thread_here) as pool:
        for batch in loader.epoch(0):
            waiting.append(pool.submit(computed, batch))
            dense = 4 * batch.counts.n_rows * batch.counts.n_vars
            if len(waiting) >= min(n_threads, MOST_BYTES // dense):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def put_in_order(found: Iterator[tuple[Array, Array]], n_obs: int) -> Array:
    """Return the results of :func:`infer` as one array, (n_obs, ...), in the order of the rows."""
    whole: Array | None = None
    for rows, values in found:
        if whole is None:
            whole = np.empty((n_obs, *values.shape[1:]), values.dtype)
        whole[rows] = values
    assert whole is not None
    return whole
