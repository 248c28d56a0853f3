"""Sources of cells, in memory or on disk: opened and checked, then all used alike.

AnnData in memory is read from memory; a path, several, a glob, or a backed AnnData is read from disk in blocks: what
stays in memory of each cell is a few numbers, not its counts. Files that are no larger than one pool of the loader are
read once and kept, which costs no more memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.data.adata import (
    coordinates_of,
    genes_of,
    has_layer,
    obs_column,
    read_matrix,
    resolve_layer,
    slot_label,
    var_of,
)
from anncoder.data.check import (
    NARROW,
    check_adata,
    fit_warnings,
    raise_first,
    refuse_bad,
    rounded,
    that_matter,
)
from anncoder.data.genes import Alignment, Mask, align, mask_of, refuse_no_var
from anncoder.data.loaders.disk import POOL_BYTES, DiskLoader, prefetched
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.data.matrix.arrays import Block, nearest_whole
from anncoder.data.matrix.notes import ROUNDED, say, with_counts
from anncoder.data.matrix.problems import Problem
from anncoder.data.opening import not_as_in_fit, open_files, open_stores, refuse_twice
from anncoder.data.store import READ, Store, n_repeated, stacked
from anncoder.data.stores import Stores
from anncoder.data.summary import library_sizes
from anncoder.data.tables import Table, adata_of_table, is_table
from anncoder.device import memory_errors
from anncoder.errors import InputError, listed
from anncoder.types import SINGLE, Loader, Rank

Data: TypeAlias = "anndata.AnnData | Table | str | Path | list[str | Path] | list[Store] | Reader"
Array = np.ndarray[Any, Any]
FEW = 16  # where fewer than one in so many is wanted, cells are read one by one
CHANCE = 0.01  # share of a file's cells that may have name and total of others by chance, where names are numbers

logger = logging.getLogger("anncoder")


class PerCell(NamedTuple):
    """What minibatches say of a cell beside its counts."""

    size_factor: Array  # (n_obs,) float32
    batch_code: Array | None = None  # (n_obs,) int64
    covariates: Array | None = None  # (n_obs, c) float32


class Genes(NamedTuple):
    """The genes of a model, in its order."""

    names: pd.Index
    allow_missing: float = 0.0  # share that new data may lack; taken as zero


@runtime_checkable
class Reader(Protocol):
    """Cells that something else reads, such as :class:`anncoder.IterableSource`."""

    def opened(self, genes: Genes | None, *, counts: bool, to_fit: bool, integers: bool = True) -> Source:
        """Return the cells, checked, in the order of some genes or, for None, in their own.

        ``integers``: whether counts must be integers.
        """
        ...


class Source(Protocol):
    """Cells of a count matrix."""

    where: str  # as messages call it
    in_order: bool  # whether a loader without a seed gives the cells in the order of the data
    n_obs: int
    var_names: pd.Index  # (n_vars,)
    sizes: Array  # (n_obs,) library sizes; ones where the values are no counts
    mask_var: str | None  # the column of var that chose the genes; None where all of the data are there
    rounded: str  # what is said of counts that are whole but for rounding, and are read as whole; empty if none is

    def blocks(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        """Yield the chosen rows, (n_obs,) bool, in order, at most ``step`` at a time, and where they are."""
        ...

    def loader(
        self, cells: PerCell, chosen: Array, *, batch_size: int, seed: int | None = None, process: Rank = SINGLE
    ) -> Loader:
        """Return minibatches of the chosen rows, (n_obs,) bool."""
        ...

    def names(self, rows: Array) -> pd.Index:
        """Return the names of some cells; ``rows`` ascend."""
        ...

    def column(self, key: str, *, what: str) -> Any:
        """Return a column of obs, (n_obs,); ``what`` asks for it, for messages."""
        ...

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm, (n_obs, d) float32."""
        ...


