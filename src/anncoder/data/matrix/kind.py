"""Kind of a matrix - counts, CPM, log1p, scaled - told from its values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from anncoder.data.matrix.arrays import BLOCK, Array
from anncoder.data.matrix.sample import Sample, sample
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
