"""Sparse minibatches: taking rows, log-normalising them, and the gradient of the first layer's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from anncoder.kernels.threads import arguments, f32, f32_line, i32_line, i64_line, kernel, take_ticket
from anncoder.kernels.vector_math import EXACT, Scalar, Vector, log_64

F = np.float32
ROWS = 16  # rows a ticket
STRIP = 32  # columns of the first layer's gradient a ticket


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
def transposed_matmul(address: Scalar) -> None:
    """Write ``x.T @ dense``, (g, h), for a CSR x; a ticket a strip of ``STRIP`` columns of the result.

    Arrays, in order: indptr, indices, values of x; dense, (b, h); what is written. A strip is one thread's, small
    enough for its cache, and takes the cells one after the other: no sorting by genes, and one order of the sum,
    whatever the number of threads.
    """
    table = arguments(address)
    indptr, indices, values = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    dense, out = f32(table, 3), f32(table, 4)
    part = take_ticket(table)
    while part >= 0:
        first, last = part * STRIP, min(out.shape[1], (part + 1) * STRIP)
        for j in range(out.shape[0]):
            out[j, first:last] = F(0)
        for i in range(dense.shape[0]):
            line = dense[i, first:]
            for k in range(indptr[i], indptr[i + 1]):
                row = out[indices[k], first:]
                if last - first == STRIP:
                    _add_strip(row.ctypes.data, line.ctypes.data, values[k])
                else:
                    for c in range(last - first):
                        row[c] += values[k] * line[c]
        part = take_ticket(table)


@intrinsic
def _add_strip(_context: Any, _row: Any, _line: Any, _value: Any) -> Any:
    # row[:STRIP] += value * line[:STRIP] on addresses, in vectors: LLVM does not see by itself that row and line are
    # apart, and would check it for every stored value
    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), STRIP)
        row, line = (builder.inttoptr(a, vector.as_pointer()) for a in arguments[:2])
        splat = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[2], ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), STRIP), [0] * STRIP)
        splat = builder.shuffle_vector(splat, ir.Constant(vector, ir.Undefined), zeros)
        product = builder.fmul(splat, builder.load(line, align=4), flags=("contract",))
        builder.store(builder.fadd(builder.load(row, align=4), product, flags=("contract",)), row, align=4)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.float32), generate