class MemorySource:
    """Cells of an AnnData in memory; see :class:`Source`."""

    in_order = True
    mask_var: str | None = None

    def __init__(
        self, adata: anndata.AnnData, layer: str | None, *, counts: bool, to_fit: bool, integers: bool = True
    ) -> None:
        sums: list[Array] = []  # library sizes, of each block while it is checked

        def each(block: Block) -> None:
            if block.arrays.by_cell and block.arrays.indptr is not None:  # what is no CSR is converted first
                sums.append(library_sizes(block.cells()))

        report = check_adata(adata, layer, counts=counts, integers=integers, each=each if counts else None)
        raise_first(that_matter(report.problems, adata.n_obs, to_fit))
        self.adata, self.matrix, self.where = adata, read_matrix(adata, layer), slot_label(layer)
        if found := rounded(report.problems):
            parts = (nearest_whole(self.matrix.data), self.matrix.indices, self.matrix.indptr)
            self.matrix = csr_matrix(parts, shape=self.matrix.shape, copy=False)
        self.rounded = found
        self.n_obs, self.var_names = adata.n_obs, pd.Index(genes_of(adata, layer).astype(str))
        self.sizes = np.concatenate(sums) if sums else library_sizes(self.matrix) if counts else np.ones(self.n_obs)
        self._stored = Stored.of(self.matrix)  # one for all loaders

    def with_matrix(self, matrix: csr_matrix, *, counts: bool) -> MemorySource:
        """Return the same cells with another matrix, of other genes, that needs no check."""
        other = copy(self)
        other.matrix, other.sizes = matrix, library_sizes(matrix) if counts else np.ones(self.n_obs)
        other._stored = Stored.of(matrix)
        return other

    def of_genes(self, mask: Mask, *, counts: bool) -> MemorySource:
        """Return the same cells with some of the genes."""
        genes = np.flatnonzero(mask.flags)
        alignment = Alignment(genes, [], len(mask.flags) - len(genes))
        other = self.with_matrix(alignment.apply(self.matrix), counts=counts)
        other.var_names, other.mask_var = self.var_names[genes], mask.key
        return other

    def blocks(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        """Yield the chosen rows in order."""
        return _rows_of(self.matrix, chosen, step)

    def loader(
        self, cells: PerCell, chosen: Array, *, batch_size: int, seed: int | None = None, process: Rank = SINGLE
    ) -> Loader:
        """Return minibatches of the chosen rows."""
        options: Any = {"batch_size": batch_size, "seed": seed, "process": process}
        options |= {"batch_code": cells.batch_code, "covariates": cells.covariates}
        return MemoryLoader(self._stored, cells.size_factor, np.flatnonzero(chosen), **options)

    def names(self, rows: Array) -> pd.Index:
        """Return the names of some cells."""
        return pd.Index(self.adata.obs_names[rows].astype(str))

    def column(self, key: str, *, what: str) -> Any:
        """Return a column of obs."""
        return obs_column(self.adata, key, what=what)

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm."""
        return coordinates_of(self.adata.obsm, key)


class DiskSource:
    """Cells of files; see :class:`Source`. :func:`checked` makes one.

    Parameters
    ----------
    stores
        The files.
    counts
        Whether the values are counts.
    sizes
        (n_obs,) library sizes; None where they are not needed.
    kept
        The cells, if they have been read and are few.
    warnings
        What is wrong with the files, but not so that they must not be used.
    """

    in_order = True
    mask_var: str | None = None

    def __init__(
        self,
        stores: Stores,
        *,
        counts: bool,
        sizes: Array | None = None,
        kept: csr_matrix | None = None,
        warnings: tuple[Problem, ...] = (),
    ) -> None:
        self.stores, self.n_obs, self.var_names = stores, stores.n_obs, stores.var_names
        names = [store.path.name for store in stores.stores]
        self.where = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}: {slot_label(stores.stores[0].layer)}"
        self.sizes, self.warnings = np.ones(self.n_obs) if sizes is None else sizes, warnings
        self._counts, self._kept = counts, kept
        self.rounded = next((f"{s.path.name}: {s.rounded}" for s in stores.stores if s.rounded), "")
        self.names, self.column, self.coordinates = stores.names, stores.column, stores.coordinates

    def opened(self, genes: Genes | None, *, counts: bool, to_fit: bool, integers: bool = True) -> Source:
        """Return these cells: they are open, and checked for the model that asks."""
        assert counts == self._counts
        assert genes is None or genes.names.equals(self.var_names)
        return self

    def files(self) -> Iterator[tuple[Store, DiskSource]]:
        """Yield each file, and its cells alone."""
        starts, stores = self.stores.starts, self.stores.stores
        for store, first, last in zip(stores, starts[:-1], starts[1:], strict=True):
            if len(stores) == 1:
                yield store, self
                return
            kept = None if self._kept is None else self._kept[first:last]
            alone = Stores([store], *self.stores.genes)
            yield store, DiskSource(alone, counts=self._counts, sizes=self.sizes[first:last], kept=kept)

    def blocks(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        """Yield the chosen rows in order, read ahead by one block."""
        if (kept := self._few()) is not None:
            yield from _rows_of(kept, chosen, step)
            return
        with closing(prefetched(self._read(chosen, step), self.where)) as blocks:
            yield from blocks

    def loader(
        self, cells: PerCell, chosen: Array, *, batch_size: int, seed: int | None = None, process: Rank = SINGLE
    ) -> Loader:
        """Return minibatches of the chosen rows."""
        options: Any = {"batch_size": batch_size, "seed": seed, "process": process}
        options |= {"batch_code": cells.batch_code, "covariates": cells.covariates}
        if (kept := self._few()) is not None:
            return MemoryLoader(Stored.of(kept), cells.size_factor, np.flatnonzero(chosen), **options)
        return DiskLoader(self.stores, cells.size_factor, chosen, **options)

    def _few(self) -> csr_matrix | None:
        """Return the cells if they are few: they are read once, and kept."""
        if self._kept is None and are_few(self.stores):
            self._kept = stacked([matrix for matrix, _ in self._read(np.ones(self.n_obs, dtype=bool), READ)])
        return self._kept

    def _read(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        self.stores.refuse_change()
        for first, last in self.stores.borders(step):
            rows = np.flatnonzero(chosen[first:last])
            if len(rows) > (last - first) // FEW:
                matrix = self.stores.read([(first, last)])
                yield matrix if len(rows) == last - first else matrix[rows], rows + first
            elif len(rows):
                yield self.stores.read([(row, row + 1) for row in (rows + first).tolist()]), rows + first


def are_few(stores: Stores) -> bool:
    """Tell whether cells on disk are no more than one pool of the loader: then they are kept."""
    return stores.row_bytes * stores.n_obs <= POOL_BYTES


def checked(stores: Stores, *, counts: bool, to_fit: bool, integers: bool) -> DiskSource:
    """Check files and sum the library sizes of their cells in one pass, and keep the cells if they are few.

    Raises
    ------
    FileError, InputError
        As :func:`anncoder.data.check.refuse_bad`.
    """
    sizes, kept = np.ones(stores.n_obs), are_few(stores)
    parts: dict[int, csr_matrix] = {}  # by their first cell

    def take(cells: csr_matrix, first: int) -> None:
        if counts:
            sizes[first : first + cells.shape[0]] = library_sizes(cells)
        if kept:
            parts[first] = cells

    def each(store: Store, block: Block) -> None:
        if block.arrays.by_cell:
            take(*stores.cells(store, block))

    warnings = refuse_bad(stores.stores, counts=counts, to_fit=to_fit, integers=integers, each=each)
    for store in stores.stores:
        if store.matrix.format == "csc":  # stored by genes it is in memory, and by cells now that all is sound
            for first, last in stores.borders(READ, store):
                take(stores.read([(first, last)]), first)
    stores.refuse_change()
    cells = stacked([parts[first] for first in sorted(parts)]) if kept else None
    return DiskSource(stores, counts=counts, sizes=sizes, kept=cells, warnings=warnings)


def log_warnings(shape: tuple[int, int], column: Callable[[str], Any]) -> None:
    """Log the warnings about what a model will be fitted on, (n_obs, n_vars)."""
    for problem in fit_warnings(shape, column):
        if problem.code != NARROW:  # the settings may be others; the fit refuses what does not go
            say(problem.what, problem.remedy)


def _rows_of(matrix: csr_matrix, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
    rows = np.flatnonzero(chosen)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        whole = part[-1] - part[0] + 1 == len(part)
        yield matrix[part[0] : part[-1] + 1] if whole else matrix[part], part


@memory_errors("opening the data")
def open_source(
    data: Data,
    layer: str | None,
    *,
    counts: bool,
    to_fit: bool = True,
    integers: bool = True,
    mask_var: str | None = None,
) -> Source:
    """Open and check what a model is to be fitted on.

    Parameters
    ----------
    data
        AnnData; a path, a glob or a list of paths of ``.h5ad`` files and ``.zarr`` folders; a backed AnnData.
    layer
        Where the matrix is; None and ``"X"`` for ``X``, ``"raw.X"`` for that of ``raw``, as everywhere.
    counts
        Whether it must hold raw counts.
    to_fit
        One cell is too few to learn from, not to embed.
    integers
        Whether counts must be integers.
    mask_var
        Column of var with the genes to fit on; ``"auto"``: :data:`anncoder.data.genes.HIGHLY_VARIABLE`, where there is
        one; None: all genes.

    Raises
    ------
    ConfigError
        There is no such column.
    FileError
        A file does not exist, is damaged, or changes while it is read.
    InputError
        The matrix is not what the model needs, the files have different genes, or the column chooses none of them.
    """
    source = _opened(data, layer, counts=counts, to_fit=to_fit, integers=integers, mask_var=mask_var)
    if source.rounded:
        say(source.rounded, ROUNDED)
    return source


def _opened(
    data: Data, layer: str | None, *, counts: bool, to_fit: bool, integers: bool, mask_var: str | None
) -> Source:
    if isinstance(data, Reader):
        if not isinstance(data, DiskSource):
            refuse_no_var(mask_var)
        return data.opened(None, counts=counts, to_fit=to_fit, integers=integers)
    if is_table(data):
        data = adata_of_table(data)
    stores = open_stores(data, layer)
    if stores is None:
        assert isinstance(data, anndata.AnnData)
        where = resolve_layer(layer, data.layers)
        in_memory = MemorySource(data, where, counts=counts, to_fit=to_fit, integers=integers)
        mask = mask_of(var_of(data, where).get, mask_var)
        if mask is not None:
            in_memory = in_memory.of_genes(mask, counts=counts)
        if to_fit:
            log_warnings((in_memory.n_obs, len(in_memory.var_names)), var_of(data, where).get)
        return in_memory
    if to_fit:
        refuse_twice(stores)
    try:
        together = Stores(stores)
    except InputError:
        refuse_bad(stores, counts=counts, to_fit=to_fit, integers=integers)  # what is wrong with a file is said first
        raise
    mask = mask_of(stores[0].var_column, mask_var)
    if mask is not None:
        together = Stores(stores, together.var_names[mask.flags])
    source = checked(together, counts=counts, to_fit=to_fit, integers=integers)
    source.mask_var = None if mask is None else mask.key
    if to_fit:
        log_warnings((source.n_obs, len(source.var_names)), stores[0].var_column)
    n = n_repeated(stores, source.sizes) if to_fit and counts and len(stores) > 1 else 0
    if n > CHANCE * min(store.n_obs for store in stores):
        logger.warning(
            "%s cells have the name and the number of molecules of a cell of another file: where they are the same "
            "cells, as in the output of an earlier run, some are held out and trained on at once",
            f"{n:,}",
        )
    return source


@memory_errors("opening the data")
def open_for_model(
    data: Data,
    layer: str | None,
    genes: Genes,
    *,
    counts: bool,
    layer_is_of_fit: bool,
    integers: bool = True,
    strict: bool = False,
) -> Source:
    """Open and check cells for a fitted model, in its gene order.

    Parameters
    ----------
    data, counts, integers
        As in :func:`open_source`.
    layer
        Where the matrix is; None and ``"X"`` for ``X``.
    genes
        Those of the model.
    layer_is_of_fit
        The layer was not asked for: it is where the counts were in ``fit``.
    strict
        A cell without any count in these genes is an error.

    Raises
    ------
    FileError
        As :func:`open_source`.
    InputError
        Too many genes are missing, no cell has a count in any of them, or the matrix is not what the model needs.
    """
    source: Source
    if is_table(data):  # which have no layers
        data, layer = adata_of_table(data, genes.names), None if layer_is_of_fit else layer
    stores = None if isinstance(data, Reader) else open_files(data, layer, layer_is_of_fit=layer_is_of_fit)
    if isinstance(data, Reader):
        source = data.opened(genes, counts=counts, to_fit=False, integers=integers)
    elif stores is not None:
        source = checked(Stores(stores, *genes), counts=counts, to_fit=False, integers=integers)
    else:
        assert isinstance(data, anndata.AnnData)
        if layer_is_of_fit and layer is not None and not has_layer(data, layer):
            raise not_as_in_fit(layer, "layers: " + (listed(map(repr, filter(None, data.layers))) or "none"))
        where = resolve_layer(layer, data.layers)
        alignment = align(list(genes.names), list(map(str, genes_of(data, where))), allow_missing=genes.allow_missing)
        whole = MemorySource(data, where, counts=counts, to_fit=False, integers=integers)
        source = whole.with_matrix(alignment.apply(whole.matrix), counts=counts)
    if source.rounded:
        say(source.rounded, ROUNDED)
    consequence = "their latent is that of a cell without counts"
    n_vars = len(genes.names)
    with_counts(
        source.sizes, source.names, source.where, n_vars, strict="model" if strict else "", consequence=consequence
    )
    return source
