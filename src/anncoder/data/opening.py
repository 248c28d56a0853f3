"""Opening of .h5ad files and .zarr folders: paths, globs, backed AnnData."""

from __future__ import annotations

import os
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, TypeAlias

import anndata

from anncoder.data.adata import RAW, checked_path, resolve_layer, slot_label
from anncoder.data.formats.checked import open_root
from anncoder.data.store import Backed, Store
from anncoder.errors import ConfigError, InputError

Paths: TypeAlias = str | Path | Sequence[str | Path]


def open_stores(data: Any, layer: str | None) -> list[Store] | None:
    """Open what is on disk: a path, a glob, a list of them, X or raw of a backed AnnData; None for what is in memory.

    What is open already, a list of stores, is returned as it is. ``layer`` is None or ``"X"`` for ``X``, ``"raw.X"``
    for the matrix of ``raw``.

    Raises
    ------
    FileError
        There is no such file, it is not AnnData's, or part of it is elsewhere.
    InputError
        This is no path, there is no such layer, it is not stored by cells, or "X" may be either.
    """
    if isinstance(data, anndata.AnnData):
        if data.isbacked and not data.is_view and not data.file.is_open:
            data.file.open()
        # of a backed AnnData X and raw are in its file: its layers are in memory, as all of a view is once touched
        where = resolve_layer(layer, data.layers)
        return [Backed(data, where)] if data.isbacked and not data.is_view and where in (None, RAW) else None
    if isinstance(data, list) and data and all(isinstance(item, Store) for item in data):
        return list(data)
    files = ((open_root(path), path) for path in paths_of(data))
    return [
        Store(file, path, resolve_layer(layer, file.get("layers", ()) if layer in ("X", RAW) else ()))
        for file, path in files
    ]


def open_files(data: Any, layer: str | None, *, layer_is_of_fit: bool) -> list[Store] | None:
    """Open what is on disk for a fitted model, as :func:`open_stores` does.

    ``layer`` is None or ``"X"`` for ``X``; ``layer_is_of_fit`` says that it was not asked for, but is that of ``fit``.
    """
    try:
        return open_stores(data, layer)
    except InputError as error:
        if error.code != "missing-layer" or not layer_is_of_fit or layer is None:
            raise
        raise not_as_in_fit(layer, error.where) from error


def not_as_in_fit(layer: str, where: str) -> InputError:
    """Return the error for data without the layer that a model was fitted on."""
    what = f"the model was fitted on {slot_label(layer)}, which these data do not have"
    return InputError("missing-layer", what, where, "say where the counts are: layer=NAME (--layer NAME), 'X' for X")


def paths_of(data: Paths) -> list[Path]:
    """Return the files that a path, a glob, or several of them mean.

    Raises
    ------
    FileError
        There is no such file, or it is not AnnData's.
    InputError
        This is no path.
    """
    if isinstance(data, list | tuple):
        _refuse_no_paths(data)
        return [path for item in data for path in paths_of(item)]
    data = Path(data).expanduser() if isinstance(data, str | Path) else data
    if isinstance(data, Path) and has_magic(str(data)) and not os.path.exists(data):  # noqa: PTH110 - pathlib's raises
        found = sorted(glob(str(data)))  # noqa: PTH207 - pathlib's takes no absolute pattern
        paths = [checked_path(path) for path in [*found] or [str(data)]]
        files: dict[tuple[int, int], Path] = {}
        for path in paths:  # a link names no other file
            files.setdefault(_identity(path), path)
        return list(files.values())
    return [checked_path(data)]


def _refuse_no_paths(items: Sequence[Any]) -> None:
    other = next((item for item in items if not isinstance(item, str | Path)), None)
    if items and other is None:
        return
    what = f"a list is one of paths, and this one {f'holds {type(other).__name__}' if items else 'is empty'}"
    remedy = "give paths of .h5ad files or .zarr folders"
    if isinstance(other, anndata.AnnData):
        remedy = "put the cells together: anndata.concat([...], label='sample', index_unique='-')"
    raise InputError("not-anndata", what, remedy=remedy)


def refuse_twice(stores: Sequence[Store]) -> None:
    """Raise a ConfigError where one file is to be fitted to twice: its cells would be on both sides of the split."""
    seen: dict[tuple[int, int], Path] = {}
    for store in stores:
        first = seen.setdefault(_identity(store.path), store.path)
        if first is not store.path:
            what = f"{str(store.path)!r} is the same file as {str(first)!r}: its cells would be there twice"
            raise ConfigError("same-file", what, str(store.path), "name every file once")


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino
