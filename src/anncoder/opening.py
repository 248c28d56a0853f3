"""Opening and checking the cells that a model is given, wherever they are."""

from __future__ import annotations

from typing import Any

import anndata

from anncoder.checks import problems_of, raise_first, refuse_empty
from anncoder.data.adata import place
from anncoder.data.genes import align
from anncoder.data.problems import Problem
from anncoder.data.shard import Shard
from anncoder.data.shards import Shards, open_shards
from anncoder.errors import InputError, some
from anncoder.sources import Data, DiskSource, Genes, MemorySource, Reader, Source, that_matter


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
    if isinstance(data, Reader):
        return data.opened(None, counts=counts, to_fit=to_fit)
    shards = open_shards(data, layer)
    if shards is None:
        assert isinstance(data, anndata.AnnData)
        return MemorySource(data, layer, counts=counts, to_fit=to_fit, integers=integers)
    warnings = _refuse_bad(shards, counts=counts, to_fit=to_fit, integers=integers)
    return DiskSource(Shards(shards), counts=counts, warnings=warnings)


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
        source = data.opened(genes, counts=counts, to_fit=False)
    elif shards is not None:
        together = Shards(shards, *genes)
        _refuse_bad(shards, counts=counts, to_fit=False, integers=integers)
        source = DiskSource(together, counts=counts)
    else:
        assert isinstance(data, anndata.AnnData)
        alignment = align(list(genes.names), list(data.var_names.astype(str)), allow_missing=genes.allow_missing)
        if layer_is_of_fit and layer is not None and layer not in data.layers:
            raise _not_as_in_fit(layer, "layers: " + (some(map(repr, filter(None, data.layers))) or "none"))
        where = None if layer == "X" else layer
        whole = MemorySource(data, where, counts=counts, to_fit=False, integers=integers)
        source = whole.with_matrix(alignment.apply(whole.matrix), counts=counts)
    refuse_empty(source.sizes, source.names, source.where)
    return source


def open_files(data: Any, layer: str | None, *, layer_is_of_fit: bool) -> list[Shard] | None:
    """Open what is on disk for a fitted model, as :func:`anncoder.data.shards.open_shards` does.

    ``layer`` and ``layer_is_of_fit`` are those of :func:`open_for_model`.
    """
    try:
        return open_shards(data, None if layer == "X" else layer)
    except InputError as error:
        if error.code != "missing-layer" or not layer_is_of_fit or layer is None:
            raise
        raise _not_as_in_fit(layer, error.where) from error


def _not_as_in_fit(layer: str, where: str) -> InputError:
    return InputError(
        f"the model was fitted on {place(layer)}, which these data do not have",
        code="missing-layer",
        where=where,
        remedy="say where the counts are: layer=NAME (--layer NAME), 'X' for X",
    )


def _refuse_bad(shards: list[Shard], *, counts: bool, to_fit: bool, integers: bool) -> tuple[Problem, ...]:
    n_obs, warnings = sum(shard.n_obs for shard in shards), []
    for shard in shards:
        # one file of several may have a single cell
        matter = that_matter(problems_of(shard, counts=counts, integers=integers), n_obs, to_fit and n_obs < 2)
        found = [problem._replace(where=f"{shard.path.name}: {problem.where}") for problem in matter]
        raise_first(found)
        warnings += [problem for problem in found if problem.severity == "warning"]
    if n_obs < (2 if to_fit else 1):
        raise InputError(
            f"a model needs at least 2 cells, this has {n_obs}",
            code="too-few-cells",
            where=", ".join(shard.path.name for shard in shards[:3]),
            remedy="check the filters that ran before",
        )
    return tuple(warnings)
