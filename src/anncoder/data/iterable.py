"""Iterable source: cells from another reader (annbatch, scDataset, tiledbsoma-ml)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix, issparse

from anncoder.config import unknown_key
from anncoder.data.adata import coordinates_of
from anncoder.data.check import check_matrix, raise_first, rounded
from anncoder.data.formats.failures import first_line
from anncoder.data.genes import Alignment, align
from anncoder.data.loaders.disk import Pool, minibatches_of
from anncoder.data.loaders.memory import Stored
from anncoder.data.loaders.order import n_minibatches
from anncoder.data.matrix.arrays import nearest_whole
from anncoder.data.sources import Genes, PerCell, Source
from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.types import SINGLE, Batch, Loader, Rank

Array = np.ndarray[Any, Any]
Blocks = Iterable[tuple[Any, Any]]


class IterableSource:
    """Cells that something else reads, block by block, in an order of its own.

    ``fit``, ``embed``, ``denoise`` and :func:`anncoder.evaluate` take it in place of an AnnData. Every pass over the
    cells is one call of ``make_blocks``: two before training and, with cells held out, two in every epoch. Minibatches
    are cut from the blocks in the order in which they come, and nothing is shuffled: a reader that shuffles does so
    anew in every pass, one that does not should not be trained on. What is returned is in the order of the row numbers.
    A fit with a ``checkpoint`` keeps whole epochs only and goes on with the next pass: to the same bits only if the
    reader gives the same order.

    Parameters
    ----------
    make_blocks
        Starts a pass: returns an iterable of pairs: a block of (b, n_vars) raw counts, which is scipy CSR, a torch
        tensor (CSR or dense) or anything that numpy makes a matrix of, and the (b,) row numbers of these cells, from 0
        to ``n_obs - 1``. Each row once a pass.
    var_names
        Names of the genes, in the order of the columns, (n_vars,).
    n_obs
        Number of cells.
    obs
        Data frame of ``n_obs`` rows, by row number, for the columns that a fit asks for (``batch_key``,
        ``valid_stratify``, ``valid_groups``) and for the names of the cells; None for none, and numbers as names.

    Examples
    --------
    >>> import numpy as np
    >>> import anncoder as ac
    >>> adata = ac.datasets.pbmc68k_counts()
    >>> def make_blocks():
    ...     for rows in np.array_split(np.random.permutation(adata.n_obs), 7):
    ...         yield adata.X[rows], rows
    >>> source = ac.IterableSource(make_blocks, adata.var_names, adata.n_obs)
    >>> model = ac.CountAutoencoder(n_latent=4).fit(source, max_epochs=1, progress=False)
    >>> model.embed(source).shape
    (700, 4)
    """

    def __init__(
        self,
        make_blocks: Callable[[], Blocks],
        var_names: Sequence[str] | pd.Index,
        n_obs: int,
        obs: pd.DataFrame | None = None,
    ) -> None:
        if not callable(make_blocks):
            raise bad_blocks(f"make_blocks is a {type(make_blocks).__name__}, which cannot be called for every pass")
        if not isinstance(n_obs, int | np.integer):
            raise bad_blocks(f"n_obs = {n_obs!r} is no whole number of cells")
        self.make_blocks, self.var_names, self.n_obs = make_blocks, pd.Index(var_names).astype(str), int(n_obs)
        self.obs = pd.DataFrame(index=pd.RangeIndex(n_obs)) if obs is None else obs
        if len(self.obs) != n_obs:
            what = f"obs has {len(self.obs):,} rows for {n_obs:,} cells"
            raise InputError("shape-mismatch", what, "obs", "give a row for each cell, in the order of the row numbers")

    def opened(self, genes: Genes | None, *, counts: bool, to_fit: bool, integers: bool = True) -> Source:
        """Return the cells, checked in one pass; what ``fit`` and ``embed`` call.

        Parameters
        ----------
        genes
            Genes in whose order the cells are to be, and the share of them that may be missing; None for their own.
        counts
            Whether the values must be raw counts.
        to_fit
            Whether a model is to be fitted to them, which takes two cells at least.
        integers
            Whether counts must be whole numbers.
        """
        names, allow_missing = genes or Genes(self.var_names)
        alignment = align(list(names), list(self.var_names), allow_missing=allow_missing)
        return BlockSource(self, alignment, names, counts=counts, to_fit=to_fit, integers=integers)


class BlockSource:
    """Cells of an :class:`IterableSource` in the gene order of a model; see :class:`anncoder.data.sources.Source`."""

    in_order = False
    mask_var: str | None = None
    where = "the blocks"

    def __init__(
        self,
        given: IterableSource,
        alignment: Alignment,
        var_names: pd.Index,
        *,
        counts: bool,
        to_fit: bool,
        integers: bool,
    ) -> None:
        self.given, self.n_obs, self.var_names, self._alignment = given, given.n_obs, var_names, alignment
        self.sizes, self._counts, self.rounded = np.ones(self.n_obs), counts, ""
        if self.n_obs < (2 if to_fit else 1):
            raise bad_blocks(f"a model needs at least 2 cells, this has {self.n_obs}", code="too-few-cells")
        for raw, rows in self._raw():
            names = {"obs_names": self.names(rows), "var_names": given.var_names}
            found, _ = check_matrix(raw, **names, where=self.where, counts=counts, integers=integers)
            # of a block: others may have more cells, and cells with counts
            raise_first(problem for problem in found if problem.code not in ("too-few-cells", "all-zero"))
            self.rounded = self.rounded or rounded(found)
            if counts:
                self.sizes[rows] = library_sizes(self._aligned(raw))

    def blocks(self, chosen: Array, step: int) -> Iterator[tuple[csr_matrix, Array]]:
        """Yield the chosen rows, in the order in which they come."""
        for raw, rows in self._raw():
            at = np.flatnonzero(chosen[rows])
            for start in range(0, len(at), step):
                part = at[start : start + step]
                yield self._aligned(raw[part]), rows[part]

    def loader(
        self, cells: PerCell, chosen: Array, *, batch_size: int, seed: int | None = None, process: Rank = SINGLE
    ) -> Loader:
        """Return minibatches of the chosen rows, in the order in which they come, whatever the seed."""
        if process.size > 1:
            what = "several processes cannot share what comes in an order of its own"
            remedy = "train with one process, or from files: fit('shards/*.h5ad')"
            raise ConfigError("one-process", what, "IterableSource", remedy)
        return BlockLoader(self, cells, chosen, batch_size)

    def names(self, rows: Array) -> pd.Index:
        """Return the names of some cells."""
        return pd.Index(self.given.obs.index[rows].astype(str), dtype=object)

    def column(self, key: str, *, what: str) -> Any:
        """Return a column of obs."""
        if key not in self.given.obs:
            raise unknown_key(key, [str(c) for c in self.given.obs.columns], where=f"{what} (a column of obs)")
        return self.given.obs[key].to_numpy(dtype=object)

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm, which a reader of blocks does not have."""
        return coordinates_of({}, key)

    def _aligned(self, raw: Any) -> csr_matrix:
        matrix = csr_matrix(raw, dtype=np.float32, copy=True)  # the reader's own is left as it is
        if self.rounded:
            matrix.data = nearest_whole(matrix.data)
        self._refuse_other_values(matrix)
        matrix.sum_duplicates()
        return self._alignment.apply(matrix)

    def _refuse_other_values(self, matrix: csr_matrix) -> None:
        # in the first pass all was looked at; what comes in a later one must at least do no harm
        indices, values = matrix.indices, matrix.data
        if indices.size and (indices.min() < 0 or indices.max() >= matrix.shape[1]):
            raise bad_blocks("a block has a gene outside of its columns")
        if values.size and not (np.isfinite(values.max()) and values.min() >= (0 if self._counts else -np.inf)):
            raise bad_blocks("a later pass brought values that the first one did not: negative, or not finite")

    def _raw(self) -> Iterator[tuple[Any, Array]]:
        """Yield the blocks of a pass as they are, every row once."""
        seen = np.zeros(self.n_obs, dtype=bool)
        for pair in self._pairs():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise bad_blocks(f"a {type(pair).__name__} came where a pair of block and row numbers should")
            raw, rows = _matrix_of(pair[0]), _array_of(pair[1])
            if rows.ndim != 1 or rows.dtype.kind not in "iu" or raw.shape != (len(rows), len(self.given.var_names)):
                what = f"a block of shape {raw.shape} came with {rows.shape} row numbers of type {rows.dtype}"
                raise bad_blocks(f"{what} for {len(self.given.var_names):,} genes")
            rows = rows.astype(np.int64)
            if len(rows) and (rows.min() < 0 or rows.max() >= self.n_obs):
                raise bad_blocks(f"a block has a row number outside 0 to {self.n_obs - 1:,}")
            if seen[rows].any() or len(np.unique(rows)) < len(rows):
                raise bad_blocks("a row came twice in one pass")
            seen[rows] = True
            yield raw, rows
        if not seen.all():
            raise bad_blocks(f"{int((~seen).sum()):,} of {self.n_obs:,} rows did not come in a pass")

    def _pairs(self) -> Iterator[Any]:
        made: Any = self.given.make_blocks()
        if not hasattr(made, "__iter__") and not hasattr(made, "__getitem__"):
            raise bad_blocks(f"make_blocks() returned a {type(made).__name__}, which is nothing to go through")
        yield from made


