"""Held-out middle time points: interpolation through a plan against simpler guesses.

A cell i with g_i descendants at t1 has g_i^s at the fraction s of the interval, so that a pair (i, j) weighs
``W_ij = T_ij g_i^(s - 1)`` there, and is put at ``(1 - s) x_i + s y_j``. Guesses to compare with:

    I   through the plan, pairs drawn systematically
    R   pairs drawn at random            Rg  the same, rows by g_i^s
    F   the cells of the first time      L   those of the last
    P   other cells of the middle time: what sampling alone makes of the distances

An average of two independent points has half the variance: below P in W2 is shrinkage, not skill. Hence the energy
distance beside it, and a win only where both say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from anncoder.dynamics.transport.cost import squared_distances
from anncoder.dynamics.transport.plans import Plan

Array = np.ndarray[Any, Any]

GUESSES = ("I", "R", "Rg", "F", "L", "P")
NULLS = ("R", "Rg", "F", "L")
MOST = 1500  # points of a side in an exact transport: its time grows with their cube
CLEAR = 3.0  # standard deviations
ENTROPY, SWEEPS, TINY = 0.02, 30, 1e-250  # of the balanced Sinkhorn iterations that an exact transport starts from


def interpolate(plan: Plan, x: Array, y: Array, s: float, n: int, rng: np.random.Generator) -> Array:
    """Return n cells at the fraction s between two times, (n, d).

    Parameters
    ----------
    plan
        From x to y.
    x, y
        Coordinates, (I, d) and (J, d).
    s
        From 0, the time of x, to 1, that of y.
    n
        Cells to draw: n equal steps along the cumulative weights W, from one random offset.
    rng
        Of the offset.
    """
    growth = plan.row_sums()
    i, j = plan.draw(growth ** (s - 1), (np.arange(n) + rng.random()) / n)
    return np.asarray((1 - s) * x[i] + s * y[j])


def at_random(x: Array, y: Array, s: float, n: int, rng: np.random.Generator, weights: Array | None = None) -> Array:
    """Return n cells between random pairs, (n, d); rows of x by ``weights``, (I,), None for equal ones."""
    share = None if weights is None else weights / weights.sum()
    i, j = rng.choice(len(x), n, p=share), rng.integers(len(y), size=n)
    return np.asarray((1 - s) * x[i] + s * y[j])


def wasserstein2(x: Array, y: Array, rng: np.random.Generator | None = None) -> float:
    """Return the 2-Wasserstein distance of two samples, (n, d) and (m, d), exact where one size divides the other.

    Else the smaller sample is repeated, each point as often as any other but for one time, and the larger one thinned
    at random, to equal sizes, of 1,500 at most.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    few, many = sorted((np.asarray(x, np.float64), np.asarray(y, np.float64)), key=len)
    few, many = (z if len(z) <= MOST else z[rng.choice(len(z), MOST, replace=False)] for z in (few, many))
    size = len(few) * -(-len(many) // len(few))
    if len(many) % len(few) and size > len(many):
        size = _common(len(few), len(many))
    cost = squared_distances(few, many)
    repeats = [np.arange(size) * len(z) // size for z in (few, many)]
    rows, columns = linear_sum_assignment(_reduced(cost)[np.ix_(*repeats)])
    return float(np.sqrt(cost[repeats[0][rows], repeats[1][columns]].mean()))


def _reduced(cost: Array) -> Array:
    """Return costs less potentials of rows and columns, which moves no optimum: found five times faster."""
    unit = max(float(np.median(cost)) * ENTROPY, np.finfo(float).tiny)
    kernel = np.exp(-(cost - cost.min(axis=1, keepdims=True)) / unit)
    column = np.ones(cost.shape[1])
    for _ in range(SWEEPS):
        row = 1 / np.maximum(kernel @ column, TINY)
        column = 1 / np.maximum(row @ kernel, TINY)
    reduced = cost - unit * np.log(column)
    return np.asarray(reduced - reduced.min(axis=1, keepdims=True))


def _common(n: int, m: int) -> int:
    """Return the least common multiple of two sizes, or the largest multiple of the smaller within the limit."""
    multiple = int(np.lcm(n, m))
    return multiple if multiple <= MOST else max(m, MOST)


def energy_distance(x: Array, y: Array) -> float:
    """Return the unbiased energy distance ``2 E|X - Y| - E|X - X'| - E|Y - Y'|`` of two samples; it may be negative.

    Szekely, Rizzo 2013, doi 10.1016/j.jspi.2013.03.018.
    """

    def within(z: Array) -> float:
        return float(np.sqrt(squared_distances(z, z)).sum() / (len(z) * (len(z) - 1)))

    between = float(np.sqrt(squared_distances(x, y)).mean())
    return 2 * between - within(x) - within(y)


class Triplet(NamedTuple):
    """Cells of three times, the middle one held out."""

    first: Array  # (n0, d)
    middle: Array  # (n1, d)
    last: Array  # (n2, d)
    fraction: float  # of the interval, at which the middle is
    replicate: Array | None  # (n, d) other cells of the middle, or None for halves of the middle


def held_out(triplet: Triplet, plan: Plan, *, n: int = 1000, n_seeds: int = 12, seed: int = 0) -> pd.DataFrame:
    """Return the distances of every guess to the middle time: rows ``I`` to ``P``, mean and sd over seeds.

    Parameters
    ----------
    triplet
        The cells.
    plan
        From the first to the last time.
    n
        Cells to draw for ``I``, ``R`` and ``Rg``; rounded up to a multiple of the middle cells, for an exact W2.
    n_seeds, seed
        Repetitions, and start of the random streams.

    Returns
    -------
    DataFrame
        Columns ``W2``, ``W2_sd``, ``E``, ``E_sd``; index the guesses. F and L do not vary, nor does P with a replicate.
    """
    x, y, middle, s = triplet.first, triplet.last, triplet.middle, triplet.fraction
    if len(middle) < MOST:
        n = len(middle) * -(-n // len(middle))
    growth = plan.row_sums()
    draws: dict[str, Callable[[np.random.Generator], tuple[Array, Array]]] = {
        "I": lambda rng: (interpolate(plan, x, y, s, n, rng), middle),
        "R": lambda rng: (at_random(x, y, s, n, rng), middle),
        "Rg": lambda rng: (at_random(x, y, s, n, rng, growth**s), middle),
        "F": lambda _: (x, middle),
        "L": lambda _: (y, middle),
        "P": lambda rng: _halves(middle, rng) if triplet.replicate is None else (triplet.replicate, middle),
    }
    rows = {}
    for name, draw in draws.items():
        fixed = name in ("F", "L") or (name == "P" and triplet.replicate is not None)
        seeds = [np.random.default_rng([seed, k]) for k in range(1 if fixed else n_seeds)]
        pairs = [draw(rng) for rng in seeds]
        values = np.array([(wasserstein2(*pair), energy_distance(*pair)) for pair in pairs])
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(2)
        rows[name] = [values[:, 0].mean(), spread[0], values[:, 1].mean(), spread[1]]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["W2", "W2_sd", "E", "E_sd"])


def _halves(cells: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    order = rng.permutation(len(cells))
    half = len(cells) // 2
    return cells[order[:half]], cells[order[half : 2 * half]]


def verdict(table: pd.DataFrame) -> str:
    """Return ``"win"``, ``"tie"`` or ``"loss"`` of ``I`` in a table of :func:`held_out`.

    A win: in both distances below the best of R, Rg, F and L by more than 3 standard deviations. A loss: in one of
    them above it by as much, and in none below. The standard deviation is that of the difference.
    """
    scores = [_standing(table, measure) for measure in ("W2", "E")]
    if max(scores) < -CLEAR:
        return "win"
    return "loss" if max(scores) > CLEAR and min(scores) > -CLEAR else "tie"


def _standing(table: pd.DataFrame, measure: str) -> float:
    """Return how many standard deviations I is above the best null."""
    best = table.loc[list(NULLS), measure].idxmin()
    spread = float(np.hypot(table.loc["I", f"{measure}_sd"], table.loc[best, f"{measure}_sd"]))
    difference = float(table.loc["I", measure] - table.loc[best, measure])
    return difference / spread if spread > 0 else float(np.copysign(np.inf, difference)) if difference else 0.0


def sentence(name: str, table: pd.DataFrame) -> str:
    """Return in words how the interpolation of a triplet fared: ``"2, 3, 4: a win: W2 0.469 against..."``."""
    parts = []
    for measure in ("W2", "E"):
        best = table.loc[list(NULLS), measure].idxmin()
        parts.append(f"{measure} {table.loc['I', measure]:.3f} against {table.loc[best, measure]:.3f} ({best})")
    found = verdict(table)
    means = {
        "win": "cells between the times are where the plan puts them",
        "tie": "the plan is no better than the best simple guess, nor worse",
        "loss": "a simple guess is nearer than the plan",
    }
    return f"{name}: a {found}: {', '.join(parts)}; {means[found]}"
