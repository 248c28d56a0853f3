"""Sparse kernels (numba): take rows, log-normalise, first layer's weight gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from anncoder.kernels.cpu.threads import arguments, f32, f32_line, i32_line, i64_line, kernel, take_ticket
from anncoder.kernels.cpu.vector_math import EXACT, Scalar, Vector, add_row, exp_minus, log_64

F = np.float32
ROWS = 16  # rows a ticket
STRIP = 32  # columns of the first layer's gradient a ticket
STRIP_TYPE = ir.VectorType(ir.FloatType(), STRIP)
GENES = 128  # rows of the gradient at a time: with STRIP columns half of a core's nearest cache


def pieces(n: int, size: int) -> int:
    """Return the number of tickets for n items."""
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


@kernel("i8", "i8", "i8")
def rows_fit(address: Scalar) -> None:
    """Write 1 where rows follow each other and columns are those of the matrix, else 0; a single ticket.

    Arrays, in order: indptr, indices; the number of columns, replaced by the answer, (1,).
    """
    table = arguments(address)
    indptr, indices, answer = i64_line(table, 0), i64_line(table, 1), i64_line(table, 2)
    if take_ticket(table) < 0:
        return
    n_vars, last = np.uint64(answer[0]), indptr.shape[0] - 1
    wrong = (indptr[0] != 0) + (indptr[last] != indices.shape[0])
    for i in range(last):
        wrong += indptr[i] > indptr[i + 1]
    for k in range(indices.shape[0]):
        wrong += np.uint64(indices[k]) >= n_vars  # read as unsigned, a negative one is beyond them too
    answer[0] = wrong == 0


@kernel("i8", "f4", "f4", "f4")
def log_normalize(address: Scalar) -> None:
    """Write ``log1p(values / size_factor)``; arrays, in order: indptr, values, size_factor, and the result."""
    table = arguments(address)
    indptr, values, size_factor, out = i64_line(table, 0), f32_line(table, 1), f32_line(table, 2), f32_line(table, 3)
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(size_factor.shape[0], (part + 1) * ROWS)):
            _log_row(values[indptr[i] : indptr[i + 1]], 1.0 / size_factor[i], out[indptr[i] : indptr[i + 1]])
        part = take_ticket(table)


@kernel("i8", "i8", "f4", "i8", "f4", "f4")
def scale_by_group(address: Scalar) -> None:
    """Write the values times the factors of the gene in the group of the cell.

    Arrays, in order: indptr, indices, values of x, (b, g); the group of each cell, (b,); factors, (groups, g); the
    result, (nnz,).
    """
    table = arguments(address)
    indptr, indices, values = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    groups, factors, out = i64_line(table, 3), f32(table, 4), f32_line(table, 5)
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(groups.shape[0], (part + 1) * ROWS)):
            of_group = factors[groups[i]]
            for k in range(indptr[i], indptr[i + 1]):
                out[k] = values[k] * of_group[indices[k]]
        part = take_ticket(table)


@kernel("i8", "i8", "f4", "f4", "f4", "f4", "f4")
def scale_by_effects(address: Scalar) -> None:
    """Write the values over the exponential of the effects of covariates on the gene, in sum within limits.

    Arrays, in order: indptr, indices, values of x, (b, g); covariates of each cell, (b, c); effects, (g, c); the
    largest sum, (1,); the result, (nnz,).
    """
    table = arguments(address)
    indptr, indices, values = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    covariates, effects = f32(table, 3), f32(table, 4)
    largest, out = f32_line(table, 5)[0], f32_line(table, 6)
    part = take_ticket(table)
    while part >= 0:
        for i in range(part * ROWS, min(covariates.shape[0], (part + 1) * ROWS)):
            for k in range(indptr[i], indptr[i + 1]):
                of_gene, total = effects[indices[k]], F(0)
                for j in range(covariates.shape[1]):
                    total += covariates[i, j] * of_gene[j]
                out[k] = values[k] * exp_minus(min(max(total, -largest), largest), F(0))
        part = take_ticket(table)


@njit(fastmath=EXACT, error_model="numpy")
def _log_row(values: Vector, per_count: Scalar, out: Vector) -> None:
    for k in range(values.shape[0]):
        out[k] = log_64(1.0 + values[k] * per_count)


@kernel("i8", "i8", "f4", "f4", "f4", "f4", "f4")
def transposed_matmul(address: Scalar) -> None:
    """Write ``(x - mean).T @ dense``, (g, h), for a CSR x, and the sums of the columns of ``dense``.

    Arrays, in order: indptr, indices, values of x; mean, (g,), or (0,) for none; dense, (b, h); the results, (g, h)
    and (h,). A ticket is a strip of ``STRIP`` columns, which one thread computes gene block by gene block, so that the
    sums stay in its nearest cache (if the columns of x are sorted within a row; no result depends on that). The cells
    come one after the other: no sorting by genes, and one order of the sum for any number of threads.
    """
    table = arguments(address)
    indptr, indices, values = i64_line(table, 0), i64_line(table, 1), f32_line(table, 2)
    mean, dense, out, sums = f32_line(table, 3), f32(table, 4), f32(table, 5), f32_line(table, 6)
    n, g = dense.shape[0], out.shape[0]
    reached = np.empty(n, np.int64)
    part = take_ticket(table)
    while part >= 0:
        first, last = part * STRIP, min(out.shape[1], (part + 1) * STRIP)
        sums[first:last] = F(0)
        for i in range(n):
            reached[i] = indptr[i]
            add_row(sums[first:last], dense[i, first:last])
        for block in range(0, g, GENES):
            end = min(g, block + GENES)
            for j in range(block, end):
                _put_scaled(out[j, first:last], sums[first:last], -mean[j] if mean.shape[0] else F(0))
            for i in range(n):
                line, k, stop = dense[i, first:], reached[i], indptr[i + 1]
                if last - first == STRIP:
                    reached[i] = _add_strips(
                        out[0, first:].ctypes.data,
                        4 * out.shape[1],
                        line.ctypes.data,
                        indices.ctypes.data,
                        values.ctypes.data,
                        k,
                        stop,
                        end,
                    )
                    continue
                while k < stop and indices[k] < end:
                    row = out[indices[k], first:]
                    for c in range(last - first):
                        row[c] += values[k] * line[c]
                    k += 1
                reached[i] = k
        part = take_ticket(table)


@njit(fastmath=EXACT)
def _put_scaled(out: Vector, row: Vector, factor: Scalar) -> None:
    for c in range(out.shape[0]):
        out[c] = factor * row[c]


@intrinsic
def _add_strips(
    _context: Any, _out: Any, _stride: Any, _line: Any, _indices: Any, _values: Any, _k: Any, _stop: Any, _end: Any
) -> Any:
    # out[indices[k], :STRIP] += values[k] * line[:STRIP] for the entries of a row from k on, up to the first with a
    # column >= end, which is returned. On addresses, the line in registers; stride of the rows of out in bytes. LLVM by
    # itself would not know that out and line do not overlap, and numba checks for negative indices.
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        out_at, stride, line_at, indices_at, values_at, start, stop, end = arguments
        indices = builder.inttoptr(indices_at, ir.IntType(64).as_pointer())
        values = builder.inttoptr(values_at, ir.FloatType().as_pointer())
        line = builder.load(builder.inttoptr(line_at, STRIP_TYPE.as_pointer()), align=4)
        before = builder.block
        head, look, body, done = (
            builder.append_basic_block(f"strips.{name}") for name in ("head", "look", "body", "done")
        )
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(ir.IntType(64))
        k.add_incoming(start, before)
        builder.cbranch(builder.icmp_signed("<", k, stop), look, done)
        builder.position_at_end(look)
        gene = builder.load(builder.gep(indices, [k]))
        builder.cbranch(builder.icmp_signed("<", gene, end), body, done)
        builder.position_at_end(body)
        row = builder.inttoptr(builder.add(out_at, builder.mul(gene, stride)), STRIP_TYPE.as_pointer())
        value = builder.load(builder.gep(values, [k]))
        one = builder.insert_element(ir.Constant(STRIP_TYPE, ir.Undefined), value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), STRIP), [0] * STRIP)
        everywhere = builder.shuffle_vector(one, ir.Constant(STRIP_TYPE, ir.Undefined), zeros)
        product = builder.fmul(everywhere, line, flags=("contract",))
        builder.store(builder.fadd(builder.load(row, align=4), product, flags=("contract",)), row, align=4)
        k.add_incoming(builder.add(k, ir.IntType(64)(1)), body)
        builder.branch(head)
        builder.position_at_end(done)
        return k

    numbers = (types.uintp, types.intp, types.uintp, types.uintp, types.uintp, types.intp, types.intp, types.intp)
    return types.intp(*numbers), generate
