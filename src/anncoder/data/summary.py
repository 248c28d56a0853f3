"""Library sizes, size factors, and gene means and variances of the cells to fit on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from anncoder.data.matrix.arrays import arrays_of, blocks
from anncoder.types import Summary

Array = np.ndarray[Any, Any]


def library_sizes(matrix: csr_matrix) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the total count of each cell, (n,)."""
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def median_library_size(sizes: Array) -> float:
    """Return the median library size of the fitted cells, whose library sizes are given, (n,): size factor 1."""
    return float(np.median(sizes))


def size_factors(sizes: Array, library_size: float) -> Array:
    """Return library size over :func:`median_library_size` of each cell, (n,) float32; 1 for a cell without counts.

    Of such a cell there is nothing that could be divided by it.
    """
    return np.where(sizes > 0, sizes / library_size, 1).astype(np.float32)


def summarize(
    cells: Iterable[tuple[csr_matrix, Array]], n_vars: int, library_size: float, *, transform: str
) -> Summary:
    """Return means and variances of the genes over some cells.

    Parameters
    ----------
    cells
        (n, g) counts (or expression, with ``transform="none"``) of some cells, and their size factors, (n,); a few
        thousand at a time.
    n_vars
        Number of genes, g.
    library_size
        Median library size; a cell's size factor is its own over this.
    transform
        As in the model.
    """
    sums, n_cells, smallest, inverse = np.zeros((4, n_vars)), 0, 0.0, 0.0
    for matrix, size_factor in cells:
        inverse += float((1 / size_factor[size_factor > 0]).sum())
        for block in blocks(arrays_of(matrix)):  # a dozen copies of one are all the memory this needs
            values = block.values.astype(np.float64)
            smallest = min(smallest, values.min(initial=0))
            if transform != "none":
                values /= np.repeat(np.maximum(size_factor[block.first : block.last], 1e-12), np.diff(block.pointers))
            x = np.log1p(values) if transform == "log1p" else values
            for total, weights in zip(sums, (values, values**2, x, x**2), strict=True):
                total += np.bincount(block.indices, weights=weights, minlength=n_vars)
        n_cells += matrix.shape[0]
    mean, square, x_mean, x_square = sums / n_cells
    x_std = np.sqrt(np.maximum(x_square - x_mean**2, 0))
    moments = (mean, np.maximum(square - mean**2, 0), x_mean, np.where(x_std > 0, x_std, 1))
    a, b, c, d = (torch.from_numpy(moment.astype(np.float32)) for moment in moments)
    of_genes = Summary(n_cells, float(smallest), library_size, gene_mean=a, gene_var=b, x_mean=c, x_std=d)
    return of_genes._replace(inverse_size=inverse / n_cells)
