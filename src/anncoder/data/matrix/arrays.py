"""Arrays of a matrix (CSR, CSC, dense; in memory, HDF5, zarr), read by blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csr_matrix

from anncoder.data.formats.attributes import encoding_of, is_null, sparse_format

Array = npt.NDArray[Any]

BLOCK = 1 << 18
"""Values read at once: 1 MiB of float32, which fits the second-level cache."""

DISK_BLOCK = 1 << 21
"""Values read at once from disk, where every read has its price."""


NOISE = 1e-6
"""Share of a count, or of 1, by which it may miss a whole number: some digits of float32, which the models read."""


def nearest_whole(values: Array) -> Array:
    """Return the nearest whole numbers, without a negative zero."""
    return np.asarray(np.rint(values) + 0.0, values.dtype)


def near_whole(values: Array) -> Array:
    """Return which values are whole numbers, or miss one by the noise of rounding, bool; infinite ones are not."""
    with np.errstate(invalid="ignore"):
        off = np.abs(values - np.rint(values))
    return np.asarray(off <= np.minimum(NOISE * np.maximum(np.abs(values), 1), 0.05))


class Arrays(NamedTuple):
    """The arrays of a matrix, seen along its major axis; on disk they are HDF5 or zarr arrays, which slices read."""

    values: Any  # sparse: (n_stored,); dense: (n_major, n_minor)
    indices: Any  # (n_stored,) position on the minor axis; None: dense
    indptr: Array | None  # (n_major + 1,)
    n_major: int
    n_minor: int
    by_cell: bool  # the major axis is that of the cells
    block: int  # values to read at once

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.n_major if self.by_cell else self.n_minor


class Block:
    """A range of the major axis. Each array is read when it is asked for first, and then kept."""

    def __init__(self, arrays: Arrays, first: int, last: int) -> None:
        self.arrays, self.first, self.last = arrays, first, last

    @property
    def start(self) -> int:
        """Position of its first value among all of them."""
        indptr = self.arrays.indptr
        return self.first * self.arrays.n_minor if indptr is None else int(indptr[self.first])

    @cached_property
    def values(self) -> Array:
        """Stored values, sparse (n,), dense (last - first, n_minor)."""
        return np.asarray(self.arrays.values[self._stored])

    @cached_property
    def indices(self) -> Array:
        """Positions on the minor axis, (n,); of a sparse matrix only."""
        return signed(np.asarray(self.arrays.indices[self._stored]))

    @cached_property
    def pointers(self) -> Array:
        """Where each row of the block begins in it, (last - first + 1,); of a sparse matrix only."""
        assert self.arrays.indptr is not None
        pointers = self.arrays.indptr[self.first : self.last + 1]
        return np.asarray(pointers - pointers[0])

    def cells(self) -> csr_matrix:
        """Return the cells of a block along them as float32 CSR with sorted, unique indices, which must be sound."""
        with np.errstate(over="ignore"):  # what is too large is named by the check
            values = np.asarray(self.values, np.float32)
        if self.arrays.indptr is None:
            return csr_matrix(values)
        shape = (self.last - self.first, self.arrays.n_minor)
        return canonical(csr_matrix((values, self.indices, self.pointers), shape=shape, copy=False))

    @property
    def _stored(self) -> slice:
        indptr = self.arrays.indptr
        return slice(self.first, self.last) if indptr is None else slice(indptr[self.first], indptr[self.last])


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
        As in :class:`Arrays`.
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
        self.shape: tuple[int, ...]
        if is_null(element):
            self.format, self.shape, self.n_stored = "nothing", (), 0
            return
        if hasattr(element, "shape"):
            self.format, self.shape = "dense", tuple(int(n) for n in element.shape)
            self.n_stored = int(np.prod(self.shape))
            return
        self.format = sparse_format(element) or encoding_of(element) or "something else"
        self.shape, self.n_stored = (0, 0), 0
        if self.format in ("csr", "csc"):
            shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
            self.shape = (int(shape[0]), int(shape[1]))
            self.values, self.indices = element["data"], element["indices"]
            self.pointers = element["indptr"]
            self.indptr = signed(np.asarray(self.pointers[:]))
            self.n_stored = min(self.values.shape[0], self.indices.shape[0])

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Type of the stored values."""
        return self.values.dtype

    def arrays(self) -> Arrays:
        """Return the arrays along the major axis."""
        by_cell = self.format != "csc"
        major, minor = self.shape if by_cell else self.shape[::-1]
        return Arrays(self.values, self.indices, self.indptr, major, minor, by_cell, DISK_BLOCK)

    def gap(self, path: Path) -> str:
        """Say which part of a sparse matrix is not in its file or folder; empty if all of it is there.

        A chunk that is not there is read as zeros, by HDF5 and by zarr. zarr leaves out chunks that hold nothing else:
        of a dense matrix, one that was lost cannot be told from one that was never written.
        """
        indptr = self.indptr
        if indptr is None:
            return ""
        for name, array in (("values", self.values), ("indices", self.indices)):
            for start, stop in _gaps(array, path):
                first, last = np.searchsorted(indptr, start, side="right") - 1, np.searchsorted(indptr, stop)
                n_rows = np.count_nonzero(np.diff(indptr[first : last + 1]))
                # the indices of a row differ: zeros are right only where each row has one. Of the values a whole chunk
                # of stored zeros is as good as never written
                if name == "values" or stop - start > n_rows:
                    return f"its {name} {start:,} to {stop - 1:,} are missing"
        for _, stop in _gaps(self.pointers, path):
            # rows without values, unless their values are now those of the next row, where some indices are alike
            of_next = self.indices[: int(indptr[stop]) if stop < len(indptr) else self.n_stored]
            if len(np.unique(of_next)) < len(of_next):
                return f"the first {stop:,} of its row pointers are missing"
        return ""


