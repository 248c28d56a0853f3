"""Some cells of data of any size, in memory."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import vstack

from anncoder.autoencoder import Autoencoder
from anncoder.config import unknown_key
from anncoder.data.shards import Shards, open_files
from anncoder.sources import Data, DiskSource, Genes, Reader, Source

READ = 8192  # cells at a time


def some_cells(
    model: Autoencoder, data: Data, layer: str | None, columns: list[str], *, max_cells: int, seed: int
) -> anndata.AnnData:
    """Return cells taken at random, in their order; all where there are no more than that.

    Parameters
    ----------
    model
        A fitted model, for where its counts were.
    data
        AnnData, of which cells are returned with all they have; or files, of which these cells are read and no others.
    layer
        Where the counts are in files; None for where they were in ``fit``. They are in ``X`` of the result.
    columns
        What else is needed, of obs.
    max_cells, seed
        How many, and the start of the random stream.

    Raises
    ------
    ConfigError
        There is no such column of obs.
    FileError
        A file cannot be read.
    InputError
        There is no such layer.
    """
    if isinstance(data, Reader):
        source = data.opened(Genes(model.var_names_), counts=model.reads_counts, to_fit=False)
        return _some(source, columns, max_cells, seed)
    shards = open_files(data, model.layer_ if layer is None else layer, layer_is_of_fit=layer is None)
    if shards is not None:
        return _some(DiskSource(Shards(shards), counts=False), columns, max_cells, seed)
    assert isinstance(data, anndata.AnnData)
    for key in columns:
        if key not in data.obs:
            raise unknown_key(key, [str(c) for c in data.obs.columns], where="labels (a column of obs)")
    if data.n_obs <= max_cells:
        return data
    data = data.to_memory() if data.isbacked else data  # a view of a file has no views of its own
    return data[_rows(data.n_obs, max_cells, seed)].copy()


def _some(source: Source, columns: list[str], max_cells: int, seed: int) -> anndata.AnnData:
    of_cells: dict[str, Any] = {key: source.column(key, what="labels") for key in columns}
    chosen = np.ones(source.n_obs, dtype=bool)
    if source.n_obs > max_cells:
        chosen[:] = False
        chosen[_rows(source.n_obs, max_cells, seed)] = True
    blocks = list(source.blocks(chosen, READ))
    rows = np.concatenate([rows for _, rows in blocks])
    order = np.argsort(rows)
    matrix = vstack([matrix for matrix, _ in blocks], format="csr")[order]
    rows = rows[order]
    obs = pd.DataFrame({key: values[rows] for key, values in of_cells.items()}, index=source.names(rows))
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(source.var_names, dtype=object)))


def _rows(n_obs: int, max_cells: int, seed: int) -> Any:
    return np.sort(np.random.default_rng([seed, 3]).choice(n_obs, max_cells, replace=False))
