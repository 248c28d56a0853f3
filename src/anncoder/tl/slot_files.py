"""Slots of obs, obsm and uns in copies of files: X and layers are copied as they are stored."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
from anndata.io import read_elem, write_elem

from anncoder.data.adata import checked_path
from anncoder.data.formats.attributes import texts_of
from anncoder.data.formats.checked import open_root
from anncoder.data.formats.failures import damaged, first_line
from anncoder.errors import AnncoderError, FileError
from anncoder.io.atomic import atomic_path, locked
from anncoder.io.h5ad_copy import copy_h5ad
from anncoder.io.h5ad_write import refuse_difference, writing
from anncoder.io.hdf5 import new_h5


class CellsFile(NamedTuple):
    """An open file, and some of its slots in memory.

    Attributes
    ----------
    path
        The .h5ad file or .zarr folder.
    root
        It, open.
    cells
        All of obs, and what was asked for of obsm, obsp and uns; no X and no genes.
    stamp
        When it was changed last, and its size.
    """

    path: Path
    root: Any
    cells: anndata.AnnData
    stamp: tuple[int, int]


@contextmanager
def open_cells(
    path: Path, *, obsm: Collection[str] = (), obsp: Collection[str] = (), uns: Collection[str] = ()
) -> Iterator[CellsFile]:
    """Open a file of any size and read obs, and some slots, those that are there; names alone of other obsm slots.

    Raises
    ------
    FileError
        It is not an AnnData file, or damaged.
    """
    path = checked_path(path)
    root = open_root(path)
    try:
        try:
            cells = _read(root, {"obsm": obsm, "obsp": obsp, "uns": uns})
        except AnncoderError:
            raise
        except Exception as error:
            raise damaged(path, first_line(error)) from error
        yield CellsFile(path, root, cells, _stamp(path))
    finally:
        if isinstance(root, h5py.File):
            root.close()


def _read(root: Any, wanted: dict[str, Collection[str]]) -> anndata.AnnData:
    found = {
        where: {name: read_elem(root[where][name]) for name in names if where in root and name in root[where]}
        for where, names in wanted.items()
    }
    return anndata.AnnData(obs=read_elem(root["obs"]), **found)


def names_of(file: CellsFile, where: str) -> list[str]:
    """Return the names of the slots of obsm, obsp or uns in a file."""
    return sorted(file.root[where]) if where in file.root else []


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def write_slots(file: CellsFile, output: Path, slots: Collection[str]) -> None:
    """Write a copy of a file with some slots of its cells in memory, under a temporary name until it is complete.

    Parameters
    ----------
    file
        As :func:`open_cells` gives it, with the new slots in ``cells``.
    output
        The .h5ad file to write; it may be the input.
    slots
        What is new, as "obs/name", "obsm/name" or "uns/name".

    Raises
    ------
    FileError
        The input changed while it was read.
    InputError
        It holds something that cannot be written.
    ResourceError
        The disk is full, another process writes the output, or what was read back is not what was written.
    """
    with locked(output), atomic_path(output) as temporary:
        with new_h5(temporary) as (copy, disk), writing("/"):
            copy_h5ad(file.root, copy, disk, without=set(slots))
            for slot in slots:
                where, _, name = slot.partition("/")
                if where not in copy:
                    write_elem(copy, where, {})
                write_elem(copy[where], name, _value(file, where, name))
            _name_columns(copy["obs"], [slot.removeprefix("obs/") for slot in slots if slot.startswith("obs/")])
        if _stamp(file.path) != file.stamp:
            what = f"{str(file.path)!r} changed while it was read"
            raise FileError("file-changed", what, str(file.path), "run again when nothing writes to it")
        with h5py.File(temporary, "r") as written:
            for slot in slots:
                where, _, name = slot.partition("/")
                found = read_elem(written[slot])
                if where != "uns":
                    refuse_difference(temporary, slot, found, _value(file, where, name))


def _value(file: CellsFile, where: str, name: str) -> Any:
    # a column as its array, or its categories
    return _column(file.cells.obs[name]) if where == "obs" else getattr(file.cells, where)[name]


def _column(column: Any) -> Any:
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array


def _name_columns(frame: h5py.Group, new: list[str]) -> None:
    order = [name for name in texts_of(frame, "column-order") if name in frame and name not in new]
    frame.attrs["column-order"] = np.array(order + new, dtype=h5py.string_dtype())
