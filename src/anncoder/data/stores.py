"""Several files of cells, one below the other; opening paths and globs; empty cells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, TypeAlias

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.data.adata import checked_path, damaged, first_line, resolve_layer, slot_label
from anncoder.data.genes import Alignment, align, naming
from anncoder.data.matrix.arrays import Block
from anncoder.data.matrix.scan import structure, unreadable
from anncoder.data.store import READ, Backed, Store, stacked
from anncoder.errors import ConfigError, FileError, InputError, listed

Array = np.ndarray[Any, Any]
Paths: TypeAlias = str | Path | Sequence[str | Path]


class Stores:
    """Count matrices of several files, one below the other, with their genes in one order.

    Parameters
    ----------
    stores
        At least one.
    var_names
        The genes and their order; None for those of the first file.
    allow_missing
        Share of them that a file may lack.
    """

    def __init__(self, stores: Sequence[Store], var_names: pd.Index | None = None, allow_missing: float = 0.0) -> None:
        self.stores = list(stores)
        self.var_names = self.stores[0].var_names if var_names is None else var_names
        self.genes = self.var_names, allow_missing
        self.starts = np.cumsum([0, *(store.n_obs for store in self.stores)])
        self.n_obs = int(self.starts[-1])
        n_stored = sum(store.matrix.n_stored for store in self.stores)
        self.row_bytes = 8 * n_stored // max(self.n_obs, 1)  # a float32 value and an int32 index each
        self.chunk_rows = max(store.chunk_rows for store in self.stores)
        self._alignments = [self._align(store, var_names is None, allow_missing) for store in self.stores]

    def read(self, ranges: Sequence[tuple[int, int]]) -> csr_matrix:
        """Return some ranges of rows, which ascend, one after the other, as float32 CSR with sorted, unique indices."""
        parts = []
        for number, store in enumerate(self.stores):
            first, last = (int(n) for n in self.starts[number : number + 2])
            own = [(max(a, first) - first, min(b, last) - first) for a, b in ranges if a < last and b > first]
            if own:
                block = store.read(own)
                block.sum_duplicates()
                parts.append(self._alignments[number].apply(block))
        return stacked(parts)

    def cells(self, store: Store, block: Block) -> tuple[csr_matrix, int]:
        """Return the cells of a block of rows of one of the files as :meth:`read` does, and the number of the first."""
        number = self.stores.index(store)
        matrix, first = store.cells(block)
        return self._alignments[number].apply(matrix), int(self.starts[number]) + first

    def borders(self, step: int, of: Store | None = None) -> Iterator[tuple[int, int]]:
        """Yield ranges of at most ``step`` rows that together are all rows (of a file), none across a file's border."""
        for store, first, last in zip(self.stores, self.starts[:-1], self.starts[1:], strict=True):
            if of is None or of is store:
                for start in range(int(first), int(last), step):
                    yield start, min(start + step, int(last))

    def names(self, rows: Array) -> pd.Index:
        """Return the names of some cells; ``rows`` ascend."""
        return pd.Index([name for store, own in self._by_store(rows) for name in store.names(own)], dtype=object)

    def column(self, key: str, *, what: str) -> Array:
        """Return a column of obs, (n_obs,) objects.

        Raises
        ------
        ConfigError
            A file does not have it.
        """
        return np.concatenate([store.column(key, what=what) for store in self.stores])

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm, (n_obs, d)."""
        parts = [store.coordinates(key) for store in self.stores]
        if len({part.shape[1] for part in parts}) > 1:
            what = f"obsm[{key!r}] has another number of axes in one file than in the next"
            raise InputError("bad-coordinates", what, f"obsm[{key!r}]", "name a slot that all files have alike")
        return np.concatenate(parts)

    def refuse_change(self) -> None:
        """Raise a FileError if one of the files is no longer the one that was opened."""
        for store in self.stores:
            store.refuse_change()

    def _by_store(self, rows: Array) -> Iterator[tuple[Store, Array]]:
        for store, first in zip(self.stores, self.starts, strict=False):
            own = rows[(rows >= first) & (rows < first + store.n_obs)] - first
            if len(own):
                yield store, own

    def _align(self, store: Store, to_first: bool, allow_missing: float) -> Alignment:
        # among the files of one data set the genes are the same, in any order
        try:
            alignment = align(list(self.var_names), list(store.var_names), allow_missing=allow_missing)
        except InputError as error:
            if to_first and error.code == "missing-genes":
                raise self._other_genes(store) from error
            error.where = f"{store.path}: {error.where}"  # of many files, which
            raise
        if to_first and alignment.n_extra:
            raise self._other_genes(store)
        return alignment

    def _other_genes(self, store: Store) -> InputError:
        first, here = self.var_names, store.var_names
        missing, extra = first[~first.isin(here)], here[~here.isin(first)]
        one, other = f"{store.path.name!r}", f"{self.stores[0].path.name!r}"
        what = f"{one} has {len(extra):,} genes that {other} has not: {listed(extra)}"
        if len(missing):
            what = f"{one} lacks {len(missing):,} of the {len(first):,} genes of {other}: {listed(missing)}"
        kinds = naming(list(here)), naming(list(first))
        remedy = "give files with the same genes, in any order: adata = adata[:, genes]"
        if kinds[0] != kinds[1]:
            remedy = f"it has {kinds[0]} and the first {kinds[1]}: put one kind of name into var_names of both"
        return InputError("other-genes", what, str(store.path), remedy)


def open_stores(data: Any, layer: str | None) -> list[Store] | None:
    """Open what is on disk: a path, a glob, a list of them, or the X of a backed AnnData; None for what is in memory.

    What is open already, a list of stores, is returned as it is. ``layer`` is None or ``"X"`` for ``X``.

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
        # of a backed AnnData X alone is in its file: its layers are in memory, as all of a view is once it is touched
        on_disk = data.isbacked and not data.is_view and resolve_layer(layer, data.layers) is None
        return [Backed(data)] if on_disk else None
    if isinstance(data, list) and data and all(isinstance(item, Store) for item in data):
        return list(data)
    files = ((_open(path), path) for path in paths_of(data))
    return [
        Store(file, path, resolve_layer(layer, file.get("layers", ()) if layer == "X" else ())) for file, path in files
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
    if isinstance(data, str | Path) and has_magic(str(data)) and not os.path.exists(data):  # noqa: PTH110 - pathlib's raises
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


def _open(path: Path) -> Any:
    try:
        if path.is_dir():
            import zarr

            return zarr.open_group(str(path), mode="r")
        file = h5py.File(path, "r")
        elsewhere, of_10x = _elsewhere(file), "obs" not in file and "matrix/barcodes" in file
    except Exception as error:
        raise damaged(path, first_line(error)) from error
    if of_10x:
        what = f"{str(path)!r} is a file of 10x Genomics, not of anndata"
        raise FileError("unreadable", what, str(path), "convert it: scanpy.read_10x_h5(path).write_h5ad(new_path)")
    if elsewhere:
        remedy = "write one file with everything in it: anndata.read_h5ad(path).write_h5ad(new_path)"
        raise FileError("external-link", f"{str(path)!r} takes {elsewhere!r} from another file", str(path), remedy)
    return file


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


def drop_empty_cells(store: Store, genes: Sequence[str] | None = None) -> int:
    """Leave out the cells without any count, unless that are all of them.

    Parameters
    ----------
    store
        The cells.
    genes
        The genes that matter; None for all.

    Returns
    -------
    int
        How many were left out.
    """
    with store.errors():
        if unreadable(store.matrix) or structure(store.matrix).fault:
            return 0  # the check that follows says what is wrong
    matters = np.ones(store.n_vars, dtype=bool) if genes is None else store.var_names.isin(genes)
    filled = np.zeros(store.n_obs, dtype=bool)
    for start in range(0, store.n_obs, READ):
        block = store.read([(start, min(start + READ, store.n_obs))])
        owner = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        filled[start + owner[(block.data != 0) & matters[block.indices]]] = True
    n_empty = store.n_obs - int(np.count_nonzero(filled))
    if n_empty in (0, store.n_obs):
        return 0
    store.keep(np.flatnonzero(filled))
    return n_empty
