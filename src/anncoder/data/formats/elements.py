"""Elements of a file that anndata cannot read, found before a fit and not after.

Whatever is small is read, by anndata itself; of matrices and what is large, kind and shape are looked at.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
from anndata.io import read_elem

from anncoder.data.formats.attributes import encoding_of, index_name, is_null, sparse_format, text_of, texts_of
from anncoder.data.formats.failures import first_line
from anncoder.errors import FileError, listed

SMALL = 2**20  # bytes
ALIGNED = {"layers": (0, 1), "obsm": (0,), "obsp": (0, 0), "varm": (1,), "varp": (1, 1), "raw/varm": (None,)}
"""Slots whose elements are matrices, and the axis of the data (None: another one) that each of theirs has."""
SLOTS = (
    "X",
    "obs",
    "var",
    "uns",
    "raw",
    *(slot for slot in ALIGNED if "/" not in slot),
    "raw.X",
    "raw.var",
    "raw.varm",
)
NUMBERS = (("array", "0.2.0"), ("csr_matrix", "0.1.0"), ("csc_matrix", "0.1.0"))
LEAVES = ("", "array", "string-array", "rec-array", "csr_matrix", "csc_matrix", "numeric-scalar", "string", "null")


class Fault(NamedTuple):
    """An element that anndata cannot read."""

    path: str
    why: str
    remedy: str


def refuse_unreadable(root: Any, path: Path) -> None:
    """Raise a FileError that names the first element of an open file or zarr group that anndata cannot read."""
    fault = next(faults(root, path), None)
    if fault is None:
        return
    what = f"anndata cannot read {fault.path!r} in {str(path)!r}: {fault.why}"
    raise FileError("unreadable-element", what, f"{path}: {fault.path}", fault.remedy)


def faults(root: Any, path: Path) -> Iterator[Fault]:
    """Yield the elements that anndata cannot read, or from which it could not make an AnnData."""
    shape = _length(root["obs"]), _length(root["var"])
    for name in root:
        if name not in SLOTS:
            yield Fault(name, "an AnnData has no slot of that name", _delete(root, path, name))
            continue
        if name in ALIGNED:
            yield from _of_slot(root, path, name, shape)
        if name == "raw" and "varm" in _keys(root, "raw"):
            yield from _of_slot(root, path, "raw/varm", shape)
        for place, why in _tried(name, root, name):
            yield Fault(place, why, _delete(root, path, place))


def size_of(item: Any) -> float:
    """Return the bytes of an element once it is read; of text, of what points to it."""
    if hasattr(item, "keys"):
        return sum(size_of(item[name]) for name in item if _is_there(item, name))
    shape = getattr(item, "shape", ()) or ()  # None, of what stands for nothing
    return math.prod(shape) * getattr(getattr(item, "dtype", None), "itemsize", 0)


def _of_slot(root: Any, path: Path, slot: str, shape: tuple[int | None, int | None]) -> Iterator[Fault]:
    """Yield the faults of matrices along the cells or genes: their kind and shape."""
    for name in _keys(root, slot):
        place, item = f"{slot}/{name}", _get(root, f"{slot}/{name}")
        if hasattr(item, "keys") and encoding_of(item) in ("", "dict") and not sparse_format(item):
            inner = [f"{place}/{part}" for part in _leaves(item)]
            slashed = f"a name with a slash ({inner[0].removeprefix(f'{slot}/')!r})" if inner else "nothing"
            why = f"it holds {slashed}, where a matrix should be"
            yield Fault(place, why, _rename(root, path, slot, place, inner))
            continue
        found = _shape(item)
        wanted = [None if axis is None else shape[axis] for axis in ALIGNED[slot]]
        wrong = [f"{n:,} instead of {m:,}" for n, m in zip(found, wanted, strict=False) if m is not None and n != m]
        if found and wrong:
            yield Fault(place, f"it has {wrong[0]} rows or columns", _delete(root, path, place))


def _tried(place: str, parent: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield path and reason of what cannot be read in an element."""
    try:
        item = parent[name]
        tried, size = _is_numbers(item), size_of(item)
    except Exception as error:  # noqa: BLE001 - whatever a broken link or a foreign codec raises
        yield place, first_line(error)
        return
    is_group = hasattr(item, "keys") and not sparse_format(item)
    if not tried and size <= SMALL:
        if (why := _read(item)) is not None:
            inside = [*_inside(place, item)] if is_group else []
            yield from inside or [(place, why)]
    elif is_group:
        if missing := [name for name in texts_of(item, "column-order") if name not in item]:
            yield place, f"it names columns that are not there: {listed(missing)}"
        yield from _inside(place, item)
    elif encoding_of(item) not in LEAVES:
        yield place, f"its encoding is {encoding_of(item)!r}"


