"""Poisson and squared error: loss and gradient of a minibatch in one pass over the rows.

The plan is that of :mod:`anncoder.kernels.nb`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from anncoder.kernels.nb import CHUNK, LARGE, LOG_FACTORIAL, limited, softmax_of, through_softmax
from anncoder.kernels.threads import arguments, f32, f32_line, f64_line, i64_line, kernel, take_ticket
from anncoder.kernels.vector_math import EXACT, Scalar, Vector, exp_minus, row_sum

F = np.float32


@kernel("f4", "f4", "f4", "i8", "i8", "f4", "f4", "f8", "f4")
def poisson(address: Scalar) -> None:
    """Write the Poisson negative log-likelihood of each cell and the gradient of its weighted sum.

    Arrays, in order: logits, offset, weight, indptr, indices, values, limits, nll, by_mean, as those of
    :func:`anncoder.kernels.nb.nb`; a ticket a chunk of rows.
    """
    table = arguments(address)
    logits, offset, weight = f32(table, 0), f32_line(table, 1), f32_line(table, 2)
    indptr, indices, values = i64_line(table, 3), i64_line(table, 4), f32_line(table, 5)
    limits, nll, by_mean = f32_line(table, 6), f64_line(table, 7), f32(table, 8)
    n, g = logits.shape
    loss, gradient, share, bounds = np.empty(g, F), np.empty(g, F), np.empty(g, F), limits.copy()
    chunk = take_ticket(table)
    while chunk >= 0:
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            at = offset[i]
            if limits[4] > F(0):
                at = softmax_of(logits[i], at, limits, share, bounds)
            _poisson_zeros(logits[i], at, weight[i], bounds, loss, gradient)
            total = 0.0
            for k in range(indptr[i], indptr[i + 1]):
                j, x = indices[k], np.float64(values[k])
                log_mu = np.float64(limited(logits[i, j], bounds[0], bounds[1])) + np.float64(at)
                mu, whole = math.exp(log_mu), int(x)
                small = whole == x and whole <= LARGE
                total += mu - x * log_mu + (LOG_FACTORIAL[whole] if small else math.lgamma(x + 1))
                loss[j] = F(0)
                gradient[j] = (mu - x) * weight[i] if bounds[0] <= logits[i, j] <= bounds[1] else 0.0
            nll[i] = total + row_sum(loss)
            if limits[4] > F(0):
                through_softmax(share, gradient)
            if by_mean.shape[0]:  # not before: it may be the memory of the logits
                by_mean[i] = gradient
        chunk = take_ticket(table)


@njit(fastmath=EXACT, error_model="numpy")
def _poisson_zeros(
    logits: Vector, offset: Scalar, weight: Scalar, limits: Vector, loss: Vector, by_mean: Vector
) -> None:
    low, high = limits[0], limits[1]
    for j in range(logits.shape[0]):
        v = logits[j]
        m = limited(v, low, high)
        a = m + offset
        back = a - m
        mu = exp_minus(-a, (m - (a - back)) + (offset - back))
        loss[j] = mu
        by_mean[j] = mu * (weight if m == v else F(0))


@kernel("f4", "f4", "f4", "i8", "i8", "f4", "f4", "f8", "f4")
def squared(address: Scalar) -> None:
    """Write the squared error of each cell and the gradient of its weighted sum.

    Arrays, in order: mean, (b, g), offset (not used), weight, (b,), indptr, indices, values of the target, limits (not
    used), error, (b,) float64, written, by_mean, (b, g) or (0, g), written. A ticket a chunk of rows.
    """
    table = arguments(address)
    mean, weight = f32(table, 0), f32_line(table, 2)
    indptr, indices, values = i64_line(table, 3), i64_line(table, 4), f32_line(table, 5)
    error, by_mean = f64_line(table, 7), f32(table, 8)
    n, g = mean.shape
    loss, gradient = np.empty(g, F), np.empty(g, F)
    chunk = take_ticket(table)
    while chunk >= 0:
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            _squares(mean[i], weight[i], loss, gradient)
            total = 0.0
            for k in range(indptr[i], indptr[i + 1]):
                j = indices[k]
                difference = np.float64(mean[i, j]) - np.float64(values[k])
                total += difference * difference
                loss[j] = F(0)
                gradient[j] = 2 * difference * weight[i]
            error[i] = total + row_sum(loss)
            if by_mean.shape[0]:  # not before: it may be the memory of the mean
                by_mean[i] = gradient
        chunk = take_ticket(table)


@njit(fastmath=EXACT, error_model="numpy")
def _squares(mean: Vector, weight: Scalar, loss: Vector, by_mean: Vector) -> None:
    twice = F(2) * weight
    for j in range(mean.shape[0]):
        m = mean[j]
        loss[j] = m * m
        by_mean[j] = m * twice
