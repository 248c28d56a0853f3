"""Direct reads of uncompressed HDF5 arrays from their places in the file (preadv).

HDF5 looks up every range, locks, and copies it twice, which for blocks of some rows takes most of the reader's time -
time that the training lacks, where reader and training share the cores. Where the chunks of an array are in a file does
not change while it is read: it is looked up once, and the system copies the bytes to where they are wanted.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

Array = np.ndarray[Any, Any]


class Extents:
    """Where the values of a one-dimensional array are in a file.

    Parameters
    ----------
    array
        The array, of an open file.
    offsets
        (n,) where each chunk begins, in bytes from the beginning of the file.
    chunk
        Values in a chunk.
    """

    def __init__(self, array: h5py.Dataset, offsets: Array, chunk: int) -> None:
        self.array, self.descriptor = array, array.file.id.get_vfd_handle()
        self.dtype, self.offsets, self.chunk = array.dtype, offsets.tolist(), chunk

    @classmethod
    def of(cls, array: Any) -> Extents | None:
        """Return the places of an array; None where only HDF5 (or zarr) can read it.

        That is where something is compressed, checked or elsewhere, never written, or being written.
        """
        if not isinstance(array, h5py.Dataset) or array.ndim != 1 or not hasattr(os, "preadv"):
            return None
        plain = array.file.driver == "sec2" and array.file.mode == "r" and array.file.userblock_size == 0
        layout = array.id.get_create_plist()
        if not plain or array.external or array.is_virtual or layout.get_nfilters() or array.dtype.kind not in "iuf":
            return None
        if layout.get_layout() == h5py.h5d.CONTIGUOUS and array.id.get_offset() is not None:
            return cls(array, np.array([array.id.get_offset()]), max(array.size, 1))
        if layout.get_layout() != h5py.h5d.CHUNKED or not hasattr(array.id, "chunk_iter"):
            return None
        (chunk,) = array.chunks
        offsets = np.full(-(-array.size // chunk), -1, dtype=np.int64)
        array.id.chunk_iter(lambda info: offsets.__setitem__(info.chunk_offset[0] // chunk, info.byte_offset))
        return None if (offsets < 0).any() else cls(array, offsets, chunk)

    def read(self, start: int, stop: int, out: Array) -> None:
        """Write a range of values into ``out``, in its type.

        Raises
        ------
        OSError
            The file ends before the range does, or was closed.
        """
        if start == stop:
            return
        if not self.array:
            raise OSError("it was closed while it was read")
        values: Any = out if out.dtype == self.dtype else unwritten(stop - start, self.dtype)
        room, size = memoryview(values.view(np.uint8)), self.dtype.itemsize
        at, end = start * size, stop * size
        while at < end:
            number, within = divmod(at, self.chunk * size)
            wanted = room[at - start * size : min(end, (number + 1) * self.chunk * size) - start * size]
            n_read = os.preadv(self.descriptor, [wanted], self.offsets[number] + within)
            if n_read == 0:
                raise OSError("it ends before its values do")
            at += n_read
        if values is not out:
            out[:] = values


LARGE = 2**20  # bytes, from which on this is worth a call of the system


def unwritten(n: int, dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of n numbers, not yet written, whose memory goes back to the system when it is dropped.

    What ``malloc`` is given back it may keep: arrays of tens of megabytes that come and go then take twice their room.

    Raises
    ------
    MemoryError
        There is not so much.
    """
    n_bytes = n * np.dtype(dtype).itemsize
    if n_bytes < LARGE:
        return np.empty(n, dtype)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    try:
        pages = mmap.mmap(-1, n_bytes, **private)
    except OSError as error:  # as of a file that cannot be read, which this is not
        raise MemoryError(f"{n_bytes:,} bytes cannot be had") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # fewer and larger pages, where the system has them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=dtype)
