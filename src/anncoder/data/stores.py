"""Several files of cells, one below the other, with their genes in one order; empty cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.data.genes import Alignment, align, naming
from anncoder.data.matrix.arrays import Block
from anncoder.data.matrix.scan import structure, unreadable
from anncoder.data.store import READ, Store, stacked
from anncoder.errors import InputError, counted, listed

Array = np.ndarray[Any, Any]


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
        what = f"{one} has {counted(len(extra), 'gene')} that {other} has not: {listed(extra)}"
        if len(missing):
            what = f"{one} lacks {len(missing):,} of the {counted(len(first), 'gene')} of {other}: {listed(missing)}"
        kinds = naming(list(here)), naming(list(first))
        remedy = "give files with the same genes, in any order: adata = adata[:, genes]"
        if kinds[0] != kinds[1]:
            remedy = f"it has {kinds[0]} and the first {kinds[1]}: put one kind of name into var_names of both"
        return InputError("other-genes", what, str(store.path), remedy)


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
