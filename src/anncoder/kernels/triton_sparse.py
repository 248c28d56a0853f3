"""Triton kernels for sparse minibatches: taking rows, log-normalising them, making them dense; a program a row."""

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
    """Copy rows of a CSR matrix; arguments as those of :data:`anncoder.kernels.sparse.take_rows`."""
    i = tl.program_id(0)
    begin, to = tl.load(indptr + tl.load(rows + i)), tl.load(starts + i)
    for at in range(0, tl.load(starts + i + 1) - to, BLOCK):
        k = at + tl.arange(0, BLOCK)
        here = k < tl.load(starts + i + 1) - to
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
