"""Poisson and squared-error kernels (numba): loss and gradient in one pass.

The plan is that of :mod:`anncoder.kernels.cpu.nb`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from anncoder.kernels.cpu.nb import (
    CHUNK,
    LARGE,
    LOG_FACTORIAL,
    limited,
    longest,
    softmax_of,
    through_softmax,
    working_row,
)
from anncoder.kernels.cpu.threads import arguments, f32, f32_line, f64_line, i64_line, kernel, take_ticket
from anncoder.kernels.cpu.vector_math import EXACT, Scalar, Vector, exp_minus, row_sum

F = np.float32


@kernel("f4", "f4", "f4", "i8", "i8", "f4", "f4", "f8", "f4")
def poisson(address: Scalar) -> None:
    """Write the Poisson negative log-likelihood of each cell and the gradient of its weighted sum.

    Arrays, in order: logits, offset, weight, indptr, indices, values, limits, nll, by_mean, as those of
    :func:`anncoder.kernels.cpu.nb.nb`; a ticket a chunk of rows.
    """
    table = arguments(address)
    logits, offset, weight = f32(table, 0), f32_line(table, 1), f32_line(table, 2)
    indptr, indices, values = i64_line(table, 3), i64_line(table, 4), f32_line(table, 5)
    limits, nll, by_mean = f32_line(table, 6), f64_line(table, 7), f32(table, 8)
    n, g = logits.shape
    loss, scratch, share, stored = np.empty(g, F), np.empty(g, F), np.empty(g, F), np.empty((2, longest(indptr, g)))
    bounds, wanted = limits.copy(), by_mean.shape[0] > 0
    chunk = take_ticket(table)
    while chunk >= 0:
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            a, b = indptr[i], indptr[i + 1]
            row, at = working_row(logits[i], by_mean[i] if wanted else scratch), offset[i]
            if limits[4] > F(0):
                at = softmax_of(row, at, limits, share, bounds)
            _poisson_stored(row, at, bounds, indices[a:b], values[a:b], stored)
            _poisson_zeros(row, at, weight[i], bounds, loss)
            nll[i] = _put_stored(indices[a:b], stored, weight[i], loss, row)
            if limits[4] > F(0):
                through_softmax(share, row)
        chunk = take_ticket(table)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _poisson_stored(
    logits: Vector, offset: Scalar, limits: Vector, indices: Vector, values: Vector, out: Vector
) -> None:
    for k in range(indices.shape[0]):
        v, x = logits[indices[k]], np.float64(values[k])
        m = limited(v, limits[0], limits[1])
        log_mu = np.float64(m) + np.float64(offset)
        mu, whole = math.exp(log_mu), int(x)
        small = whole == x and whole <= LARGE
        out[0, k] = mu - x * log_mu + (LOG_FACTORIAL[whole] if small else math.lgamma(x + 1))
        out[1, k] = mu - x if m == v else 0.0


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _poisson_zeros(row: Vector, offset: Scalar, weight: Scalar, limits: Vector, loss: Vector) -> None:
    low, high = limits[0], limits[1]
    for j in range(row.shape[0]):
        v = row[j]
        m = limited(v, low, high)
        a = m + offset
        back = a - m
        mu = exp_minus(-a, (m - (a - back)) + (offset - back))
        loss[j] = mu
        row[j] = mu * (weight if m == v else F(0))


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _put_stored(indices: Vector, stored: Vector, weight: Scalar, loss: Vector, gradient: Vector) -> Scalar:
    total = 0.0
    for k in range(indices.shape[0]):
        total += stored[0, k]
        loss[indices[k]] = F(0)
        gradient[indices[k]] = stored[1, k] * weight
    return total + row_sum(loss)


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
    loss, scratch, stored = np.empty(g, F), np.empty(g, F), np.empty((2, longest(indptr, g)))
    wanted = by_mean.shape[0] > 0
    chunk = take_ticket(table)
    while chunk >= 0:
        for i in range(chunk * CHUNK, min(n, (chunk + 1) * CHUNK)):
            a, b = indptr[i], indptr[i + 1]
            row = working_row(mean[i], by_mean[i] if wanted else scratch)
            for k in range(a, b):
                difference = np.float64(row[indices[k]]) - np.float64(values[k])
                stored[0, k - a], stored[1, k - a] = difference * difference, 2 * difference
            _squares(row, weight[i], loss)
            error[i] = _put_stored(indices[a:b], stored, weight[i], loss, row)
        chunk = take_ticket(table)


@njit(inline="always", fastmath=EXACT, error_model="numpy")
def _squares(row: Vector, weight: Scalar, loss: Vector) -> None:
    twice = F(2) * weight
    for j in range(row.shape[0]):
        m = row[j]
        loss[j] = m * m
        row[j] = m * twice
