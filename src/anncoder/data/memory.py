"""Minibatches of a CSR matrix in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from anncoder.data.order import Rows, minibatches, n_minibatches, shuffled
from anncoder.types import CSR, Batch


class MemoryLoader:
    """Minibatches of some rows of a matrix; only the stored values of a minibatch are ever copied.

    Parameters
    ----------
    matrix
        (n, g) float32 CSR with sorted, unique indices.
    size_factor
        (n,) library size over the median library size of the fitted data.
    rows
        The rows to go through.
    batch_size
        Cells in a minibatch.
    seed
        Shuffles the rows anew in every epoch; None keeps them in order.
    """

    def __init__(
        self,
        matrix: csr_matrix,
        size_factor: np.ndarray[Any, Any],
        rows: Rows,
        *,
        batch_size: int,
        seed: int | None = None,
    ) -> None:
        self.matrix = matrix
        self.size_factor = size_factor.astype(np.float32)
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.n_obs = len(rows)

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return n_minibatches(self.n_obs, self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order of this epoch."""
        rows = self.rows if self.seed is None else shuffled(self.rows, self.seed, number)
        for chosen in minibatches(rows, self.batch_size):
            yield Batch(
                take_rows(self.matrix, chosen),
                torch.from_numpy(self.size_factor[chosen]),
                torch.from_numpy(chosen),
            )


def take_rows(matrix: csr_matrix, rows: Rows) -> CSR:
    """Return some rows of a scipy CSR matrix as tensors, in the order given."""
    from anncoder.kernels import sparse

    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(matrix.indptr[rows + 1] - matrix.indptr[rows], out=indptr[1:])
    indices, values = np.empty(indptr[-1], np.int64), np.empty(indptr[-1], matrix.dtype)
    sparse.take_rows(matrix.indptr, matrix.indices, matrix.data, rows, indptr, indices, values)
    return CSR(torch.from_numpy(indptr), torch.from_numpy(indices), torch.from_numpy(values), matrix.shape[1])
