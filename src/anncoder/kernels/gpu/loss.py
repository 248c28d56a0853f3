"""Loss kernel (Triton): loss and gradients of a minibatch of counts in one pass.

A program has a few rows and three parts, with a barrier between them. It computes the stored entries in float64 and
sets their gradients aside; computes all entries as zeros, in float32, and writes their gradients, optionally over the
logits; and writes the gradients of the stored entries in their places. It subtracts the cost of the stored entries as
zeros from the sums, exactly: the sums are in float64, and the terms have the same bits both times. No sum depends on
the order in which programs run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anncoder.kernels.gpu.math import exp_minus
from anncoder.kernels.gpu.terms import stored_terms, theta_at, zero_terms


@triton.jit
def count_pass(
    logits: tl.tensor,
    log_theta: tl.tensor,
    pi_logits: tl.tensor,
    offset: tl.tensor,
    limits: tl.tensor,
    known: tl.tensor,
    indptr: tl.tensor,
    indices: tl.tensor,
    values: tl.tensor,
    common: tl.tensor,
    per_cell: tl.tensor,
    per_cell_step: tl.tensor,
    agreed: tl.tensor,
    nll: tl.tensor,
    by_mean: tl.tensor,
    by_theta: tl.tensor,
    by_pi: tl.tensor,
    kept: tl.tensor,
    kept_theta: tl.tensor,
    n: tl.tensor,
    g: tl.tensor,
    nnz: tl.tensor,
    KIND: tl.constexpr,
    THETA: tl.constexpr,
    GRADIENT: tl.constexpr,
    RERUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ENTRIES: tl.constexpr,
    FACTORIALS: tl.constexpr,
) -> None:
    """Write the loss of ``ROWS`` cells and the gradients of the weighted sum over the cells.

    logits, pi_logits
        (n, g) float32 log mean (for "squared" the mean) and logit of the dropout probability, before they are limited.
    log_theta
        float32, (g,), (n,) or (n, g) by ``THETA``, before it is limited.
    offset, limits
        (n,) float32 log size factor; (4,) float32 least and largest log mean and log theta.
    known
        (FACTORIALS,) float64 logarithms of the factorials.
    indptr, indices, values
        The counts, CSR.
    common, per_cell, per_cell_step, agreed
        The weight of every cell; in a ``RERUN`` the weights, of this stride, and the factor by which they are another
        weight than the gradients were written with: nothing is done if it is 1.
    nll
        (n,) float32, written but in a rerun.
    by_mean, by_pi
        (n, g) float32 gradients, written if ``GRADIENT``; they may be ``logits`` and ``pi_logits``.
    by_theta
        Gradient, written if ``GRADIENT``: (programs, g) float64 partial sums for "gene", else float32 as ``log_theta``.
    kept, kept_theta
        (2 * nnz,) float32 and (nnz,) float64 working memory.
    """
    if differ(agreed, RERUN):
        parameters, counts = (logits, log_theta, pi_logits, offset, limits), (indptr, indices, values, known)
        weights, gradients = (common, per_cell, per_cell_step), (by_mean, by_theta, by_pi)
        aside = (kept, kept_theta, nnz)
        first = tl.program_id(0).to(tl.int64) * ROWS
        more, more_theta = stored_part(
            parameters, counts, weights, aside, first, n, g, KIND, THETA, GRADIENT, RERUN, ROWS, ENTRIES, FACTORIALS
        )
        tl.debug_barrier()
        loss, theta_sum = zeros_part(
            parameters, weights, gradients, first, n, g, KIND, THETA, GRADIENT, RERUN, ROWS, COLUMNS
        )
        i = first + tl.arange(0, ROWS)
        if not RERUN:
            tl.store(nll + i, (loss + more).to(tl.float32), mask=i < n)
        if GRADIENT:
            if THETA == "cell":
                raw, lt = theta_at(log_theta, i, i, g, limits, i < n, THETA)
                total = (theta_sum + more_theta).to(tl.float32)
                tl.store(by_theta + i, tl.where(raw == lt, total, 0.0), mask=i < n)
            tl.debug_barrier()
            put_back_part(parameters, counts, gradients, aside, first, n, g, KIND, THETA, ROWS, ENTRIES)


@triton.jit
def differ(agreed: tl.tensor, RERUN: tl.constexpr) -> tl.tensor:
    """Return whether gradients have to be written: in a rerun not for a factor of 1."""
    factor = tl.load(agreed) if RERUN else tl.full((), 0.0, tl.float32)
    return (tl.abs(factor - 1.0) > 1e-6) | (factor != factor)  # nearer than that is the rounding of the weight itself


@triton.jit
def stored_part(
    parameters: tl.tensor,
    counts: tl.tensor,
    weights: tl.tensor,
    aside: tl.tensor,
    first: tl.tensor,
    n: tl.tensor,
    g: tl.tensor,
    KIND: tl.constexpr,
    THETA: tl.constexpr,
    GRADIENT: tl.constexpr,
    RERUN: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    FACTORIALS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Set the gradients of the stored entries aside; return their contribution to the sums of rows of zeros."""
    logits, log_theta, pi_logits, offset, limits = parameters
    indptr, indices, values, known = counts
    kept, kept_theta, nnz = aside
    loss_sum, theta_sum = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    stop = tl.load(indptr + tl.minimum(first + ROWS, n))
    for at in range(tl.load(indptr + first), stop, ENTRIES):
        k = at + tl.arange(0, ENTRIES)
        here, line = k < stop, tl.zeros([ENTRIES], tl.int32)
        for r in tl.static_range(1, ROWS):
            line += (k >= tl.load(indptr + tl.minimum(first + r, n))).to(tl.int32)
        i, j = first + line, tl.load(indices + k, mask=here, other=0)
        x = tl.load(values + k, mask=here, other=0.0).to(tl.float64)
        v = tl.load(logits + i * g + j, mask=here, other=0.0)
        moved = tl.load(offset + i, mask=here, other=0.0)
        _, lt = theta_at(log_theta, i, j, g, limits, here, THETA)
        logit = tl.load(pi_logits + i * g + j, mask=here, other=0.0) if KIND == "zinb" else v
        w = weight_of(weights, i, here, RERUN)
        was = zero_terms(v, moved, lt, exp_minus(-lt, 0.0), logit, limits, KIND)
        terms = stored_terms(x, v, moved, lt, logit, limits, known, KIND, FACTORIALS)
        differs = here & (x != 0.0) if KIND == "zinb" else here  # a stored zero keeps the form of a zero
        mine = (line[None, :] == tl.arange(0, ROWS)[:, None]) & differs[None, :]
        loss_sum += tl.sum(tl.where(mine, (terms[0] - was[0].to(tl.float64))[None, :], 0.0), axis=1)
        if GRADIENT:
            tl.store(kept + k, (terms[1] * w).to(tl.float32), mask=here)
            if KIND == "zinb":
                tl.store(kept + nnz + k, (terms[3] * w).to(tl.float32), mask=here)
            if THETA == "entry":
                tl.store(kept_theta + k, terms[2] * w, mask=here)
            elif THETA != "none":
                added = (terms[2] - was[2].to(tl.float64)) * w
                theta_sum += tl.sum(tl.where(mine, added[None, :], 0.0), axis=1)
                tl.store(kept_theta + k, added, mask=here)
    return loss_sum, theta_sum


