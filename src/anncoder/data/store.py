"""One file of cells, ``.h5ad``, ``.zarr`` or backed AnnData, read by ranges of rows.

anndata's own slices of a backed matrix cost milliseconds each; here the row pointers are kept in memory and the
stored values are read straight from their arrays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csc_matrix, csr_matrix

from anncoder.config import unknown_key
from anncoder.data.adata import RAW, coordinates_of, slot_label, var_of
from anncoder.data.direct_read import Extents, unwritten
from anncoder.data.formats.attributes import index_name, is_null, texts_of
from anncoder.data.formats.failures import damaged, first_line, refuse_missing_filters
from anncoder.data.matrix.arrays import Block, OnDisk, compressed_chunk, nearest_whole, signed
from anncoder.data.matrix.kind import Traits
from anncoder.data.matrix.problems import quoted, use
from anncoder.data.matrix.scan import structure
from anncoder.data.matrix.zeros import holders
from anncoder.errors import AnncoderError, FileError, InputError

Array = np.ndarray[Any, Any]
NAMES = 65_536  # read at once
READ = 8192  # cells at a time
TRANSPOSED = 2**24  # stored values of a matrix by genes that are put in order in memory at most: 128 MiB


class Store:
    """The cells of one file, and the matrix of counts among what it has of them.

    Parameters
    ----------
    root
        An open HDF5 file or zarr group.
    path
        Where it is, for messages and to see that it does not change.
    layer
        None for ``X``, ``"raw.X"`` for the matrix of ``raw``.

    Attributes
    ----------
    n_obs, n_vars
        Numbers of cells, those of :meth:`keep` if it was called, and of genes.
    matrix
        The matrix as it is stored, of all cells.
    rows
        Which of them are left, (n_obs,) ascending; None for all.
    var_names
        Names of its genes, (n_vars,).
    own_genes
        Names of the genes of ``var``, which are those of the matrix but where that is of ``raw``.
    rounded
        What was said of counts that are whole but for rounding, and are read as whole; empty until the check.
    chunk_rows
        How many rows a compressed chunk holds, which is read as a whole; 1 where nothing is compressed.
    """

    def __init__(self, root: Any, path: Path, layer: str | None) -> None:
        self.root, self.path, self.layer = root, path, layer
        self.stamp = _stamp(path, layer)
        self.rows: Array | None = None
        self.rounded = ""
        self._by_cell: csr_matrix | None = None
        with self.errors():
            self.own_genes = self._own_genes()
            self.matrix = OnDisk(self._element())
            self.var_names = self.own_genes if layer != RAW else self._raw_genes()
            if self.matrix.ndim == 2:
                self.n_obs, self.n_vars = self.matrix.shape
        self._refuse_matrix()
        if self.matrix.indptr is not None and self.matrix.n_stored < 2**31:  # half the room, of every cell
            self.matrix.indptr = self.matrix.indptr.astype(np.int32, copy=False)
        with self.errors():
            if gap := self.matrix.gap(self.path):
                raise damaged(self.path, gap)
            self._places = [Extents.of(array) for array in (self.matrix.values, self.matrix.indices)]
            self.chunk_rows = self._chunk_rows()
            if self.matrix.format == "csc":  # a small one: read as a whole, and once
                self.matrix.values, self.matrix.indices = self.matrix.values[:], signed(self.matrix.indices[:])

    @property
    def slot(self) -> str:
        """Name of the matrix, as :func:`anncoder.check` calls it."""
        return slot_label(self.layer)

    def keep(self, rows: Array) -> None:
        """Leave out all other cells; ``rows`` ascend."""
        self.rows, self.n_obs = rows, len(rows)

    def read(self, ranges: Sequence[tuple[int, int]]) -> csr_matrix:
        """Return some ranges of rows, one after the other, as float32 CSR.

        Raises
        ------
        FileError
            The file is damaged, or has changed since it was opened.
        """
        if self.rows is None:
            return self._rows(ranges)
        parts = []
        for a, b in ranges:
            rows = self.rows[a:b]
            first, last = int(rows[0]), int(rows[-1]) + 1
            part = self._rows([(first, last)])
            parts.append(part if last - first == len(rows) else part[rows - first])
        return stacked(parts)

    def cells(self, block: Block) -> tuple[csr_matrix, int]:
        """Return the cells of a block of rows of the matrix as float32 CSR, and the number of the first of them."""
        matrix = block.cells()
        if self.rows is None:
            return matrix, block.first
        first, last = np.searchsorted(self.rows, [block.first, block.last]).tolist()
        return matrix[self.rows[first:last] - block.first], first

    def names(self, rows: Array) -> list[str]:
        """Return the names of some cells; ``rows`` ascend."""
        return list(Names(self)[rows if self.rows is None else self.rows[rows]])

    def index(self) -> Any:
        """Return what holds the names of all cells of the file, (n,); slices read it."""
        return index_of(self.root["obs"])

    def slots(self) -> Iterator[tuple[str, Any]]:
        """Yield name and matrix of every slot of the shape of a count matrix."""
        yield from slots_of(self.root)

    def holders(self, known: Mapping[str, Traits]) -> tuple[str, ...]:
        """Return the slots with the counts that the others were made from; ``known`` are the traits of some."""
        found = {slot: (matrix, self._raw_genes() if slot == RAW else self.own_genes) for slot, matrix in self.slots()}
        return holders(found, self.slot, known)

    @property
    def logged(self) -> bool:
        """Whether scanpy noted that it took logarithms."""
        return "uns" in self.root and "log1p" in self.root["uns"]

    def name_blocks(self) -> Iterator[tuple[int, Array]]:
        """Yield the names of all cells of the file, a block at a time, and where each block begins."""
        with self.errors():
            index = self.index()
            for start in range(0, int(index.shape[0]), NAMES):
                yield start, np.asarray(index[start : start + NAMES])

    def column(self, key: str, *, what: str) -> Array:
        """Return a column of obs, (n_obs,) objects, None where a value is missing.

        Raises
        ------
        ConfigError
            There is no such column.
        """
        self.refuse_no_column(key, what=what)
        with self.errors():
            values = pd.Series(self._column(key))
        column: Array = values.astype(object).where(values.notna(), None).to_numpy()
        return column if self.rows is None else column[self.rows]

    def coordinates(self, key: str) -> Array:
        """Return coordinates of the cells from obsm, (n_obs, d); raises as :func:`coordinates_of`."""
        with self.errors():
            slots = self._coordinates(key)
        found = coordinates_of(slots, key)
        return found if self.rows is None else found[self.rows]

    def var_column(self, key: str) -> Any:
        """Return a column of var, (n_vars,), or None if there is none."""
        with self.errors():
            return self._var_column(key)

    def refuse_no_column(self, key: str, *, what: str) -> None:
        """Raise a ConfigError if obs has no such column."""
        columns = self._columns()
        if key not in columns:  # in obs itself also stand the index and, as paths, the parts of a column
            raise unknown_key(key, columns, where=f"{what} (a column of obs of {self.path.name})")

    def refuse_change(self) -> None:
        """Raise a FileError if the file is no longer the one that was opened."""
        if _stamp(self.path, self.layer) != self.stamp:
            remedy = "let nothing write to it while it is used, and start again"
            raise FileError("file-changed", f"{str(self.path)!r} changed while it was read", str(self.path), remedy)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Name the file when reading it fails."""
        try:
            yield
        except AnncoderError:
            raise
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            self.refuse_change()
            self._refuse_missing_filters()
            raise damaged(self.path, first_line(error)) from error

    def _own_genes(self) -> pd.Index:
        return pd.Index(index_of(self.root["var"])[:]).astype(str)

    def _raw_genes(self) -> pd.Index:
        return pd.Index(index_of(self.root[_raw_parts(self.root)[1]])[:]).astype(str)

    def _columns(self) -> list[str]:
        return texts_of(self.root["obs"], "column-order")

    def _column(self, key: str) -> Any:
        return anndata.io.read_elem(self.root["obs"][key])

    def _var_column(self, key: str) -> Any:
        var = self.root[_raw_parts(self.root)[1] if self.layer == RAW else "var"]
        return anndata.io.read_elem(var[key]) if not isinstance(var, h5py.Dataset) and key in var else None

    def _coordinates(self, key: str) -> Mapping[str, Any]:
        slots = dict(self.root["obsm"]) if "obsm" in self.root else {}
        return {name: anndata.io.read_elem(slot) if name == key else None for name, slot in slots.items()}

    def _refuse_missing_filters(self) -> None:
        # of a backed AnnData, which we did not open
        try:
            refuse_missing_filters(self.root["/"], self.path)
        except AnncoderError:
            raise
        except (OSError, KeyError, ValueError, RuntimeError):
            return

    def _element(self) -> Any:
        where = _raw_parts(self.root)[0] if self.layer == RAW else _place(self.layer)
        if where in self.root and not is_null(self.root[where]):
            return self.root[where]
        found = dict(self.slots())
        where = f"{self.path}: {', '.join(found) or 'no matrix at all'}"
        raise missing_layer(self.layer, "file", where, self.holders({}), others=bool(found))

    def _refuse_matrix(self) -> None:
        matrix, values = self.matrix, self.matrix.values
        large = matrix.format == "csc" and matrix.n_stored > TRANSPOSED
        if large or matrix.format not in ("csr", "csc", "dense") or matrix.ndim != 2:
            what = f"{self.slot} is stored as {matrix.format}: cells cannot be read one by one"
            remedy = "store it by cells: adata.X = adata.X.tocsr(); adata.write_h5ad(path)"
            raise InputError("not-by-cells", what, str(self.path), remedy)
        if len(self.var_names) != self.n_vars:
            raise damaged(self.path, f"{self.n_vars:,} columns and {len(self.var_names):,} gene names")
        if matrix.indptr is None:
            return
        n_major = self.n_obs if matrix.format == "csr" else self.n_vars
        n_stored = min(int(values.shape[0]), int(matrix.indices.shape[0]))
        if len(matrix.indptr) != n_major + 1 or matrix.indptr[0] != 0 or matrix.indptr[-1] != n_stored:
            raise damaged(self.path, "its row pointers do not fit its values")
        if (matrix.indptr[1:] < matrix.indptr[:-1]).any():
            raise damaged(self.path, "its row pointers fall")

    def _chunk_rows(self) -> int:
        if self.matrix.format == "dense":
            return compressed_chunk(self.matrix.values)
        return round(compressed_chunk(self.matrix.values) * self.matrix.shape[0] / max(self.matrix.n_stored, 1))

    def _rows(self, ranges: Sequence[tuple[int, int]]) -> csr_matrix:
        matrix = self._read(ranges)
        if self.rounded:
            matrix.data = nearest_whole(matrix.data)
        return matrix

    def _read(self, ranges: Sequence[tuple[int, int]]) -> csr_matrix:
        matrix, indptr = self.matrix, self.matrix.indptr
        with self.errors():
            if indptr is None:
                return csr_matrix(np.concatenate([np.asarray(matrix.values[a:b], np.float32) for a, b in ranges]))
            if matrix.format == "csc":
                return self._transposed()[np.concatenate([np.arange(a, b) for a, b in ranges])]
            rows = np.concatenate([np.arange(a, b) for a, b in ranges])
            pointers = np.zeros(len(rows) + 1, dtype=np.int64)
            np.cumsum(indptr[rows + 1] - indptr[rows], out=pointers[1:])
            data, indices = unwritten(int(pointers[-1]), np.float32), unwritten(int(pointers[-1]), np.int32)
            for array, places, out in zip((matrix.values, matrix.indices), self._places, (data, indices), strict=True):
                at = 0
                for a, b in ranges:
                    p, q = int(indptr[a]), int(indptr[b])
                    if places is None:
                        out[at : at + q - p] = array[p:q]
                    else:
                        places.read(p, q, out[at : at + q - p])
                    at += q - p
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= self.n_vars):
            raise damaged(self.path, f"a gene index outside 0 to {self.n_vars - 1:,}")
        return csr_matrix((data, indices, pointers), shape=(len(pointers) - 1, self.n_vars), copy=False)

    def _transposed(self) -> csr_matrix:
        # a small matrix by genes; scipy trusts its indices, and not everything that reads has had them checked
        if self._by_cell is None:
            arrays = (np.asarray(self.matrix.values, np.float32), self.matrix.indices, self.matrix.indptr)
            by_gene = csc_matrix(arrays, shape=self.matrix.shape)
            if fault := structure(by_gene).fault:
                raise damaged(self.path, fault)
            self._by_cell = by_gene.tocsr()
        return self._by_cell


