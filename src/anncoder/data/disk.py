"""Minibatches of matrices on disk: blocks of rows in random order, pooled, shuffled, cut.

A block of neighbouring rows is read at once; the blocks of a pool come from all over the data, and the cells of a pool
are shuffled. With 32 rows a block and 32,768 a pool, the labels in a minibatch of a file sorted by label have 0.998 of
the entropy that a full shuffle gives (64 and 16,384: 0.987). Memory does not grow with the number of cells. One thread
reads the next pool while this one is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix

from anncoder.data.memory import Stored
from anncoder.data.order import Rows, n_minibatches
from anncoder.data.prefetch import prefetched
from anncoder.data.shards import Shards
from anncoder.types import Batch

BLOCK = 32  # rows read at once
POOL = 32_768  # cells shuffled at once

Array = np.ndarray[Any, Any]


class Pool(NamedTuple):
    """Cells in memory, and the minibatches to cut from them."""

    matrix: csr_matrix  # (m, g)
    rows: Rows  # (m,) where each cell is in the data
    batches: list[Rows]  # positions in the pool


class DiskLoader:
    """Minibatches of some rows of matrices on disk.

    Parameters
    ----------
    shards
        The matrices.
    size_factor
        (n_obs,) float32 library size over the median library size of the fitted data.
    chosen
        (n_obs,) bool, the rows to go through.
    batch_size
        Cells in a minibatch.
    seed
        Draws the order of the blocks and of the cells of a pool anew in every epoch; None keeps the order of the data.
    block, pool
        Rows read at once, and cells shuffled at once.
    """

    def __init__(
        self,
        shards: Shards,
        size_factor: Array,
        chosen: Array,
        *,
        batch_size: int,
        seed: int | None = None,
        block: int = BLOCK,
        pool: int = POOL,
    ) -> None:
        self.shards, self.size_factor, self.chosen = shards, size_factor, chosen
        self.batch_size, self.seed = batch_size, seed
        self.pool = max(pool, 2 * batch_size)
        self.blocks = np.array(list(shards.borders(block)), dtype=np.int64).reshape(-1, 2)
        self.n_obs = int(np.count_nonzero(chosen))
        before = np.concatenate([[0], np.cumsum(chosen)])
        self._n_chosen = before[self.blocks[:, 1]] - before[self.blocks[:, 0]]

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return n_minibatches(self.n_obs, self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order of this epoch.

        Raises
        ------
        FileError
            A file is damaged, or has changed since it was opened.
        """
        self.shards.refuse_change()
        for pool in prefetched(self._pools(number)):
            stored = Stored.of(pool.matrix)
            for chosen in pool.batches:
                rows = pool.rows[chosen]
                yield Batch(
                    stored.take(chosen),
                    torch.from_numpy(self.size_factor[rows]),
                    torch.from_numpy(rows),
                )

    def _pools(self, number: int) -> Iterator[Pool]:
        groups = list(self._groups(number))
        rest, rest_rows = None, np.empty(0, dtype=np.int64)
        for at, blocks in enumerate(groups):
            blocks = blocks[np.argsort(blocks[:, 0])]
            matrix = self.shards.read(_joined(blocks))
            rows = np.concatenate([np.arange(a, b) for a, b in blocks])
            wanted = np.flatnonzero(self.chosen[rows]) + len(rest_rows)
            if rest is not None:
                matrix, rows = _stacked(rest, matrix), np.concatenate([rest_rows, rows])
            order = np.concatenate([np.arange(len(rest_rows)), wanted])
            if self.seed is not None:
                order = np.random.default_rng([self.seed, 2, number, at]).permutation(order)
            batches, left = self._cut(order, last=at == len(groups) - 1)
            yield Pool(matrix, rows, batches)
            rest, rest_rows = matrix[left], rows[left]

    def _groups(self, number: int) -> Iterator[Array]:
        """Yield the blocks of each pool, (n, 2): as many as hold its number of cells."""
        order = np.flatnonzero(self._n_chosen)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, 1, number]).permutation(order)
        before = np.cumsum(self._n_chosen[order]) - self._n_chosen[order]
        cuts = np.flatnonzero(np.diff(before // self.pool)) + 1
        for part in np.split(order, cuts):
            if len(part):
                yield self.blocks[part]

    def _cut(self, order: Rows, *, last: bool) -> tuple[list[Rows], Rows]:
        """Cut minibatches; what is left goes to the next pool, and never is a single cell."""
        batches, size = [], self.batch_size
        while len(order) >= size + 2:
            batches.append(order[:size])
            order = order[size:]
        if last and len(order):
            batches.append(order)
            order = order[:0]
        return batches, order


def _joined(blocks: Array) -> list[tuple[int, int]]:
    """Return the ranges of ascending blocks, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for a, b in blocks.tolist():
        if ranges and ranges[-1][1] == a:
            ranges[-1] = (ranges[-1][0], b)
        else:
            ranges.append((a, b))
    return ranges


def _stacked(top: csr_matrix, bottom: csr_matrix) -> csr_matrix:
    indptr = np.concatenate([top.indptr, bottom.indptr[1:] + top.indptr[-1]])
    data, indices = np.concatenate([top.data, bottom.data]), np.concatenate([top.indices, bottom.indices])
    return csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, bottom.shape[1]), copy=False)
