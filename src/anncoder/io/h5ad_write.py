"""Writing an AnnData that is in memory to an .h5ad file, atomically; reading one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
from anndata.io import read_elem, write_elem
from scipy.sparse import issparse

from anncoder.data.adata import open_data
from anncoder.data.formats.attributes import is_null
from anncoder.errors import InputError, ResourceError
from anncoder.io.atomic import atomic_path
from anncoder.io.hdf5 import h5_in_memory, new_h5

COMPRESSED = {"compression": "gzip"}  # which carries a checksum, too


def read_input(data: Path) -> anndata.AnnData:
    """Read a file into memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's on names and old formats: check says what matters
        return open_data(data)


def refuse_unwritable(adata: anndata.AnnData) -> None:
    """Raise an InputError if something in obs, var or uns can be read but not written: now, not after the training."""
    # a thousand rows show of which kind a column is
    slots = {"obs": adata.obs.iloc[:1000], "var": adata.var.iloc[:1000], "uns": dict(adata.uns)}
    with h5_in_memory() as (file, _):
        for name, value in slots.items():
            with writing(name):
                write_elem(file, name, value, dataset_kwargs=COMPRESSED)


def write_output(adata: anndata.AnnData, output: Path, *, wrote: tuple[str, ...]) -> None:
    """Write an AnnData under a temporary name, read back what is new, and only then give it its name.

    Not by ``write_h5ad``, which writes without :class:`anncoder.io.hdf5.DiskFullFile` and so ends the process where the
    disk is full.

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
        with new_h5(temporary) as (file, _), writing("/"):
            write_elem(file, "/", adata, dataset_kwargs=COMPRESSED)
            for name in [name for name in file if is_null(file[name])]:
                del file[
                    name
                ]  # as write_h5ad does: older versions of anndata cannot read a slot that stands for nothing
        with h5py.File(temporary, "r") as file:
            for slot in (*wrote, *(["X"] if adata.X is not None else [])):
                where, _, name = slot.partition("/")
                expected = getattr(adata, where)
                refuse_difference(temporary, slot, read_elem(file[slot]), expected[name] if name else expected)


@contextmanager
def writing(slot: str) -> Iterator[None]:
    """Make an InputError of what anndata raises when it cannot write a slot; a full disk stays an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", [])).splitlines()  # anndata says there which slot it was
        why = str(error).splitlines() or [type(error).__name__]
        what = f"the input holds something that cannot be written: {why[0]}"
        raise InputError("unwritable-slot", what, notes[0] if notes else slot, "remove or convert that slot") from error


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
