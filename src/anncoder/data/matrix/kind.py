"""Kind of a matrix - counts, CPM, log1p, scaled - told from its values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from anncoder.data.matrix.arrays import BLOCK, Array, Held, hold
from anncoder.data.matrix.scan import LARGEST_VALUE, Tally, structure, unreadable

KINDS = {
    "counts": "raw counts",
    "cpm": "normalised counts, not logged (CPM-like)",
    "log1p": "log1p-normalised values",
    "scaled": "scaled or centred values",
    "expression": "non-negative values of no known scale",
    "unknown": "of no known kind",
}
"""Every kind, in words."""

SAMPLED_CELLS = 2000
SAMPLED_VALUES = 1 << 20
"""A sample has at most so many cells, and about so many values."""

CONSTANT = 0.01
"""Totals are the same if 5 % to 95 % of the cells lie within this share of the median."""

LOG_LIMIT = 20.0
"""No logged expression exceeds this: it is log1p of 5e8."""

LOG_TYPICAL = 16.0
"""A maximum between 1 and this is taken for logged when nothing else decides: log1p of 9e6."""


class Traits(NamedTuple):
    """What kind a matrix is, and the figures that say so."""

    kind: str
    lowest: float | None  # finite values only; None: there is none
    highest: float | None
    nonzero_share: float
    n_cells: int  # how many cells were read


UNKNOWN = Traits("unknown", None, None, 0.0, 0)
"""Of a matrix that cannot be read."""


class Sample(NamedTuple):
    """The non-zero values of some evenly spaced cells."""

    values: Array  # (n,)
    owner: Array  # (n,) int64 which of the sampled cells, 0 .. n_cells - 1
    n_cells: int


def traits(matrix: Any, *, logged: bool = False) -> Traits:
    """Say what a matrix is from a sample of evenly spaced cells.

    Parameters
    ----------
    matrix
        Whatever stands in a slot of an AnnData, (n_obs, n_vars); ``"unknown"`` if it cannot be read safely.
    logged
        ``uns["log1p"]`` says that something in this AnnData has been logged.
    """
    if unreadable(matrix) or structure(matrix).fault:
        return UNKNOWN
    taken = sample(matrix)
    tally = Tally(LARGEST_VALUE)
    for start in range(0, len(taken.values), BLOCK):
        tally.add(taken.values[start : start + BLOCK], start)
    size = taken.n_cells * matrix.shape[1]
    lowest, highest = tally.extremes(size)
    kind = kind_of(set(tally.found), highest, taken, logged=logged)
    return Traits(kind, lowest, highest, tally.n_nonzero / max(1, size), taken.n_cells)


def kind_of(flaws: set[str], highest: float | None, taken: Sample, *, logged: bool = False) -> str:
    """Name the kind of a matrix.

    Integers from zero up are counts; other values below zero are scaled. Normalised values are known by what
    they were made from: counts times one factor per cell. So their totals per cell are constant, or, in a
    subset of the genes, they are multiples of the smallest in the cell; logged values are so after ``expm1``.

    Parameters
    ----------
    flaws
        Codes of the faults among the values (:class:`anncoder.data.matrix.scan.Scan`).
    highest
        The largest finite value.
    taken
        A sample of the matrix.
    logged
        ``uns["log1p"]`` is there; decides only what the values leave open.
    """
    if "not-finite" in flaws or not taken.values.size or highest is None:
        return "unknown"
    if "not-integer" not in flaws:
        return "unknown" if "negative" in flaws else "counts"
    if "negative" in flaws:
        return "scaled"
    if known := _made_from_counts(taken, may_be_logged=highest <= LOG_LIMIT):
        return known
    if (logged and highest <= LOG_LIMIT) or 1 < highest < LOG_TYPICAL:
        return "log1p"
    return "expression"


def sample(matrix: Any, n_cells: int = SAMPLED_CELLS, n_values: int = SAMPLED_VALUES) -> Sample:
    """Take the non-zero values of evenly spaced cells of a readable matrix whose structure has no fault.

    Parameters
    ----------
    matrix
        (n_obs, n_vars).
    n_cells, n_values
        At most this many cells, and about this many stored values.
    """
    held = hold(matrix)
    n_obs = held.n_major if held.by_cell else held.n_minor
    stored_per_cell = max(1, held.values.size // max(1, n_obs))
    cells = evenly(n_obs, min(n_cells, max(16, n_values // stored_per_cell)))
    values, owner = _rows(held, cells)
    nonzero = values != 0
    return Sample(values[nonzero], owner[nonzero], len(cells))


def evenly(n: int, limit: int) -> Array:
    """Return at most ``limit`` evenly spaced positions out of n, ascending from 0, (m,) int64."""
    return np.linspace(0, n - 1, min(n, limit)).astype(np.int64)


def _rows(held: Held, cells: Array) -> tuple[Array, Array]:
    """Return the stored values of some cells, and for each the number of its cell among them, (n,) both."""
    if held.indptr is None and isinstance(held.values, np.ndarray):
        rows = held.values[cells] if held.by_cell else held.values[:, cells].T
        return rows.ravel(), np.repeat(np.arange(len(cells)), rows.shape[1])
    if held.by_cell and not isinstance(held.values, np.ndarray):  # on disk positions are far slower than slices
        ends = held.indptr
        parts = [held.values[c] if ends is None else held.values[ends[c] : ends[c + 1]] for c in cells.tolist()]
        values = np.concatenate([np.empty(0, held.values.dtype), *parts])
        return values, np.repeat(np.arange(len(cells)), [len(part) for part in parts])
    assert held.indptr is not None
    if held.by_cell:
        start = held.indptr[cells].astype(np.int64)
        length = held.indptr[cells + 1] - start
        owner = np.repeat(np.arange(len(cells)), length)
        before = np.cumsum(length) - length
        return held.values[np.arange(len(owner)) + (start - before)[owner]], owner
    number = np.full(held.n_minor, -1)
    number[cells] = np.arange(len(cells))
    # by blocks: an index array as long as the matrix would be larger than the matrix
    blocks = [slice(start, start + held.block) for start in range(0, held.indices.shape[0], held.block)]
    found = [_of_cells(held, block, number) for block in blocks]
    values = np.concatenate([np.empty(0, held.values.dtype), *(part for part, _ in found)])
    return values, np.concatenate([np.empty(0, np.int64), *(owner for _, owner in found)])


def _of_cells(held: Held, block: slice, number: Array) -> tuple[Array, Array]:
    owner = number[held.indices[block]]
    return held.values[block][owner >= 0], owner[owner >= 0]


def _made_from_counts(taken: Sample, *, may_be_logged: bool) -> str:
    """Return ``"cpm"`` or ``"log1p"`` if the values, or their expm1, are counts times one factor per cell."""
    values = taken.values.astype(np.float64)
    candidates = {"cpm": values}
    if may_be_logged:
        candidates["log1p"] = np.expm1(values)
    spread = {name: _spread_of_totals(linear, taken.owner) for name, linear in candidates.items()}
    if min(spread.values()) <= CONSTANT:
        return min(spread, key=lambda name: spread[name])
    share = {name: _share_of_multiples(linear, taken.owner) for name, linear in candidates.items()}
    best = max(share, key=lambda name: share[name])
    return best if share[best] >= 0.5 else ""


def _spread_of_totals(values: Array, owner: Array) -> float:
    """Return how far the totals per cell lie apart, 5 % to 95 % quantile, relative to their median."""
    totals = np.bincount(owner, weights=values)
    low, middle, high = np.quantile(totals[totals > 0], [0.05, 0.5, 0.95])
    return float((high - low) / middle)


def _share_of_multiples(values: Array, owner: Array) -> float:
    """Return the share of values that are whole multiples of the smallest in their cell, often one count.

    The smallest itself and its equals say nothing and are left out, as are multiples too large to tell.
    """
    smallest = np.full(owner.max() + 1, np.inf)
    np.minimum.at(smallest, owner, values)
    ratio = values / smallest[owner]
    ratio = ratio[(ratio > 1.01) & (ratio < 1000)]
    return float(np.mean(np.abs(ratio - np.rint(ratio)) < 0.01)) if ratio.size else 0.0