def _is_numbers(item: Any) -> bool:
    """Tell whether an element is a matrix of numbers as anndata stores it: nothing else needs to be read to know."""
    parts = [item[name] for name in ("data", "indices", "indptr")] if sparse_format(item) else [item]
    known = (encoding_of(item), text_of(item, "encoding-version")) in NUMBERS
    return known and all(getattr(part, "shape", ()) and part.dtype.kind in "biuf" for part in parts)


def _inside(place: str, group: Any) -> Iterator[tuple[str, str]]:
    try:
        names = [*group]
    except Exception as error:  # noqa: BLE001 - zarr opens what it lists
        yield place, first_line(error)
        return
    for name in names:
        yield from _tried(f"{place}/{name}", group, name)


def _leaves(group: Any) -> list[str]:
    """Return the paths of the matrices in groups within groups."""
    found: list[str] = []
    for name in group:
        item = group[name]
        deeper = hasattr(item, "keys") and encoding_of(item) in ("", "dict") and not sparse_format(item)
        found += [f"{name}/{leaf}" for leaf in _leaves(item)] if deeper else [name]
    return found


def _read(item: Any) -> str | None:
    """Return why anndata cannot read an element; None if it can."""
    try:
        with warnings.catch_warnings(action="ignore"):
            read_elem(item)
    except Exception as error:  # noqa: BLE001 - anndata's readers raise whatever they meet
        return first_line(error)
    return None


def _get(root: Any, place: str) -> Any:
    try:
        return root[place]
    except Exception:  # noqa: BLE001 - said where it is tried
        return None


def _keys(root: Any, slot: str) -> list[str]:
    group = root.get(slot)
    return list(group) if hasattr(group, "keys") else []


def _is_there(group: Any, name: str) -> bool:
    return not isinstance(group, h5py.Group) or group.get(name) is not None  # a link to nothing


def _shape(item: Any) -> tuple[int, ...]:
    if item is None or is_null(item):
        return ()
    if not hasattr(item, "keys"):
        return tuple(item.shape)
    if encoding_of(item) == "dataframe":
        length = _length(item)
        return () if length is None else (length,)
    stored = item.attrs.get("shape", item.attrs.get("h5sparse_shape", ()))
    return tuple(int(n) for n in stored)


def _length(frame: Any) -> int | None:
    if not hasattr(frame, "keys"):
        return int(frame.shape[0])
    index = frame.get(index_name(frame))
    index = index.get("values") if hasattr(index, "keys") else index
    return None if index is None or not index.shape else int(index.shape[0])


def _delete(root: Any, path: Path, place: str) -> str:
    if not isinstance(root, h5py.Group):
        return "if a newer program wrote it: pip install -U anndata zarr numcodecs; else, write it anew without it"
    encoding = encoding_of(item) if (item := _get(root, place)) is not None else ""
    newer = f"if a newer anndata wrote it ({encoding}): pip install -U anndata; else, " * (encoding not in LEAVES)
    line = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); del f[{place!r}]; f.close()"
    return f"{newer}if it is of no use, delete it, in Python: {line}"


def _rename(root: Any, path: Path, slot: str, place: str, inner: list[str]) -> str:
    if not isinstance(root, h5py.Group) or not inner:
        return _delete(root, path, place)
    moves = "; ".join(f"f.move({old!r}, {slot + '/' + old[len(slot) + 1 :].replace('/', '_')!r})" for old in inner)
    line = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); {moves}; del f[{place!r}]; f.close()"
    return f"give it another name, in Python: {line}"