class BlockLoader:
    """Minibatches of blocks as they come.

    Parameters
    ----------
    source
        The cells.
    cells
        What minibatches say of them beside their counts.
    chosen
        (n_obs,) bool, the rows to go through.
    batch_size
        Cells in a minibatch.
    """

    def __init__(self, source: BlockSource, cells: PerCell, chosen: Array, batch_size: int) -> None:
        self.source, self.cells, self.chosen, self.batch_size = source, cells, chosen, batch_size
        self.n_obs = int(np.count_nonzero(chosen))

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return n_minibatches(self.n_obs, self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order in which they come."""
        size_factor, batch_code, covariates = self.cells[:3]
        return minibatches_of(self._pools(), size_factor, batch_code, self.batch_size, covariates)

    def _pools(self) -> Iterator[Pool]:
        blocks = self.source.blocks(self.chosen, self.source.n_obs)
        for block, following in pairwise(chain(blocks, [None])):
            if block is not None:
                matrix, rows = block
                yield Pool(Stored.of(matrix), rows, np.arange(len(rows)), last=following is None)


def bad_blocks(what: str, code: str = "bad-blocks") -> InputError:
    """Return the error for a reader that does not give what it should."""
    remedy = "make_blocks() starts a new pass at every call: pairs of a block (b, n_vars) and its rows, each row once"
    return InputError(code, what, "IterableSource", remedy)


def _matrix_of(block: Any) -> Any:
    """Return a block as scipy CSR or a numpy array; no values are copied."""
    if issparse(block):
        return block.tocsr()
    if not isinstance(block, torch.Tensor) or block.layout == torch.strided:
        return _array_of(block)
    block = (block if block.layout == torch.sparse_csr else block.to_sparse_csr()).detach()
    parts = [_array_of(part) for part in (block.values(), block.col_indices(), block.crow_indices())]
    return csr_matrix(tuple(parts), shape=tuple(block.shape), copy=False)


def _array_of(values: Any) -> Array:
    """Return a tensor, or anything that numpy takes for one, as an array."""
    if isinstance(values, anndata.AnnData):
        raise bad_blocks("a block is an AnnData: give its matrix, such as adata.X")
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except (TypeError, ValueError) as error:
        raise bad_blocks(f"numpy makes no matrix of a {type(values).__name__}: {first_line(error)}") from error
