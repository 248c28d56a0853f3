"""Copy of an ``.h5ad`` file or ``.zarr`` folder as HDF5, element by element, of any size.

From HDF5 everything is copied as it is stored, chunk by chunk, without decoding it: what anndata cannot read is copied
like the rest. Where cells are left out, and from zarr, arrays and sparse matrices go through memory a few megabytes at
a time, and what has another encoding goes through anndata, one element at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import product
from typing import Any

import h5py
import numpy as np
from anndata.io import read_elem, write_elem

from anncoder.data.matrix.arrays import OnDisk, blocks
from anncoder.errors import InputError
from anncoder.io.hdf5 import DiskFullFile

Array = np.ndarray[Any, Any]
AT_ONCE = 8 * 2**20  # bytes
# the last but one: text with a mask, which newer versions of anndata write, and older ones read but do not write
CONTAINERS = ("anndata", "raw", "dict", "dataframe", "nullable-string-array", "")
ARRAYS = ("array", "string-array", "")
CHUNK = 8192  # values of a sparse matrix in a chunk


class Copy:
    """Copies one AnnData into an HDF5 file.

    Parameters
    ----------
    file, disk
        The file to write, empty, as :func:`anncoder.io.hdf5.new_h5` gives it.
    n_obs
        Number of cells of the input.
    rows
        Positions of the cells that are left, ascending; None for all.
    without
        Paths of what is not copied.
    """

    def __init__(
        self,
        file: h5py.File,
        disk: DiskFullFile,
        n_obs: int,
        rows: Array | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.file, self.disk, self.without = file, disk, without
        self.chosen: Array | None = None
        if rows is not None:
            self.chosen = np.zeros(n_obs, dtype=bool)
            self.chosen[rows] = True
        self._references: list[tuple[str, str, str]] = []

    def of(self, store: Any) -> None:
        """Copy an open file or zarr group.

        Raises
        ------
        OSError
            The disk is full.
        InputError
            Something that has to go through anndata cannot be written.
        """
        self._group(store, self.file, "")
        for path, name, target in self._references:
            self.file[path].attrs[name] = self.file[target].ref

    def _group(self, source: Any, target: h5py.Group, path: str) -> None:
        self._attributes(source, target)
        for name in source:
            child = f"{path}/{name}" if path else str(name)
            if child not in self.without:
                self._element(source, target, str(name), child)
                self.disk.stop_if_failed()

    def _element(self, source: Any, target: h5py.Group, name: str, path: str) -> None:
        in_hdf5 = isinstance(source, h5py.Group)
        link = source.get(name, getlink=True) if in_hdf5 else None
        if isinstance(link, h5py.SoftLink):
            target[name] = h5py.SoftLink(link.path)
            return
        item, axes = source[name], self._axes(path)
        is_group = hasattr(item, "keys")
        encoding = str(item.attrs.get("encoding-type", ""))
        if in_hdf5 and not axes and not is_group:
            self._dataset(item, source, target, name)
        elif is_group and (encoding in CONTAINERS or (in_hdf5 and not axes)) and "h5sparse_format" not in item.attrs:
            self._group(item, target.create_group(name, track_order=_tracks_order(item)), path)
        elif is_group and OnDisk(item).indptr is not None:
            self._sparse(item, target, name, axes)
        elif not is_group and encoding in ARRAYS and len(item.shape):
            self._array(item, target, name, axes)
        else:
            self._through_anndata(item, target, name, axes)

    def _axes(self, path: str) -> tuple[int, ...]:
        """Return the axes of the cells in an element, if cells are left out."""
        head, _, rest = path.partition("/")
        if self.chosen is None or rest.startswith("__categories"):  # older files keep the names of categories there
            return ()
        if path in ("X", "raw/X") or (head in ("obs", "obsm", "layers") and rest):
            return (0,)
        return (0, 1) if head == "obsp" and rest else ()

    def _attributes(self, source: Any, target: Any) -> None:
        if not isinstance(source, h5py.Group | h5py.Dataset):
            for name, value in source.attrs.items():
                if value is not None:
                    target.attrs[name] = _as_attribute(value)
            return
        for name in source.attrs:
            found = source.attrs.get_id(name)
            if h5py.check_ref_dtype(found.dtype) and found.shape == ():
                self._references.append((target.name, name, source.file[source.attrs[name]].name))
            elif found.get_space().get_simple_extent_type() == h5py.h5s.NULL:
                target.attrs[name] = source.attrs[name]
            else:
                target.attrs.create(name, source.attrs[name], found.shape, found.dtype)

    def _dataset(self, item: Any, source: h5py.Group, target: h5py.Group, name: str) -> None:
        if not isinstance(item, h5py.Dataset) or item.nbytes < AT_ONCE or not _filters_known(item):
            source.copy(item, target, name)
            if isinstance(item, h5py.Dataset):
                self._attributes(item, target[name])
            return
        plan = item.id.get_create_plist()
        made = h5py.h5d.create(target.id, name.encode(), item.id.get_type(), item.id.get_space(), plan)
        copy = h5py.Dataset(made)
        self._attributes(item, copy)
        if item.chunks is None or item.dtype.hasobject:  # text is stored elsewhere in the file: chunks only point to it
            for part in slices(item):
                copy[part] = item[part]
                self.disk.stop_if_failed()
            return
        for at in product(*(range(0, size, step) for size, step in zip(item.shape, item.chunks, strict=True))):
            if item.id.get_chunk_info_by_coord(at).size:
                mask, content = item.id.read_direct_chunk(at)
                copy.id.write_direct_chunk(at, content, mask)
                self.disk.stop_if_failed()

    def _array(self, item: Any, target: h5py.Group, name: str, axes: tuple[int, ...]) -> None:
        chosen = self._chosen(axes)
        shape = [int(np.count_nonzero(chosen)) if axis in axes else size for axis, size in enumerate(item.shape)]
        text = _is_text(item)
        copy = target.create_dataset(
            name, tuple(shape), h5py.string_dtype() if text else item.dtype, **_storage(item, shape, text=text)
        )
        self._attributes(item, copy)
        at = 0
        for part in slices(item):
            values = np.asarray(item[part])
            if text:
                values = values.astype(object)
            if 0 in axes:
                values = values[chosen[part]]
            if 1 in axes:
                values = values[:, chosen]
            copy[at : at + len(values)] = values
            at += len(values)
            self.disk.stop_if_failed()

    def _sparse(self, item: Any, target: h5py.Group, name: str, axes: tuple[int, ...]) -> None:
        matrix, chosen = OnDisk(item), self._chosen(axes)
        held = matrix.arrays()
        major, minor = (0, 1) if held.by_cell else (1, 0)
        assert held.indptr is not None
        group = target.create_group(name)
        self._attributes(item, group)
        shape = [int(np.count_nonzero(chosen)) if axis in axes else size for axis, size in enumerate(matrix.shape)]
        group.attrs["h5sparse_shape" if "h5sparse_shape" in item.attrs else "shape"] = np.array(shape)
        values, indices = (_growing(group, part, item[part]) for part in ("data", "indices"))
        rows = chosen if major in axes else np.ones(held.n_major, dtype=bool)
        columns = np.where(chosen, np.cumsum(chosen) - 1, -1) if minor in axes else None
        lengths = np.zeros(held.n_major, dtype=np.int64)
        for block in blocks(held):
            first, last = block.first, block.last
            owner = np.repeat(np.arange(first, last), np.diff(block.pointers))
            moved = np.asarray(block.indices)
            keep = rows[owner]
            if columns is not None:
                moved = columns[moved].astype(moved.dtype)
                keep &= moved >= 0
            _append(values, np.asarray(block.values)[keep])
            _append(indices, moved[keep])
            lengths[first:last] = np.bincount(owner[keep] - first, minlength=last - first)
            self.disk.stop_if_failed()
        pointers = np.concatenate([[0], np.cumsum(lengths[rows])]).astype(held.indptr.dtype)
        group.create_dataset("indptr", data=pointers)

    def _through_anndata(self, item: Any, target: h5py.Group, name: str, axes: tuple[int, ...]) -> None:
        try:
            value = read_elem(item)
            if axes:
                chosen = self._chosen(axes)
                value = value[chosen] if axes == (0,) else value[chosen][:, chosen]
            write_elem(target, name, value)
        except OSError:
            raise
        except Exception as error:
            why = str(error).splitlines() or [type(error).__name__]
            raise InputError(
                "unwritable-slot",
                f"the input holds something that cannot be copied: {why[0]}",
                item.name,
                "remove or convert that slot",
            ) from error

    def _chosen(self, axes: tuple[int, ...]) -> Array:
        assert self.chosen is not None or not axes
        return np.empty(0, dtype=bool) if self.chosen is None else self.chosen


def slices(item: Any) -> Iterator[slice]:
    """Yield ranges of the first axis that are a few megabytes each."""
    row = max(1, item.dtype.itemsize * int(np.prod(item.shape[1:])))
    step = max(1, AT_ONCE // row)
    if item.chunks and item.chunks[0] < step:  # whole chunks: each is read once
        step -= step % item.chunks[0]
    for start in range(0, item.shape[0], step):
        yield slice(start, min(start + step, item.shape[0]))


def _storage(item: Any, shape: list[int], *, text: bool) -> dict[str, Any]:
    if not isinstance(item, h5py.Dataset):
        return {} if text or not item.compressors else {"compression": "gzip", "compression_opts": 1}
    if item.chunks is None or 0 in shape:
        return {}
    chunks = tuple(min(step, size) for step, size in zip(item.chunks, shape, strict=True))
    known = {"compression": item.compression, "compression_opts": item.compression_opts}
    return {"chunks": chunks, "shuffle": item.shuffle, "fletcher32": item.fletcher32, **known}


def _growing(group: h5py.Group, name: str, item: Any) -> h5py.Dataset:
    storage = _storage(item, [CHUNK], text=False) | {"chunks": (CHUNK,)}
    copy = group.create_dataset(name, (0,), item.dtype, maxshape=(None,), **storage)
    return copy


def _append(dataset: h5py.Dataset, values: Array) -> None:
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def _filters_known(item: h5py.Dataset) -> bool:
    plan = item.id.get_create_plist()
    return all(h5py.h5z.filter_avail(plan.get_filter(i)[0]) for i in range(plan.get_nfilters()))


def _tracks_order(item: Any) -> bool | None:
    if not isinstance(item, h5py.Group):
        return None
    return bool(item.id.get_create_plist().get_link_creation_order())


def _is_text(item: Any) -> bool:
    return item.dtype.kind in "OTU" if not isinstance(item, h5py.Dataset) else bool(h5py.check_string_dtype(item.dtype))


def _as_attribute(value: Any) -> Any:
    """Return what JSON has as an attribute, which zarr keeps, as HDF5 keeps it."""
    if isinstance(value, list):
        text = not value or isinstance(value[0], str)
        return np.array(value, dtype=h5py.string_dtype()) if text else np.array(value)
    return value
