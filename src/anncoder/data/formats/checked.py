"""Checked opening of .h5ad files and .zarr folders: the one place that refuses others."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py

from anncoder.data.formats.converted import file_in_memory, folder_in_memory
from anncoder.data.formats.elements import refuse_unreadable
from anncoder.data.formats.failures import (
    damaged,
    first_line,
    other_format,
    refuse_missing_filters,
    unknown_codec,
    unopenable,
)
from anncoder.data.formats.roots import refuse_foreign_root
from anncoder.errors import FileError

NEWEST_ZARR = 3


def open_root(path: Path) -> Any:
    """Open a file or folder, and refuse it unless anndata can read all of it.

    What is of 10x Genomics, or loom, is read into memory (:mod:`anncoder.data.formats.converted`).

    Returns
    -------
    h5py.File or zarr.Group

    Raises
    ------
    FileError
        It is of another format, damaged, part of it is elsewhere, or something that it needs is not installed.
    """
    if path.is_dir() and (read := folder_in_memory(path)) is not None:
        return read
    root = _open(path)
    try:
        if (read := file_in_memory(root, path)) is not None:
            return read
        refuse_foreign_root(root, path)
        if isinstance(root, h5py.File):
            _refuse_elsewhere(root, path)
            refuse_missing_filters(root, path)
        refuse_unreadable(root, path)
    except BaseException as error:
        if isinstance(root, h5py.File):
            root.close()
        if isinstance(error, FileError) or not isinstance(error, Exception):
            raise
        raise (unknown_codec(path, error) or damaged(path, first_line(error))) from error
    return root


def _open(path: Path) -> Any:
    try:
        if path.is_dir():
            import zarr

            return zarr.open_group(str(path), mode="r")
        return h5py.File(path, "r")
    except Exception as error:
        if path.is_dir() and (newer := _zarr_format(path)) > NEWEST_ZARR:
            what = f"zarr of format {newer}, which zarr {version('zarr')} does not know"
            raise other_format(path, what, "pip install -U zarr") from error
        if isinstance(error, OSError) and (refused := unopenable(path, error)):
            raise refused from error
        raise (unknown_codec(path, error) or damaged(path, first_line(error))) from error


def _zarr_format(path: Path) -> int:
    with suppress(OSError, ValueError, TypeError, KeyError):
        return int(json.loads((path / "zarr.json").read_text(encoding="utf-8"))["zarr_format"])
    return 0


def _refuse_elsewhere(file: h5py.File, path: Path) -> None:
    if elsewhere := _elsewhere(file):
        remedy = "write one file with everything in it: anndata.read_h5ad(path).write_h5ad(new_path)"
        raise FileError("external-link", f"{str(path)!r} takes {elsewhere!r} from another file", str(path), remedy)


def _elsewhere(file: h5py.File) -> str:
    """Return the name of something that another file holds, whichever that is; empty if there is none."""

    def foreign(name: str, link: Any) -> str | None:
        if isinstance(link, h5py.ExternalLink):
            return name
        if isinstance(link, h5py.HardLink) and file.get(name, getclass=True) is h5py.Dataset:
            dataset = file[name]
            if dataset.external or (dataset.is_virtual and any(s.file_name != "." for s in dataset.virtual_sources())):
                return name
        return None

    return str(file.visititems_links(foreign) or "")
