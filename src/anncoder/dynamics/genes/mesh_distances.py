"""Squared distances from mesh points to the k-th nearest of some cells in the plane (numba).

The cells stand in strips along x, of equal numbers of cells, within each by y. A search starts in the strip of the mesh
point, goes outwards, and reads of each strip only what is nearer than the k-th so far. The distances at the points
before, which are at most a mesh width nearer or farther, bound it from the start. No approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]
P = ParamSpec("P")
R = TypeVar("R")

SLACK = 1 + 1e-9  # a bound is rounded, and the distance that it bounds must not be lost


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call, for threads that run beside each other, and keep it on disk."""
    made: Callable[P, R]
    try:
        made = njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError as error:  # neither the package nor the home of the user is writable
        if "no locator" not in str(error):
            raise
        made = njit(nogil=True, error_model="numpy")(function)
    return made


class Strips(NamedTuple):
    """Values of the cells along x, and their division into strips."""

    x: Array  # (n,) float64
    of: Array  # (n,) int64 strip of each cell
    start: Array  # (s + 1,) int64 position of the first cell of a strip, in the order of x
    low: Array  # (s,) float64 least x in a strip
    high: Array  # (s,) float64 largest x in a strip


def strips(x: Array) -> Strips:
    """Divide (n,) finite values into about sqrt(n) strips of as many cells each."""
    n, s = len(x), max(1, int(np.sqrt(len(x))))
    order = np.argsort(x, kind="stable")
    start = np.arange(s + 1, dtype=np.int64) * n // s
    of = np.empty(n, dtype=np.int64)
    of[order] = np.repeat(np.arange(s), np.diff(start))
    return Strips(x, of, start, x[order[start[:-1]]], x[order[start[1:] - 1]])


def squared_distances(along: Strips, y: Array, order: Array, mesh: tuple[Array, Array], k: int) -> Array:
    """Return the squared distance of each mesh point to its k-th nearest cell, (len(mesh[0]), len(mesh[1])) float64.

    Parameters
    ----------
    along
        The cells along x.
    y, order
        (n,) values along y, float64, and the cells in ascending order of them, int64.
    mesh
        Ascending positions along x and along y.
    k
        Which neighbour, at most n.
    """
    found = np.empty((len(mesh[0]), len(mesh[1])))
    _search(along.x, along.of, along.start, along.low, along.high, y, order, mesh[0], mesh[1], k, found)
    return found


@compiled
def _search(
    x: Array,
    of: Array,
    start: Array,
    low: Array,
    high: Array,
    y: Array,
    order: Array,
    mesh_x: Array,
    mesh_y: Array,
    k: int,
    found: Array,
) -> None:
    px, py, at = np.empty(len(x)), np.empty(len(x)), start[:-1].copy()
    for i in range(len(x)):  # strip by strip, ascending in y
        cell = order[i]
        place = at[of[cell]]
        px[place], py[place] = x[cell], y[cell]
        at[of[cell]] = place + 1
    at, nearest = start[:-1].copy(), np.empty(k)
    for b in range(len(mesh_y)):
        for s in range(len(low)):  # first cell of each strip that is not below the mesh point
            while at[s] < start[s + 1] and py[at[s]] < mesh_y[b]:
                at[s] += 1
        home = 0
        for a in range(len(mesh_x)):
            while home < len(low) - 1 and high[home] < mesh_x[a]:
                home += 1
            bound = _bound(found, mesh_x, mesh_y, a, b)
            found[a, b] = _kth(px, py, at, start, low, high, mesh_x[a], mesh_y[b], home, bound, nearest)


@compiled
def _bound(found: Array, mesh_x: Array, mesh_y: Array, a: int, b: int) -> float:
    # square of the distance at a point searched before, and of the way from there
    bound = np.inf
    if a > 0:
        bound = np.sqrt(found[a - 1, b]) + mesh_x[a] - mesh_x[a - 1]
    if b > 0:
        bound = min(bound, np.sqrt(found[a, b - 1]) + mesh_y[b] - mesh_y[b - 1])
    return bound * bound * SLACK


@compiled
def _kth(
    px: Array,
    py: Array,
    at: Array,
    start: Array,
    low: Array,
    high: Array,
    x: float,
    y: float,
    home: int,
    limit: float,
    nearest: Array,
) -> float:
    # of one mesh point; the k nearest so far have no order: to keep one would take most of the time
    k, n, farthest = len(nearest), 0, 0
    for way in range(2):
        s = home - way
        while 0 <= s < len(low):
            gap = 0.0
            if low[s] > x:
                gap = low[s] - x
            elif high[s] < x:
                gap = x - high[s]
            gap *= gap
            if gap >= limit:
                break
            for side in range(2):
                place = at[s] - side
                end, step = (start[s] - 1, -1) if side else (start[s + 1], 1)
                while place != end:
                    dx, dy = px[place] - x, py[place] - y
                    squared = dx * dx + dy * dy
                    if dy * dy + gap >= limit:
                        break
                    place += step
                    if squared >= limit:
                        continue
                    nearest[n if n < k else farthest] = squared
                    n += n < k
                    if n == k:
                        limit, farthest = nearest[0], 0
                        for q in range(1, k):
                            if nearest[q] > limit:
                                limit, farthest = nearest[q], q
            s += 1 - 2 * way
    return limit
