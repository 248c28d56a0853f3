"""The one pass over the fitted cells before training: library sizes, and means and variances of the genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from anncoder.data.order import Rows
from anncoder.types import Summary

BLOCK = 65_536  # rows at a time: the copies of a block's stored values are all the memory this needs


def library_sizes(matrix: csr_matrix) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the total count of each cell, (n,)."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def summarize(matrix: csr_matrix, rows: Rows, library_size: float, *, transform: str) -> Summary:
    """Return means and variances of the genes over some cells.

    Parameters
    ----------
    matrix
        (n, g) counts (or expression, with ``transform="none"``).
    rows
        The cells to look at.
    library_size
        Median library size; a cell's size factor is its own over this.
    transform
        ``log1p`` or ``none``, as in the model.
    """
    n_vars = matrix.shape[1]
    sums = np.zeros((4, n_vars))
    for start in range(0, len(rows), BLOCK):
        block = matrix[rows[start : start + BLOCK]]
        values = block.data.astype(np.float64)
        if transform == "log1p":
            values /= np.repeat(np.maximum(library_sizes(block) / library_size, 1e-12), np.diff(block.indptr))
        x = np.log1p(values) if transform == "log1p" else values
        for total, weights in zip(sums, (values, values**2, x, x**2), strict=True):
            total += np.bincount(block.indices, weights=weights, minlength=n_vars)
    mean, square, x_mean, x_square = sums / len(rows)
    x_std = np.sqrt(np.maximum(x_square - x_mean**2, 0))
    return Summary(
        library_size,
        *(
            torch.from_numpy(a.astype(np.float32))
            for a in (mean, np.maximum(square - mean**2, 0), x_mean, np.where(x_std > 0, x_std, 1))
        ),
    )
