"""Results written to files: copies of inputs with latent and denoised layer, by blocks.

:func:`open_files_for` refuses all that can be refused, before hours of training; :func:`write_results` writes after it.
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

from anncoder.data.adata import RAW
from anncoder.data.formats.attributes import texts_of
from anncoder.data.genes import AUTO, align
from anncoder.data.matrix.notes import said_once, say
from anncoder.data.opening import Paths, open_files
from anncoder.data.sources import Data, DiskSource
from anncoder.data.store import READ, Store
from anncoder.data.stores import drop_empty_cells
from anncoder.errors import AnncoderError, InputError, ResourceError, counted, listed
from anncoder.io.atomic import allow_open, atomic_path, locked, sync
from anncoder.io.h5ad_copy import copy_h5ad, rehearse, slices
from anncoder.io.h5ad_write import refuse_difference
from anncoder.io.hdf5 import DiskFullFile, new_h5
from anncoder.io.output_paths import outputs_of
from anncoder.models.base import Array, Autoencoder
from anncoder.tl.latent_check import LatentCheck
from anncoder.tl.slots import denoised_as, found_denoised, of_another, record, refuse_foreign, slots_of
from anncoder.training.progress import announce, logger
from anncoder.training.results import Scale, denoised, expecting, latents, refuse_scale

CHUNK = 2**20  # bytes of a dense array that are stored, and read, together


class OutputSpec(NamedTuple):
    """Which results are to be written, and under which key.

    Attributes
    ----------
    key
        The results are ``obsm["X_{key}"]``, ``layers["{key}_denoised"]`` and so on.
    latent
        Whether to write the latent, and with it the columns of ``obs`` and ``var`` that the model has.
    scale
        Scale of the denoised layer; None for no layer.
    batch
        The experimental batch as which all cells are decoded for that layer; None for their own.
    covariates
        Values of covariates as of which they are; None for their own.
    """

    key: str
    latent: bool = True
    scale: Scale | None = None
    batch: str | int | None = None
    covariates: Mapping[str, Any] | None = None


class Files(NamedTuple):
    """Inputs, open, and the output of each."""

    stores: list[Store]
    outputs: list[Path]


class Output(NamedTuple):
    """A file that was written."""

    path: Path
    n_obs: int
    n_vars: int


@said_once()
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
    """Write copies of files with a fitted model's results for their cells.

    Parameters
    ----------
    model, wanted
        As in :func:`write_results`.
    data, output, in_place, drop_empty
        As in :func:`open_files_for`.
    layer, allow_missing
        As in :meth:`Autoencoder.embed`.

    Returns
    -------
    list
        The files that were written.

    Raises
    ------
    ConfigError, FileError, InputError, ResourceError
        As :meth:`Autoencoder.embed`, :func:`open_files_for` and :func:`write_results`.
    """
    asked = model.layer_ if layer is None else layer
    genes = list(model.var_names_)
    files = open_files_for(
        model, data, output, wanted, asked, fitted=layer is None, in_place=in_place, drop_empty=drop_empty, genes=genes
    )
    if wanted.scale is not None:
        for store in files.stores:
            try:
                refuse_unknown_genes(model, store.own_genes, allow_missing)
            except InputError as error:
                error.where = f"{store.path}: {error.where}"  # of many files, which
                raise
    source = model._source(files.stores, layer, allow_missing)
    assert isinstance(source, DiskSource)
    write_results(model, source, files.outputs, wanted)
    return [Output(path, store.n_obs, len(store.own_genes)) for store, path in zip(*files, strict=True)]


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
        Where the counts are; None and "X" for ``X``, "raw.X" for those of ``raw``.
    fitted
        The layer is the one the model was fitted on, not one that was asked for.
    drop_empty
        Leave out the cells that have no count in any of the genes.
    genes
        Those of a fitted model; None for all.

    Raises
    ------
    ConfigError
        The output would replace the input, or results of another program, or the model cannot give them.
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
    stores = open_files(data, layer, layer_is_of_fit=fitted)
    assert stores is not None
    for store in stores:
        with store.errors():
            refuse_foreign(store.root, wanted.key, model)
        if wanted.scale is not None and genes is None:
            refuse_genes_outside_raw(store.own_genes, store.var_names)
    _refuse_full_disk(stores, outputs[0].parent, n_latent=model.config.width, denoised=wanted.scale is not None)
    if drop_empty:
        leave_out_empty(stores, genes)
    _refuse_no_cells(stores)
    for store in stores:
        rehearse(store.root, store.path, _kept(store))
    return Files(stores, outputs)


def _kept(store: Store) -> np.ndarray[Any, Any] | None:
    """Return which cells of a file are copied, (n,) bool; None for all."""
    return None if store.rows is None else np.isin(np.arange(store.matrix.shape[0]), store.rows)


def leave_out_empty(stores: list[Store], genes: list[str] | None = None) -> None:
    """Leave out the cells without any count, or without any in some genes, and say how many."""
    for store in stores:
        n_obs = store.n_obs
        if n_empty := drop_empty_cells(store, genes):
            of = f" of {store.path.name}" if len(stores) > 1 else ""
            announce(f"left out {n_empty:,} of {counted(n_obs, 'cell')}{of} without any count")


def refuse_unknown_genes(model: Autoencoder, var_names: pd.Index, allow_missing: float = 0.0) -> None:
    """Raise an InputError unless the model knows all genes here, or was fitted on chosen ones (``mask_var``)."""
    n_unknown = int((~var_names.isin(model.var_names_)).sum())
    if n_unknown and not chose_genes(model):
        # where genes of the model are missing too, that says more: names of another kind
        align(list(model.var_names_), list(var_names), allow_missing=allow_missing)
        what = f"the model does not know {n_unknown:,} of the genes here: a layer has all of them"
        remedy = "adata = adata[:, adata.var_names.isin(model.var_names_)].copy()"
        raise InputError("unknown-genes", what, "var_names", remedy)


def chose_genes(model: Autoencoder) -> bool:
    """Return whether a fitted model was fitted on the genes that a column of var chose."""
    return model.training_.mask_var not in (None, AUTO)  # models of version 0.1.0, read back, have "auto"


def known_genes(model: Autoencoder, var_names: pd.Index) -> np.ndarray[Any, Any]:
    """Return which genes here the model knows, (n_vars,) bool, and say if there are others: their columns are NaN."""
    known = np.asarray(var_names.isin(model.var_names_))
    if not known.all() and chose_genes(model):
        what = f"the denoised layer has NaN in {int((~known).sum()):,} of {len(known):,} genes"
        say(what, f"the model was fitted on those that var[{model.training_.mask_var!r}] chose")
        return known
    return np.ones(len(known), dtype=bool)


def with_unknown_genes(denoised: Array, known: np.ndarray[Any, Any]) -> Array:
    """Return denoised values, (b, n_known), with columns of NaN for the genes that are not known, (b, n_vars)."""
    if known.all():
        return denoised
    out = np.full((len(denoised), len(known)), np.nan, dtype=np.float32)
    out[:, known] = denoised
    return out


def refuse_genes_outside_raw(var_names: pd.Index, raw_names: pd.Index) -> None:
    """Raise an InputError unless a model of the genes of ``raw`` will know all genes of ``var``."""
    n_outside = int((~var_names.isin(raw_names)).sum())
    if n_outside:
        what = f"{n_outside:,} of the genes of var are not in raw.var: a denoised layer has all genes of var"
        remedy = "adata = adata[:, adata.var_names.isin(adata.raw.var_names)].copy()"
        raise InputError("unknown-genes", what, "var_names", remedy)


def say_genes_left_out(model: Autoencoder, var_names: pd.Index) -> None:
    """Say which genes of the model have no place in a denoised layer: those of ``raw`` that ``var`` does not have."""
    left_out = model.var_names_[~model.var_names_.isin(var_names)]
    if len(left_out):
        what = "the denoised layer has the %s genes of var; %s of raw.var are not in it: %s"
        logger.warning(what, f"{len(var_names):,}", f"{len(left_out):,}", listed(left_out))


def _refuse_no_cells(stores: list[Store]) -> None:
    without = [str(store.path) for store in stores if not store.n_obs]
    if 0 < len(without) < len(stores):  # where none has any, it is said when they are checked
        what = "a file has no cells, and so no results"
        raise InputError("too-few-cells", what, listed(without), "leave it out, or check the filters that ran before")


def _refuse_full_disk(stores: Iterable[Store], folder: Path, *, n_latent: int, denoised: bool) -> None:
    needed = 0
    for store in stores:
        parts = [store.path] if store.path.is_file() else store.path.rglob("*")
        needed += sum(part.stat().st_size for part in parts if part.is_file())
        needed += 4 * store.n_obs * (n_latent + denoised * len(store.own_genes))
    folder = folder if folder.exists() else folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"the output needs {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free in {str(folder)!r}"
        remedy = "write to another disk; without the denoised layer the output is little larger than the input"
        raise ResourceError("disk-too-small", what, str(folder), remedy)


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
        allow_open(4 * len(outputs) + 256)  # input, lock, output and its folder, of each
    with ExitStack() as all_written:
        for (store, cells), output in zip(source.files(), outputs, strict=True):
            output.parent.mkdir(exist_ok=True)  # a folder that was named for them
            with ExitStack() as naming:
                naming.enter_context(locked(output))
                temporary = naming.enter_context(atomic_path(output))
                _write(temporary, store, cells, model, wanted)
                if together:
                    sync(temporary)  # now: the names then come one right after the other
                    all_written.enter_context(naming.pop_all())


def _write(temporary: Path, store: Store, cells: DiskSource, model: Autoencoder, wanted: OutputSpec) -> None:
    with new_h5(temporary) as (file, disk):
        with _reading(store, disk):
            copy_h5ad(store.root, file, disk, keep=_kept(store), without=_replaced(store, model, wanted))
        store.refuse_change()
        kept = found_denoised(store.root, model, wanted.key)
        how = kept if wanted.scale is None else denoised_as(wanted.scale, wanted.batch, wanted.covariates)
        slots = _SlotWriter(file, disk, model, wanted.key)
        slots.write_record(how)
        if wanted.latent:
            slots.write_latent(store, cells)
        if wanted.scale is not None:
            slots.write_denoised(store, cells, wanted)
        store.refuse_change()
    _verify(temporary, store, slots)


def _replaced(store: Store, model: Autoencoder, wanted: OutputSpec) -> set[str]:
    """Return the paths of what is not copied: another model's results, and those that are written anew."""
    layer = wanted.scale is not None
    ours = [slot for slot in slots_of(model, wanted.key) if (layer if slot[0] == "layers" else wanted.latent)]
    others = of_another(store.root, model, wanted.key)
    return {f"uns/{wanted.key}", *(f"{where}/{name}" for where, name in ours + others)}


