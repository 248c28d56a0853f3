"""Writing an AnnData that is in memory to an .h5ad file, atomically; reading one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from anndata.io import read_elem, write_elem
from scipy.sparse import issparse

from anncoder.data.adata import open_data
from anncoder.errors import InputError, ResourceError
from anncoder.io.atomic import atomic_path
from anncoder.io.hdf5 import new_h5

COMPRESSED = {"compression": "gzip"}  # which carries a checksum, too


def read_input(data: Path) -> anndata.AnnData:
    """Read a file into memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's on names and old formats: check says what matters
        return open_data(data)


def refuse_unwritable(adata: anndata.AnnData) -> None:
    """Raise an InputError if something in obs, var or uns can be read but not written: now, not after the training."""
    with h5py.File("never-on-disk", "w", driver="core", backing_store=False) as file:
        # a thousand rows tell what a column is
        _write_slots(file, {"obs": adata.obs.iloc[:1000], "var": adata.var.iloc[:1000], "uns": dict(adata.uns)})


def write_output(adata: anndata.AnnData, output: Path, *, wrote: tuple[str, ...]) -> None:
    """Write an AnnData under a temporary name, read back what is new, and only then give it its name.

    Parameters
    ----------
    adata
        The input plus our slots.
    output
        The file to write.
    wrote
        Our slots, as ``"obsm/X_ae"``.

    Raises
    ------
    ResourceError
        The disk is full, or what was read back is not what was written; the target is as it was.
    InputError
        The AnnData holds something of the user's that cannot be written.
    """
    with atomic_path(output) as temporary:
        with new_h5(temporary) as (file, _):
            # not `write_h5ad`: it turns the user's columns of text into categories
            _write_slots(file, {"/": adata})
        _verify(adata, temporary, wrote)


def _write_slots(file: h5py.File, slots: dict[str, Any]) -> None:
    for name, value in slots.items():
        try:
            write_elem(file, name, value, dataset_kwargs=COMPRESSED)
        except OSError:
            raise
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", [])).splitlines()  # anndata says there which slot it was
            why = str(error).splitlines() or [type(error).__name__]
            raise InputError(
                "unwritable-slot",
                f"the input holds something that cannot be written: {why[0]}",
                notes[0] if notes else name,
                "remove or convert that slot",
            ) from error


def _verify(adata: anndata.AnnData, path: Path, wrote: tuple[str, ...]) -> None:
    with h5py.File(path, "r") as file:
        expected = {slot: getattr(adata, slot.split("/")[0])[slot.split("/")[1]] for slot in wrote}
        if adata.X is not None:
            expected["X"] = adata.X
        for slot, values in expected.items():
            refuse_difference(path, slot, read_elem(file[slot]), values)


def refuse_difference(path: Path, slot: str, found: Any, expected: Any) -> None:
    """Raise a ResourceError unless what was read back from a slot of a file is what was written."""
    if issparse(found) and issparse(expected):
        arrays = ("data", "indices", "indptr")
        same = found.shape == expected.shape and all(
            np.array_equal(getattr(found, name), getattr(expected, name)) for name in arrays
        )
    else:
        left, right = np.asarray(found), np.asarray(expected)
        same = np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    if not same:
        raise ResourceError("cannot-write", f"{slot} did not survive writing", str(path), "try again, on another disk")
