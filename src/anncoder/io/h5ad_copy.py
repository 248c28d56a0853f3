"""Copy of an ``.h5ad`` file or ``.zarr`` folder as HDF5, element by element, of any size.

From HDF5 everything is copied as it is stored, without decoding it: what anndata cannot read is copied like the rest.
Where cells are left out, and from zarr, arrays and sparse matrices go through memory a few megabytes at a time, and
other encodings go through anndata, one element at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import product
from typing import Any

import h5py
import numpy as np
from anndata.io import read_elem, sparse_dataset, write_elem
from scipy.sparse import csr_matrix

from anncoder.data.matrix.arrays import OnDisk, spans
from anncoder.errors import InputError
from anncoder.io.hdf5 import DiskFullFile

Array = np.ndarray[Any, Any]
AT_ONCE = 8 * 2**20  # bytes
# the last but one: text with a mask, which newer versions of anndata write, and older ones read but do not write
CONTAINERS = ("anndata", "raw", "dict", "dataframe", "nullable-string-array", "")
ARRAYS = ("array", "string-array", "")
CHUNK = 8192  # values of a sparse matrix in a chunk


def copy_h5ad(
    source: Any, file: h5py.File, disk: DiskFullFile, *, keep: Array | None = None, without: Collection[str] = ()
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
    _copy_attributes(source, file)
    for path, item in _elements(source, without, all_cells=keep is None):
        axes = () if keep is None else _axes_of_cells(path)
        masks = tuple(keep if axis in axes else None for axis in (0, 1))
        if isinstance(item, h5py.SoftLink):
            file[path] = h5py.SoftLink(item.path)
        elif _is_container(item, all_cells=keep is None):  # its elements come next
            _copy_attributes(item, file.create_group(path, track_order=_tracks_order(item)))
        elif isinstance(item, h5py.Dataset | h5py.Datatype) and not axes:
            _copy_dataset(item, file, path, disk)
        elif hasattr(item, "keys") and OnDisk(item).indptr is not None:
            _copy_sparse(item, file, path, masks, disk)
        elif _is_array(item):
            _copy_array(item, file, path, masks, disk)
        else:
            _copy_through_anndata(item, file, path, masks)
        disk.stop_if_failed()
    if isinstance(source, h5py.Group):
        _copy_references(source, file)


def _elements(group: Any, without: Collection[str], *, all_cells: bool, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and element, or soft link, of all that is in a group: containers before their elements."""
    for name in group:
        child = f"{path}{name}"
        if child in without:
            continue
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        item = link if isinstance(link, h5py.SoftLink) else group[name]
        yield child, item
        if _is_container(item, all_cells=all_cells):
            yield from _elements(item, without, all_cells=all_cells, path=f"{child}/")


def _is_container(item: Any, *, all_cells: bool) -> bool:
    """Tell whether a group is copied element by element; what its encoding is does not matter if all of it is kept."""
    if not hasattr(item, "keys"):
        return False
    in_hdf5 = isinstance(item, h5py.Group)
    known = item.attrs.get("encoding-type", "") in CONTAINERS and "h5sparse_format" not in item.attrs
    return known or (in_hdf5 and (all_cells or not _axes_of_cells(item.name.lstrip("/"))))


def _axes_of_cells(path: str) -> tuple[int, ...]:
    """Return the axes of an element that are cells."""
    head, _, rest = path.partition("/")
    if rest.startswith("__categories"):  # older files keep the names of categories there
        return ()
    if path in ("X", "raw/X") or (head in ("obs", "obsm", "layers") and rest):
        return (0,)
    return (0, 1) if head == "obsp" and rest else ()