@contextmanager
def _reading(store: Store, disk: DiskFullFile) -> Iterator[None]:
    try:
        yield
    except AnncoderError:
        raise
    except Exception:
        disk.stop_if_failed()  # the disk it is written to, or
        with store.errors():  # the file it is read from
            raise


class _SlotWriter:
    """Writes a model's results into the copy of a file of cells, dense arrays a block at a time.

    Parameters
    ----------
    file, disk
        The copy, as :func:`anncoder.io.hdf5.new_h5` gives it.
    model
        A fitted model.
    key
        Under which the results are written.

    Attributes
    ----------
    checksums
        CRC-32 of each dense array that was written, by its path.
    columns
        Each column of ``obs`` and ``var`` that was written, by its path.
    """

    def __init__(self, file: h5py.File, disk: DiskFullFile, model: Autoencoder, key: str) -> None:
        self.file, self.disk, self.model, self.key = file, disk, model, key
        self.checksums: dict[str, int] = {}
        self.columns: dict[str, Any] = {}

    def write_record(self, denoised: Mapping[str, str]) -> None:
        """Write the record of the model in ``uns``; ``denoised`` is what it has of the denoised layer."""
        for frame in ("obs", "var"):
            self._write_columns(frame, {})  # for the order to name no column that was not copied
        write_elem(self._group("uns"), self.key, record(self.model, self.key, denoised))

    def write_latent(self, store: Store, cells: DiskSource) -> None:
        """Write the latent, and the model's other results for cells and genes."""
        check = LatentCheck(self.key)

        def checked() -> Iterator[Array]:
            for block in latents(self.model, cells):
                check.add(block)
                yield block

        self._write_blocks("obsm", f"X_{self.key}", (store.n_obs, self.model.config.width), checked())
        check.close()
        self._write_columns("obs", {n: column_of(v) for n, v in of_cells_here(self.model, cells).items()})
        of_genes = of_genes_here(self.model, store.own_genes)
        self._write_columns("var", {name: values for name, values in of_genes.items() if values.ndim == 1})
        for name, values in of_genes.items():
            if values.ndim == 2:
                write_elem(self._group("varm"), f"{self.key}_{name}", values)

    def write_denoised(self, store: Store, cells: DiskSource, wanted: OutputSpec) -> None:
        """Write the layer of expected expression."""
        assert wanted.scale is not None
        known = known_genes(self.model, store.own_genes)
        compute = expecting(self.model, wanted.scale, list(store.own_genes[known]), wanted.batch, wanted.covariates)
        shape = (store.n_obs, len(store.own_genes))
        if store.layer == RAW:
            say_genes_left_out(self.model, store.own_genes)
        blocks = denoised(self.model, cells, compute, wanted.batch)
        self._write_blocks(
            "layers", f"{self.key}_denoised", shape, (with_unknown_genes(block, known) for block in blocks)
        )

    def _write_blocks(self, where: str, name: str, shape: tuple[int, int], blocks: Iterator[Array]) -> None:
        rows = max(1, min(shape[0], CHUNK // (4 * shape[1])))
        # a checksum costs nothing; compressed, such values are hardly smaller, and slow to write and read
        dataset = self._group(where).create_dataset(name, shape, np.float32, chunks=(rows, shape[1]), fletcher32=True)
        dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        at = checksum = 0
        for block in blocks:
            block = np.ascontiguousarray(block, dtype=np.float32)
            dataset[at : at + len(block)] = block
            at, checksum = at + len(block), zlib.crc32(block.data, checksum)
            self.disk.stop_if_failed()
        self.checksums[f"{where}/{name}"] = checksum

    def _write_columns(self, where: str, columns: Mapping[str, Any]) -> None:
        frame = self.file[where]
        for name, values in columns.items():
            write_elem(frame, f"{self.key}_{name}", values)
            self.columns[f"{where}/{self.key}_{name}"] = values
        order = texts_of(frame, "column-order")
        names = [name for name in order if name in frame] + [f"{self.key}_{name}" for name in columns]
        if names != order:
            frame.attrs["column-order"] = np.array(names, dtype=h5py.string_dtype())

    def _group(self, name: str) -> h5py.Group:
        if name not in self.file:
            write_elem(self.file, name, {})
        return self.file[name]


def _verify(path: Path, store: Store, written: _SlotWriter) -> None:
    """Read back what was written, and the counts that were copied, and compare."""
    with h5py.File(path, "r") as file:
        for slot, expected in written.checksums.items():
            checksum = 0
            for part in slices(file[slot]):
                checksum = zlib.crc32(file[slot][part], checksum)
            refuse_difference(path, slot, checksum, expected)
        for slot, values in written.columns.items():
            refuse_difference(path, slot, read_elem(file[slot]), values)
        again = Store(file, path, store.layer)
        again.rounded = store.rounded
        for start in range(0, store.n_obs, READ):
            rows = [(start, min(start + READ, store.n_obs))]
            refuse_difference(path, store.slot, again.read(rows), store.read(rows))


def column_of(values: Any) -> Any:
    """Return a model's result for cells as a column of obs: text as categories, "10" behind "9", as scanpy has it."""
    return pd.Categorical(values, categories=natsorted(set(values))) if values.dtype == object else values


def natural_scale(model: Autoencoder) -> Scale:
    """Return the scale of denoised expression where none is asked for: that of the data."""
    return "counts" if model.reads_counts else "normalized"


def of_cells_here(model: Autoencoder, cells: Data, **where: Any) -> dict[str, Any]:
    """Return the model's results for each cell; none, with a warning, where they alone need a batch that is missing."""
    try:
        return model.of_cells(cells, **where)
    except AnncoderError as error:
        needed = model.config.embeds_batches or not model.config.encodes_batches
        if needed or error.code not in ("unknown-key", "unknown-batch", "missing-values"):
            raise
        logger.warning("only the latent: %s, for %s", error.what, ", ".join(model.cell_results))
        return {}


def of_genes_here(model: Autoencoder, var_names: pd.Index) -> dict[str, Array]:
    """Return the model's results for each gene here, (n_vars,) or (n_vars, k); NaN of genes that it does not know."""
    found = {}
    for name, values in model.of_genes().items():
        of_known = pd.DataFrame(values, index=model.var_names_)
        here = of_known.reindex(var_names).to_numpy(np.float32)
        found[name] = here[:, 0] if values.ndim == 1 else here
    return found
