"""Sparse minibatches: taking rows, log-normalising them, and their products with the first layer's weights."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from anncoder.kernels.vector_math import EXACT, Vector, log_64

F = np.float32


@njit(parallel=True, cache=True)
def take_rows(
    indptr: Vector, indices: Vector, values: Vector, rows: Vector, starts: Vector, columns: Vector, data: Vector
) -> None:
    """Copy rows of a CSR matrix to ``columns`` and ``data``; ``starts`` is (b + 1,) where each begins there."""
    for i in prange(rows.shape[0]):
        a, to = indptr[rows[i]], starts[i]
        for k in range(starts[i + 1] - to):
            columns[to + k] = indices[a + k]
            data[to + k] = values[a + k]


@njit(parallel=True, cache=True, fastmath=EXACT, error_model="numpy")
def log_normalize(indptr: Vector, values: Vector, size_factor: Vector, out: Vector) -> None:
    """Write ``log1p(values / size_factor)`` of the stored values."""
    for i in prange(size_factor.shape[0]):
        per_count = 1.0 / size_factor[i]
        for k in range(indptr[i], indptr[i + 1]):
            out[k] = log_64(1.0 + values[k] * per_count)


@njit(parallel=True, cache=True, fastmath=EXACT)
def transposed_matmul(indptr: Vector, indices: Vector, values: Vector, dense: Vector, out: Vector) -> None:
    """Write ``x.T @ dense``, (g, h), for a (b, h) dense.

    The matrix is turned to columns first, so that threads share the genes and no two write one row; the sum over the
    cells has one order, whatever the number of threads.
    """
    n, h = dense.shape
    g = out.shape[0]
    starts = np.zeros(g + 1, np.int64)
    for k in range(indptr[n]):
        starts[indices[k] + 1] += 1
    for j in range(g):
        starts[j + 1] += starts[j]
    rows, sorted_values, to = np.empty(indptr[n], np.int64), np.empty(indptr[n], F), starts[:-1].copy()
    for i in range(n):
        for k in range(indptr[i], indptr[i + 1]):
            j = indices[k]
            rows[to[j]], sorted_values[to[j]] = i, values[k]
            to[j] += 1
    for j in prange(g):
        for c in range(h):
            out[j, c] = F(0)
        for p in range(starts[j], starts[j + 1]):
            i, value = rows[p], sorted_values[p]
            for c in range(h):
                out[j, c] += value * dense[i, c]
