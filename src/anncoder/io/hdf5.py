"""HDF5 files on a disk that may be full: errors raised at the end, not by HDF5.

When a write fails, the HDF5 library is left with changes that it cannot get rid of, and sooner or later it takes the
whole process down with a segmentation fault (h5py 3.16, HDF5 1.14). So it is never told: what can no longer be written
is kept in memory, and the error is raised when the file is closed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

PAGE = 1 << 16


class DiskFullFile(io.RawIOBase):
    """A file that keeps in memory what a full disk refuses, and remembers the first failure.

    Parameters
    ----------
    path
        The file to make.

    Attributes
    ----------
    failure
        The first error, or None. From then on nothing is written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._at = self._size = 0
        self._pages: dict[int, bytearray] = {}  # refused by the disk
        self.failure: OSError | None = None

    def stop_if_failed(self) -> None:
        """Raise the first failure, before more than a little is kept in memory."""
        if self.failure is not None:
            raise self.failure

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._size - self._at)]
        for page, within, part in _pieces(self._at, len(view)):
            view[part] = self._page(page)[within]
        self._at += len(view)
        return len(view)

    def write(self, data: Any, /) -> int:
        """Write, to the disk or to memory."""
        left = memoryview(data).cast("B")
        end = self._at + len(left)
        try:
            self._file.seek(self._at)
            while left and self.failure is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.failure = error
        for page, within, part in _pieces(end - len(left), len(left)):
            self._page(page)[within] = left[part]
        written, self._at, self._size = end - self._at, end, max(self._size, end)
        return written

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length, or pretend to."""
        self._size = self._at if size is None else size
        try:
            if self.failure is None:
                self._file.truncate(self._size)
        except OSError as error:
            self.failure = error
        return self._size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _page(self, number: int) -> bytearray:
        if number in self._pages:
            return self._pages[number]
        self._file.seek(number * PAGE)
        page = bytearray(self._file.read(PAGE).ljust(PAGE, b"\0"))
        if self.failure is not None:
            self._pages[number] = page
        return page


class NoDisk:
    """In place of a :class:`DiskFullFile`, of a file that is in memory alone."""

    def stop_if_failed(self) -> None:
        """Do nothing."""


@contextmanager
def h5_in_memory() -> Iterator[tuple[h5py.File, NoDisk]]:
    """Give an HDF5 file to try what can be written, as :func:`new_h5` does; it never comes to the disk."""
    with h5py.File("never-on-disk", "w", driver="core", backing_store=False) as file:
        yield file, NoDisk()


def _pieces(start: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield number, part and part of the whole of each page that a range of a file touches."""
    at = start
    while at < start + size:
        number, first = divmod(at, PAGE)
        n = min(PAGE - first, start + size - at)
        yield number, slice(first, first + n), slice(at - start, at - start + n)
        at += n


@contextmanager
def new_h5(path: Path) -> Iterator[tuple[h5py.File, DiskFullFile]]:
    """Give an HDF5 file to write, and the :class:`DiskFullFile` between it and the disk.

    Raises
    ------
    OSError
        The disk is full, or something else kept the file from being written. :func:`anncoder.io.atomic.atomic_path`
        makes a ResourceError of it.
    """
    disk = DiskFullFile(path)
    try:
        with h5py.File(disk, "w") as file:
            yield file, disk
        disk.stop_if_failed()
    finally:
        disk.close()
