"""Zero pattern of matrices: whether counts are those that another matrix was made from.

Normalising, logarithms and scaling without centring leave zeros where they are. A layer of integers whose zeros are
elsewhere counts something else: in files of RNA velocity, where the other layers are normalised, ambiguous molecules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.data.matrix.arrays import Array, Block, arrays_of, blocks
from anncoder.data.matrix.kind import Traits, traits
from anncoder.data.matrix.sample import evenly
from anncoder.data.matrix.scan import pointer_fault, unreadable

CELLS = 200  # compared, evenly spaced
SAME = 0.01  # of the values that are not zero in one of two matrices, so many may be zero in the other
DENSE = 0.999  # share of values that are not zero, from which on zeros say nothing

Slots = Mapping[str, tuple[Any, pd.Index]]
"""By slot its matrix, (n_obs, n_vars), and the names of its genes."""


def holders(slots: Slots, checked: str, known: Mapping[str, Traits]) -> tuple[str, ...]:
    """Return the slots with counts that the other slots were made from, as far as their zeros can tell.

    Parameters
    ----------
    slots
        All slots.
    checked
        The one in whose place counts are looked for, which may not be there.
    known
        Traits of the others, as far as they are known.
    """
    rows = {slot: known[slot] if slot in known else traits(m) for slot, (m, _) in slots.items() if slot != checked}
    found = [slot for slot, row in rows.items() if row.kind == "counts"]
    others = sorted(slots.keys() - found, key=[checked, *slots].index)
    made = next((of for slot in others if (of := _pattern_of(slots[slot])) is not None and of.tells), None)
    return tuple(slot for slot in found if slot == "X" or made is None or made.like(_pattern_of(slots[slot])))


class Pattern(NamedTuple):
    """Where some cells of a matrix are not zero."""

    filled: csr_matrix  # (n_cells, n_vars) of ones
    genes: pd.Index  # (n_vars,)
    n_obs: int  # cells of the whole matrix
    negative: bool  # whether there are values below zero

    @property
    def tells(self) -> bool:
        """Whether there are zeros to compare: centred values have none, and smoothed ones few."""
        return not self.negative and self.filled.nnz < DENSE * np.prod(self.filled.shape)

    def like(self, other: Pattern | None) -> bool:
        """Tell whether the zeros of another one are in the same places, in the genes that both have."""
        if other is None or self.n_obs != other.n_obs:
            return False
        a, b = self.filled, other.filled
        if not self.genes.equals(other.genes):
            if not (self.genes.is_unique and other.genes.is_unique):
                return True  # which gene is which, nothing tells
            places = other.genes.get_indexer(self.genes)
            a, b = a[:, places >= 0], b[:, places[places >= 0]]
        both = a.multiply(b).nnz
        either = a.nnz + b.nnz - both
        return bool(either - both <= SAME * either)


def _pattern_of(slot: tuple[Any, pd.Index]) -> Pattern | None:
    matrix, genes = slot
    if unreadable(matrix) or pointer_fault(arrays_of(matrix)) or matrix.shape[1] != len(genes):
        return None
    return pattern(matrix, genes, evenly(matrix.shape[0], CELLS))


def pattern(matrix: Any, genes: pd.Index, cells: Array) -> Pattern | None:
    """Return the pattern of some cells, whose numbers ascend; None if the matrix has indices outside of it."""
    arrays = arrays_of(matrix)
    parts = (Block(arrays, c, c + 1) for c in cells.tolist()) if arrays.by_cell else blocks(arrays)
    number = np.full(arrays.n_obs, -1)
    number[cells] = np.arange(len(cells))
    rows, columns, negative = [np.empty(0, np.int64)], [np.empty(0, np.int64)], False
    for part in parts:
        major, minor = _filled(part)
        if minor.size and not 0 <= minor.min() <= minor.max() < arrays.n_minor:
            return None
        row, column = (number[major], minor) if arrays.by_cell else (number[minor], major)
        rows.append(row[row >= 0])
        columns.append(column[row >= 0])
        negative |= bool((part.values < 0).any())
    row, column = np.concatenate(rows), np.concatenate(columns)
    found = csr_matrix((np.ones(len(row), np.int8), (row, column)), shape=(len(cells), matrix.shape[1]))
    found.data[:] = 1  # one that stands there twice
    return Pattern(found, genes, arrays.n_obs, negative)


def _filled(part: Block) -> tuple[Array, Array]:
    """Return the places on the major and the minor axis of the values of a block that are not zero."""
    if part.arrays.indptr is None:
        major, minor = np.nonzero(part.values)
        return major + part.first, minor
    filled = part.values != 0
    major = np.repeat(np.arange(part.first, part.last), np.diff(part.pointers))
    return major[filled], part.indices[filled]
