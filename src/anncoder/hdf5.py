"""Writing HDF5 where the disk may be full.

When a write fails, the HDF5 library is left with changes that it cannot get rid of, and it takes the whole process
down with it: closing the file ends in a segmentation fault (h5py 3.16, HDF5 1.14). So it is never told: the first
failure is remembered, what follows goes nowhere, and the error is raised when the file is closed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class Patient(io.RawIOBase):
    """A file that takes whatever is written, and remembers the first failure.

    Parameters
    ----------
    path
        The file to make.

    Attributes
    ----------
    failure
        The first error, or None.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self.failure: OSError | None = None

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int | None:
        """Read into a buffer."""
        return self._file.readinto(buffer)

    def write(self, data: Any, /) -> int:
        """Write, or pretend to."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.failure is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length, or pretend to."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class NewFile(h5py.File):
    """An HDF5 file that is being written."""

    def __init__(self, patient: Patient) -> None:
        super().__init__(patient, "w")
        self._patient = patient

    def stop_if_failed(self) -> None:
        """Raise the first failure. To be called before anything that was written may be read back: it may be lost."""
        if self._patient.failure is not None:
            raise self._patient.failure


@contextmanager
def new_h5(path: Path) -> Iterator[NewFile]:
    """Give an HDF5 file to write.

    Raises
    ------
    OSError
        The disk is full, or something else kept the file from being written. :func:`anncoder.files.atomic_path`
        makes a ResourceError of it.
    """
    patient = Patient(path)
    try:
        with NewFile(patient) as file:
            yield file
    except Exception as error:
        # what was read back from a file that could not be written is anything: the failure is the reason
        if patient.failure is None or error is patient.failure:
            raise
        raise patient.failure from error
    finally:
        patient.close()
    if patient.failure is not None:
        raise patient.failure
