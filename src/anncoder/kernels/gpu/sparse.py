"""Sparse kernels (Triton): take rows, log-normalise, make dense; one program a row."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def take_rows(
    indptr: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,
    starts: tl.tensor,
    columns: tl.tensor,
    data: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Copy rows of a CSR matrix; arguments as those of :data:`anncoder.kernels.cpu.sparse.take_rows`."""
    i = tl.program_id(0)
    to, stop = tl.load(starts + i), tl.load(starts + i + 1)
    copy_row((indptr, indices, values), tl.load(rows + i), to, stop, columns, data, BLOCK)


@triton.jit
def fill(
    matrix: tl.tensor,
    plan: tl.tensor,
    size_factors: tl.tensor,
    codes: tl.tensor,
    counts: tl.tensor,
    size_factor: tl.tensor,
    row: tl.tensor,
    code: tl.tensor,
    b: tl.tensor,
    CODED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Make the minibatch of a number that is on the device; see :func:`anncoder.kernels.gpu.launch.fill`."""
    number, rows, starts = plan
    indptr, columns, data = counts
    i, k = tl.program_id(0), tl.load(number)
    one, starts = tl.load(rows + k * b + i), starts + k * (b + 1)
    copy_row(matrix, one, tl.load(starts + i), tl.load(starts + i + 1), columns, data, BLOCK)
    tl.store(indptr + i + 1, tl.load(starts + i + 1))
    if i == 0:
        tl.store(indptr, tl.load(starts))
    tl.store(row + i, one)
    tl.store(size_factor + i, tl.load(size_factors + one))
    if CODED:
        tl.store(code + i, tl.load(codes + one))


@triton.jit
def copy_row(
    matrix: tl.tensor,
    row: tl.tensor,
    to: tl.tensor,
    stop: tl.tensor,
    columns: tl.tensor,
    data: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Copy a row of a CSR matrix to where it begins and ends."""
    indptr, indices, values = matrix
    begin = tl.load(indptr + row)
    for at in range(0, stop - to, BLOCK):
        k = at + tl.arange(0, BLOCK)
        here = k < stop - to
        tl.store(columns + to + k, tl.load(indices + begin + k, mask=here, other=0).to(tl.int64), mask=here)
        tl.store(data + to + k, tl.load(values + begin + k, mask=here, other=0.0), mask=here)


@triton.jit
def log_normalize(
    indptr: tl.tensor, values: tl.tensor, size_factor: tl.tensor, out: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Write ``log1p(values / size_factor)`` of the stored values."""
    i = tl.program_id(0)
    per_count, stop = 1.0 / tl.load(size_factor + i).to(tl.float64), tl.load(indptr + i + 1)
    for at in range(tl.load(indptr + i), stop, BLOCK):
        k = at + tl.arange(0, BLOCK)
        x = tl.load(values + k, mask=k < stop, other=0.0).to(tl.float64)
        tl.store(out + k, tl.log(1.0 + x * per_count).to(tl.float32), mask=k < stop)


@triton.jit
def densify(
    indptr: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    out: tl.tensor,
    g: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the dense (n, g) matrix."""
    i = tl.program_id(0).to(tl.int64)
    for column in range(0, g, COLUMNS):
        j = column + tl.arange(0, COLUMNS)
        tl.store(out + i * g + j, tl.zeros([COLUMNS], tl.float32), mask=j < g)
    tl.debug_barrier()
    stop = tl.load(indptr + i + 1)
    for at in range(tl.load(indptr + i), stop, BLOCK):
        k = at + tl.arange(0, BLOCK)
        j = tl.load(indices + k, mask=k < stop, other=0)
        tl.store(out + i * g + j, tl.load(values + k, mask=k < stop, other=0.0), mask=k < stop)
