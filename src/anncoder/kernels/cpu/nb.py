"""Negative binomial kernel (numba): loss and gradients in one pass over the rows.

Formulae in :mod:`anncoder.likelihoods.nb`. Every entry is first computed as a zero, in float32, in loops that become
vector instructions; the stored values then replace theirs, in float64. Rows are computed in chunks of fixed size: sums
over cells have one order for any number of threads. All functions are inlined by numba: what LLVM links differs between
the process that compiles and the cache.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from anncoder.kernels.cpu.threads import arguments, f32, f32_line, f64_line, i64_line, kernel, take_ticket
from anncoder.kernels.cpu.vector_math import (
    EXACT,
    Scalar,
    Vector,
    digamma,
    exp_minus,
    exp_minus_64,
    exp_of_sum,
    log1p_rest,
    log1p_unit_64,
    log_64,
    row_sum,
)

F = np.float32
CHUNK = 16  # rows
STORED = 9  # intermediate numbers of a stored value
LANES = 8  # float64 numbers of a vector instruction: fewer would be computed one by one, each in as much time as all
STEPS = 12  # nearly all counts are below
LARGE = 32  # up to here lgamma(x + theta) - lgamma(theta) is a product of x factors
LOG_FACTORIAL = np.array([math.lgamma(k + 1) for k in range(LARGE + 1)])


@kernel("f4", "f4", "f4", "f4", "i8", "i8", "f4", "f4", "f8", "f4", "f4")
def nb(address: Scalar) -> None:
    """Write the negative log-likelihood of each cell and the gradients of its weighted sum; a ticket a chunk of rows.

    Arrays, in order:

    logits
        (b, g) float32 log mean at size factor 1, before it is limited.
    log_theta
        (1, g), (b, 1) or (b, g) float32, before it is limited.
    offset, weight
        (b,) float32 log size factor; weight of each cell in the gradients.
    indptr, indices, values
        The counts, CSR: int64, int64, float32.
    limits
        (6,) float32: least and largest log mean, least and largest log theta; 1 where the mean is a softmax of the
        logits over the genes, 0 where it is their exponential; 1 where there is one log theta a gene.
    nll
        (b,) float64, written.
    by_mean
        (b, g) float32 gradient for ``logits``, written; (0, g) if none is wanted.
    by_theta
        float32 gradient for ``log_theta``, written: (n_chunks, g) one partial sum a chunk of rows for (1, g), else its
        shape; or (0, g).
    """
    table = arguments(address)
    logits, log_theta, offset, weight = f32(table, 0), f32(table, 1), f32_line(table, 2), f32_line(table, 3)
    indptr, indices, values = i64_line(table, 4), i64_line(table, 5), f32_line(table, 6)
    limits, nll, by_mean, by_theta = f32_line(table, 7), f64_line(table, 8), f32(table, 9), f32(table, 10)
    n, g = logits.shape
    lt, theta, loss, share = np.empty(g, F), np.empty(g, F), np.empty(g, F), np.empty(g, F)
    scratch, theta_row = np.empty((1, g), F), np.zeros(g, F)
    stored, bounds = np.empty((STORED, longest(indptr, g) + LANES)), limits.copy()
    rows = by_mean if by_mean.shape[0] else scratch
    per_gene = limits[5] > F(0)
    adds = per_gene and by_theta.shape[0] > 0
    if per_gene:
        theta_of(log_theta[0], limits, lt, theta)
    chunk = take_ticket(table)
    while chunk >= 0:
        of_theta = by_theta[chunk] if adds else theta_row
        of_theta[:] = F(0)
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            if not per_gene:
                theta_of(log_theta[i], limits, lt, theta)
            a, b = indptr[i], indptr[i + 1]
            row, at = working_row(logits[i], rows[i if by_mean.shape[0] else 0]), offset[i]
            if limits[4] > F(0):
                at = softmax_of(row, at, limits, share, bounds)
            nb_stored(row, lt, at, bounds, indices[a:b], values[a:b], stored)
            remember(of_theta, indices[a:b], stored[3], adds)
            nb_zeros(row, lt, theta, at, weight[i], bounds, loss, of_theta, F(1) if adds else F(0))
            nll[i] = put_stored(indices[a:b], stored, weight[i], loss, row, of_theta)
            if limits[4] > F(0):
                through_softmax(share, row)
            if not adds:
                keep_theta(by_theta, theta_row, i, log_theta, limits)
        if adds:
            keep_within(of_theta, log_theta[0], limits)
        chunk = take_ticket(table)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def longest(indptr: Vector, n: Scalar) -> Scalar:
    """Return the number of stored values of the longest row, or n if that is more: rows may repeat columns."""
    for i in range(indptr.shape[0] - 1):
        n = max(n, indptr[i + 1] - indptr[i])
    return n


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def working_row(values: Vector, room: Vector) -> Vector:
    """Return a row with these values to compute in: the gradient overwrites them."""
    if room.ctypes.data != values.ctypes.data:
        for j in range(values.shape[0]):  # of `room[:] = values` numba compiles the message of its error, for 2 s
            room[j] = values[j]
    return room


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def remember(row: Vector, indices: Vector, before: Vector, wanted: bool) -> None:
    """Save the stored entries of a row of sums before zeros are added everywhere; 0 for rows that are overwritten."""
    for k in range(indices.shape[0]):
        before[k] = row[indices[k]] if wanted else F(0)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def limited(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """Return x within limits; a NaN stays one."""
    x = low if x < low else x
    return high if x > high else x


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def softmax_of(logits: Vector, offset: Scalar, limits: Vector, share: Vector, bounds: Vector) -> Scalar:
    """Write the softmax of a row, and the bounds of its logits; return the offset from logits to log means."""
    largest = logits[0]
    for j in range(logits.shape[0]):
        largest = max(largest, logits[j])
    for j in range(logits.shape[0]):
        share[j] = exp_minus(largest - logits[j], F(0))
    total = row_sum(share)
    for j in range(logits.shape[0]):
        share[j] /= F(total)
    at = F(np.float64(offset) - np.float64(largest) - np.log(total))
    bounds[0], bounds[1] = limits[0] - at, limits[1] - at
    return at


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def through_softmax(share: Vector, by_mean: Vector) -> None:
    """Turn the gradient for log means into that for logits whose softmax they are, in place."""
    total = F(row_sum(by_mean))
    for j in range(share.shape[0]):
        by_mean[j] -= share[j] * total


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def theta_of(row: Vector, limits: Vector, lt: Vector, theta: Vector) -> None:
    """Fill rows with the limited log theta and with theta; ``row`` has one value a gene, or one."""
    step = 0 if row.shape[0] == 1 else 1
    low, high = limits[2], limits[3]
    if step == 0:
        lt[:] = limited(row[0], low, high)
        theta[:] = exp_minus(-lt[0], F(0))
        return
    for j in range(lt.shape[0]):
        v = limited(row[j], low, high)
        lt[j] = v
        theta[j] = exp_minus(-v, F(0))


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def nb_zeros(
    row: Vector,
    lt: Vector,
    theta: Vector,
    offset: Scalar,
    weight: Scalar,
    limits: Vector,
    loss: Vector,
    by_theta: Vector,
    keep: Scalar,
) -> None:
    """Write the loss of a row of zeros, and weighted gradients: in place of the logits, added to keep * by_theta."""
    low, high = limits[0], limits[1]
    for j in range(row.shape[0]):
        v = row[j]
        m = limited(v, low, high)
        shift = offset - lt[j]
        u = m + shift
        below = u < F(0)
        sign = F(1) if below else F(-1)
        # of the sum, not of u, whose rounding at |u| = 30 would be 1e-6 of the loss
        t = exp_of_sum(sign * m, sign * shift, abs(u))
        r = F(1) / (F(1) + t)
        p = log1p_rest(t)
        sigmoid = t * r if below else r
        softplus = (F(0) if below else u) + (t - t * t * p)
        difference = t * t * (r - p) if below else softplus - sigmoid
        weighted = theta[j] * weight
        loss[j] = theta[j] * softplus
        row[j] = sigmoid * (weighted if m == v else F(0))
        by_theta[j] = keep * by_theta[j] + difference * weighted


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def nb_stored(
    logits: Vector, lt: Vector, offset: Scalar, limits: Vector, indices: Vector, values: Vector, out: Vector
) -> None:
    """Write, for the stored counts of a row, loss and gradients into ``out[0], out[1], out[2]``, in float64.

    ``out`` is (STORED, >= nnz + LANES); row 3 is not written. The constant log x! is included.
    """
    u, theta, x, factors, slopes = out[0], out[1], out[2], out[4], out[5]
    log_x, by_x, free = out[6], out[7], out[8]
    n, low, high = indices.shape[0], limits[0], limits[1]
    for k in range(n):
        j = indices[k]
        v = logits[j]
        m = limited(v, low, high)
        theta[k] = np.float64(lt[j])
        u[k] = np.float64(m) + np.float64(offset) - np.float64(lt[j])
        free[k] = 1.0 if m == v else 0.0
        x[k] = values[k]
    while n % LANES:
        theta[n], u[n], x[n], free[n] = 0.0, 0.0, 0.0, 0.0
        n += 1
    for k in range(n):
        theta[k] = exp_minus_64(-theta[k])
    rising_factorials(x[:n], theta, factors, slopes)
    for k in range(n):
        whole = int(x[k])
        if whole == x[k] and whole <= STEPS:
            log_x[k], by_x[k] = -LOG_FACTORIAL[whole], 0.0
        else:
            _coefficient(x[k], theta[k], k, factors, slopes, log_x, by_x)
    for k in range(n):
        c, th, at = x[k], theta[k], u[k]
        t = exp_minus_64(abs(at))
        log1p, r = log1p_unit_64(t), 1 / (1 + t)
        below = at < 0
        sigmoid, rest = (t * r, r) if below else (r, t * r)
        up, down = (0.0, -at) if below else (at, 0.0)
        softplus = up + log1p
        coefficient = log_64(factors[k]) + log_x[k]
        by_coefficient = slopes[k] / factors[k] + by_x[k]
        u[k] = th * softplus + c * (down + log1p) - coefficient
        theta[k] = (th * sigmoid - c * rest) * free[k]
        x[k] = th * (softplus - sigmoid) + c * rest - th * by_coefficient


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def rising_factorials(x: Vector, theta: Vector, factors: Vector, slopes: Vector) -> None:
    """Write ``theta (theta + 1) ... (theta + x - 1)`` and its derivative by theta, for whole x up to ``STEPS``.

    Every entry computes all steps and uses its own: the branch predictor would fail on loops as long as the counts.
    """
    for k in range(x.shape[0]):
        factor, slope = 1.0, 0.0
        for step in range(STEPS):
            own = step < x[k]
            next_one = theta[k] + step
            slope = slope * next_one + factor if own else slope
            factor = factor * next_one if own else factor
        factors[k], slopes[k] = factor, slope


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _coefficient(
    x: Scalar, theta: Scalar, k: int, factors: Vector, slopes: Vector, log_x: Vector, by_x: Vector
) -> None:
    # lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) as log(factor) + log_x, and its derivative as slope / factor
    # + by_x: for a small whole x the factor is theta (theta + 1) ... (theta + x - 1), and needs one logarithm
    factor, slope = 1.0, 0.0
    whole = int(x)
    if whole == x and whole <= LARGE:
        for step in range(whole):
            slope = slope * (theta + step) + factor
            factor *= theta + step
        log_x[k] = -LOG_FACTORIAL[whole]
        by_x[k] = 0.0
    else:
        log_x[k] = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1)
        by_x[k] = digamma(x + theta) - digamma(theta)
    factors[k], slopes[k] = factor, slope


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def put_stored(
    indices: Vector, stored: Vector, weight: Scalar, loss: Vector, by_mean: Vector, by_theta: Vector
) -> Scalar:
    """Replace the stored entries of a row of zeros; return the loss of the row."""
    total = 0.0
    for k in range(indices.shape[0]):
        j = indices[k]
        total += stored[0, k]
        loss[j] = F(0)
        by_mean[j] = stored[1, k] * weight
        by_theta[j] = stored[3, k] + stored[2, k] * weight
    return total + row_sum(loss)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def keep_theta(by_theta: Vector, row: Vector, i: int, log_theta: Vector, limits: Vector) -> None:
    """Write a row of the gradient for log theta in the shape of log theta; 0 beyond the limits."""
    if by_theta.shape[0] == 0:
        return
    if by_theta.shape[1] == 1:
        free = limits[2] <= log_theta[i, 0] <= limits[3]
        by_theta[i, 0] = row_sum(row) if free else 0.0
    else:
        for j in range(row.shape[0]):
            v = log_theta[i, j]
            by_theta[i, j] = row[j] if limits[2] <= v <= limits[3] else F(0)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def keep_within(by_theta: Vector, log_theta: Vector, limits: Vector) -> None:
    """Set the gradient for log theta beyond its limits to 0."""
    for j in range(by_theta.shape[0]):
        v = log_theta[j]
        by_theta[j] = by_theta[j] if limits[2] <= v <= limits[3] else F(0)
