"""In-memory loader: minibatches of a CSR matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix

from anncoder.data.loaders.order import Rows, minibatches, n_minibatches, refuse_small_share, shuffled
from anncoder.kernels.cpu import sparse
from anncoder.types import CSR, SINGLE, Batch, Rank


class Stored(NamedTuple):
    """The arrays of a CSR matrix, in the types that the kernel reads: gene numbers are small, row pointers are not."""

    indptr: np.ndarray[Any, np.dtype[np.int64]]
    indices: np.ndarray[Any, np.dtype[np.int32]]
    values: np.ndarray[Any, np.dtype[np.float32]]
    n_vars: int

    @classmethod
    def of(cls, matrix: csr_matrix) -> Stored:
        """Take the arrays of a scipy matrix, copied only where their type is another."""
        return cls(
            np.ascontiguousarray(matrix.indptr, dtype=np.int64),
            np.ascontiguousarray(matrix.indices, dtype=np.int32),
            np.ascontiguousarray(matrix.data, dtype=np.float32),
            matrix.shape[1],
        )

    def take(self, rows: Rows) -> CSR:
        """Return some rows as tensors, in the order given."""
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        indices, values = np.empty(indptr[-1], np.int64), np.empty(indptr[-1], np.float32)
        sparse.take_rows(sparse.pieces(len(rows), sparse.ROWS), *self[:3], rows, indptr, indices, values)
        return CSR(torch.from_numpy(indptr), torch.from_numpy(indices), torch.from_numpy(values), self.n_vars)


class MemoryLoader:
    """Minibatches of some rows of a matrix; only the stored values of a minibatch are ever copied.

    Parameters
    ----------
    stored
        (n, g) matrix with sorted, unique indices.
    size_factor
        (n,) library size over the median library size of the fitted data.
    rows
        The rows to go through.
    batch_size
        Cells in a minibatch.
    seed
        Shuffles the rows anew in every epoch; None keeps them in order.
    batch_code
        (n,) experimental batch of each cell, if there are any.
    process
        Which of several processes this is: each has its part of every minibatch of ``size * batch_size``.
    covariates
        (n, c) float32 of each cell, if there are any.

    Raises
    ------
    ConfigError
        There are several processes, and too few cells to shuffle for one of them.
    """

    def __init__(
        self,
        stored: Stored,
        size_factor: np.ndarray[Any, Any],
        rows: Rows,
        *,
        batch_size: int,
        seed: int | None = None,
        batch_code: np.ndarray[Any, Any] | None = None,
        process: Rank = SINGLE,
        covariates: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self.stored, self.size_factor, self.batch_code = stored, size_factor.astype(np.float32), batch_code
        self.covariates = covariates
        self.rows, self.n_obs = rows, len(rows)
        self.batch_size, self.seed, self.process = batch_size, seed, process
        if seed is not None:
            refuse_small_share(self.n_obs // process.size, process.size)

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        rank, size = self.process
        if self.seed is None:
            return n_minibatches(len(self.rows[rank::size]), self.batch_size)
        return n_minibatches(self.n_obs - self.n_obs % size, size * self.batch_size, 2 * size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order of this epoch."""
        for chosen in self.order(number):
            yield Batch(
                self.stored.take(chosen),
                torch.from_numpy(self.size_factor[chosen]),
                torch.from_numpy(chosen),
                None if self.batch_code is None else torch.from_numpy(self.batch_code[chosen]),
                None if self.covariates is None else torch.from_numpy(self.covariates[chosen]),
            )

    def order(self, number: int) -> Iterator[Rows]:
        """Yield the rows of each minibatch of this epoch.

        Of several processes each gets the same number of cells in every step: a few cells, others in every epoch, may
        be left out for that.
        """
        rank, size = self.process
        if self.seed is None:
            return minibatches(self.rows[rank::size], self.batch_size)
        rows = shuffled(self.rows, self.seed, number)[: self.n_obs - self.n_obs % size]
        return (part[rank::size] for part in minibatches(rows, size * self.batch_size, 2 * size))
