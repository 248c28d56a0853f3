"""Results written to files: copies of inputs with latent and denoised layer, by blocks.

Whatever can be refused is refused before any work is done: :func:`open_files_for` is asked before hours of training,
:func:`anncoder.tl.files.write_results` writes after it.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem
from natsort import natsorted

from anncoder.data.genes import align
from anncoder.data.sources import Data, DiskSource
from anncoder.data.store import READ, Store
from anncoder.data.stores import Paths, drop_empty_cells, open_files
from anncoder.errors import AnncoderError, InputError, ResourceError, listed
from anncoder.io.atomic import allow_open, atomic_path, locked, sync
from anncoder.io.h5ad_copy import Copy, slices
from anncoder.io.hdf5 import DiskFullFile, new_h5
from anncoder.io.output_paths import outputs_of
from anncoder.models.base import Array, Autoencoder, Scale, denoised, expecting, latents, refuse_scale
from anncoder.tl.slots import denoised_as, found_denoised, of_another, record, refuse_foreign
from anncoder.training.progress import announce, logger


class Files(NamedTuple):
    """Inputs, open, and the output of each."""

    shards: list[Store]
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
    wanted: OutputSpec,
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
        As in :func:`anncoder.tl.files.write_results`.
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
        As :meth:`Autoencoder.embed`, :func:`open_files_for` and :func:`anncoder.tl.files.write_results`.
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
    wanted: OutputSpec,
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
        As in :func:`anncoder.io.output_paths.outputs_of`.
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
            refuse_foreign(shard.root, wanted.key, model)
    _refuse_full_disk(shards, outputs[0].parent, n_latent=model.config.width, denoised=wanted.scale is not None)
    if drop_empty:
        leave_out_empty(shards, genes)
    _refuse_no_cells(shards)
    return Files(shards, outputs)


def leave_out_empty(shards: list[Store], genes: list[str] | None = None) -> None:
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
            "unknown-genes",
            f"the model does not know {n_unknown:,} of the genes here: a layer has all of them",
            "var_names",
            "adata = adata[:, adata.var_names.isin(model.var_names_)].copy()",
        )


def _refuse_no_cells(shards: list[Store]) -> None:
    """Raise an InputError if one of several files has no cells to write results of: now, not after the training."""
    without = [str(shard.path) for shard in shards if not shard.n_obs]
    if 0 < len(without) < len(shards):  # where none has any, it is said when they are checked
        raise InputError(
            "too-few-cells",
            "a file has no cells, and so no results",
            listed(without),
            "leave it out, or check the filters that ran before",
        )


def _refuse_full_disk(shards: Iterable[Store], folder: Path, *, n_latent: int, denoised: bool) -> None:
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
            "disk-too-small",
            f"the output needs {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free in {str(folder)!r}",
            str(folder),
            "write to another disk; without the denoised layer the output is little larger than the input",
        )


CHUNK = 2**20  # bytes


class OutputSpec(NamedTuple):
    """What is to be written, and under which key."""

    key: str
    latent: bool = True
    scale: Scale | None = None  # of the denoised layer; None for no layer
    batch: str | int | None = None  # as which the cells are decoded for it; None for their own


class Latent:
    """Looks at a latent, block by block, whether it is fit to be written.

    Parameters
    ----------
    key
        As the user calls the results.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._n = self._n_bad = 0
        self._sums: Any = None

    def add(self, block: Array) -> None:
        """Take in some cells, (b, k)."""
        if self._sums is None:
            self._shift, self._sums = block[:1].astype(np.float64), np.zeros((2, block.shape[1]))
        values = block - self._shift  # variances are of small differences of latents that may be far from zero
        self._sums += values.sum(axis=0), np.square(values).sum(axis=0)
        self._n += len(block)
        self._n_bad += int((~np.isfinite(block).all(axis=1)).sum())

    def close(self) -> None:
        """Raise an InputError if cells have a latent that is not finite; warn of units that say nothing."""
        if self._n_bad:
            raise InputError(
                "latent-not-finite",
                f"{self._n_bad:,} cells have a latent that is not finite",
                f"obsm['X_{self.key}']",
                "fit again with a lower learning_rate",
            )
        mean, square = self._sums / self._n
        dead = int((square - mean**2 < 1e-8).sum())
        if dead == len(mean) and self._n > 1:
            logger.warning("the latent is the same for all cells: fit again with a lower learning_rate")
        elif dead and self._n > 1:
            logger.warning(
                "%d of %d latent units are the same for all cells: a smaller n_latent would do", dead, len(mean)
            )


