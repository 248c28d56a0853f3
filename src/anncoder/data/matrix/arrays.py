"""Arrays of a matrix (CSR, CSC, dense; in memory, HDF5, zarr), read by blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

Array = npt.NDArray[Any]

BLOCK = 1 << 18
"""Values read at once: 1 MiB of float32, which fits the second-level cache."""

DISK_BLOCK = 1 << 21
"""Values read at once from disk, where every read has its price."""


class Held(NamedTuple):
    """The arrays of a matrix, seen along its major axis; on disk they are HDF5 or zarr arrays, which slices read."""

    values: Any  # sparse: (n_stored,); dense: (n_major, n_minor)
    indices: Any  # (n_stored,) position on the minor axis; None: dense
    indptr: Array | None  # (n_major + 1,)
    n_major: int
    n_minor: int
    by_cell: bool  # the major axis is that of the cells
    block: int = BLOCK  # values to read at once


class OnDisk:
    """One matrix of a file: CSR, CSC or dense. Only the row pointers are in memory.

    Parameters
    ----------
    element
        The HDF5 or zarr array or group that holds it.

    Attributes
    ----------
    format
        ``"csr"``, ``"csc"``, ``"dense"``, or, of what cannot be read as a matrix, the name of its encoding.
    shape
        (n_obs, n_vars), or whatever an array of another number of dimensions has.
    values, indices, indptr
        As in :class:`Held`.
    pointers
        The row pointers as they are stored.
    n_stored
        Number of stored values.
    """

    def __init__(self, element: Any) -> None:
        self.indices: Any = None
        self.pointers: Any = None
        self.indptr: Array | None = None
        self.values: Any = element
        if hasattr(element, "shape"):
            self.format, self.shape = "dense", tuple(int(n) for n in element.shape)
            self.n_stored = int(np.prod(self.shape))
            return
        kind = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "")))
        self.format = kind[:3] if kind[:3] in ("csr", "csc") else kind or "something else"
        self.shape, self.n_stored = (0, 0), 0
        if self.format in ("csr", "csc"):
            shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
            self.shape = (int(shape[0]), int(shape[1]))
            self.values, self.indices = element["data"], element["indices"]
            self.pointers = element["indptr"]
            self.indptr = np.asarray(self.pointers[:])
            self.n_stored = min(self.values.shape[0], self.indices.shape[0])

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Type of the stored values."""
        return self.values.dtype

    def held(self) -> Held:
        """Return the arrays along the major axis."""
        by_cell = self.format != "csc"
        major, minor = self.shape if by_cell else self.shape[::-1]
        return Held(self.values, self.indices, self.indptr, major, minor, by_cell, DISK_BLOCK)


def hold(matrix: Any) -> Held:
    """Return the arrays of a readable matrix, not copied (COO and the like: converted to CSR first)."""
    if isinstance(matrix, OnDisk):
        return matrix.held()
    n_obs, n_vars = matrix.shape
    if sparse.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            matrix = matrix.tocsr()
        by_cell = matrix.format == "csr"
        values, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    else:
        by_cell = not matrix.flags.f_contiguous or matrix.flags.c_contiguous
        values = np.asarray(matrix if by_cell else matrix.T)
        indices = indptr = None
    n_major, n_minor = (n_obs, n_vars) if by_cell else (n_vars, n_obs)
    return Held(values, indices, indptr, n_major, n_minor, by_cell)


def spans(indptr: Array, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows (CSC: columns) that hold about ``size`` stored values each; no row is cut."""
    # of one type, or all of the pointers would be converted
    cuts = np.searchsorted(indptr, np.arange(size, int(indptr[-1]), size).astype(indptr.dtype))
    yield from pairwise(np.unique([0, *cuts, len(indptr) - 1]).tolist())