def missing_layer(
    layer: str | None, data: str, where: str, holders: Sequence[str], *, others: bool = True
) -> InputError:
    """Return the error for data that lack a layer, or X.

    ``holders`` are their slots with counts, and ``others`` says whether they have any matrix.
    """
    what = f"there is no layer {quoted(layer)}"
    if layer in (None, RAW):
        what = f"this {data} has no {'X' if layer is None else 'raw'}"
    remedy = "pass one of the layers, or none to use X; none holds counts"
    if not others:
        remedy = (
            f"there is no matrix in this {data}: take the one that has the counts, or put them in, adata.X = counts"
        )
    remedy = use(holders[0]) if holders else remedy
    return InputError("missing-layer", what, where, remedy)


def slots_of(root: Any) -> Iterator[tuple[str, OnDisk]]:
    """Yield name and matrix of every slot of the shape of a count matrix."""
    if "X" in root and not is_null(root["X"]):
        yield "X", OnDisk(root["X"])
    if "layers" in root:
        for layer in root["layers"]:
            yield slot_label(layer), OnDisk(root["layers"][layer])
    raw = _raw_parts(root)[0]
    in_groups = "/" not in raw or ("raw" in root and not is_null(root["raw"]))
    if in_groups and raw in root:
        yield RAW, OnDisk(root[raw])