def column_of(values: Any) -> Any:
    """Return what a model says of cells as a column of obs: text as categories, "10" behind "9", as scanpy has it."""
    return pd.Categorical(values, categories=natsorted(set(values))) if values.dtype == object else values


def natural_scale(model: Autoencoder) -> Scale:
    """Return the scale of denoised expression where none is asked for: that of the data."""
    return "counts" if model.reads_counts else "normalized"


def of_cells_here(model: Autoencoder, cells: Data, **where: Any) -> dict[str, Any]:
    """Return what a model says of each cell; nothing, with a warning, where only that takes a batch they lack."""
    try:
        return model.of_cells(cells, **where)
    except AnncoderError as error:
        needed = model.config.embeds_batches or not model.config.encodes_batches
        if needed or error.code not in ("unknown-key", "unknown-batch", "missing-values"):
            raise
        logger.warning("only the latent: %s, for %s", error.what, ", ".join(model.cell_results))
        return {}


def of_genes_here(model: Autoencoder, var_names: pd.Index) -> dict[str, Array]:
    """Return what the model says of each gene here, (n_vars,) or (n_vars, k); NaN of genes that it does not know."""
    found = {}
    for name, values in model.of_genes().items():
        of_known = pd.DataFrame(values, index=model.var_names_)
        here = of_known.reindex(var_names).to_numpy(np.float32)
        found[name] = here[:, 0] if values.ndim == 1 else here
    return found


def write_results(
    model: Autoencoder, source: DiskSource, outputs: list[Path], wanted: OutputSpec, *, together: bool = False
) -> None:
    """Write each file of a source, with the results of its cells, to an output of its own.

    Parameters
    ----------
    model
        A fitted model.
    source
        Its cells, in the order of its genes.
    outputs
        An ``.h5ad`` file for each of the source.
    wanted
        What to write.
    together
        Whether the files get their names only when all are written: of a model that is new, one output of two would
        have a latent that the other's is not to be compared with. Takes the room of all of them on the disk.

    Raises
    ------
    FileError
        An input is damaged, or changes while it is read.
    ResourceError
        The disk is full, another process writes the same output, or what was read back is not what was written. The
        output is as it was.
    """
    if together:
        allow_open(4 * len(outputs) + 256)  # input, lock and what else is open of each
    with ExitStack() as all_written:
        for (shard, cells), output in zip(source.files(), outputs, strict=True):
            output.parent.mkdir(exist_ok=True)  # a folder that was named for them
            with ExitStack() as naming:
                naming.enter_context(locked(output))
                temporary = naming.enter_context(atomic_path(output))
                _write(temporary, shard, cells, model, wanted)
                if together:
                    sync(temporary)  # now: the names then come one right after the other
                    all_written.enter_context(naming.pop_all())


def _write(temporary: Path, shard: Store, cells: DiskSource, model: Autoencoder, wanted: OutputSpec) -> None:
    with new_h5(temporary) as (file, disk):
        with _reading(shard, disk):
            Copy(file, disk, shard.matrix.shape[0], shard.rows, _replaced(shard, model, wanted)).of(shard.root)
        shard.refuse_change()
        kept = found_denoised(shard.root, model, wanted.key)
        how = kept if wanted.scale is None else denoised_as(wanted.scale, wanted.batch)
        written = _Written(file, disk, wanted.key, model, record(model, wanted.key, how))
        if wanted.latent:
            written.latent(shard, cells)
        if wanted.scale is not None:
            written.denoised(shard, cells, wanted.scale, wanted.batch)
        shard.refuse_change()
    _verify(temporary, shard, written.sums, written.columns)


def _replaced(shard: Store, model: Autoencoder, wanted: OutputSpec) -> set[str]:
    key = wanted.key
    paths = {f"{where}/{name}" for where, name in of_another(shard.root, model, key)} | {f"uns/{key}"}
    if wanted.scale is not None:
        paths |= {f"layers/{key}_denoised"}
    if wanted.latent:
        paths |= {f"obsm/X_{key}", *(f"obs/{key}_{name}" for name in model.cell_results)}
        paths |= {f"{where}/{key}_{name}" for where in ("var", "varm") for name in model.gene_results}
    return paths


