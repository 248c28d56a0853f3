"""Count matrices on disk, read by rows: ``.h5ad`` and ``.zarr``, CSR or dense.

anndata's own slices of a backed matrix cost milliseconds each; here the row pointers are kept in memory and the
stored values are read straight from their arrays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.config import unknown_key
from anncoder.data.adata import coordinates_of, damaged, existing, first_line, place
from anncoder.data.genes import Alignment, align
from anncoder.errors import FileError, InputError, some

Array = np.ndarray[Any, Any]


class Stamp(NamedTuple):
    """What a file looked like when it was opened."""

    modified: int
    size: int


class Shard:
    """The count matrix of one file.

    Parameters
    ----------
    store
        An open HDF5 file or zarr group.
    path
        Where it is, for messages and to see that it does not change.
    layer
        None for ``X``.

    Attributes
    ----------
    n_obs, n_vars
        Shape of the matrix.
    var_names
        Names of its genes, (n_vars,).
    n_stored
        Number of stored values.
    chunk_rows
        How many rows a compressed chunk holds, which is read as a whole; 1 where nothing is compressed.
    """

    def __init__(self, store: Any, path: Path, layer: str | None) -> None:
        self.store, self.path, self.layer = store, path, layer
        self.stamp = _stamp(path)
        with self.errors():
            self._find_matrix()
            self.var_names = pd.Index(_index(store["var"])[:]).astype(str)
        if len(self.var_names) != self.n_vars:
            raise damaged(self.path, f"{self.n_vars:,} columns and {len(self.var_names):,} gene names")

    def read(self, ranges: Sequence[tuple[int, int]]) -> csr_matrix:
        """Return some ranges of rows, one after the other, as float32 CSR.

        Raises
        ------
        FileError
            The file is damaged, or has changed since it was opened.
        """
        with self.errors():
            if self._dense is not None:
                return csr_matrix(np.concatenate([np.asarray(self._dense[a:b], np.float32) for a, b in ranges]))
            lengths = np.concatenate([np.diff(self._indptr[a : b + 1]) for a, b in ranges])
            indptr = np.zeros(len(lengths) + 1, dtype=np.int64)
            np.cumsum(lengths, out=indptr[1:])
            data, indices = np.empty(indptr[-1], np.float32), np.empty(indptr[-1], np.int32)
            at = 0
            for a, b in ranges:
                p, q = int(self._indptr[a]), int(self._indptr[b])
                data[at : at + q - p] = self._data[p:q]
                indices[at : at + q - p] = self._indices[p:q]
                at += q - p
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= self.n_vars):
            raise damaged(self.path, f"a gene index outside 0 to {self.n_vars - 1:,}")
        return csr_matrix((data, indices, indptr), shape=(len(lengths), self.n_vars), copy=False)

    def names(self, rows: Array) -> list[str]:
        """Return the names of some cells; ``rows`` ascend."""
        with self.errors():
            index = _index(self.store["obs"])
            found: list[str] = []
            for start in range(0, self.n_obs, 65_536):
                chosen = rows[(rows >= start) & (rows < start + 65_536)] - start
                if len(chosen):
                    found += [str(name) for name in np.asarray(index[start : start + 65_536])[chosen]]
        return found

    def column(self, key: str, *, what: str) -> Array:
        """Return a column of obs, (n_obs,) objects, None where a value is missing.

        Raises
        ------
        ConfigError
            There is no such column.
        """
        obs = self.store["obs"]
        if key not in obs:
            columns = [str(name) for name in obs.attrs.get("column-order", [])]
            raise unknown_key(key, columns, where=f"{what} (a column of obs of {self.path.name})")
        with self.errors():
            values = pd.Series(anndata.io.read_elem(obs[key]))
        column: Array = values.astype(object).where(values.notna(), None).to_numpy()
        return column

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm, (n_obs, d); raises as :func:`coordinates_of`."""
        slots = dict(self.store["obsm"]) if "obsm" in self.store else {}
        with self.errors():
            slots = {name: anndata.io.read_elem(slot) if name == key else None for name, slot in slots.items()}
        return coordinates_of(slots, key)

    def refuse_change(self) -> None:
        """Raise a FileError if the file is no longer the one that was opened."""
        if _stamp(self.path) != self.stamp:
            raise FileError(
                f"{str(self.path)!r} changed while it was read",
                code="file-changed",
                where=str(self.path),
                remedy="let nothing write to it while it is used, and start again",
            )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Name the file when reading it fails."""
        try:
            yield
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            self.refuse_change()
            raise damaged(self.path, first_line(error)) from error

    def _find_matrix(self) -> None:
        where = "X" if self.layer is None else f"layers/{self.layer}"
        if where not in self.store:
            layers = ", ".join(self.store["layers"]) if "layers" in self.store else ""
            raise InputError(
                f"there is no {place(self.layer)}",
                code="missing-layer",
                where=f"{self.path}, {place(self.layer)}",
                remedy=f"layers here: {layers or 'none'}",
            )
        matrix = self.store[where]
        self._dense, self._indptr = None, np.zeros(1, dtype=np.int64)
        if hasattr(matrix, "shape"):
            self._dense = matrix
            self.n_obs, self.n_vars = (int(n) for n in matrix.shape)
            self.n_stored, self.chunk_rows = self.n_obs * self.n_vars, _compressed_chunk(matrix)
            return
        kind = str(matrix.attrs.get("encoding-type", matrix.attrs.get("h5sparse_format", "")))
        if not kind.startswith("csr"):
            raise InputError(
                f"{place(self.layer)} is stored as {kind or 'something else'}: cells cannot be read one by one",
                code="not-by-cells",
                where=str(self.path),
                remedy="store it by cells: adata.X = adata.X.tocsr(); adata.write_h5ad(path)",
            )
        shape = matrix.attrs.get("shape", matrix.attrs.get("h5sparse_shape"))
        self.n_obs, self.n_vars = (int(n) for n in shape)
        self._data, self._indices = matrix["data"], matrix["indices"]
        self._indptr = np.asarray(matrix["indptr"][:], dtype=np.int64)
        n_stored = min(self._data.shape[0], self._indices.shape[0])
        if len(self._indptr) != self.n_obs + 1 or self._indptr[0] != 0 or self._indptr[-1] != n_stored:
            raise damaged(self.path, "its row pointers do not fit its values")
        if (np.diff(self._indptr) < 0).any():
            raise damaged(self.path, "its row pointers fall")
        self.n_stored = n_stored
        self.chunk_rows = round(_compressed_chunk(self._data) * self.n_obs / max(n_stored, 1))


class Shards:
    """Count matrices of several files, one below the other, with their genes in one order.

    Parameters
    ----------
    shards
        At least one.
    var_names
        The genes and their order; None for those of the first file.
    allow_missing
        Share of them that a file may lack.
    """

    def __init__(self, shards: Sequence[Shard], var_names: pd.Index | None = None, allow_missing: float = 0.0) -> None:
        self.shards = list(shards)
        self.var_names = self.shards[0].var_names if var_names is None else var_names
        self.starts = np.cumsum([0, *(shard.n_obs for shard in self.shards)])
        self.n_obs = int(self.starts[-1])
        n_stored = sum(shard.n_stored for shard in self.shards)
        self.row_bytes = 8 * n_stored // max(self.n_obs, 1)  # a float32 value and an int32 index each
        self.chunk_rows = max(shard.chunk_rows for shard in self.shards)
        self._alignments = [self._align(shard, var_names is None, allow_missing) for shard in self.shards]

    def read(self, ranges: Sequence[tuple[int, int]]) -> csr_matrix:
        """Return some ranges of rows, which ascend, one after the other, as float32 CSR with sorted, unique indices."""
        parts = []
        for number, shard in enumerate(self.shards):
            first, last = (int(n) for n in self.starts[number : number + 2])
            own = [(max(a, first) - first, min(b, last) - first) for a, b in ranges if a < last and b > first]
            if own:
                block = shard.read(own)
                block.sum_duplicates()
                parts.append(self._alignments[number].apply(block))
        return parts[0] if len(parts) == 1 else _below(parts)

    def borders(self, step: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of at most ``step`` rows that together are all rows, none across the border of a file."""
        for first, last in zip(self.starts[:-1], self.starts[1:], strict=True):
            for start in range(int(first), int(last), step):
                yield start, min(start + step, int(last))

    def names(self, rows: Array) -> pd.Index:
        """Return the names of some cells; ``rows`` ascend."""
        return pd.Index([name for shard, own in self._by_shard(rows) for name in shard.names(own)], dtype=object)

    def column(self, key: str, *, what: str) -> Array:
        """Return a column of obs, (n_obs,) objects.

        Raises
        ------
        ConfigError
            A file does not have it.
        """
        return np.concatenate([shard.column(key, what=what) for shard in self.shards])

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm, (n_obs, d)."""
        parts = [shard.coordinates(key) for shard in self.shards]
        if len({part.shape[1] for part in parts}) > 1:
            raise InputError(
                f"obsm[{key!r}] has another number of axes in one file than in the next",
                code="bad-coordinates",
                where=f"obsm[{key!r}]",
                remedy="name a slot that all files have alike",
            )
        return np.concatenate(parts)

    def refuse_change(self) -> None:
        """Raise a FileError if one of the files is no longer the one that was opened."""
        for shard in self.shards:
            shard.refuse_change()

    def _by_shard(self, rows: Array) -> Iterator[tuple[Shard, Array]]:
        for shard, first in zip(self.shards, self.starts, strict=False):
            own = rows[(rows >= first) & (rows < first + shard.n_obs)] - first
            if len(own):
                yield shard, own

    def _align(self, shard: Shard, to_first: bool, allow_missing: float) -> Alignment:
        # among the files of one data set the genes are the same, in any order
        alignment = align(list(self.var_names), list(shard.var_names), allow_missing=allow_missing)
        if to_first and alignment.n_extra:
            extra = shard.var_names[~shard.var_names.isin(self.var_names)]
            raise InputError(
                f"{shard.path.name!r} has {alignment.n_extra:,} genes that {self.shards[0].path.name!r} has not: "
                f"{some(extra)}",
                code="other-genes",
                where=str(shard.path),
                remedy="give files with the same genes, in any order: adata = adata[:, genes]",
            )
        return alignment


def open_shards(data: Any, layer: str | None) -> list[Shard] | None:
    """Open what is on disk: a path, a glob, a list of them, or a backed AnnData; None for an AnnData in memory.

    Raises
    ------
    FileError
        There is no such file, or it is not AnnData's.
    InputError
        This is no path, there is no such layer, or it is not stored by cells.
    """
    if isinstance(data, anndata.AnnData):
        if not data.isbacked or data.is_view:
            return None
        if not data.file.is_open:
            data.file.open()
        shard = Shard(data.file, Path(str(data.filename)), layer)
        shard.var_names = pd.Index(data.var_names.astype(str))  # they may have been renamed
        return [shard]
    if isinstance(data, list | tuple):
        return [Shard(_open(path), path, layer) for item in data or [None] for path in _paths(item)]
    return [Shard(_open(path), path, layer) for path in _paths(data)]


def _paths(data: Any) -> list[Path]:
    if isinstance(data, str | Path) and has_magic(str(data)) and not Path(data).exists():
        found = sorted(glob(str(data)))  # noqa: PTH207 - pathlib's takes no absolute pattern
        return [existing(path) for path in [*found] or [str(data)]]
    return [existing(data)]


def _open(path: Path) -> Any:
    try:
        if path.is_dir():
            import zarr

            return zarr.open_group(str(path), mode="r")
        return h5py.File(path, "r")
    except Exception as error:
        raise damaged(path, first_line(error)) from error


def _stamp(path: Path) -> Stamp:
    try:
        state = path.stat()
    except OSError:
        return Stamp(0, -1)
    return Stamp(state.st_mtime_ns, state.st_size)


def _index(frame: Any) -> Any:
    index = frame[frame.attrs.get("_index", "_index")]
    values = index["values"] if hasattr(index, "keys") else index  # a nullable array is a group of values and mask
    return values.asstr() if isinstance(values, h5py.Dataset) and h5py.check_string_dtype(values.dtype) else values


def _compressed_chunk(array: Any) -> int:
    """Return how many items along the first axis are decompressed together; 1 if nothing is compressed."""
    compressed = array.compression if isinstance(array, h5py.Dataset) else array.compressors
    return int(array.chunks[0]) if compressed and array.chunks else 1


def _below(parts: list[csr_matrix]) -> csr_matrix:
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.indptr) for part in parts]))])
    data, indices = np.concatenate([p.data for p in parts]), np.concatenate([p.indices for p in parts])
    return csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, parts[0].shape[1]), copy=False)