@triton.jit
def zeros_part(
    parameters: tl.tensor,
    weights: tl.tensor,
    gradients: tl.tensor,
    first: tl.tensor,
    n: tl.tensor,
    g: tl.tensor,
    KIND: tl.constexpr,
    THETA: tl.constexpr,
    GRADIENT: tl.constexpr,
    RERUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Write the gradients of rows of zeros; return the sums of their losses and of their gradients for log theta."""
    logits, log_theta, pi_logits, offset, limits = parameters
    by_mean, by_theta, by_pi = gradients
    i = first + tl.arange(0, ROWS)[:, None]
    real = i < n
    moved, w = tl.load(offset + i, mask=real, other=0.0), weight_of(weights, i, real, RERUN)
    loss_sum, theta_sum = tl.zeros([ROWS, COLUMNS], tl.float64), tl.zeros([ROWS, COLUMNS], tl.float64)
    for column in range(0, g, COLUMNS):
        genes = column + tl.arange(0, COLUMNS)
        j = genes[None, :]
        here, at = real & (j < g), i * g + j
        v = tl.load(logits + at, mask=here, other=0.0)
        known = j < g if THETA == "gene" else (real if THETA == "cell" else here)
        raw, lt = theta_at(log_theta, i, j, g, limits, known, THETA)
        logit = tl.load(pi_logits + at, mask=here, other=0.0) if KIND == "zinb" else v
        terms = zero_terms(v, moved, lt, exp_minus(-lt, 0.0), logit, limits, KIND)
        loss_sum += tl.where(here, terms[0], 0.0).to(tl.float64)
        if GRADIENT:
            tl.store(by_mean + at, terms[1] * w, mask=here)
            if KIND == "zinb":
                tl.store(by_pi + at, terms[3] * w, mask=here)
            if THETA == "entry":
                tl.store(by_theta + at, tl.where(raw == lt, terms[2] * w, 0.0), mask=here)
            elif THETA != "none":
                weighted = tl.where(here, terms[2], 0.0).to(tl.float64) * w
                if THETA == "cell":
                    theta_sum += weighted
                else:
                    tl.store(by_theta + first // ROWS * g + genes, tl.sum(weighted, axis=0), mask=genes < g)
    return tl.sum(loss_sum, axis=1), tl.sum(theta_sum, axis=1)


@triton.jit
def put_back_part(
    parameters: tl.tensor,
    counts: tl.tensor,
    gradients: tl.tensor,
    aside: tl.tensor,
    first: tl.tensor,
    n: tl.tensor,
    g: tl.tensor,
    KIND: tl.constexpr,
    THETA: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """Write the gradients of the stored entries in their places, row by row: no column is twice in a row."""
    _, log_theta, _, _, limits = parameters
    indptr, indices, values, _ = counts
    by_mean, by_theta, by_pi = gradients
    kept, kept_theta, nnz = aside
    for r in tl.static_range(0, ROWS):
        i = first + r
        stop = tl.load(indptr + tl.minimum(i + 1, n))
        for at in range(tl.load(indptr + tl.minimum(i, n)), stop, ENTRIES):
            k = at + tl.arange(0, ENTRIES)
            here = k < stop
            j = tl.load(indices + k, mask=here, other=0)
            if KIND == "zinb":
                here = here & (tl.load(values + k, mask=here, other=0.0) != 0.0)
                tl.store(by_pi + i * g + j, tl.load(kept + nnz + k, mask=here, other=0.0), mask=here)
            tl.store(by_mean + i * g + j, tl.load(kept + k, mask=here, other=0.0), mask=here)
            if THETA == "entry":
                raw, lt = theta_at(log_theta, i, j, g, limits, here, THETA)
                of_theta = tl.load(kept_theta + k, mask=here, other=0.0).to(tl.float32)
                tl.store(by_theta + i * g + j, tl.where(raw == lt, of_theta, 0.0), mask=here)
            elif THETA == "gene":
                total = by_theta + first // ROWS * g + j
                added = tl.load(kept_theta + k, mask=here, other=0.0)
                tl.store(total, tl.load(total, mask=here, other=0.0) + added, mask=here)
        if THETA == "gene":
            tl.debug_barrier()  # the next row may have the same columns


@triton.jit
def weight_of(weights: tl.tensor, i: tl.tensor, mask: tl.tensor, RERUN: tl.constexpr) -> tl.tensor:
    """Return the weight of cells in the gradients."""
    common, per_cell, step = weights
    return tl.load(per_cell + i * step, mask=mask, other=0.0) if RERUN else common


@triton.jit
def theta_total(
    partial: tl.tensor,
    log_theta: tl.tensor,
    limits: tl.tensor,
    agreed: tl.tensor,
    out: tl.tensor,
    programs: tl.tensor,
    g: tl.tensor,
    RERUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Write the sum of (programs, g) float64 partial gradients for log theta, (g,) float32; 0 beyond its limits."""
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if differ(agreed, RERUN):
        total = tl.zeros([ROWS, COLUMNS], tl.float64)
        for at in range(0, programs, ROWS):
            i = at + tl.arange(0, ROWS)[:, None]
            here = (i < programs) & (j < g)[None, :]
            total += tl.load(partial + i.to(tl.int64) * g + j[None, :], mask=here, other=0.0)
        raw, lt = theta_at(log_theta, j, j, g, limits, j < g, "gene")
        tl.store(out + j, tl.where(raw == lt, tl.sum(total, axis=0).to(tl.float32), 0.0), mask=j < g)


@triton.jit
def agreement(
    per_cell: tl.tensor, step: tl.tensor, common: tl.tensor, agreed: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Write the factor of the weights of n > 0 cells over ``common``; NaN if they differ."""
    first, others = tl.load(per_cell), tl.zeros([BLOCK], tl.int32)
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        others += (tl.load(per_cell + i * step, mask=i < n, other=0.0) != first).to(tl.int32) * (i < n)
    tl.store(agreed, tl.where(tl.sum(others, axis=0) == 0, tl.math.div_rn(first, common), float("nan")))


@triton.jit
def scale_rows(
    gradient: tl.tensor, per_cell: tl.tensor, step: tl.tensor, common: tl.tensor, g: tl.tensor, COLUMNS: tl.constexpr
) -> None:
    """Multiply rows of a gradient, (n, g), by the weight of each cell over ``common``."""
    i, j = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    factor = tl.math.div_rn(tl.load(per_cell + i * step), common)
    if (tl.abs(factor - 1.0) > 1e-6) | (factor != factor):
        at = gradient + i * g + j
        tl.store(at, tl.load(at, mask=j < g, other=0.0) * factor, mask=j < g)