@contextmanager
def _reading(shard: Store, disk: DiskFullFile) -> Iterator[None]:
    try:
        yield
    except AnncoderError:
        raise
    except Exception:
        disk.stop_if_failed()  # the disk it is written to, or
        with shard.errors():  # the file it is read from
            raise


class _Written:
    """Our slots of a copied file."""

    def __init__(self, file: h5py.File, disk: DiskFullFile, key: str, model: Autoencoder, signed: Any) -> None:
        self.file, self.disk, self.model, self.key = file, disk, model, key
        self.sums: dict[str, int] = {}  # of the bytes of each array
        self.columns: dict[str, Any] = {}
        self._frame("obs", {})
        self._frame("var", {})
        write_elem(self._group("uns"), key, signed)

    def latent(self, shard: Store, cells: DiskSource) -> None:
        """Write the latent and what else the model says of cells and genes."""
        look = Latent(self.key)

        def looked_at() -> Iterator[Array]:
            for block in latents(self.model, cells):
                look.add(block)
                yield block

        self._stream("obsm", f"X_{self.key}", (shard.n_obs, self.model.config.width), looked_at())
        look.close()
        self._frame("obs", {n: column_of(v) for n, v in of_cells_here(self.model, cells).items()})
        of_genes = of_genes_here(self.model, shard.var_names)
        self._frame("var", {name: values for name, values in of_genes.items() if values.ndim == 1})
        for name, values in of_genes.items():
            if values.ndim == 2:
                write_elem(self._group("varm"), f"{self.key}_{name}", values)

    def denoised(self, shard: Store, cells: DiskSource, scale: Scale, batch: str | int | None) -> None:
        """Write the layer of expected expression."""
        compute = expecting(self.model, scale, list(shard.var_names), batch)
        shape = (shard.n_obs, shard.n_vars)
        self._stream("layers", f"{self.key}_denoised", shape, denoised(self.model, cells, compute, batch))

    def _stream(self, where: str, name: str, shape: tuple[int, int], values: Iterator[Array]) -> None:
        rows = max(1, min(shape[0], CHUNK // (4 * shape[1])))
        # a checksum is had for nothing; compressed, such values are hardly smaller, and slow to write and read
        dataset = self._group(where).create_dataset(name, shape, np.float32, chunks=(rows, shape[1]), fletcher32=True)
        dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        at = total = 0
        for block in values:
            block = np.ascontiguousarray(block, dtype=np.float32)
            dataset[at : at + len(block)] = block
            at, total = at + len(block), zlib.crc32(block.data, total)
            self.disk.stop_if_failed()
        self.sums[f"{where}/{name}"] = total

    def _frame(self, where: str, columns: Mapping[str, Any]) -> None:
        frame = self.file[where]
        for name, values in columns.items():
            write_elem(frame, f"{self.key}_{name}", values)
            self.columns[f"{where}/{self.key}_{name}"] = values
        order = [str(name) for name in frame.attrs.get("column-order", [])]
        names = [name for name in order if name in frame] + [f"{self.key}_{name}" for name in columns]
        if names != order:
            frame.attrs["column-order"] = np.array(names, dtype=h5py.string_dtype())

    def _group(self, name: str) -> h5py.Group:
        if name not in self.file:
            self.file.create_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        return self.file[name]


def _verify(path: Path, shard: Store, sums: dict[str, int], columns: dict[str, Any]) -> None:
    with h5py.File(path, "r") as file:
        for slot, expected in sums.items():
            total = 0
            for part in slices(file[slot]):
                total = zlib.crc32(file[slot][part], total)
            _refuse_other(slot, path, same=total == expected)
        for slot, values in columns.items():
            found, given = (np.asarray(v) for v in (read_elem(file[slot]), values))
            _refuse_other(slot, path, same=np.array_equal(found, given, equal_nan=given.dtype.kind == "f"))
        again = Store(file, path, shard.layer)
        for start in range(0, shard.n_obs, READ):
            rows = [(start, min(start + READ, shard.n_obs))]
            left, right = again.read(rows), shard.read(rows)
            arrays = ("indptr", "indices", "data")
            _refuse_other(
                shard.slot, path, same=all(np.array_equal(getattr(left, a), getattr(right, a)) for a in arrays)
            )


def _refuse_other(slot: str, path: Path, *, same: bool) -> None:
    if not same:
        raise ResourceError("cannot-write", f"{slot} did not survive writing", str(path), "try again, on another disk")