def _raw_parts(root: Any) -> tuple[str, str]:
    """Return the paths of the matrix of ``raw``, if there is one, and of its genes."""
    return ("raw.X", "raw.var") if "raw.X" in root else ("raw/X", "raw/var")  # the first: files of before anndata 0.7


def index_of(frame: Any) -> Any:
    """Return the array that holds the index of a stored data frame."""
    if getattr(frame.dtype if hasattr(frame, "dtype") else None, "names", None):  # a table of before anndata 0.7
        return np.char.decode(np.asarray(frame[frame.dtype.names[0]], dtype="S"))
    index = frame[index_name(frame)]
    values = index["values"] if hasattr(index, "keys") else index  # a nullable array is a group of values and mask
    return values.asstr() if isinstance(values, h5py.Dataset) and h5py.check_string_dtype(values.dtype) else values


def stacked(parts: list[csr_matrix]) -> csr_matrix:
    """Return matrices, at least one, below each other."""
    if len(parts) == 1:
        return parts[0]
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.indptr) for part in parts]))])
    data, indices = np.concatenate([p.data for p in parts]), np.concatenate([p.indices for p in parts])
    return csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, parts[0].shape[1]), copy=False)


def _stamp(path: Path, layer: str | None) -> tuple[int, int]:
    """Return when a file was last written, and its size."""
    # of a zarr folder also the files of the matrix, which are written one by one
    try:
        states = [path.stat()]
        if path.is_dir() and ".." not in (parts := _place(layer).split("/")):
            states += _states(path.joinpath(*parts))
    except OSError:
        return 0, -1
    return max(state.st_mtime_ns for state in states), sum(state.st_size for state in states)


