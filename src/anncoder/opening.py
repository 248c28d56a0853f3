"""Opening and checking the cells that a model is given, wherever they are."""

from __future__ import annotations

import logging

import anndata

from anncoder.checks import refuse_bad, refuse_empty
from anncoder.data.adata import meant
from anncoder.data.genes import align
from anncoder.data.names import n_repeated
from anncoder.data.shards import Shards, not_as_in_fit, open_files, open_shards, refuse_twice
from anncoder.device import memory_errors
from anncoder.errors import some
from anncoder.sources import Data, DiskSource, Genes, MemorySource, Reader, Source

logger = logging.getLogger("anncoder")
CHANCE = 0.01  # share of a file's cells that may have name and total of others by chance, where names are numbers


@memory_errors("opening the data")
def open_source(data: Data, layer: str | None, *, counts: bool, to_fit: bool = True, integers: bool = True) -> Source:
    """Open and check what a model is to be fitted on.

    Parameters
    ----------
    data
        AnnData; a path, a glob or a list of paths of ``.h5ad`` files and ``.zarr`` folders; a backed AnnData.
    layer
        Where the matrix is; None and ``"X"`` for ``X``, as everywhere.
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
    if isinstance(data, Reader):
        return data.opened(None, counts=counts, to_fit=to_fit, integers=integers)
    shards = open_shards(data, layer)
    if shards is None:
        assert isinstance(data, anndata.AnnData)
        where = meant(layer, data.layers)
        return MemorySource(data, where, counts=counts, to_fit=to_fit, integers=integers)
    if to_fit:
        refuse_twice(shards)
    warnings = refuse_bad(shards, counts=counts, to_fit=to_fit, integers=integers)
    source = DiskSource(Shards(shards), counts=counts, warnings=warnings)
    n = n_repeated(shards, source.sizes) if to_fit and counts and len(shards) > 1 else 0
    if n > CHANCE * min(shard.n_obs for shard in shards):
        logger.warning(
            "%s cells have the name and the number of molecules of a cell of another file: where they are the same "
            "cells, as in the output of an earlier run, some are held out and trained on at once",
            f"{n:,}",
        )
    return source


@memory_errors("opening the data")
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
    source: Source
    shards = None if isinstance(data, Reader) else open_files(data, layer, layer_is_of_fit=layer_is_of_fit)
    if isinstance(data, Reader):
        source = data.opened(genes, counts=counts, to_fit=False, integers=integers)
    elif shards is not None:
        together = Shards(shards, *genes)
        refuse_bad(shards, counts=counts, to_fit=False, integers=integers)
        source = DiskSource(together, counts=counts)
    else:
        assert isinstance(data, anndata.AnnData)
        alignment = align(list(genes.names), list(map(str, data.var_names)), allow_missing=genes.allow_missing)
        if layer_is_of_fit and layer is not None and layer not in data.layers:
            raise not_as_in_fit(layer, "layers: " + (some(map(repr, filter(None, data.layers))) or "none"))
        where = meant(layer, data.layers)
        whole = MemorySource(data, where, counts=counts, to_fit=False, integers=integers)
        source = whole.with_matrix(alignment.apply(whole.matrix), counts=counts)
    refuse_empty(source.sizes, source.names, source.where)
    return source
