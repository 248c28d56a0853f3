"""Scan of every value of a matrix: sound indices, bad values, empty cells and genes.

Nothing here knows AnnData or names; :mod:`anncoder.data.check` turns what is found into sentences. CSR, CSC and
dense matrices are read alike, along their *major* axis (the rows of CSR, the columns of CSC) in blocks that
stay in the cache, and are never written to. Indices are looked at before anything is done with them. A clean block
costs a minimum, a maximum and one rounding; only a block that fails these is looked at again, value by value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from anncoder.data.matrix.arrays import Array, Arrays, Block, OnDisk, arrays_of, blocks, near_whole, nearest_whole
from anncoder.data.matrix.sample import Sample, Sampler

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


class Scan(NamedTuple):
    """What one pass over a matrix found.

    Attributes
    ----------
    structure
        Of its index arrays. If there is a fault, the values were not read, and nothing else is known.
    n_stored
        Values read: the stored ones of a sparse matrix.
    n_nonzero
        Values that are not zero.
    lowest, highest
        Extremes of the finite values, zeros that are not stored included; None: there is no finite value.
    flaws
        By code: ``"not-finite"``; among the finite values ``"negative"``, ``"not-integer"``, ``"too-large"``, and
        ``"rounded"``, whole but for the noise of rounding.
    empty_obs, empty_vars
        Positions of the all-zero cells and genes, (n,) int64 each.
    sample
        The values of some cells.
    """

    structure: Structure
    n_stored: int
    n_nonzero: int
    lowest: float | None
    highest: float | None
    flaws: dict[str, Flaw]
    empty_obs: Array
    empty_vars: Array
    sample: Sample


NOWHERE = np.empty(0, dtype=np.int64)
NOT_READ = Scan(Structure(), 0, 0, None, None, {}, NOWHERE, NOWHERE, Sample(NOWHERE, NOWHERE, 0))


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
    arrays = arrays_of(matrix)
    found = Structure(pointer_fault(arrays))
    if arrays.indptr is not None and not found.fault:
        for block in blocks(arrays):
            found = _with_indices(found, block)
            if found.fault:
                break
    return found


def scan(matrix: Any, largest: float, each: Callable[[Block], None] | None = None, *, rounds: bool = False) -> Scan:
    """Read a whole matrix once: its index arrays as :func:`structure` does, and every stored value that is safe to use.

    Parameters
    ----------
    matrix
        Counts or expression, (n_obs, n_vars).
    largest
        The magnitude above which a value is ``"too-large"``.
    each
        Called with every block whose indices are sound, for other work on what has been read.
    rounds
        Values that are whole but for the noise of rounding are taken as whole, here and in the blocks.
    """
    arrays = arrays_of(matrix)
    found = Structure(pointer_fault(arrays))
    if found.fault:
        return NOT_READ._replace(structure=found)
    tally, sampler = Tally(largest, rounds), Sampler(arrays)
    filled_major = np.zeros(arrays.n_major, dtype=bool)
    filled_minor = np.zeros(arrays.n_minor, dtype=bool)
    for block in blocks(arrays):
        if arrays.indptr is not None and (found := _with_indices(found, block)).fault:
            return NOT_READ._replace(structure=found)
        block.values, nonzero = tally.add(block.values, block.start)
        filled_major[block.first : block.last] = _mark_filled(block, nonzero, filled_minor)
        sampler.add(block)
        if each is not None:
            each(block)
    obs, var = (filled_major, filled_minor) if arrays.by_cell else (filled_minor, filled_major)
    return Scan(
        found,
        tally.n_stored,
        tally.n_nonzero,
        *tally.extremes(arrays.n_major * arrays.n_minor),
        flaws={code: _locate(arrays, *flaw) for code, flaw in tally.found.items()},
        empty_obs=np.flatnonzero(~obs),
        empty_vars=np.flatnonzero(~var),
        sample=sampler.sample(),
    )


@dataclass
class Tally:
    """What has been seen of a stream of blocks of values.

    Parameters
    ----------
    largest
        The magnitude above which a value is ``"too-large"``.
    rounds
        As in :func:`scan`.
    """

    largest: float
    rounds: bool = False
    n_stored: int = 0
    n_nonzero: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    found: dict[str, tuple[int, int, float]] = field(default_factory=dict)  # code: count, first position, value

    def add(self, block: Array, offset: int) -> tuple[Array, Array | None]:
        """Take in a block whose first value has the position ``offset``.

        Returns
        -------
        tuple
            The block, rounded if that is due; and which of its values are not zero: None when all of them are, as in
            nearly every block of a sparse matrix.
        """
        self.n_stored += block.size
        if block.size == 0:
            return block, None
        with np.errstate(invalid="ignore"):
            low, high = float(block.min()), float(block.max())  # NaN if there is one
        # NaN fails every comparison; infinities fail one of the two
        within = low >= 0 and high <= self.largest
        if within and _whole(block):
            self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        else:
            block = self._look_closer(block, offset)
            low = float(block.min())
        nonzero = None if low > 0 else block != 0
        self.n_nonzero += block.size if nonzero is None else int(np.count_nonzero(nonzero))
        return block, nonzero

    def extremes(self, size: int) -> tuple[float | None, float | None]:
        """Return the extremes of the finite values of a matrix of this size, whose other values are zero."""
        lowest, highest = self.lowest, self.highest
        if self.n_stored < size:
            lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        return (lowest, highest) if lowest <= highest else (None, None)

    def _look_closer(self, given: Array, offset: int) -> Array:
        """Count the faults of a block; return it, rounded if that is due."""
        block = given.astype(np.float64).ravel()
        finite, near = np.isfinite(block), near_whole(block)
        taken = np.where(near, nearest_whole(block), block)
        faults = {
            "not-finite": ~finite,
            "negative": finite & (taken < 0),
            "not-integer": finite & ~near,
            "rounded": finite & (taken != block),
            "too-large": finite & (np.abs(block) > self.largest),
        }
        for code, fault in faults.items():
            if count := int(np.count_nonzero(fault)):
                position = int(fault.argmax())
                before, first, value = self.found.get(code, (0, offset + position, float(block[position])))
                self.found[code] = (before + count, first, value)
        block = taken if self.rounds else block
        self.lowest = min(self.lowest, float(block.min(where=finite, initial=math.inf)))
        self.highest = max(self.highest, float(block.max(where=finite, initial=-math.inf)))
        return block.reshape(given.shape).astype(given.dtype) if self.rounds else given


def _with_indices(found: Structure, block: Block) -> Structure:
    """Return the structure found so far together with that of the next block of a sparse matrix."""
    indices, n_minor = block.indices, block.arrays.n_minor
    if indices.size == 0:
        return found
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= n_minor:
        axis = "gene" if block.arrays.by_cell else "cell"
        return Structure(f"{axis} index {low if low < 0 else high:,} is outside 0 to {n_minor - 1:,}")
    unsorted, duplicates = _disorder(indices, block.pointers, n_minor)
    return Structure("", found.n_unsorted + unsorted, found.n_duplicates + duplicates)


def _whole(block: Array) -> bool:
    return block.dtype.kind != "f" or bool((np.rint(block) == block).all())


def _mark_filled(block: Block, nonzero: Array | None, filled_minor: Array) -> Array:
    """Return which rows of a block hold a value that is not zero, (n_rows,) bool; mark the columns that do.

    Stored zeros do not count; ``nonzero`` None: there are none of them.
    """
    if block.arrays.indptr is None:
        filled = np.ones(block.values.shape, dtype=bool) if nonzero is None else nonzero
        filled_minor |= np.any(filled, axis=0)
        return np.asarray(filled.any(axis=1))
    indices = block.indices if nonzero is None else block.indices[nonzero]
    if len(filled_minor) < len(indices):
        # half the time of the assignment, as long as the counts are few beside the indices
        filled_minor |= np.bincount(indices, minlength=len(filled_minor)) > 0
    else:
        filled_minor[indices] = True
    before: Array = block.pointers
    if nonzero is not None:
        before = np.concatenate([[0], np.cumsum(nonzero)])[before]
    return before[1:] > before[:-1]


def _locate(arrays: Arrays, n: int, position: int, value: float) -> Flaw:
    if arrays.indptr is None:
        major, minor = divmod(position, arrays.n_minor)
    else:
        # the last of several equal pointers: the rows before it are empty
        major = int(np.searchsorted(arrays.indptr, position, side="right")) - 1
        minor = int(arrays.indices[position])
    obs, var = (major, minor) if arrays.by_cell else (minor, major)
    return Flaw(n, obs, var, value)


def pointer_fault(arrays: Arrays) -> str:
    """Return why the row pointers of a sparse matrix cannot be followed; empty if they can."""
    indices, indptr, n_values = arrays.indices, arrays.indptr, arrays.values.shape[0]
    if indptr is None:
        return ""
    if indices.dtype.kind not in "iu" or indptr.dtype.kind != "i":
        return f"the index arrays are {indices.dtype} and {indptr.dtype}, not integers"
    if len(indptr) != arrays.n_major + 1:
        return f"indptr has {len(indptr):,} entries instead of {arrays.n_major + 1:,}"
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
