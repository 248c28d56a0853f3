"""Squared Euclidean cost between two point clouds, by blocks of rows, never stored.

Cost of a pair: ``C_ij = ||x_i - y_j||^2 / scale``, with the median of all pairs as the scale. Coupling of two clouds of
cells with dual potentials f and g, in units of the cost, and shares p and q of the cells (1/I and 1/J, or the weights
of metacells):

    P_ij = p_i q_j exp((f_i + g_j - C_ij) / epsilon)

Points are centred and scaled so that a block of exponents is one matrix product.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from anncoder.device import one_thread_here

T = TypeVar("T")
Array = np.ndarray[Any, Any]
Precision = Literal["auto", "float32", "float64"]

BLOCK = 2**18  # pairs of a block on the CPU: 1 MiB of float32, which stays in the cache of a core
BLOCK_GPU = 2**26
LEAST_ROWS = 16  # of a block: with fewer, the target is read too often
DOUBLE_BELOW = 5_000**2  # pairs, up to which blocks are float64: twice the time
SAMPLE = 2_000  # cells of each time from which the median of more pairs is taken
SMALLEST = {torch.float32: 1e-20, torch.float64: 1e-250}  # sums of exponentials below it may have lost digits


def squared_distances(x: Array, y: Array) -> Array:
    """Return ||x_i - y_j||^2, (n, m) float64, for points (n, d) and (m, d)."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(x, y, "sqeuclidean"))


def median_cost(x: Array, y: Array, seed: int = 0) -> float:
    """Return the median of all ||x_i - y_j||^2; of more than 2,000 cells a time, of 2,000 drawn at random.

    Parameters
    ----------
    x, y
        Points, (n, d) and (m, d).
    seed
        Start of the random stream, where cells are drawn.
    """
    rng = np.random.default_rng([seed, 41])
    x, y = (z if len(z) <= SAMPLE else z[rng.choice(len(z), SAMPLE, replace=False)] for z in (x, y))
    return float(np.median(squared_distances(x, y)))


class Cost:
    """Cost between two clouds of cells, as blocks of exponents.

    Parameters
    ----------
    x, y
        Points of the source, (I, d), and the target, (J, d).
    scale
        Divisor of the squared distances, such as :func:`median_cost`.
    epsilon
        Entropic regularisation, in units of the scaled cost.
    x_share, y_share
        Shares of the cells, (I,) and (J,), each of sum 1; None for equal ones.
    precision
        Of the blocks; ``"auto"`` is float64 up to 5,000 x 5,000 pairs, else float32. Potentials and sums over blocks
        are float64.
    device
        Of the blocks.
    block_rows
        Rows of a block; None for what suits the device.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        scale: float,
        epsilon: float,
        *,
        x_share: Array | None = None,
        y_share: Array | None = None,
        precision: Precision = "auto",
        device: torch.device | str = "cpu",
        block_rows: int | None = None,
    ) -> None:
        self.device, self.epsilon, self.scale = torch.device(device), epsilon, scale
        if precision == "auto":
            precision = "float64" if len(x) * len(y) <= DOUBLE_BELOW else "float32"
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self.block_rows = block_rows
        self.threads = torch.get_num_threads() if self.device.type == "cpu" else 1  # blocks computed at a time
        # -C / epsilon = x.y - |x|^2 / 2 - |y|^2 / 2 for points in these units; centred, the terms are small
        unit, centre = math.sqrt(2 / (scale * epsilon)), np.asarray(y, np.float64).mean(axis=0)
        self.x, self.half_x, self.log_p = self._side(x, centre, unit, x_share)
        self.y, self.half_y, self.log_q = self._side(y, centre, unit, y_share)

    def _side(self, points: Array, centre: Array, unit: float, share: Array | None) -> tuple[Tensor, Tensor, Tensor]:
        scaled = torch.from_numpy((np.asarray(points, np.float64) - centre) * unit).to(self.device, self.dtype)
        shares = np.full(len(points), 1 / len(points)) if share is None else np.asarray(share, np.float64)
        return scaled, scaled.double().square().sum(dim=1) / 2, torch.from_numpy(np.log(shares)).to(self.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells of source and target."""
        return len(self.x), len(self.y)

    def swapped(self) -> Cost:
        """Return the same cost with source and target exchanged."""
        other = object.__new__(Cost)
        other.__dict__.update(self.__dict__)
        other.x, other.half_x, other.log_p = self.y, self.half_y, self.log_q
        other.y, other.half_y, other.log_q = self.x, self.half_x, self.log_p
        return other

    def blocks(
        self, v: Tensor, compute: Callable[[slice, Tensor], T], rows: Tensor | None = None
    ) -> Iterator[tuple[slice, T]]:
        """Yield slices of rows and what is computed of ``log q_j + v_j - C_ij / epsilon + |x_i|^2 / 2``, (b, J).

        In order; on the CPU several blocks at a time, each by one thread, so that bits do not depend on their number.
        ``compute`` may change the block, and must not return it.

        Parameters
        ----------
        v
            g / epsilon, (J,) float64.
        compute
            Of the slice and the block.
        rows
            Positions in the source, None for all of them.
        """
        points = self.x if rows is None else self.x[rows]
        target, weights = self.y.T.contiguous(), (v + self.log_q - self.half_y).to(self.dtype)
        n = self.block_rows or max(LEAST_ROWS, (BLOCK if self.device.type == "cpu" else BLOCK_GPU) // len(self.y))
        buffers = threading.local()

        def computed(at: slice) -> tuple[slice, T]:
            if not hasattr(buffers, "block"):
                buffers.block = torch.empty((n, len(self.y)), dtype=self.dtype, device=self.device)
            block = points[at]
            with torch.no_grad():  # a setting of the thread
                return at, compute(at, torch.addmm(weights, block, target, out=buffers.block[: len(block)]))

        slices = (slice(start, start + n) for start in range(0, len(points), n))
        return in_order(computed, slices, self.threads)

    def log_sums(self, v: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return ``log sum_j q_j exp(v_j - C_ij / epsilon)`` of rows of the source, (n,) float64."""
        half = self.half_x if rows is None else self.half_x[rows]
        out = torch.empty_like(half)

        def log_sum(_: slice, block: Tensor) -> Tensor:
            top = block.amax(dim=1)
            return block.sub_(top[:, None]).exp_().sum(dim=1).double().log() + top.double()

        for at, sums in self.blocks(v, log_sum, rows):
            out[at] = sums
        return out - half


def in_order(compute: Callable[[slice], T], slices: Iterable[slice], n_threads: int) -> Iterator[T]:
    """Yield results in the order of the slices, several computed at a time, each by one thread."""
    if n_threads == 1:
        yield from map(compute, slices)
        return
    waiting: deque[Future[T]] = deque()
    for at in slices:
        waiting.append(_pool(n_threads).submit(compute, at))
        if len(waiting) > 2 * n_threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def add_to(total: Tensor, part: Tensor) -> None:
    """Add a tensor to another, in place, by the calling thread alone: torch's others would spin between blocks."""
    if total.device.type == "cpu":
        np.add(total.numpy(), part.numpy(), out=total.numpy())
    else:
        total += part


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, "anncoder-transport", initializer=one_thread_here)


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply matrices of float32 in float32 for the time of a block, whatever torch is set to; no gradients."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
