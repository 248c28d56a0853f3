"""Chunks of HDF5 and zarr arrays: missing ones, and how many rows one holds.

A chunk that is not there is read as zeros, by HDF5 and by zarr. zarr leaves out chunks that hold nothing else, so of
some arrays nobody can tell a chunk that was lost from one that was never written; of a sparse matrix one can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from anncoder.data.matrix.arrays import Array, OnDisk


def compressed_chunk(array: Any) -> int:
    """Return how many items along the first axis are decompressed together; 1 if nothing is compressed."""
    compressed = array.compression if isinstance(array, h5py.Dataset) else array.compressors
    return int(array.chunks[0]) if compressed and array.chunks else 1


def gap_in(matrix: OnDisk, path: Path) -> str:
    """Say which part of a sparse matrix is not in its file or folder; empty if all of it is there."""
    indptr = matrix.indptr
    if indptr is None:
        return ""
    for name, array in (("values", matrix.values), ("indices", matrix.indices)):
        for start, stop in _gaps(array, path):
            # the indices of a row differ: zeros are right only where each row has one. Of the values a whole chunk of
            # stored zeros is as good as never written
            if name == "values" or stop - start > _n_rows_in(indptr, start, stop):
                return f"its {name} {start:,} to {stop - 1:,} are missing"
    for _, stop in _gaps(matrix.pointers, path):
        # rows without values, unless their values are now those of the next row, where some indices are alike
        of_next = matrix.indices[: int(indptr[stop]) if stop < len(indptr) else matrix.n_stored]
        if len(np.unique(of_next)) < len(of_next):
            return f"the first {stop:,} of its row pointers are missing"
    return ""


def gap_of(path: Path) -> str:
    """Say which part of the X of a file or folder is not there; empty if all of it is.

    Not of layers: chunks of zeros, which zarr leaves out, one may well have (a mask), and nobody may ask for it.
    """
    if path.is_dir():
        import zarr

        return _gap_of_x(zarr.open_group(str(path), mode="r"), path)
    with h5py.File(path, "r") as file:
        return _gap_of_x(file, path)


def _gap_of_x(store: Any, path: Path) -> str:
    return gap_in(OnDisk(store["X"]), path) if "X" in store else ""


def _n_rows_in(indptr: Array, start: int, stop: int) -> int:
    """Return how many rows have a stored value in a range of them."""
    first, last = np.searchsorted(indptr, start, side="right") - 1, np.searchsorted(indptr, stop)
    return int(np.count_nonzero(np.diff(indptr[first : last + 1])))


def _gaps(array: Any, path: Path) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a one-dimensional array that are not there, each of a chunk."""
    size = int(array.shape[0])
    if isinstance(array, h5py.Dataset):
        chunk, there = _written(array)
    else:
        chunk = int((getattr(array, "shards", None) or array.chunks)[0])
        there = _files(path / array.path)
    if len(there) < -(-size // chunk):
        for number in sorted(set(range(-(-size // chunk))) - there):
            yield number * chunk, min((number + 1) * chunk, size)


def _written(array: h5py.Dataset) -> tuple[int, set[int]]:
    """Return the size of the chunks of an HDF5 array, and which of them were ever written."""
    size = max(int(array.shape[0]), 1)
    layout = array.id.get_create_plist().get_layout()
    if layout == h5py.h5d.CONTIGUOUS:
        return size, {0} if array.id.get_offset() is not None else set()
    if layout != h5py.h5d.CHUNKED:
        return size, {0}
    chunk, count = array.chunks[0], array.id.get_num_chunks()
    if count == -(-array.shape[0] // chunk):
        return chunk, set(range(count))
    return chunk, {array.id.get_chunk_info(number).chunk_offset[0] // chunk for number in range(count)}


def _files(folder: Path) -> set[int]:
    """Return which chunks of a one-dimensional zarr array are in its folder: "3", "c/3" or "c.3"."""
    places = [place for place in (folder, folder / "c") if place.is_dir()]
    names = (file.name.removeprefix("c.") for place in places for file in place.iterdir())
    return {int(name) for name in names if name.isdecimal()}