def arrays_of(matrix: Any) -> Arrays:
    """Return the arrays of a readable matrix, not copied (COO and the like: converted to CSR first)."""
    if isinstance(matrix, OnDisk):
        return matrix.arrays()
    n_obs, n_vars = matrix.shape
    indices: Array | None = None
    indptr: Array | None = None
    if sparse.issparse(matrix):
        if matrix.format not in ("csr", "csc"):
            matrix = matrix.tocsr()
        by_cell = matrix.format == "csr"
        values, indices, indptr = matrix.data, signed(matrix.indices), signed(matrix.indptr)
    else:
        by_cell = not matrix.flags.f_contiguous or matrix.flags.c_contiguous
        values = np.asarray(matrix if by_cell else matrix.T)
    n_major, n_minor = (n_obs, n_vars) if by_cell else (n_vars, n_obs)
    return Arrays(values, indices, indptr, n_major, n_minor, by_cell, BLOCK)


def blocks(arrays: Arrays) -> Iterator[Block]:
    """Yield the rows (CSC: columns) in order, about ``arrays.block`` stored values at a time; no row is cut.

    Everything that goes through a whole matrix goes this way.
    """
    if arrays.indptr is None:
        step = max(1, arrays.block // max(1, arrays.n_minor))
        ranges = pairwise(np.unique([0, *np.arange(step, arrays.n_major, step), arrays.n_major]).tolist())
    else:
        ranges = pairwise(_cuts(arrays.indptr, arrays.block))
    yield from (Block(arrays, first, last) for first, last in ranges)


def canonical(matrix: csr_matrix) -> csr_matrix:
    """Return a matrix with sorted, unique indices: the one given, which is not touched, or a copy where they are not.

    ``has_canonical_format`` looks at the whole matrix once and remembers it in the object.
    """
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def signed(indices: Array) -> Array:
    """Return unsigned indices, as other programs write them, as signed ones, which scipy computes with.

    Those that no signed number can hold become negative: they lie outside of every matrix, and are named as such.
    """
    return (
        indices.astype(np.int32 if indices.dtype.itemsize < 4 else np.int64) if indices.dtype.kind == "u" else indices
    )


def _cuts(indptr: Array, size: int) -> list[int]:
    """Return the ends of ranges of rows (CSC: columns) that hold about ``size`` stored values each."""
    # of one type, or all of the pointers would be converted
    cuts = np.searchsorted(indptr, np.arange(size, int(indptr[-1]), size).astype(indptr.dtype))
    return list(np.unique([0, *cuts, len(indptr) - 1]).tolist())


def compressed_chunk(array: Any) -> int:
    """Return how many items along the first axis are decompressed together; 1 if nothing is compressed."""
    compressed = array.compression if isinstance(array, h5py.Dataset) else array.compressors
    return int(array.chunks[0]) if compressed and array.chunks else 1


def _gaps(array: Any, path: Path) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a one-dimensional array that are not there, each of a chunk."""
    size = int(array.shape[0])
    if isinstance(array, h5py.Dataset):
        chunk, there = _chunks_in_file(array)
    else:
        chunk = int((getattr(array, "shards", None) or array.chunks)[0])
        there = _chunks_in_folder(path / array.path)
    n_chunks = -(-size // chunk)
    if len(there) < n_chunks:
        for number in sorted(set(range(n_chunks)) - there):
            yield number * chunk, min((number + 1) * chunk, size)


def _chunks_in_file(array: h5py.Dataset) -> tuple[int, set[int]]:
    """Return the size of the chunks of an HDF5 array, and which of them were ever written."""
    size = max(int(array.shape[0]), 1)
    layout = array.id.get_create_plist().get_layout()
    if layout != h5py.h5d.CHUNKED:  # as one, unless it is in the header of the file
        missing = layout == h5py.h5d.CONTIGUOUS and array.id.get_offset() is None
        return size, set() if missing else {0}
    chunk, count = array.chunks[0], array.id.get_num_chunks()
    if count == -(-array.shape[0] // chunk):
        return chunk, set(range(count))
    return chunk, {array.id.get_chunk_info(number).chunk_offset[0] // chunk for number in range(count)}


def _chunks_in_folder(folder: Path) -> set[int]:
    """Return which chunks of a one-dimensional zarr array are in its folder: "3", "c/3" or "c.3"."""
    places = [place for place in (folder, folder / "c") if place.is_dir()]
    names = (file.name.removeprefix("c.") for place in places for file in place.iterdir())
    return {int(name) for name in names if name.isdecimal()}
