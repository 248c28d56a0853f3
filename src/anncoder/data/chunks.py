"""The chunks of arrays on disk."""

from __future__ import annotations

from typing import Any

import h5py


def compressed_chunk(array: Any) -> int:
    """Return how many items along the first axis are decompressed together; 1 if nothing is compressed."""
    compressed = array.compression if isinstance(array, h5py.Dataset) else array.compressors
    return int(array.chunks[0]) if compressed and array.chunks else 1
