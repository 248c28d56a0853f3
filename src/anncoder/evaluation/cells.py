"""Cells to evaluate on: a sample in memory, matched to those held out in the fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import vstack

from anncoder.config import unknown_key
from anncoder.data.adata import batch_columns, obs_column
from anncoder.data.opening import open_files
from anncoder.data.sources import Data, DiskSource, Genes, Reader, Source
from anncoder.data.split import split_of
from anncoder.data.stores import Stores
from anncoder.errors import ConfigError, InputError
from anncoder.models.base import Autoencoder

READ = 8192  # cells at a time


class Sample(NamedTuple):
    """A sample of cells, matched to the fit of a model."""

    adata: anndata.AnnData
    held_out: Any  # (n,) int64, position of each cell among those held out in the fit, ``valid_obs_``; -1 for others
    layer: str | None  # of the counts; None for that of the fit
    new: bool  # whether the fit held out cells, but none of these: they are new data
    n_obs: int  # number of cells of the data


def some_cells(
    model: Autoencoder,
    data: Data,
    layer: str | None,
    columns: list[str],
    *,
    max_cells: int,
    seed: int,
    allow_missing: float = 0.0,
    root: str | None = None,
    slot: str | None = None,
) -> Sample:
    """Return a random sample of cells in their order; all cells if there are no more than ``max_cells``.

    Parameters
    ----------
    model
        A fitted model.
    data
        AnnData, sampled with all its slots; or files, of which only the sample is read, its counts into ``X``.
    layer
        Where the counts are in files; None for the layer of the fit.
    columns
        Columns of obs to read.
    max_cells, seed
        Size of the sample, and start of the random stream.
    allow_missing
        Share of the model's genes that a reader may lack; their counts are then zero.
    root
        Name of a cell that is in every sample; None for none.
    slot
        Slot of obsm to read from files, too.

    Raises
    ------
    ConfigError, FileError, InputError
        As :meth:`Autoencoder.embed`, for a missing column of obs, and if there is no cell of the name ``root``, or
        several.
    """
    if isinstance(data, Reader):
        genes, integers = Genes(model.var_names_, allow_missing), model.config.integers
        source = data.opened(genes, counts=model.reads_counts, to_fit=False, integers=integers)
        return _sample_of(model, source, columns, max_cells, seed, slot, root)
    shards = open_files(data, model.layer_ if layer is None else layer, layer_is_of_fit=layer is None)
    if shards is not None:
        if not any(shard.n_obs for shard in shards):
            where = ", ".join(shard.path.name for shard in shards[:3])
            raise InputError("too-few-cells", "there are no cells", where, "check the filters that ran before")
        return _sample_of(model, DiskSource(Stores(shards), counts=False), columns, max_cells, seed, slot, root)
    assert isinstance(data, anndata.AnnData)
    for key in columns:
        of_fit = "batch_key" if key in batch_columns(model.training_.batch_key) else "covariates"
        obs_column(data, key, what=of_fit if key in model.training_.obs_columns else "labels or batch_key")
    chosen = np.ones(data.n_obs, dtype=bool)
    held_out, new = match_held_out(model, data.n_obs, chosen, *_accessors(data))
    always = None if root is None else row_of(data.obs_names, root)
    if data.n_obs <= max_cells:
        return Sample(data, held_out, layer, new, data.n_obs)
    rows = _rows(data.n_obs, max_cells, seed, always)
    if data.isbacked and data.is_view:  # a view of a file has no views of its own
        data = data.to_memory()
    sample = data[rows].to_memory() if data.isbacked else data[rows].copy()
    return Sample(sample, held_out[rows], layer, new, data.n_obs)


def match_held_out(
    model: Autoencoder, n_obs: int, rows: Any, names: Callable[[Any], pd.Index], column: Callable[..., Any]
) -> tuple[Any, bool]:
    """Return the position of cells among those held out in the fit, or -1, and whether all the data are new to it.

    The split of the fit is drawn again: for the same cells in the same order it holds out cells of the same names.
    Other data are matched by name; where names repeat, or are mere numbers, no cell is matched. The cells to match are
    a mask, or (n,) positions, of ``n_obs``; ``names`` gives their names, ``column`` a column of obs.
    """
    try:
        again = split_of(n_obs, column, model.training_).valid
    except (ConfigError, InputError):  # other data may not allow the split of the fit
        again = np.empty(0, dtype=np.int64)
    again = again[names(again).isin(model.valid_obs_)]  # without those that were left out, which have no counts
    if len(again) == len(model.valid_obs_) and (names(again) == model.valid_obs_).all():
        positions = np.full(n_obs, -1)
        positions[again] = np.arange(len(again))
        return positions[rows], False
    of_rows = names(rows)
    if (of_rows == np.arange(n_obs)[rows].astype(str)).all():  # numbers in place of names
        return np.full(len(of_rows), -1), False
    if not of_rows.isin(model.valid_obs_).any():
        return np.full(len(of_rows), -1), len(model.valid_obs_) > 0
    if not (of_rows.is_unique and model.valid_obs_.is_unique):
        return np.full(len(of_rows), -1), False
    return model.valid_obs_.get_indexer(of_rows), False


def _accessors(data: anndata.AnnData) -> tuple[Callable[[Any], pd.Index], Callable[..., Any]]:
    def column(key: str, *, what: str) -> Any:
        return obs_column(data, key, what=what)

    return lambda rows: pd.Index(data.obs_names[rows].astype(str), dtype=object), column


def _sample_of(
    model: Autoencoder,
    source: Source,
    columns: list[str],
    max_cells: int,
    seed: int,
    slot: str | None,
    root: str | None,
) -> Sample:
    values: dict[str, Any] = {key: source.column(key, what="labels") for key in columns}
    chosen = np.ones(source.n_obs, dtype=bool)
    always = None if root is None else row_of(source.names(np.arange(source.n_obs)), root)
    if source.n_obs > max_cells:
        chosen[:] = False
        chosen[_rows(source.n_obs, max_cells, seed, always)] = True
    blocks = list(source.blocks(chosen, READ))
    rows = np.concatenate([rows for _, rows in blocks])
    order = np.argsort(rows)
    matrix = vstack([matrix for matrix, _ in blocks], format="csr")[order]
    rows = rows[order]
    obs = pd.DataFrame({key: column[rows] for key, column in values.items()}, index=source.names(rows))
    adata = anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(source.var_names, dtype=object)))
    if slot is not None:
        adata.obsm[slot] = source.coordinates(slot)[rows]
    held_out, new = match_held_out(model, source.n_obs, rows, source.names, source.column)
    return Sample(adata, held_out, "X", new, source.n_obs)


def row_of(names: pd.Index, root: Any) -> int:
    """Return the position of the cell of a name; a ConfigError if there is none, or several."""
    if not isinstance(root, str):
        what = f"root = {root!r} is no name of a cell"
        raise ConfigError("bad-value", what, "root", "root=adata.obs_names[i], or leave it out")
    found = np.flatnonzero(names == root)
    if not len(found):
        raise unknown_key(root, list(map(str, names)), where="root (a name of obs)")
    if len(found) > 1:
        what = f"{len(found)} cells are called {root!r}"
        raise ConfigError("bad-value", what, "root", "adata.obs_names_make_unique()")
    return int(found[0])


def _rows(n_obs: int, max_cells: int, seed: int, always: int | None = None) -> Any:
    rows = np.random.default_rng([seed, 3]).choice(n_obs, max_cells, replace=False)
    if always is not None and always not in rows:
        rows[0] = always
    return np.sort(rows)
