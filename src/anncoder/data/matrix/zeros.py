"""Zero pattern of matrices: whether counts are those that another matrix was made from.

Normalising, logarithms and scaling without centring leave zeros where they are. A layer of integers whose zeros are
elsewhere counts something else: in files of RNA velocity, where the other layers are normalised, ambiguous molecules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.data.matrix.arrays import Array, Block, arrays_of, blocks
from anncoder.data.matrix.kind import Traits, traits
from anncoder.data.matrix.sample import evenly

CELLS = 200  # compared, evenly spaced
SAME = 0.01  # of the values that are not zero in one of two matrices, so many may be zero in the other
DENSE = 0.999  # share of values that are not zero, from which on zeros say nothing

Slots = Mapping[str, tuple[Any, pd.Index]]
"""By slot its matrix, (n_obs, n_vars), and the names of its genes."""


def holders(slots: Slots, known: Mapping[str, Traits]) -> tuple[str, ...]:
    """Return the slots with counts that the other slots were made from, as far as their zeros can tell.

    Parameters
    ----------
    slots
        All slots, first the one whose counts are looked for.
    known
        Traits of some of them.
    """
    table = {slot: known[slot] if slot in known else traits(matrix) for slot, (matrix, _) in slots.items()}
    found = [slot for slot, row in table.items() if row.kind == "counts"]
    made = [slot for slot, row in table.items() if slot not in found and _tells(row)]
    if not made or not found:
        return tuple(found)
    of = slots[made[0]]
    return tuple(slot for slot in found if slot == "X" or same_zeros(of, slots[slot]))


def same_zeros(one: tuple[Any, pd.Index], other: tuple[Any, pd.Index]) -> bool:
    """Tell whether two matrices have their zeros in the same places, in the genes that both have."""
    (left, left_genes), (right, right_genes) = one, other
    if left.shape[0] != right.shape[0]:
        return False
    cells = evenly(left.shape[0], CELLS)
    a, b = pattern(left, cells), pattern(right, cells)
    if not left_genes.equals(right_genes):
        if not (left_genes.is_unique and right_genes.is_unique):
            return True  # which gene is which, nothing tells
        places = right_genes.get_indexer(left_genes)
        a, b = a[:, places >= 0], b[:, places[places >= 0]]
    both = a.multiply(b).nnz
    either = a.nnz + b.nnz - both
    return bool(either - both <= SAME * either)


def pattern(matrix: Any, cells: Array) -> csr_matrix:
    """Return where some cells of a readable matrix are not zero, (n_cells, n_vars); ``cells`` ascend."""
    arrays = arrays_of(matrix)
    parts = (Block(arrays, c, c + 1) for c in cells.tolist()) if arrays.by_cell else blocks(arrays)
    number = np.full(arrays.n_obs, -1)
    number[cells] = np.arange(len(cells))
    rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for part in parts:
        major, minor = _filled(part)
        row, column = (number[major], minor) if arrays.by_cell else (number[minor], major)
        rows.append(row[row >= 0])
        columns.append(column[row >= 0])
    row, column = np.concatenate(rows), np.concatenate(columns)
    found = csr_matrix((np.ones(len(row), np.int8), (row, column)), shape=(len(cells), matrix.shape[1]))
    found.data[:] = 1  # one that stands there twice
    return found


def _tells(row: Traits) -> bool:
    # centred values have no zeros, and smoothed ones few
    return row.kind != "unknown" and row.lowest is not None and row.lowest >= 0 and row.nonzero_share < DENSE


def _filled(part: Block) -> tuple[Array, Array]:
    """Return the places on the major and the minor axis of the values of a block that are not zero."""
    if part.arrays.indptr is None:
        major, minor = np.nonzero(part.values)
        return major + part.first, minor
    filled = part.values != 0
    major = np.repeat(np.arange(part.first, part.last), np.diff(part.pointers))
    return major[filled], part.indices[filled]
