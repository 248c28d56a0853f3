"""Copy of an ``.h5ad`` file or ``.zarr`` folder as HDF5, element by element, of any size.

From HDF5 everything is copied as it is stored, without decoding it: what anndata cannot read is copied like the rest.
Where cells are left out, and from zarr, arrays and sparse matrices go through memory a few megabytes at a time, and
other encodings go through anndata, one element at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata.io import read_elem, sparse_dataset, write_elem
from scipy.sparse import csc_matrix, csr_matrix

from anncoder.data.formats.attributes import encoding_of, is_null, sparse_format
from anncoder.data.formats.elements import SMALL, size_of
from anncoder.data.formats.failures import OWN, filters_of, first_line, is_known
from anncoder.data.matrix.arrays import OnDisk, blocks
from anncoder.errors import AnncoderError, FileError
from anncoder.io.h5ad_write import writing
from anncoder.io.hdf5 import DiskFullFile, NoDisk, h5_in_memory

Array = np.ndarray[Any, Any]
AT_ONCE = 8 * 2**20  # bytes
# the last but one: text with a mask, which newer versions of anndata write, and older ones read but do not write
CONTAINERS = ("anndata", "raw", "dict", "dataframe", "nullable-string-array", "")
ARRAYS = ("array", "string-array", "")
CHUNK = 8192  # values of a sparse matrix in a chunk


def copy_h5ad(
    source: Any,
    file: h5py.File,
    disk: DiskFullFile | NoDisk,
    *,
    keep: Array | None = None,
    without: Collection[str] = (),
) -> None:
    """Copy an open file or zarr group of cells into a new HDF5 file.

    Parameters
    ----------
    source
        The file or group.
    file, disk
        The file to write, empty, as :func:`anncoder.io.hdf5.new_h5` gives it.
    keep
        Which cells to copy, (n_obs,) bool; None for all.
    without
        Paths of elements that are not copied.

    Raises
    ------
    OSError
        The disk is full.
    InputError
        An element that has to go through anndata cannot be written.
    """
    _copy_root_attributes(source, file)
    for path, item, axes in _elements(source, without, cells_leave=keep is not None):
        _copy_element(item, axes, file, path, disk, keep)
        disk.stop_if_failed()
    if isinstance(source, h5py.Group):
        _copy_references(source, file)


def rehearse(source: Any, path: Path, keep: Array | None = None) -> None:
    """Copy what is small of an open file or zarr group, and read it back: now, not after hours of training.

    What HDF5 copies as it is, which is nearly all of a file, is left out.

    Parameters
    ----------
    source
        The file or group.
    path
        Where it is.
    keep
        As in :func:`copy_h5ad`.

    Raises
    ------
    FileError, InputError
        Something can be read, but not be written so that anndata reads it; the message names it.
    """
    with h5_in_memory() as (file, disk):
        for place, item, axes in _elements(source, (), cells_leave=keep is not None):
            if isinstance(item, h5py.SoftLink) or _is_container(item, axes) or not _may_fail(item, axes):
                continue
            try:
                file.require_group(place.rpartition("/")[0] or "/")
                _copy_element(item, axes, file, place, disk, keep)
                if not isinstance(item, h5py.Dataset):  # a part of a matrix, which says nothing alone
                    with warnings.catch_warnings(action="ignore"):  # anndata's, on older files
                        read_elem(file[place])
            except AnncoderError as error:
                error.where = f"{path}: {place}"
                raise
            except Exception as error:
                what = f"{place!r} in {str(path)!r} cannot be copied: {first_line(error)}"
                remedy = "write the file anew without it, or take out what you do not need of it"
                raise FileError("unreadable-element", what, f"{path}: {place}", remedy) from error


def _may_fail(item: Any, axes: tuple[int, ...]) -> bool:
    """Tell whether the copy of an element is worth a try: it is small, and not one that HDF5 makes."""
    of_hdf5 = isinstance(item, h5py.Datatype) or (
        isinstance(item, h5py.Dataset) and all(number in OWN for number, *_ in filters_of(item))
    )
    return size_of(item) <= SMALL and (not of_hdf5 or bool(axes))


def _copy_element(
    item: Any, axes: tuple[int, ...], file: h5py.File, path: str, disk: DiskFullFile | NoDisk, keep: Array | None
) -> None:
    rows, columns = (keep if axis in axes else None for axis in (0, 1))
    if isinstance(item, h5py.SoftLink):
        file[path] = h5py.SoftLink(item.path)
    elif _is_container(item, axes):  # its elements come next
        _copy_attributes(item, file.create_group(path, track_order=_tracks_order(item)))
    elif isinstance(item, h5py.Dataset | h5py.Datatype) and not axes:
        _copy_dataset(item, file, path, disk)
    elif _is_sparse(item):
        _copy_sparse(item, file, path, rows, columns, disk)
    elif not hasattr(item, "keys") and encoding_of(item) in ARRAYS and item.shape and item.dtype.names is None:
        _copy_array(item, file, path, rows, columns, disk)
    else:
        _copy_through_anndata(item, file, path, rows, columns)


def _copy_root_attributes(source: Any, file: h5py.File) -> None:
    _copy_attributes(source, file)
    if encoding_of(file) not in ("", "anndata"):  # of other programs, "AnnData", which anndata does not know
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def _elements(
    group: Any, without: Collection[str], *, cells_leave: bool, above: str = ""
) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """Yield path, element or soft link, and axes of the cells that leave, of all in a group; containers come first."""
    for name in group:
        path = f"{above}{name}"
        if path in without:
            continue
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        item = link if isinstance(link, h5py.SoftLink) else group[name]
        if path in ("X", "raw") and link is not item and is_null(item):
            continue  # nothing is as good as no element, and older versions of anndata can read that alone
        axes = _axes_of_cells(path) if cells_leave else ()
        yield path, item, axes
        if _is_container(item, axes):
            yield from _elements(item, without, cells_leave=cells_leave, above=f"{path}/")


def _axes_of_cells(path: str) -> tuple[int, ...]:
    head, _, rest = path.partition("/")
    if rest.startswith("__categories"):  # older files keep the names of categories there
        return ()
    if path in ("X", "raw/X", "raw.X") or (head in ("obs", "obsm", "layers") and rest):
        return (0,)
    return (0, 1) if head == "obsp" and rest else ()


def _is_container(item: Any, axes: tuple[int, ...]) -> bool:
    """Tell whether an element is a group that is copied element by element: of HDF5, any from which no cell leaves."""
    if not hasattr(item, "keys"):
        return False
    as_stored = isinstance(item, h5py.Group) and not axes
    return as_stored or (encoding_of(item) in CONTAINERS and "h5sparse_format" not in item.attrs)


def _is_sparse(item: Any) -> bool:
    return hasattr(item, "keys") and bool(sparse_format(item))


def _tracks_order(group: Any) -> bool | None:
    in_hdf5 = isinstance(group, h5py.Group)
    return bool(group.id.get_create_plist().get_link_creation_order()) if in_hdf5 else None


def _copy_attributes(source: Any, target: Any) -> None:
    if not isinstance(source, h5py.HLObject):
        target.attrs.update({name: _as_attribute(value) for name, value in source.attrs.items() if value is not None})
        return
    for name in source.attrs:
        stored = source.attrs.get_id(name)
        if stored.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            target.attrs[name] = source.attrs[name]
        elif not h5py.check_ref_dtype(stored.dtype):
            target.attrs.create(name, source.attrs[name], stored.shape, stored.dtype)


def _copy_references(source: h5py.Group, file: h5py.File) -> None:
    """Let attributes that refer to an element, as older files do to the names of categories, refer to its copy."""

    def copy_reference(path: str, item: Any) -> None:
        for name in item.attrs if path in file else ():
            stored = item.attrs.get_id(name)
            if h5py.check_ref_dtype(stored.dtype) and stored.shape == ():
                file[path].attrs[name] = file[item.file[item.attrs[name]].name].ref

    source.visititems(copy_reference)


def _copy_dataset(item: Any, file: h5py.File, path: str, disk: DiskFullFile | NoDisk) -> None:
    # HDF5's own copy of an object cannot be stopped when the disk is full: only of what may well be kept in memory then
    # and, of chunks that a filter of a plugin has decoded, frees what it must not: the process dies (HDF5 2.0)
    if not isinstance(item, h5py.Dataset) or (item.nbytes < AT_ONCE and all(n in OWN for n, *_ in filters_of(item))):
        file.copy(item, file, path, without_attrs=True)
        _copy_attributes(item, file[path])
        return
    copy, as_stored = _empty_copy(item, file, path)
    _copy_attributes(item, copy)
    if not item.shape:
        copy[()] = item[()]
        return
    # text is stored elsewhere in the file: chunks only point to it
    if item.chunks is None or item.dtype.hasobject or not as_stored:
        for part in slices(item):
            copy[part] = item[part]
            disk.stop_if_failed()
        return
    for at in product(*(range(0, size, step) for size, step in zip(item.shape, item.chunks, strict=True))):
        if item.id.get_chunk_info_by_coord(at).size:
            mask, content = item.id.read_direct_chunk(at)
            copy.id.write_direct_chunk(at, content, mask)
            disk.stop_if_failed()


def _copy_array(
    item: Any, file: h5py.File, path: str, rows: Array | None, columns: Array | None, disk: DiskFullFile | NoDisk
) -> None:
    shape = [size if keep is None else int(keep.sum()) for size, keep in zip(item.shape, (rows, columns), strict=False)]
    shape += item.shape[2:]
    text = _is_text(item)
    copy = file.create_dataset(path, shape, h5py.string_dtype() if text else item.dtype, **_storage(item, shape))
    _copy_attributes(item, copy)
    at = 0
    for part in slices(item):
        values = np.asarray(item[part])
        values = values.astype(object) if text else values
        values = values if rows is None else values[rows[part]]
        copy[at : at + len(values)] = values if columns is None else values[:, columns]
        at += len(values)
        disk.stop_if_failed()


def _copy_sparse(
    item: Any, file: h5py.File, path: str, rows: Array | None, columns: Array | None, disk: DiskFullFile | NoDisk
) -> None:
    matrix, storage = OnDisk(item), _storage(item["data"], [CHUNK]) | {"chunks": (CHUNK,)}
    indptr, transposed = np.asarray(matrix.indptr), matrix.format == "csc"
    n_columns = matrix.shape[1]
    if transposed:  # of a matrix that is stored by columns, the transpose is read, selected from and written by rows
        rows, columns, n_columns = columns, rows, matrix.shape[0]
    if indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
        raise ValueError("its row pointers fall")
    n_left = n_columns if columns is None else int(columns.sum())
    empty = csc_matrix((n_left, 0), dtype=matrix.dtype) if transposed else csr_matrix((0, n_left), dtype=matrix.dtype)
    empty.indices, empty.indptr = empty.indices.astype(matrix.indices.dtype), empty.indptr.astype(indptr.dtype)
    write_elem(file, path, empty, dataset_kwargs=storage)
    copy = sparse_dataset(file[path])
    for part in blocks(matrix.arrays()._replace(block=AT_ONCE // 8)):
        arrays = (part.values, part.indices, part.pointers)
        block = csr_matrix(arrays, shape=(part.last - part.first, n_columns))
        block = block if rows is None else block[rows[part.first : part.last]]
        if columns is not None:
            if block.nnz and not 0 <= block.indices.min() <= block.indices.max() < n_columns:
                raise ValueError("an index lies outside the matrix")  # scipy does not look
            block = block[:, columns]
        copy.append(block.T if transposed else block)
        disk.stop_if_failed()
    shape = file[path].attrs["shape"]
    _copy_attributes(item, file[path])
    file[path].attrs["shape"] = shape


def _copy_through_anndata(item: Any, file: h5py.File, path: str, rows: Array | None, columns: Array | None) -> None:
    with writing(item.name):
        value = read_elem(item)
        value = value if rows is None else value[rows]
        write_elem(file, path, value if columns is None else value[:, columns])


def slices(item: Any) -> Iterator[slice]:
    """Yield ranges of the first axis that are a few megabytes each."""
    row = max(1, item.dtype.itemsize * int(np.prod(item.shape[1:])))
    step = max(1, AT_ONCE // row)
    if item.chunks and item.chunks[0] < step:  # whole chunks: each is read once
        step -= step % item.chunks[0]
    for start in range(0, item.shape[0], step):
        yield slice(start, min(start + step, item.shape[0]))


def _storage(item: Any, shape: list[int]) -> dict[str, Any]:
    """Return how HDF5 is to store an array of this shape: as the one that it is copied from."""
    if not isinstance(item, h5py.Dataset):
        return {"compression": "gzip", "compression_opts": 1} if item.compressors and not _is_text(item) else {}
    if item.chunks is None or 0 in shape:
        return {}
    stored: dict[str, Any] = {"chunks": tuple(map(min, item.chunks, shape))}
    if any(number not in OWN for number, *_ in filters_of(item)):  # of a plugin: h5py does not say with which options
        return stored | {"compression": "gzip", "compression_opts": 1}
    names = ("compression", "compression_opts", "shuffle", "fletcher32")
    return stored | {name: getattr(item, name) for name in names}


def _empty_copy(item: h5py.Dataset, file: h5py.File, path: str) -> tuple[h5py.Dataset, bool]:
    """Return a dataset without values, and whether the chunks of another one can be copied into it as they are."""
    plan = item.id.get_create_plist()
    if _can_encode(item):
        copy = h5py.Dataset(h5py.h5d.create(file.id, path.encode(), item.id.get_type(), item.id.get_space(), plan))
        if filters_of(copy) == filters_of(item):
            return copy, True
        del file[path]  # some, as bitshuffle, change their options when they are set: they are others the second time
    plan.remove_filter(h5py.h5z.FILTER_ALL)
    plan.set_deflate(1)
    created = h5py.h5d.create(file.id, path.encode(), item.id.get_type(), item.id.get_space(), plan)
    return h5py.Dataset(created), False


def _can_encode(item: h5py.Dataset) -> bool:
    """Tell whether all filters of an array can write, too: some, as SZIP, are often there to read alone."""
    return all(
        is_known(number) and h5py.h5z.get_filter_info(number) & h5py.h5z.FILTER_CONFIG_ENCODE_ENABLED
        for number, *_ in filters_of(item)
    )


def _is_text(item: Any) -> bool:
    return item.dtype.kind in "OTU" if not isinstance(item, h5py.Dataset) else bool(h5py.check_string_dtype(item.dtype))


def _as_attribute(value: Any) -> Any:
    """Return a value that zarr keeps as JSON as HDF5 keeps it."""
    if isinstance(value, list):
        text = not value or isinstance(value[0], str)
        return np.array(value, dtype=h5py.string_dtype()) if text else np.array(value)
    return value
