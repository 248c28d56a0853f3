"""Population dynamics on a coordinate: velocity, diffusion and growth from cells and sizes.

Pseudodynamics: a density of cells u(s, t) drifts, spreads and grows along a coordinate s in [0, 1], such as a
pseudotime. Where cells move and how fast they divide is read from the distributions of cells at several times, and
from the sizes of the population.

The law knows one direction, that of s: there are no rotations, no oscillations and no branches, and v, D and g do not
change with time. Where few cells are, v and g trade off. Without sizes g is known up to a constant alone.

References
----------
Fischer et al. 2019, doi:10.1038/s41587-019-0088-0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from anncoder.dynamics.populations.finite_volumes import centres, faces, rates, solve

Array = np.ndarray[Any, np.dtype[np.float64]]

STEP = 1e-5  # of a difference quotient
PRIOR_VELOCITY, PRIOR_GROWTH, PRIOR_DIFFUSION = 0.5, 0.375, 0.5  # weights of the roughness at smoothness 1
BOUNDS_VELOCITY, BOUNDS_DIFFUSION = (1e-3, 20.0), (1e-6, 0.3)  # times the span of the times
BOUND_GROWTH = 30.0  # e-folds in that span


class Snapshots(NamedTuple):
    """Cells of a population at several times, and its sizes.

    Attributes
    ----------
    times
        Ascending, (t,).
    coordinates
        Of the cells of each time, in [0, 1], t arrays.
    log_sizes, log_sd
        Natural logarithm of the size at each time, and its standard deviation, (t,).
    """

    times: Array
    coordinates: list[Array]
    log_sizes: Array
    log_sd: Array

    @property
    def span(self) -> float:
        """From the first to the last time."""
        return float(self.times[-1] - self.times[0])

    def without(self, place: int) -> Snapshots:
        """Return all but one of the times."""
        kept = [i for i in range(len(self.times)) if i != place]
        coordinates = [self.coordinates[i] for i in kept]
        return Snapshots(self.times[kept], coordinates, self.log_sizes[kept], self.log_sd[kept])


class Grid(NamedTuple):
    """Resolution and roughness of a fit.

    Attributes
    ----------
    n_grid
        Finite volumes.
    velocity, growth, diffusion
        Numbers of knots of log v, g and log D, which are linear between them.
    smoothness
        Weight of the roughness, 1 for what recovers simulated populations.
    """

    n_grid: int = 200
    velocity: int = 7
    growth: int = 9
    diffusion: int = 1
    smoothness: float = 1.0


class Population:
    """Fitted population dynamics.

    Parameters
    ----------
    data
        What was measured.
    grid
        Resolution and roughness.
    theta
        log v, g and log D at their knots, and the log size at the first time, (p,); None to begin with a guess.

    Attributes
    ----------
    theta
        The parameters.
    cost
        Half the sum of squared residuals, roughness included.
    """

    def __init__(self, data: Snapshots, grid: Grid, theta: Array | None = None) -> None:
        self.data, self.grid = data, grid
        self._ends = np.cumsum([grid.velocity, grid.growth, grid.diffusion])
        self._at_faces, self._at_centres = faces(grid.n_grid), centres(grid.n_grid)
        first = np.histogram(data.coordinates[0], bins=grid.n_grid, range=(0, 1))[0]
        self.start = first / first.sum()
        self._cdfs = [cdf(x, self._at_faces) for x in data.coordinates]
        self.theta = self._guess() if theta is None else theta
        self.cost = float("nan")

    def _guess(self) -> Array:
        data, span = self.data, self.data.span
        slope = np.polyfit(data.times, [x.mean() for x in data.coordinates], 1)[0]
        velocity = np.log(max(slope, 0.05 / span))
        growth = np.polyfit(data.times, data.log_sizes, 1)[0]
        knots = np.split(np.zeros(self._ends[-1]), self._ends[:2])
        guess = [knots[0] + velocity, knots[1] + growth, knots[2] + np.log(0.01 / span), data.log_sizes[:1]]
        return np.concatenate(guess)

    def _parts(self, theta: Array) -> list[Array]:
        # log v, g, log D at their knots, and the first log size; theta is (..., p)
        return np.split(theta, self._ends, axis=-1)

    def velocity(self, s: Array, theta: Array | None = None) -> Array:
        """Return v, per unit time, at some coordinates, (..., len(s))."""
        return np.exp(between(s, self._parts(self.theta if theta is None else theta)[0]))

    def growth(self, s: Array, theta: Array | None = None) -> Array:
        """Return g, natural logarithm per unit time, at some coordinates, (..., len(s))."""
        return between(s, self._parts(self.theta if theta is None else theta)[1])

    def diffusion(self, s: Array, theta: Array | None = None) -> Array:
        """Return D, squares of the coordinate per unit time, at some coordinates, (..., len(s))."""
        return np.exp(between(s, self._parts(self.theta if theta is None else theta)[2]))

    def masses(self, times: Sequence[float], theta: Array | None = None, start: Array | None = None) -> Array:
        """Return size times density at ascending times, the first of the data first, (n_times, ..., n_grid)."""
        theta = self.theta if theta is None else theta
        at = self._at_faces
        law = rates(self.diffusion(at, theta), self.velocity(at, theta), self.growth(self._at_centres, theta))
        size = np.exp(self._parts(theta)[3])
        return solve(law, (self.start if start is None else start) * size, times)

    def residuals(self, theta: Array, start: Array | None = None) -> Array:
        """Return the residuals of one set of parameters or several, (..., r), without the roughness.

        Of each time after the first the differences of the CDFs at the faces of the grid, divided by their binomial
        error sqrt(p (1 - p) / n) and weighted by the share of cells there (Anderson and Darling), so that neither the
        grid nor empty stretches count; of every time the log size divided by its standard deviation.
        """
        masses = self.masses(list(self.data.times), theta, start)
        found = []
        for i, mass in enumerate(masses):
            total = mass.sum(axis=-1, keepdims=True)
            if i:
                error, weight = self.weights(i)
                found.append((np.cumsum(mass, axis=-1)[..., :-1] / total - self._cdfs[i]) / error * weight)
            found.append((np.log(total) - self.data.log_sizes[i]) / self.data.log_sd[i])
        return np.concatenate(found, axis=-1)

    def cdf_measured(self, i: int) -> Array:
        """Return the measured CDF of a time at the faces of the grid, (n_grid - 1,)."""
        return self._cdfs[i]

    def weights(self, i: int) -> tuple[Array, Array]:
        """Return the binomial error of the CDF of a time, and its weight, each (n_grid - 1,)."""
        n, p = len(self.data.coordinates[i]), self._cdfs[i]
        inside = np.clip(p, 1 / n, 1 - 1 / n) if n > 1 else np.full_like(p, 0.5)
        whole = np.concatenate([[0.0], p, [1.0]])
        # 2: the eigenvalues of Anderson and Darling's statistic are 1 / (j (j + 1)), and the first then has weight 1
        return np.sqrt(inside * (1 - inside) / n), np.sqrt(whole[2:] - whole[:-2])

    def roughness(self, theta: Array) -> Array:
        """Return the weighted first differences of log v, g times the span, and log D, (..., q)."""
        weights = (PRIOR_VELOCITY, PRIOR_GROWTH * self.data.span, PRIOR_DIFFUSION)
        parts = zip(weights, self._parts(theta)[:3], strict=True)
        rough = [w * np.diff(y, axis=-1) * np.sqrt(y.shape[-1] - 1) for w, y in parts]
        return self.grid.smoothness * np.concatenate(rough, axis=-1)

    def _all(self, theta: Array) -> Array:
        return np.concatenate([self.residuals(theta), self.roughness(theta)], axis=-1)

    def jacobian(self, theta: Array) -> Array:
        """Return the derivative of residuals and roughness by the parameters, (r + q, p)."""
        found = self._all(np.concatenate([theta[None], theta + STEP * np.eye(len(theta))]))
        derivative: Array = ((found[1:] - found[0]) / STEP).T
        return derivative

    def bounds(self) -> tuple[Array, Array]:
        """Return the least and the greatest value of each parameter."""
        span, sizes = self.data.span, self.data.log_sizes
        log_v, log_d = (np.log(np.array(b) / span) for b in (BOUNDS_VELOCITY, BOUNDS_DIFFUSION))
        of_each = [log_v, (-BOUND_GROWTH / span, BOUND_GROWTH / span), log_d, (sizes[0] - 10, sizes[0] + 10)]
        counts = [self.grid.velocity, self.grid.growth, self.grid.diffusion, 1]
        low, high = np.repeat(np.array(of_each), counts, axis=0).T
        return low, high

    def fit(self, fixed: Sequence[int] = ()) -> Population:
        """Find the parameters of the smallest cost, all but some that are fixed; return self."""
        free = np.setdiff1d(np.arange(len(self.theta)), fixed)
        low, high = self.bounds()
        theta = np.clip(self.theta, low + 1e-6, high - 1e-6)
        theta[list(fixed)] = self.theta[list(fixed)]

        def filled(part: Array) -> Array:
            whole = theta.copy()
            whole[free] = part
            return whole

        found = least_squares(
            lambda part: self._all(filled(part)),
            theta[free],
            jac=lambda part: self.jacobian(filled(part))[:, free],
            bounds=(low[free], high[free]),
            x_scale="jac",
            max_nfev=60,
        )
        self.theta, self.cost = filled(found.x), float(found.cost)
        return self

    def cdfs(self, times: Sequence[float]) -> Array:
        """Return the fitted CDFs at the faces of the grid, (n_times, n_grid - 1); the first time is that measured."""
        masses = self.masses(times)
        shares: Array = np.cumsum(masses, axis=-1)[..., :-1] / masses.sum(axis=-1, keepdims=True)
        return shares


def between(s: Array, values: Array) -> Array:
    """Return what is linear between evenly spaced knots on [0, 1]; values are (..., k), and one is a constant."""
    k = values.shape[-1]
    if k == 1:
        return np.repeat(values, len(s), axis=-1)
    at = np.clip(s * (k - 1), 0, k - 1)
    left = np.minimum(at.astype(int), k - 2)
    share = at - left
    linear: Array = values[..., left] * (1 - share) + values[..., left + 1] * share
    return linear


def cdf(coordinates: Array, at: Array) -> Array:
    """Return the share of cells with a coordinate below each of some values."""
    below: Array = np.searchsorted(np.sort(coordinates), at) / len(coordinates)
    return below
