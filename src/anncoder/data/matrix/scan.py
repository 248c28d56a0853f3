"""Scan of every value of a matrix: sound indices, bad values, empty cells and genes.

Nothing here knows AnnData or names; :mod:`anncoder.data.check` turns what is found into sentences. CSR, CSC and
dense matrices are read alike, along their *major* axis (the rows of CSR, the columns of CSC) in blocks that
stay in the cache, and are never written to. A clean block costs a minimum, a maximum and one rounding; only a
block that fails these is looked at again, value by value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from anncoder.data.matrix.arrays import Array, Held, OnDisk, hold, spans

LARGEST_COUNT = float(1 << 24)
"""The largest integer up to which float32 holds every integer."""

LARGEST_VALUE = float(np.finfo(np.float32).max)
"""What is larger than this becomes infinite in float32."""


class Flaw(NamedTuple):
    """All values of a matrix with one fault."""

    n: int  # how many
    obs: int  # cell of the first in storage order
    var: int  # gene of the first
    value: float  # the first


class Structure(NamedTuple):
    """What the index arrays of a sparse matrix are worth; a dense matrix has the default."""

    fault: str = ""  # why the matrix must not be used at all; "" if it may
    n_unsorted: int = 0  # rows (CSC: columns) whose indices do not ascend
    n_duplicates: int = 0  # stored values whose place is already taken by another


@dataclass(frozen=True)
class Scan:
    """What one pass over a sound matrix found.

    Attributes
    ----------
    n_stored
        Values read: the stored ones of a sparse matrix.
    n_nonzero
        Values that are not zero.
    lowest, highest
        Extremes of the finite values, zeros that are not stored included; None: there is no finite value.
    flaws
        By code: ``"not-finite"``; among the finite values ``"negative"``, ``"not-integer"``, ``"too-large"``.
    empty_obs, empty_vars
        Positions of the all-zero cells and genes, (n,) int64 each.
    """

    n_stored: int
    n_nonzero: int
    lowest: float | None
    highest: float | None
    flaws: dict[str, Flaw]
    empty_obs: Array
    empty_vars: Array


def unreadable(matrix: Any) -> tuple[str, str] | None:
    """Return code and reason if this is not a 2-D numpy or scipy matrix of real numbers, else None."""
    if isinstance(matrix, OnDisk) and matrix.format not in ("csr", "csc", "dense"):
        return "not-a-matrix", f"this is stored as {matrix.format}, not as a matrix"
    if not (isinstance(matrix, np.ndarray | OnDisk) or sparse.issparse(matrix)):
        name = f"{type(matrix).__module__}.{type(matrix).__qualname__}"
        return "not-a-matrix", f"this is a {name}, not a numpy or scipy.sparse matrix"
    if isinstance(matrix, np.ma.MaskedArray) and np.ma.is_masked(matrix):
        return "not-a-matrix", "some of its values are masked, and nothing here reads masks"
    if matrix.ndim != 2:
        return "not-a-matrix", f"this is an array of {matrix.ndim} dimensions instead of two"
    if matrix.dtype.kind not in "biuf":
        return "not-numeric", f"the values are of dtype {str(matrix.dtype)[:40]}, not real numbers"
    return None


def structure(matrix: Any) -> Structure:
    """Check the index arrays of a sparse matrix, without trusting or setting scipy's cached flags.

    scipy's compiled code does not check them and reads outside its arrays when they are damaged, so this
    comes before anything else is done with the matrix.
    """
    held = hold(matrix)
    if held.indptr is None:
        return Structure()
    if fault := _pointer_fault(held):
        return Structure(fault)
    n_unsorted = n_duplicates = 0
    for first, last in _spans(held):
        pointers = held.indptr[first : last + 1]
        indices = held.indices[pointers[0] : pointers[-1]]
        if indices.size == 0:
            continue
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= held.n_minor:
            axis = "gene" if held.by_cell else "cell"
            bad = low if low < 0 else high
            return Structure(f"{axis} index {bad:,} is outside 0 to {held.n_minor - 1:,}")
        unsorted, duplicates = _disorder(indices, pointers - pointers[0], held.n_minor)
        n_unsorted += unsorted
        n_duplicates += duplicates
    return Structure("", n_unsorted, n_duplicates)


def scan(matrix: Any, largest: float) -> Scan:
    """Read every stored value of a sound matrix once.

    Parameters
    ----------
    matrix
        Counts or expression, (n_obs, n_vars), for which :func:`structure` found no fault.
    largest
        The magnitude above which a value is ``"too-large"``.
    """
    held = hold(matrix)
    tally = Tally(largest)
    filled_major = np.zeros(held.n_major, dtype=bool)
    filled_minor = np.zeros(held.n_minor, dtype=bool)
    for first, last in _spans(held):
        block, offset = _block(held, first, last)
        nonzero = tally.add(block, offset)
        if held.indptr is None:
            filled = np.ones(block.shape, dtype=bool) if nonzero is None else nonzero
            filled_major[first:last] = filled.any(axis=1)
            filled_minor |= filled.any(axis=0)
        else:
            filled_major[first:last] = _filled_rows(held.indptr[first : last + 1], nonzero)
            _mark(filled_minor, _indices(held, first, last, nonzero))
    obs, var = (filled_major, filled_minor) if held.by_cell else (filled_minor, filled_major)
    lowest, highest = tally.extremes(held.n_major * held.n_minor)
    return Scan(
        n_stored=tally.n_stored,
        n_nonzero=tally.n_nonzero,
        lowest=lowest,
        highest=highest,
        flaws={code: _locate(held, *found) for code, found in tally.found.items()},
        empty_obs=np.flatnonzero(~obs),
        empty_vars=np.flatnonzero(~var),
    )


@dataclass
class Tally:
    """What has been seen of a stream of blocks of values.

    Parameters
    ----------
    largest
        The magnitude above which a value is ``"too-large"``.
    """

    largest: float
    n_stored: int = 0
    n_nonzero: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    found: dict[str, tuple[int, int, float]] = field(default_factory=dict)  # code: count, first position, value

    def add(self, block: Array, offset: int) -> Array | None:
        """Take in a block whose first value has the position ``offset``.

        Returns
        -------
        Array or None
            Which values are not zero; None when all of them are, as in nearly every block of a sparse matrix.
        """
        self.n_stored += block.size
        if block.size == 0:
            return None
        with np.errstate(invalid="ignore"):
            low, high = float(block.min()), float(block.max())  # NaN if there is one
        # NaN fails every comparison; infinities fail one of the two
        within = low >= 0 and high <= self.largest
        if within and _whole(block):
            self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        else:
            self._look_closer(block.astype(np.float64).ravel(), offset)
        nonzero = None if low > 0 else block != 0
        self.n_nonzero += block.size if nonzero is None else int(np.count_nonzero(nonzero))
        return nonzero

    def extremes(self, size: int) -> tuple[float | None, float | None]:
        """Return the extremes of the finite values of a matrix of this size, whose other values are zero."""
        lowest, highest = self.lowest, self.highest
        if self.n_stored < size:
            lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        return (lowest, highest) if lowest <= highest else (None, None)

    def _look_closer(self, block: Array, offset: int) -> None:
        finite = np.isfinite(block)
        faults = {
            "not-finite": ~finite,
            "negative": finite & (block < 0),
            "not-integer": finite & (np.rint(block) != block),
            "too-large": finite & (np.abs(block) > self.largest),
        }
        for code, fault in faults.items():
            if count := int(np.count_nonzero(fault)):
                position = int(fault.argmax())
                before, first, value = self.found.get(code, (0, offset + position, float(block[position])))
                self.found[code] = (before + count, first, value)
        self.lowest = min(self.lowest, float(block.min(where=finite, initial=math.inf)))
        self.highest = max(self.highest, float(block.max(where=finite, initial=-math.inf)))


def _spans(held: Held) -> Iterator[tuple[int, int]]:
    """Return ranges of the major axis that hold about one block of values each."""
    if held.indptr is not None:
        return spans(held.indptr, held.block)
    step = max(1, held.block // max(1, held.n_minor))
    return pairwise(np.unique([0, *np.arange(step, held.n_major, step), held.n_major]).tolist())


def _block(held: Held, first: int, last: int) -> tuple[Array, int]:
    """Return the values of a range of the major axis, and the position of the first of them."""
    if held.indptr is None:
        return held.values[first:last], first * held.n_minor
    start, stop = int(held.indptr[first]), int(held.indptr[last])
    return held.values[start:stop], start


def _indices(held: Held, first: int, last: int, chosen: Array | None) -> Array:
    assert held.indptr is not None
    indices: Array = held.indices[held.indptr[first] : held.indptr[last]]
    return indices if chosen is None else indices[chosen]


def _whole(block: Array) -> bool:
    return block.dtype.kind != "f" or bool((np.rint(block) == block).all())


def _filled_rows(pointers: Array, nonzero: Array | None) -> Array:
    """Return which rows hold a value that is not zero; stored zeros do not count, (n_rows,) bool."""
    if nonzero is None:
        return pointers[1:] > pointers[:-1]
    before: Array = np.concatenate([[0], np.cumsum(nonzero)])[pointers - pointers[0]]
    return before[1:] > before[:-1]


def _mark(filled: Array, indices: Array) -> None:
    """Set ``filled`` at the indices."""
    if len(filled) < len(indices):
        # half the time of the assignment, as long as the counts are few beside the indices
        filled |= np.bincount(indices, minlength=len(filled)) > 0
    else:
        filled[indices] = True


def _locate(held: Held, n: int, position: int, value: float) -> Flaw:
    if held.indptr is None:
        major, minor = divmod(position, held.n_minor)
    else:
        # the last of several equal pointers: the rows before it are empty
        major = int(np.searchsorted(held.indptr, position, side="right")) - 1
        minor = int(held.indices[position])
    obs, var = (major, minor) if held.by_cell else (minor, major)
    return Flaw(n, obs, var, value)


def _pointer_fault(held: Held) -> str:
    indices, indptr, n_values = held.indices, held.indptr, held.values.shape[0]
    assert indptr is not None
    if indices.dtype.kind != "i" or indptr.dtype.kind != "i":
        return f"the index arrays are {indices.dtype} and {indptr.dtype}, not integers"
    if len(indptr) != held.n_major + 1:
        return f"indptr has {len(indptr):,} entries instead of {held.n_major + 1:,}"
    if indices.shape[0] != n_values:
        return f"there are {indices.shape[0]:,} indices for {n_values:,} values"
    if indptr[0] != 0 or indptr[-1] != n_values:
        return f"indptr runs from {indptr[0]:,} to {indptr[-1]:,} instead of 0 to {n_values:,}"
    if (indptr[1:] < indptr[:-1]).any():
        return "indptr falls; it must never"
    return ""


def _disorder(indices: Array, pointers: Array, n_minor: int) -> tuple[int, int]:
    """Return the number of rows whose indices do not ascend, and of repeated places, in whole rows.

    ``indices`` (n,) are those of the rows that start at ``pointers`` (n_rows + 1,).
    """
    starts = np.zeros(len(indices) + 1, dtype=bool)
    starts[pointers] = True
    falls = np.flatnonzero(indices[1:] <= indices[:-1]) + 1
    falls = falls[~starts[falls]]
    if falls.size == 0:
        return 0, 0
    repeats = indices[falls] == indices[falls - 1]
    if repeats.all():
        return 0, int(falls.size)
    # out of order, equal indices need not be neighbours: sort the places in a copy
    row = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    place = np.sort(row * n_minor + indices)
    n_unsorted = len(np.unique(row[falls[~repeats]]))
    return n_unsorted, int(np.count_nonzero(place[1:] == place[:-1]))
