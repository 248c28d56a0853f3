"""Sample of a matrix: the values of evenly spaced cells."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from anncoder.data.matrix.arrays import Array, Arrays, Block, arrays_of, blocks

SAMPLED_CELLS = 2000
SAMPLED_VALUES = 1 << 20
"""A sample has at most so many cells, and about so many values."""


class Sample(NamedTuple):
    """The non-zero values of some evenly spaced cells."""

    values: Array  # (n,)
    owner: Array  # (n,) int64 which of the sampled cells, 0 .. n_cells - 1
    n_cells: int


class Sampler:
    """Takes the sample out of the blocks of a matrix as they pass.

    Parameters
    ----------
    arrays
        Those of the matrix, whose index arrays have no fault.
    n_cells, n_values
        At most this many cells, and about this many stored values.
    """

    def __init__(self, arrays: Arrays, n_cells: int = SAMPLED_CELLS, n_values: int = SAMPLED_VALUES) -> None:
        stored_per_cell = max(1, arrays.values.size // max(1, arrays.n_obs))
        self.cells = evenly(arrays.n_obs, min(n_cells, max(16, n_values // stored_per_cell)))
        self._values, self._owners = [np.empty(0, arrays.values.dtype)], [np.empty(0, np.int64)]
        self._number = np.full(0 if arrays.by_cell else arrays.n_obs, -1)  # of each cell in the sample
        if not arrays.by_cell:
            self._number[self.cells] = np.arange(len(self.cells))

    def add(self, block: Block) -> None:
        """Take the values of the sampled cells."""
        if not block.arrays.by_cell:
            values, owner = self._by_gene(block)
        else:
            first, last = np.searchsorted(self.cells, [block.first, block.last])
            own = self.cells[first:last] - block.first
            if not len(own):
                return
            values, lengths = _rows(block, own)
            owner = np.repeat(np.arange(first, last), lengths)
        self._values.append(values)
        self._owners.append(owner)

    def sample(self) -> Sample:
        """Return what was taken."""
        values, owner = np.concatenate(self._values), np.concatenate(self._owners)
        nonzero = values != 0
        return Sample(values[nonzero], owner[nonzero], len(self.cells))

    def _by_gene(self, block: Block) -> tuple[Array, Array]:
        if block.arrays.indptr is None:
            values = block.values[:, self.cells]
            return values.ravel(), np.tile(np.arange(len(self.cells)), len(values))
        owner = self._number[block.indices]
        return block.values[owner >= 0], owner[owner >= 0]


def sample(matrix: Any, n_cells: int = SAMPLED_CELLS, n_values: int = SAMPLED_VALUES) -> Sample:
    """Return the sample of a readable matrix, (n_obs, n_vars), whose index arrays have no fault.

    On disk no other cells are read where they are stored one after the other.
    """
    arrays = arrays_of(matrix)
    sampler = Sampler(arrays, n_cells, n_values)
    one_by_one = arrays.by_cell and not isinstance(arrays.values, np.ndarray)
    for block in (Block(arrays, c, c + 1) for c in sampler.cells.tolist()) if one_by_one else blocks(arrays):
        sampler.add(block)
    return sampler.sample()


def evenly(n: int, limit: int) -> Array:
    """Return at most ``limit`` evenly spaced positions out of n, ascending from 0, (m,) int64."""
    return np.linspace(0, n - 1, min(n, limit)).astype(np.int64)


def _rows(block: Block, rows: Array) -> tuple[Array, Any]:
    """Return the stored values of some rows of a block, at least one, and how many each row has."""
    if block.arrays.indptr is None:
        return block.values[rows].ravel(), block.arrays.n_minor
    starts, ends = block.pointers[rows].tolist(), block.pointers[rows + 1].tolist()
    values = np.concatenate([block.values[start:end] for start, end in zip(starts, ends, strict=True)])
    return values, np.subtract(ends, starts)
