"""What a model says of the cells of a file, written block by block beside a copy of that file.

Memory does not grow with the number of cells but for a few numbers of each: the input is copied chunk by chunk
(:mod:`anncoder.copying`), latent and denoised expression are written while they are computed, and what was written is
read back before the file gets its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem
from natsort import natsorted

from anncoder.autoencoder import Array, Autoencoder, Scale
from anncoder.copying import Copy, slices
from anncoder.data.shard import READ, Shard
from anncoder.errors import AnncoderError, InputError, ResourceError
from anncoder.files import allow_open, atomic_path, locked, sync
from anncoder.hdf5 import Patient, new_h5
from anncoder.inference import denoised, expecting, latents
from anncoder.progress import logger
from anncoder.slots import denoised_as, found_denoised, of_another, record
from anncoder.sources import Data, DiskSource

CHUNK = 2**20  # bytes


class Wanted(NamedTuple):
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
                f"{self._n_bad:,} cells have a latent that is not finite",
                code="latent-not-finite",
                where=f"obsm['X_{self.key}']",
                remedy="fit again with a lower learning_rate",
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
    model: Autoencoder, source: DiskSource, outputs: list[Path], wanted: Wanted, *, together: bool = False
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


def _write(temporary: Path, shard: Shard, cells: DiskSource, model: Autoencoder, wanted: Wanted) -> None:
    with new_h5(temporary) as (file, disk):
        with _reading(shard, disk):
            Copy(file, disk, shard.matrix.shape[0], shard.rows, _replaced(shard, model, wanted)).of(shard.store)
        shard.refuse_change()
        kept = found_denoised(shard.store, model, wanted.key)
        how = kept if wanted.scale is None else denoised_as(wanted.scale, wanted.batch)
        written = _Written(file, disk, wanted.key, model, record(model, how))
        if wanted.latent:
            written.latent(shard, cells)
        if wanted.scale is not None:
            written.denoised(shard, cells, wanted.scale, wanted.batch)
        shard.refuse_change()
    _verify(temporary, shard, written.sums, written.columns)


def _replaced(shard: Shard, model: Autoencoder, wanted: Wanted) -> set[str]:
    key = wanted.key
    paths = {f"{where}/{name}" for where, name in of_another(shard.store, model, key)} | {f"uns/{key}"}
    if wanted.scale is not None:
        paths |= {f"layers/{key}_denoised"}
    if wanted.latent:
        paths |= {f"obsm/X_{key}", *(f"obs/{key}_{name}" for name in model.cell_results)}
        paths |= {f"{where}/{key}_{name}" for where in ("var", "varm") for name in model.gene_results}
    return paths


@contextmanager
def _reading(shard: Shard, disk: Patient) -> Iterator[None]:
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

    def __init__(self, file: h5py.File, disk: Patient, key: str, model: Autoencoder, signed: Any) -> None:
        self.file, self.disk, self.model, self.key = file, disk, model, key
        self.sums: dict[str, int] = {}  # of the bytes of each array
        self.columns: dict[str, Any] = {}
        self._frame("obs", {})
        self._frame("var", {})
        write_elem(self._group("uns"), key, signed)

    def latent(self, shard: Shard, cells: DiskSource) -> None:
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

    def denoised(self, shard: Shard, cells: DiskSource, scale: Scale, batch: str | int | None) -> None:
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


def _verify(path: Path, shard: Shard, sums: dict[str, int], columns: dict[str, Any]) -> None:
    with h5py.File(path, "r") as file:
        for slot, expected in sums.items():
            total = 0
            for part in slices(file[slot]):
                total = zlib.crc32(file[slot][part], total)
            _refuse_other(slot, path, same=total == expected)
        for slot, values in columns.items():
            found, given = (np.asarray(v) for v in (read_elem(file[slot]), values))
            _refuse_other(slot, path, same=np.array_equal(found, given, equal_nan=given.dtype.kind == "f"))
        again = Shard(file, path, shard.layer)
        for start in range(0, shard.n_obs, READ):
            rows = [(start, min(start + READ, shard.n_obs))]
            left, right = again.read(rows), shard.read(rows)
            arrays = ("indptr", "indices", "data")
            _refuse_other(
                shard.slot, path, same=all(np.array_equal(getattr(left, a), getattr(right, a)) for a in arrays)
            )


def _refuse_other(slot: str, path: Path, *, same: bool) -> None:
    if not same:
        raise ResourceError(
            f"{slot} did not survive writing", code="cannot-write", where=str(path), remedy="try again, on another disk"
        )
