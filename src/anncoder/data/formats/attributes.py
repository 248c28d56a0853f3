"""Attributes of HDF5 and zarr elements as text, whichever way a program stored them.

anndata writes text of variable length. Julia, R and C write text of a fixed length, which h5py returns as bytes, or
an array of one text: all of it means the same, and anndata reads it. Nothing else here looks into ``attrs`` for text.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def text_of(item: Any, name: str, default: str = "") -> str:
    """Return an attribute as text; ``default`` where there is none, or where it is something else than one text."""
    found = texts_of(item, name)
    return found[0] if len(found) == 1 else default


def texts_of(item: Any, name: str) -> list[str]:
    """Return an attribute that holds several texts, such as the order of columns; empty where there is none."""
    value = item.attrs.get(name)
    if value is None or _is_null(value):
        return []
    return [_decoded(part) for part in np.asarray(value, dtype=object).ravel().tolist()]


def encoding_of(item: Any) -> str:
    """Return the encoding that an element says it has: ``"csr_matrix"``; empty where it says none, as older files."""
    return text_of(item, "encoding-type")


def sparse_format(group: Any) -> str:
    """Return ``"csr"`` or ``"csc"`` of a sparse matrix, of older files too; empty of what is none."""
    kind = encoding_of(group) or text_of(group, "h5sparse_format")
    return kind[:3] if kind[:3] in ("csr", "csc") else ""


def is_null(item: Any) -> bool:
    """Tell whether an element stands for nothing, as ``X`` of an AnnData without a matrix."""
    return encoding_of(item) == "null" or (hasattr(item, "shape") and item.shape is None)


def index_name(frame: Any) -> str:
    """Return the name of the column that is the index of a stored data frame."""
    return text_of(frame, "_index", "_index")


def _is_null(value: Any) -> bool:
    return hasattr(value, "shape") and value.shape is None  # h5py.Empty


def _decoded(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
