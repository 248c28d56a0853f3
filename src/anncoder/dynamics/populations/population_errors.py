"""Errors of fitted population dynamics: left-out times, confidence bands, profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from anncoder.dynamics.populations.finite_volumes import faces
from anncoder.dynamics.populations.population import Grid, Population, Snapshots, cdf

Array = np.ndarray[Any, np.dtype[np.float64]]

SMOOTHNESS = (0.25, 0.5, 1.0, 2.0)  # tried
NORMAL_95, CHI2_95 = 1.959964, 3.841459
WIDEST = 50.0  # logarithm of a bound: nothing is known there
TINY_START = 1e-3  # of a difference quotient by the first distribution, relative


class LeftOut(NamedTuple):
    """How well a time is predicted from the others.

    Attributes
    ----------
    time
        The time that was left out.
    area, null_area
        Area between the CDFs predicted and measured; of the line between the CDFs of the neighbouring times.
    size_error, null_size_error
        Logarithm of predicted over measured size; of the line between the neighbours' logarithms.
    misfit
        Weighted squared differences of the CDFs, and that of the sizes by their own error, summed.
    """

    time: float
    area: float
    null_area: float
    size_error: float
    null_size_error: float
    misfit: float


def left_out(fitted: Population) -> list[LeftOut]:
    """Fit again without each time between the first and the last, and predict it."""
    return [_leave_out(fitted, place) for place in range(1, len(fitted.data.times) - 1)]


def _leave_out(fitted: Population, place: int) -> LeftOut:
    data, at = fitted.data, faces(fitted.grid.n_grid)
    again = Population(data.without(place), fitted.grid, fitted.theta).fit()
    mass = again.masses([data.times[0], data.times[place]])[-1]
    predicted, measured = np.cumsum(mass)[:-1] / mass.sum(), cdf(data.coordinates[place], at)
    before, now, after = data.times[place - 1 : place + 2]
    share = (now - before) / (after - before)
    null = (1 - share) * cdf(data.coordinates[place - 1], at) + share * cdf(data.coordinates[place + 1], at)
    null_size = (1 - share) * data.log_sizes[place - 1] + share * data.log_sizes[place + 1]
    error, weight = fitted.weights(place)
    size_error = float(np.log(mass.sum()) - data.log_sizes[place])
    misfit = np.square((predicted - measured) / error * weight).sum() + (size_error / data.log_sd[place]) ** 2
    area, null_area = (float(np.abs(other - measured).mean()) for other in (predicted, null))
    null_error = float(null_size - data.log_sizes[place])
    return LeftOut(float(now), area, null_area, size_error, null_error, float(misfit))


def choose_smoothness(data: Snapshots, grid: Grid, tried: Sequence[float] = SMOOTHNESS) -> float:
    """Return the smoothness whose fits predict left-out times best; 1 where fewer than two can be left out."""
    if len(data.times) < 4:
        return 1.0
    fits = {smoothness: Population(data, grid._replace(smoothness=smoothness)).fit() for smoothness in tried}
    misfits = {smoothness: sum(one.misfit for one in left_out(fit)) for smoothness, fit in fits.items()}
    return min(misfits, key=lambda smoothness: misfits[smoothness])


def covariance(fitted: Population) -> Array:
    """Return the covariance of the parameters, (p, p).

    By the Jacobian J of the residuals and that of the roughness, K: H^-1 (J' C J + K' K) H^-1 with H = J' J + K' K,
    where C is the covariance that the residuals have by the multinomial noise of the cells of each time, of the first
    one too, from which all others are predicted. Residuals along a CDF are far from independent: H^-1 alone would be
    too sure. Roughness counts as a prior, so that the bands are wide where nothing is measured.
    """
    jacobian = fitted.jacobian(fitted.theta)
    n_rough = fitted.roughness(fitted.theta).shape[-1]
    measured, rough = jacobian[: len(jacobian) - n_rough], jacobian[len(jacobian) - n_rough :]
    noise = measured.T @ _residual_covariance(fitted) @ measured
    inverse = np.linalg.pinv(jacobian.T @ jacobian)
    found: Array = inverse @ (noise + rough.T @ rough) @ inverse
    return found


def _residual_covariance(fitted: Population) -> Array:
    # of cells at each later time, of sizes, and of the cells of the first time through the law
    blocks = [np.ones((1, 1))]
    for i in range(1, len(fitted.data.times)):
        p, n = fitted.cdf_measured(i), len(fitted.data.coordinates[i])
        error, weight = fitted.weights(i)
        low, high = np.minimum.outer(p, p), np.maximum.outer(p, p)
        scale = weight / error
        blocks += [low * (1 - high) / n * np.outer(scale, scale), np.ones((1, 1))]
    ends = np.cumsum([0] + [len(block) for block in blocks])
    whole = np.zeros((ends[-1], ends[-1]))
    for a, b, block in zip(ends[:-1], ends[1:], blocks, strict=True):
        whole[a:b, a:b] = block
    by_start = _by_start(fitted)
    share, n = fitted.start, len(fitted.data.coordinates[0])
    mean = by_start @ share
    through: Array = (by_start * share) @ by_start.T - np.outer(mean, mean)
    return whole + through / n


def _by_start(fitted: Population) -> Array:
    # derivative of the residuals by the shares of the first histogram, (r, n_grid)
    n = fitted.grid.n_grid
    moved = fitted.start + TINY_START * np.eye(n)
    found = fitted.residuals(np.broadcast_to(fitted.theta, (n, len(fitted.theta))), moved)
    derivative: Array = ((found - fitted.residuals(fitted.theta)) / TINY_START).T
    return derivative


class Bands(NamedTuple):
    """Bounds of 95 % at some coordinates, each (2, len(s)): below and above."""

    velocity: Array
    growth: Array
    diffusion: Array


def bands(fitted: Population, s: Array, spread: Array) -> Bands:
    """Return the bands of v, g and D, of v and D on the scale of their logarithms; ``spread`` is :func:`covariance`."""
    theta = fitted.theta
    moved = theta + 1e-6 * np.eye(len(theta))
    curves = (
        lambda t: np.log(fitted.velocity(s, t)),
        lambda t: fitted.growth(s, t),
        lambda t: np.log(fitted.diffusion(s, t)),
    )
    found = []
    for curve in curves:
        slopes = (curve(moved) - curve(theta)) / 1e-6
        error = np.sqrt(np.maximum(np.einsum("ps,pq,qs->s", slopes, spread, slopes), 0))
        found.append(curve(theta) + NORMAL_95 * np.array([-error, error]))
    velocity, diffusion = (np.exp(np.clip(found[k], -WIDEST, WIDEST)) for k in (0, 2))
    return Bands(velocity, found[1], diffusion)


class Profile(NamedTuple):
    """Cost of fits with a fixed diffusion.

    Attributes
    ----------
    diffusion
        The values fixed, (k,); factors of the fitted D where that has several knots.
    rise
        Twice the rise of the cost over that of the best fit, divided by its inflation, (k,): below 3.84 within 95 %.
    interval
        The values at which it is crossed; infinite or 0 where it is not.
    """

    diffusion: Array
    rise: Array
    interval: tuple[float, float]


def profile(fitted: Population, spread: Array, n: int = 4) -> Profile:
    """Fix D (all of its knots, by one factor) at some values, fit the others, and compare the costs.

    The residuals are correlated, so a rise of the cost has not the distribution chi2(1), but a multiple of it: the
    variance by :func:`covariance` over the one that the Hessian alone says.
    """
    grid, theta = fitted.grid, fitted.theta
    knots = np.arange(grid.velocity + grid.growth, grid.velocity + grid.growth + grid.diffusion)
    jacobian = fitted.jacobian(theta)
    along = np.zeros(len(theta))
    along[knots] = 1 / len(knots)
    hessian = np.linalg.pinv(jacobian.T @ jacobian)
    sandwich, naive = float(along @ spread @ along), float(along @ hessian @ along)
    error = float(np.sqrt(max(sandwich, 1e-12)))
    inflation = max(sandwich / max(naive, 1e-12), 1e-12)
    low, high = fitted.bounds()
    least, most = float((low - theta)[knots].max()), float((high - theta)[knots].min())
    logs, rises = [0.0], [0.0]
    for sign in (-1, 1):
        start = theta
        for step in range(1, n + 1):
            log = float(np.clip(sign * step * 3.0 * error / n, least, most))
            moved = start.copy()
            moved[knots] = theta[knots] + log
            again = Population(fitted.data, grid, moved).fit(fixed=knots.tolist())
            start = again.theta
            logs.append(log)
            rises.append(2 * (again.cost - fitted.cost) / inflation)
    order = np.argsort(logs)
    x, rise = np.array(logs)[order], np.maximum(np.array(rises)[order], 0)
    base = float(np.exp(theta[knots[0]])) if len(knots) == 1 else 1.0
    below, above = (base * float(np.exp(end)) for end in _crossings(x, rise))
    return Profile(base * np.exp(x), rise, (below, above))


def _crossings(x: Array, rise: Array) -> tuple[float, float]:
    # where the rise passes the threshold, from the best value outwards
    best = int(np.argmin(rise))
    ends = []
    for side in (range(best, 0, -1), range(best, len(x) - 1)):
        step = -1 if side.step < 0 else 1
        crossed = [i for i in side if rise[i] < CHI2_95 <= rise[i + step]]
        if not crossed:
            ends.append(step * np.inf)
            continue
        i = crossed[0]
        share = (CHI2_95 - rise[i]) / (rise[i + step] - rise[i])
        ends.append(float(x[i] + share * (x[i + step] - x[i])))
    return ends[0], ends[1]
