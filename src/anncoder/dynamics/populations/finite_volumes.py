"""Finite volumes for drift, diffusion and growth on [0, 1] (Scharfetter-Gummel faces).

The law is du/dt = d/ds( D(s) du/ds - v(s) u ) + g(s) u, without flux through s = 0 and s = 1. All arrays may have a
first axis of several sets of coefficients, which are solved together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

LARGEST = 100.0  # exponent of one step of the series: exp(-100) is still far from the smallest number
SMALL = 1e-15  # of a term of the series, against the sum


class Rates(NamedTuple):
    """Tridiagonal matrix of a law: what flows between neighbouring cells of the grid per unit time, and what grows.

    Attributes
    ----------
    up
        From cell i to i + 1, per mass in i, (..., n - 1).
    down
        From cell i + 1 to i, per mass in i + 1, (..., n - 1).
    growth
        g in each cell, (..., n).
    """

    up: Array
    down: Array
    growth: Array

    @property
    def diagonal(self) -> Array:
        """The diagonal of the matrix, (..., n)."""
        diagonal = self.growth.copy()
        diagonal[..., :-1] -= self.up
        diagonal[..., 1:] -= self.down
        return diagonal


def centres(n: int) -> Array:
    """Return the centres of the cells of a grid, (n,)."""
    return (np.arange(n) + 0.5) / n


def faces(n: int) -> Array:
    """Return the faces between the cells of a grid, (n - 1,)."""
    return np.arange(1, n) / n


def rates(diffusion: Array, velocity: Array, growth: Array, *, corrected: bool = True) -> Rates:
    """Return the matrix of a law.

    The flux through a face is that of Scharfetter and Gummel, (D/h) (B(-P) u_i - B(P) u_{i+1}) with P = v h / D and
    the Bernoulli function B(x) = x / (e^x - 1). It never becomes negative, and spreads mass as if D were
    D (P/2) coth(P/2). ``corrected`` takes a D that is smaller by as much, which is central differences where
    v h < 2 D, and upwind ones elsewhere.

    Parameters
    ----------
    diffusion, velocity
        D and v at the faces, (..., n - 1); D > 0, in squares of the coordinate per unit time, v per unit time.
    growth
        g in the cells, (..., n), per unit time.
    corrected
        Whether to take the numerical diffusion from D.

    References
    ----------
    Scharfetter and Gummel 1969, doi:10.1109/T-ED.1969.16566.
    """
    n = growth.shape[-1]
    drift, spread = velocity * n, diffusion * n**2
    if corrected:
        up = np.maximum(spread + drift / 2, np.maximum(drift, 0))
        return Rates(up, up - drift, growth)
    peclet = velocity / (n * diffusion)
    return Rates(spread * _bernoulli(-peclet), spread * _bernoulli(peclet), growth)


def _bernoulli(x: Array) -> Array:
    near = np.abs(x) < 1e-8
    safe = np.where(near, 1.0, np.clip(x, -700, 700))
    return np.where(near, 1 - x / 2, safe / np.expm1(safe))


def propagate(law: Rates, mass: Array, time: float) -> Array:
    """Return the mass in each cell of the grid after some time, exp(A time) mass.

    By uniformisation: exp(A t) = exp(-L t) sum_k (t (A + L))^k / k! with L so large that A + L has no negative entry.
    Then no two terms cancel, and total mass is as exact as the numbers are.

    Parameters
    ----------
    law
        Coefficients (..., n).
    mass
        Before, (..., n), none negative.
    time
        Time that passes, >= 0.
    """
    diagonal = law.diagonal
    shift = max(float(-diagonal.min()), 0.0)
    steps = max(1, int(np.ceil(shift * time / LARGEST)))
    step = time / steps
    matrix = ((diagonal + shift) * step, law.up * step, law.down * step)
    mass = np.broadcast_to(mass, np.broadcast_shapes(mass.shape, diagonal.shape))
    for _ in range(steps):
        mass = _series(matrix, mass, shift * step) * np.exp(-shift * step)
    return mass


def _series(matrix: tuple[Array, Array, Array], mass: Array, exponent: float) -> Array:
    diagonal, up, down = matrix
    term, total, k = mass, mass.copy(), 0
    while k <= exponent or term.max() > SMALL * total.max():
        k += 1
        following = diagonal * term
        following[..., 1:] += up * term[..., :-1]
        following[..., :-1] += down * term[..., 1:]
        term = following / k
        total += term
    return total


def solve(law: Rates, start: Array, times: Sequence[float]) -> Array:
    """Return the mass at each of some ascending times, (n_times, ..., n); the first is that of ``start``."""
    masses = [np.broadcast_to(start, np.broadcast_shapes(start.shape, law.growth.shape))]
    for before, after in pairwise(times):
        masses.append(propagate(law, masses[-1], after - before))
    return np.stack(masses)
