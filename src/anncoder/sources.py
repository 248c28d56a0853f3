"""The cells that a model meets, in memory or on disk: checked when they are opened, and with the same members after.

AnnData in memory is read from memory; a path, several, a glob, or a backed AnnData is read from disk in blocks: what
stays in memory of each cell is a few numbers, not its counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.checks import check, check_matrix, raise_first, refuse_empty
from anncoder.data.adata import coordinates_of, obs_column, place, read_matrix
from anncoder.data.disk import DiskLoader
from anncoder.data.genes import align
from anncoder.data.memory import MemoryLoader, Stored
from anncoder.data.prefetch import prefetched
from anncoder.data.problems import Problem
from anncoder.data.shards import Shards, open_shards
from anncoder.data.summary import library_sizes
from anncoder.distributed import ALONE, Share
from anncoder.errors import InputError, some
from anncoder.types import Loader

Data: TypeAlias = "anndata.AnnData | str | Path | list[str | Path]"
Array = np.ndarray[Any, Any]
READ = 8192  # cells at a time, from disk


class PerCell(NamedTuple):
    """What minibatches say of a cell beside its counts."""

    size_factor: Array  # (n_obs,) float32
    batch_code: Array | None = None  # (n_obs,) int64


class Source(Protocol):
    """Cells of a count matrix."""

    where: str  # as messages call it
    n_obs: int
    var_names: pd.Index  # (n_vars,)
    sizes: Array  # (n_obs,) library sizes; ones where the values are no counts

    def blocks(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        """Yield the chosen rows, (n_obs,) bool, in order, at most ``step`` at a time, and where they are."""
        ...

    def loader(
        self,
        cells: PerCell,
        chosen: Array,
        *,
        batch_size: int,
        seed: int | None = None,
        share: Share = ALONE,
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

    def __init__(
        self, adata: anndata.AnnData, layer: str | None, *, counts: bool, to_fit: bool, integers: bool = True
    ) -> None:
        report = check(adata, layer=layer, counts=counts, integers=integers)
        raise_first(_that_matter(report.problems, adata.n_obs, to_fit))
        self.adata, self.matrix, self.where = adata, read_matrix(adata, layer), place(layer)
        self.n_obs, self.var_names = adata.n_obs, pd.Index(adata.var_names.astype(str))
        self.sizes = library_sizes(self.matrix) if counts else np.ones(self.n_obs)
        self._stored = Stored.of(self.matrix)  # one for all loaders

    def with_matrix(self, matrix: csr_matrix, *, counts: bool) -> MemorySource:
        """Return the same cells with another matrix, of other genes, that needs no check."""
        other = copy(self)
        other.matrix, other.sizes = matrix, library_sizes(matrix) if counts else np.ones(self.n_obs)
        other._stored = Stored.of(matrix)
        return other

    def blocks(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        """Yield the chosen rows in order."""
        rows = np.flatnonzero(chosen)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            whole = part[-1] - part[0] + 1 == len(part)
            yield self.matrix[part[0] : part[-1] + 1] if whole else self.matrix[part], part

    def loader(
        self,
        cells: PerCell,
        chosen: Array,
        *,
        batch_size: int,
        seed: int | None = None,
        share: Share = ALONE,
    ) -> Loader:
        """Return minibatches of the chosen rows."""
        rows = np.flatnonzero(chosen)
        return MemoryLoader(
            self._stored,
            cells.size_factor,
            rows,
            batch_size=batch_size,
            seed=seed,
            batch_code=cells.batch_code,
            share=share,
        )

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
    """Cells of files, checked in one pass; see :class:`Source`."""

    def __init__(self, shards: Shards, *, counts: bool, to_fit: bool, integers: bool = True) -> None:
        self.shards, self.n_obs, self.var_names = shards, shards.n_obs, shards.var_names
        names = [shard.path.name for shard in shards.shards]
        self.where = f"{', '.join(names[:3])}{', ...' * (len(names) > 3)}: {place(shards.shards[0].layer)}"
        self.sizes = np.ones(self.n_obs, dtype=np.float32)
        _refuse_too_few(self.n_obs, self.where, to_fit=to_fit)
        for matrix, rows in self.blocks(np.ones(self.n_obs, dtype=bool), READ):
            found, _ = check_matrix(
                matrix,
                obs_names=shards.names(rows),
                var_names=self.var_names,
                where=self.where,
                counts=counts,
                integers=integers,
            )
            raise_first(p for p in found if p.code != "too-few-cells")
            if counts:
                self.sizes[rows] = library_sizes(matrix)

    def blocks(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        """Yield the chosen rows in order, read ahead by one block."""
        with closing(prefetched(self._read(chosen, step))) as blocks:
            yield from blocks

    def loader(
        self,
        cells: PerCell,
        chosen: Array,
        *,
        batch_size: int,
        seed: int | None = None,
        share: Share = ALONE,
    ) -> Loader:
        """Return minibatches of the chosen rows."""
        return DiskLoader(
            self.shards,
            cells.size_factor,
            chosen,
            batch_size=batch_size,
            seed=seed,
            batch_code=cells.batch_code,
            share=share,
        )

    def names(self, rows: Array) -> pd.Index:
        """Return the names of some cells."""
        return self.shards.names(rows)

    def column(self, key: str, *, what: str) -> Any:
        """Return a column of obs."""
        return self.shards.column(key, what=what)

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm."""
        return self.shards.coordinates(key)

    def _read(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        self.shards.refuse_change()
        for first, last in self.shards.borders(step):
            rows = np.flatnonzero(chosen[first:last])
            if len(rows):
                matrix = self.shards.read([(first, last)])
                yield matrix if len(rows) == last - first else matrix[rows], rows + first


def open_source(data: Data, layer: str | None, *, counts: bool, to_fit: bool = True, integers: bool = True) -> Source:
    """Open and check what a model is to be fitted on.

    Parameters
    ----------
    data
        AnnData; a path, a glob or a list of paths of ``.h5ad`` files and ``.zarr`` folders; a backed AnnData.
    layer
        Where the matrix is; None for ``X``.
    counts
        Whether it must hold raw counts.
    to_fit
        One cell is too few to learn from, not to embed.
    integers
        Whether counts must be integers.

    Raises
    ------
    FileError
        A file does not exist, is damaged, or changes while it is read.
    InputError
        The matrix is not what the model needs, or the files have different genes.
    """
    shards = open_shards(data, layer)
    if shards is None:
        assert isinstance(data, anndata.AnnData)
        return MemorySource(data, layer, counts=counts, to_fit=to_fit, integers=integers)
    return DiskSource(Shards(shards), counts=counts, to_fit=to_fit, integers=integers)


class Genes(NamedTuple):
    """The genes of a model, in its order."""

    names: pd.Index
    allow_missing: float  # share that new data may lack; taken as zero


def open_for_model(
    data: Data, layer: str | None, genes: Genes, *, counts: bool, layer_is_of_fit: bool, integers: bool = True
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

    Raises
    ------
    FileError
        As :func:`open_source`.
    InputError
        Too many genes are missing, a cell has no count in any of them, or the matrix is not what the model needs.
    """
    shards = open_shards(data, None if layer == "X" else layer)
    source: MemorySource | DiskSource
    if shards is not None:
        source = DiskSource(Shards(shards, *genes), counts=counts, to_fit=False, integers=integers)
    else:
        assert isinstance(data, anndata.AnnData)
        alignment = align(list(genes.names), list(data.var_names.astype(str)), allow_missing=genes.allow_missing)
        if layer_is_of_fit and layer is not None and layer not in data.layers:
            raise InputError(
                f"the model was fitted on {place(layer)}, which these data do not have",
                code="missing-layer",
                where="layers: " + (some(map(repr, filter(None, data.layers))) or "none"),
                remedy="say where the counts are: layer=NAME (--layer NAME), 'X' for X",
            )
        where = None if layer == "X" else layer
        whole = MemorySource(data, where, counts=counts, to_fit=False, integers=integers)
        source = whole.with_matrix(alignment.apply(whole.matrix), counts=counts)
    refuse_empty(source.sizes, source.names, source.where)
    return source


def _that_matter(problems: Iterable[Problem], n_obs: int, to_fit: bool) -> Iterator[Problem]:
    return (p for p in problems if to_fit or n_obs == 0 or p.code != "too-few-cells")


def _refuse_too_few(n_obs: int, where: str, *, to_fit: bool) -> None:
    if n_obs < (2 if to_fit else 1):
        raise InputError(
            "there are no cells" if n_obs == 0 else "there is a single cell",
            code="too-few-cells",
            where=where,
            remedy="give at least two cells" if to_fit else "give at least one cell",
        )
