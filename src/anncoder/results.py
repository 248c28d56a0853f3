"""What a model says of the cells of files, from the files to be read to the files to be written.

Whatever can be refused is refused before any work is done: :func:`open_files_for` is asked before hours of training,
:func:`anncoder.written.write_results` writes after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from anncoder.autoencoder import Autoencoder
from anncoder.data.empty import drop_empty_cells
from anncoder.data.genes import align
from anncoder.data.shard import Shard
from anncoder.data.shards import Paths, open_files
from anncoder.errors import InputError, ResourceError, some
from anncoder.outputs import outputs_of
from anncoder.progress import announce
from anncoder.refusals import refuse_scale
from anncoder.slots import refuse_foreign
from anncoder.sources import DiskSource
from anncoder.written import Wanted, write_results


class Files(NamedTuple):
    """Inputs, open, and the output of each."""

    shards: list[Shard]
    outputs: list[Path]


class Output(NamedTuple):
    """A file that was written."""

    path: Path
    n_obs: int
    n_vars: int


def write_files(
    model: Autoencoder,
    data: Paths,
    output: Path,
    wanted: Wanted,
    *,
    layer: str | None = None,
    allow_missing: float = 0.0,
    in_place: bool = False,
    drop_empty: bool = False,
) -> list[Output]:
    """Write files beside what a fitted model says of their cells.

    Parameters
    ----------
    model, wanted
        As in :func:`anncoder.written.write_results`.
    data, output, in_place, drop_empty
        As in :func:`open_files_for`.
    layer, allow_missing
        As in :meth:`Autoencoder.embed`.

    Returns
    -------
    list
        What was written, a file each.

    Raises
    ------
    ConfigError, FileError, InputError, ResourceError
        As :meth:`Autoencoder.embed`, :func:`open_files_for` and :func:`anncoder.written.write_results`.
    """
    asked = model.layer_ if layer is None else layer
    genes = list(model.var_names_)
    files = open_files_for(
        model, data, output, wanted, asked, fitted=layer is None, in_place=in_place, drop_empty=drop_empty, genes=genes
    )
    if wanted.scale is not None:
        for shard in files.shards:
            try:
                refuse_unknown_genes(model, shard.var_names, allow_missing)
            except InputError as error:
                error.where = f"{shard.path}: {error.where}"  # of many files, which
                raise
    opened: Any = files.shards
    source = model._source(opened, layer, allow_missing)
    assert isinstance(source, DiskSource)
    write_results(model, source, files.outputs, wanted)
    return [Output(path, shard.n_obs, shard.n_vars) for shard, path in zip(*files, strict=True)]


def open_files_for(
    model: Autoencoder,
    data: Paths,
    output: Path,
    wanted: Wanted,
    layer: str | None,
    *,
    fitted: bool = False,
    in_place: bool = False,
    drop_empty: bool = False,
    genes: list[str] | None = None,
) -> Files:
    """Open files for a model whose results will be written.

    Parameters
    ----------
    model
        The model, fitted or not.
    data, output, in_place
        As in :func:`anncoder.outputs.outputs_of`.
    wanted
        What will be written.
    layer
        Where the counts are; None and "X" for ``X``.
    fitted
        The layer is the one the model was fitted on, not one that was asked for.
    drop_empty
        Leave out the cells that have no count in any of the genes.
    genes
        Those of a fitted model; None for all.

    Raises
    ------
    ConfigError
        The output would replace the input, or results those of somebody else, or the model cannot give them.
    FileError
        A file cannot be read.
    InputError
        One file of several has no cells.
    ResourceError
        The output cannot be written, or the disk has no room for it.
    """
    outputs = outputs_of(data, output, in_place=in_place)
    if wanted.scale is not None:
        refuse_scale(model.config, wanted.scale)
    shards = open_files(data, layer, layer_is_of_fit=fitted)
    assert shards is not None
    for shard in shards:
        with shard.errors():
            refuse_foreign(shard.store, wanted.key)
    _refuse_full_disk(shards, outputs[0].parent, n_latent=model.config.width, denoised=wanted.scale is not None)
    if drop_empty:
        leave_out_empty(shards, genes)
    _refuse_no_cells(shards)
    return Files(shards, outputs)


def leave_out_empty(shards: list[Shard], genes: list[str] | None = None) -> None:
    """Leave out the cells without any count, or without any in some genes, and say how many."""
    for shard in shards:
        n_obs = shard.n_obs
        if n_empty := drop_empty_cells(shard, genes):
            of = f" of {shard.path.name}" if len(shards) > 1 else ""
            announce(f"left out {n_empty:,} of {n_obs:,} cells{of}, which have no count")


def refuse_unknown_genes(model: Autoencoder, var_names: pd.Index, allow_missing: float = 0.0) -> None:
    """Raise an InputError unless the model knows all genes here."""
    n_unknown = int((~var_names.isin(model.var_names_)).sum())
    if n_unknown:
        # where genes of the model are missing too, that says more: names of another kind
        align(list(model.var_names_), list(var_names), allow_missing=allow_missing)
        raise InputError(
            f"the model does not know {n_unknown:,} of the genes here: a layer has all of them",
            code="unknown-genes",
            where="var_names",
            remedy="adata = adata[:, adata.var_names.isin(model.var_names_)].copy()",
        )


def _refuse_no_cells(shards: list[Shard]) -> None:
    """Raise an InputError if one of several files has no cells to write results of: now, not after the training."""
    without = [str(shard.path) for shard in shards if not shard.n_obs]
    if 0 < len(without) < len(shards):  # where none has any, it is said when they are checked
        raise InputError(
            "a file has no cells, and so no results",
            code="too-few-cells",
            where=some(without),
            remedy="leave it out, or check the filters that ran before",
        )


def _refuse_full_disk(shards: Iterable[Shard], folder: Path, *, n_latent: int, denoised: bool) -> None:
    """Raise a ResourceError if the disk has no room for the results: now, not after the training."""
    needed = 0
    for shard in shards:
        parts = [shard.path] if shard.path.is_file() else shard.path.rglob("*")
        needed += sum(part.stat().st_size for part in parts if part.is_file())
        needed += 4 * shard.n_obs * (n_latent + denoised * shard.n_vars)
    folder = folder if folder.exists() else folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"the output needs {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free in {str(folder)!r}",
            code="disk-too-small",
            where=str(folder),
            remedy="write to another disk; without the denoised layer the output is little larger than the input",
        )
