"""Memory for what comes and goes, taken from the system and given back to it."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np

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
