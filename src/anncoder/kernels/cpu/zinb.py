"""Zero-inflated negative binomial kernel (numba): loss and gradients in one pass.

Formulae in :mod:`anncoder.likelihoods.zinb`; the plan is that of :mod:`anncoder.kernels.cpu.nb`. With E = 1 - NB(0) and
pi = sigmoid(l), an observed zero costs ``-log1p(-(1 - pi) E)`` where that is small, ``-log(pi + (1 - pi) NB(0))`` where
it is not, and ``softplus(l) - logaddexp(l, log NB(0))`` where it is beyond the exponents of float32.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from anncoder.kernels.cpu.nb import (
    CHUNK,
    LANES,
    STORED,
    keep_theta,
    keep_within,
    longest,
    nb_stored,
    nb_zeros,
    softmax_of,
    theta_of,
    through_softmax,
    working_row,
)
from anncoder.kernels.cpu.threads import arguments, f32, f32_line, f64_line, i64_line, kernel, take_ticket
from anncoder.kernels.cpu.vector_math import (
    EXACT,
    Scalar,
    Vector,
    add_row,
    exp_minus,
    exp_minus_64,
    log1p_minus_half,
    log1p_unit,
    log1p_unit_64,
    minus_expm1,
    minus_expm1_minus,
    minus_log_of_rest,
    row_sum,
)

F = np.float32
DEEP = 40.0  # nats


@kernel("f4", "f4", "f4", "f4", "f4", "i8", "i8", "f4", "f4", "f8", "f4", "f4", "f4")
def zinb(address: Scalar) -> None:
    """Write the negative log-likelihood of each cell and the gradients of its weighted sum; a ticket a chunk of rows.

    Arrays, in order: logits, log_theta, pi_logits, offset, weight, indptr, indices, values, limits, nll, by_mean,
    by_theta, by_pi. They are those of :func:`anncoder.kernels.cpu.nb.nb`, and ``pi_logits``, (b, g) float32 logit of
    the dropout probability, with its gradient ``by_pi``, (b, g), or (0, g) if none is wanted.
    """
    table = arguments(address)
    logits, log_theta, pi_logits = f32(table, 0), f32(table, 1), f32(table, 2)
    offset, weight = f32_line(table, 3), f32_line(table, 4)
    indptr, indices, values = i64_line(table, 5), i64_line(table, 6), f32_line(table, 7)
    limits, nll, by_mean, by_theta = f32_line(table, 8), f64_line(table, 9), f32(table, 10), f32(table, 11)
    by_pi = f32(table, 12)
    n, g = logits.shape
    lt, theta, loss, share = np.empty(g, F), np.empty(g, F), np.empty(g, F), np.empty(g, F)
    scratch, theta_row = np.empty((2, g), F), np.zeros(g, F)
    most = longest(indptr, g)
    stored, pi, bounds = np.zeros((STORED, most + LANES)), np.empty((2, most)), limits.copy()
    wanted = by_mean.shape[0] > 0
    per_gene = limits[5] > F(0)
    adds = per_gene and by_theta.shape[0] > 0
    if per_gene:
        theta_of(log_theta[0], limits, lt, theta)
    chunk = take_ticket(table)
    while chunk >= 0:
        if adds:
            by_theta[chunk, :] = 0
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            if not per_gene:
                theta_of(log_theta[i], limits, lt, theta)
            a, b = indptr[i], indptr[i + 1]
            row, at = working_row(logits[i], by_mean[i] if wanted else scratch[0]), offset[i]
            pi_row = working_row(pi_logits[i], by_pi[i] if wanted else scratch[1])
            if limits[4] > F(0):
                at = softmax_of(row, at, limits, share, bounds)
            nb_stored(row, lt, at, bounds, indices[a:b], values[a:b], stored)
            _pi_stored(pi_row, indices[a:b], pi)
            nb_zeros(row, lt, theta, at, weight[i], bounds, loss, theta_row, F(0))
            inflate(weight[i], loss, row, theta_row, pi_row)
            nll[i] = _put_stored(indices[a:b], values[a:b], stored, pi, weight[i], loss, row, theta_row, pi_row)
            if limits[4] > F(0):
                through_softmax(share, row)
            if adds:
                add_row(by_theta[chunk], theta_row)
            else:
                keep_theta(by_theta, theta_row, i, log_theta, limits)
        if adds:
            keep_within(by_theta[chunk], log_theta[0], limits)
        chunk = take_ticket(table)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def inflate(weight: Scalar, loss: Vector, by_mean: Vector, by_theta: Vector, pi_row: Vector) -> None:
    """Turn loss and gradients of a row of NB zeros into those of zero-inflated ones, in place.

    ``pi_row`` has the logits of the dropout, and afterwards their gradients.
    """
    if _n_deep(loss, pi_row) > F(0):
        _inflate_deep(weight, loss, by_mean, by_theta, pi_row)
    else:
        _inflate(weight, loss, by_mean, by_theta, pi_row)


@njit(fastmath=EXACT | {"reassoc"})
def _n_deep(loss: Vector, pi_row: Vector) -> Scalar:
    n = F(0)
    for j in range(loss.shape[0]):
        n += F(1) if min(loss[j], -pi_row[j]) > F(DEEP) else F(0)
    return n


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _inflate(weight: Scalar, loss: Vector, by_mean: Vector, by_theta: Vector, pi_row: Vector) -> None:
    for j in range(pi_row.shape[0]):
        nb0, logit = loss[j], pi_row[j]  # nb0 = -log NB(0) >= 0
        t = exp_minus(abs(logit), F(0))
        r = F(1) / (F(1) + t)
        up = logit > F(0)
        pi, rest = (r, t * r) if up else (t * r, r)
        zero = exp_minus(nb0, F(0))
        q = rest * minus_expm1(nb0, zero)
        probability = pi + rest * zero  # of a zero, 1 - q
        each = F(1) / probability
        from_nb = rest * zero * each
        loss[j] = minus_log_of_rest(q, probability)
        by_mean[j] *= from_nb
        by_theta[j] *= from_nb
        pi_row[j] = -pi * each * q * weight


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _inflate_deep(weight: Scalar, loss: Vector, by_mean: Vector, by_theta: Vector, pi_row: Vector) -> None:
    # the same where the probability of a zero, by dropout and by NB, is below float32: by the larger of the two
    for j in range(pi_row.shape[0]):
        nb0, logit = loss[j], pi_row[j]  # nb0 = -log NB(0) >= 0
        t = exp_minus(abs(logit), F(0))
        r = F(1) / (F(1) + t)
        up = logit > F(0)
        rest = t * r if up else r  # 1 - pi
        gap = -nb0 - logit
        t_gap = exp_minus(abs(gap), F(0))
        r = F(1) / (F(1) + t_gap)
        from_nb, from_pi = (r, t_gap * r) if gap > F(0) else (t_gap * r, r)
        lost = minus_expm1_minus(nb0)
        q = rest * lost
        large = (logit if up else F(0)) + log1p_unit(t) - (max(logit, -nb0) + log1p_unit(t_gap))
        loss[j] = -log1p_minus_half(min(q, F(0.5))) if q < F(0.5) else large
        by_mean[j] *= from_nb
        by_theta[j] *= from_nb
        pi_row[j] = -from_pi * rest * lost * weight


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _pi_stored(pi_logits: Vector, indices: Vector, out: Vector) -> None:
    # pi and softplus(logit) of the stored entries, in float64
    pi, softplus = out[0], out[1]
    for k in range(indices.shape[0]):
        pi[k] = pi_logits[indices[k]]
    for k in range(indices.shape[0]):
        logit = pi[k]
        t = exp_minus_64(abs(logit))
        pi[k] = (1.0 if logit > 0 else t) / (1 + t)
        softplus[k] = (logit if logit > 0 else 0.0) + log1p_unit_64(t)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _put_stored(
    indices: Vector,
    values: Vector,
    stored: Vector,
    pi: Vector,
    weight: Scalar,
    loss: Vector,
    by_mean: Vector,
    by_theta: Vector,
    by_pi: Vector,
) -> Scalar:
    total = 0.0
    for k in range(indices.shape[0]):
        if values[k] == 0:  # a stored zero keeps the form of a zero
            continue
        j = indices[k]
        total += stored[0, k] + pi[1, k]
        loss[j] = F(0)
        by_mean[j] = stored[1, k] * weight
        by_theta[j] = stored[2, k] * weight
        by_pi[j] = pi[0, k] * weight
    return total + row_sum(loss)