def _place(layer: str | None) -> str:
    if layer == RAW:
        return "raw/X"
    return "X" if layer is None else f"layers/{layer}"


def _states(folder: Path) -> Iterator[os.stat_result]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.stat()
                if entry.is_dir():
                    yield from _states(Path(entry.path))


class Names:
    """The names of all cells of a file, as far as messages need them; they stay on the disk.

    Parameters
    ----------
    store
        The file.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return int(self.store.index().shape[0])

    def __getitem__(self, at: Any) -> Any:
        """Return one name, or an index of several, whose positions ascend."""
        if isinstance(at, int | np.integer):
            return str(self.store.index()[int(at)])
        found: list[str] = []
        for start, block in self.store.name_blocks():
            first, last = np.searchsorted(at, [start, start + NAMES])
            found += map(str, block[at[first:last] - start])
        return pd.Index(found, dtype=object)

    def repeated(self) -> pd.Index:
        """Return the names that occur more than once: of every name nine bytes are in memory at a time."""
        hashes = self.hashes()
        hashes.sort()
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(twice):
            return pd.Index([], dtype=object)
        names = self[np.flatnonzero(np.isin(self.hashes(), twice))]
        return names[names.duplicated()].unique()

    def hashes(self) -> Array:
        """Return a number for every name, (n,), which is the same for equal ones."""
        hashes = np.empty(len(self), dtype=np.uint64)
        for start, block in self.store.name_blocks():
            hashes[start : start + len(block)] = pd.util.hash_array(block.astype(object))
        return hashes


def n_repeated(stores: list[Store], sizes: Array) -> int:
    """Return how many cells of several files have the name, and the number of molecules, of a cell of another file.

    The same barcode may well be in two samples, but hardly with the same total.

    Parameters
    ----------
    stores
        The files.
    sizes
        (n_obs,) library sizes of all their cells.
    """
    of_files, start = [], 0
    for store in stores:
        names = Names(store).hashes()
        names = names if store.rows is None else names[store.rows]
        of_files.append(np.unique(names ^ pd.util.hash_array(sizes[start : start + store.n_obs])))
        start += store.n_obs
    together = np.concatenate(of_files)
    return len(together) - len(np.unique(together))


class Backed(Store):
    """The cells of a backed AnnData: X, or raw, is read from its file, all else is what the object holds.

    Parameters
    ----------
    adata
        Backed, and no view.
    layer
        None for ``X``, ``"raw.X"`` for the matrix of ``raw``.
    """

    def __init__(self, adata: anndata.AnnData, layer: str | None = None) -> None:
        self.adata = adata
        super().__init__(adata.file, Path(str(adata.filename)), layer)

    def _own_genes(self) -> pd.Index:
        return pd.Index(self.adata.var_names.astype(str))

    def _raw_genes(self) -> pd.Index:
        return pd.Index(self.adata.raw.var_names.astype(str))

    def index(self) -> Any:
        """Return the names of all cells, (n,)."""
        return np.asarray(self.adata.obs_names.astype(str), dtype=object)

    def slots(self) -> Iterator[tuple[str, Any]]:
        """Yield name and matrix of every slot of the shape of a count matrix."""
        yield from ((slot, matrix) for slot, matrix in slots_of(self.root) if not slot.startswith("layers["))
        for layer, matrix in self.adata.layers.items():
            if layer is not None:  # X, as newer anndata has it
                yield slot_label(layer), matrix

    @property
    def logged(self) -> bool:
        """Whether scanpy noted that it took logarithms."""
        return "log1p" in self.adata.uns

    def _columns(self) -> list[str]:
        return [str(name) for name in self.adata.obs.columns]

    def _column(self, key: str) -> Any:
        return self.adata.obs[key]

    def _var_column(self, key: str) -> Any:
        return var_of(self.adata, self.layer).get(key)

    def _coordinates(self, key: str) -> Mapping[str, Any]:
        return dict(self.adata.obsm)
