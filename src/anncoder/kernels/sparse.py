"""Sparse minibatches: taking rows, log-normalising them, and the gradient of the first layer's weights."""

from __future__ import annotations

import numpy as np
from numba import njit

from anncoder.kernels.threads import arguments, f32, f32_line, i32_line, i64_line, kernel, take_ticket
from anncoder.kernels.vector_math import EXACT, Scalar, Vector, log_64

F = np.float32
ROWS = 16  # rows a ticket
GENES = 64  # genes a ticket


def pieces(n: int, size: int) -> int:
    """Return how many tickets n things make."""
    return -(-n // size)


@kernel("i8", "i4", "f4", "i8", "i8", "i8", "f4")
def take_rows(address: Scalar) -> None:
    """Copy rows of a CSR matrix.

    Arrays, in order: indptr, indices, values of the matrix; rows, (b,); starts, (b + 1,) where each begins in the copy;
    columns and data of the copy, written.
    """
    table = arguments(address)
    indptr, indices, values = i64_line(table, 0), i32_line(table, 1), f32_line(table, 2)
    rows, starts = i64_line(table, 3), i64_line(table, 4)
    columns, data = i64_line(table, 5), f32_line(table, 6)
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(rows.shape[0], (part + 1) * ROWS)):
            a, to = indptr[rows[i]], starts[i]
            for k in range(starts[i + 1] - to):
                columns[to + k] = indices[a + k]
                data[to + k] = values[a + k]
        part = take_ticket(table)


@kernel("i8", "f4", "f4", "f4")
def log_normalize(address: Scalar) -> None:
    """Write ``log1p(values / size_factor)``; arrays, in order: indptr, values, size_factor, and what is written."""
    table = arguments(address)
    indptr, values, size_factor, out = i64_line(table, 0), f32_line(table, 1), f32_line(table, 2), f32_line(table, 3)
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(size_factor.shape[0], (part + 1) * ROWS)):
            _log_row(values[indptr[i] : indptr[i + 1]], 1.0 / size_factor[i], out[indptr[i] : indptr[i + 1]])
        part = take_ticket(table)


@njit(fastmath=EXACT, error_model="numpy")
def _log_row(values: Vector, per_count: Scalar, out: Vector) -> None:
    for k in range(values.shape[0]):
        out[k] = log_64(1.0 + values[k] * per_count)


@kernel("i8", "i8", "f4", "f4", "f4")
def columns_matmul(address: Scalar) -> None:
    """Write ``x.T @ dense``, (g, h), for an x by columns.

    Arrays, in order: starts, (g + 1,), rows and values of x by columns; dense, (b, h); what is written. The sum over
    the cells has one order, whatever the number of threads.
    """
    table = arguments(address)
    starts, rows, values = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    dense, out = f32(table, 3), f32(table, 4)
    part = take_ticket(table)
    while part >= 0:
        for j in range(part * GENES, min(out.shape[0], (part + 1) * GENES)):
            for c in range(out.shape[1]):
                out[j, c] = F(0)
            for p in range(starts[j], starts[j + 1]):
                i, value = rows[p], values[p]
                for c in range(out.shape[1]):
                    out[j, c] += value * dense[i, c]
        part = take_ticket(table)


@njit(cache=True)
def by_columns(indptr: Vector, indices: Vector, values: Vector, starts: Vector, rows: Vector, out: Vector) -> None:
    """Turn CSR into CSC: write starts, (g + 2,) zeros before, of which the first g + 1 count, rows and values."""
    for k in range(indptr[-1]):
        starts[indices[k] + 2] += 1
    for j in range(2, starts.shape[0]):
        starts[j] += starts[j - 1]
    for i in range(indptr.shape[0] - 1):
        for k in range(indptr[i], indptr[i + 1]):
            at = starts[indices[k] + 1]
            rows[at], out[at] = i, values[k]
            starts[indices[k] + 1] = at + 1
