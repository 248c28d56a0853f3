"""Reading the input and writing the output of a command: whole or not at all, and never over the input unasked."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from scipy.sparse import issparse

from anncoder.data.adata import open_data
from anncoder.errors import ConfigError, InputError, ResourceError
from anncoder.files import atomic_path, same_file, writable_folder
from anncoder.progress import announce


def refuse_output(data: Path, output: Path, *, in_place: bool) -> None:
    """Refuse an output before any work is done for it.

    Raises
    ------
    ConfigError
        It is the input (without ``--in-place``), or not an ``.h5ad`` name.
    ResourceError
        Its folder does not exist or cannot be written.
    """
    if output.suffix != ".h5ad":
        raise ConfigError(
            f"the output {str(output)!r} does not end in .h5ad",
            code="bad-output",
            where="--output",
            remedy="-o NAME.h5ad",
        )
    if same_file(data, output) and not in_place:
        raise ConfigError(
            "the output is the input",
            code="output-is-input",
            where=str(output),
            remedy="choose another name, or say --in-place: the new file then replaces the old one when it is complete",
        )
    if output.is_dir():
        raise ConfigError(
            f"the output {str(output)!r} is a folder",
            code="bad-output",
            where="--output",
            remedy="-o NAME.h5ad",
        )
    writable_folder(output.parent)


def read_input(data: Path, *, layer: str | None, drop_empty_cells: bool) -> anndata.AnnData:
    """Read a file; with ``drop_empty_cells`` without the cells that have no count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's on names and old formats: check says what matters
        adata = open_data(data)
    if not drop_empty_cells:
        return adata
    matrix = adata.X if layer is None else adata.layers.get(layer)
    if matrix is None:
        return adata  # the check that follows says what is missing
    filled = np.asarray((matrix != 0).sum(axis=1)).ravel() > 0
    if filled.all():
        return adata
    if not filled.any():
        raise InputError("no cell has a count", code="empty-cells", where=str(data), remedy="look at: anncoder check")
    announce(f"left out {int((~filled).sum()):,} cells without any count")
    return adata[filled].copy()


def write_output(adata: anndata.AnnData, output: Path, *, wrote: list[str]) -> None:
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
        try:
            adata.write_h5ad(temporary, compression="gzip")
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise _unwritable(error, output) from error
        _verify(adata, temporary, wrote)


def _unwritable(error: Exception, output: Path) -> Exception:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, RuntimeError):  # HDF5 reports a failed write (a full disk) so
        return ResourceError(
            f"writing {str(output)!r} failed: {first}",
            code="cannot-write",
            where=str(output),
            remedy="check the free space",
        )
    return InputError(
        f"the input holds something that cannot be written: {first}",
        code="unwritable-slot",
        where=str(output),
        remedy="remove or convert that slot of obs, var or uns",
    )


def _verify(adata: anndata.AnnData, path: Path, wrote: list[str]) -> None:
    import h5py
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        for slot in wrote:
            group, name = slot.split("/")
            if not np.array_equal(read_elem(file[slot]), getattr(adata, group)[name]):
                raise ResourceError(
                    f"{slot} did not survive writing",
                    code="cannot-write",
                    where=str(path),
                    remedy="try again",
                )
        if adata.X is not None and not _same(read_elem(file["X"]), adata.X):
            raise ResourceError("X did not survive writing", code="cannot-write", where=str(path), remedy="try again")


def _same(left: Any, right: Any) -> bool:
    if issparse(left) and issparse(right):
        return (
            left.shape == right.shape
            and np.array_equal(left.data, right.data)
            and np.array_equal(left.indices, right.indices)
        )
    return np.array_equal(np.asarray(left), np.asarray(right), equal_nan=np.asarray(left).dtype.kind == "f")
