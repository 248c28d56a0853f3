"""Files of 10x Genomics (.h5, mtx folders) and loom, read into memory as a file of anndata.

scanpy and anndata read them; what they give is put into an HDF5 file in memory, which everything that reads and copies
files then takes for one on disk. Names of genes that occur more than once are made unique, as scanpy does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata
import h5py
from anndata.io import write_elem

from anncoder.data.formats.failures import damaged, first_line
from anncoder.data.formats.foreign import prefix_of_10x
from anncoder.data.formats.roots import CELLS, GENES, genomes_of_10x, is_loom
from anncoder.data.matrix.notes import say
from anncoder.errors import FileError, counted, listed


def folder_in_memory(path: Path) -> h5py.File | None:
    """Return a folder of Cell Ranger's text files as a file in memory; None if it is another folder."""
    prefix = prefix_of_10x([item.name for item in path.iterdir()])
    if prefix is None:
        return None

    def read() -> anndata.AnnData:
        import scanpy

        return scanpy.read_10x_mtx(path, prefix=prefix, make_unique=False)

    return _in_memory(path, "a folder of 10x Genomics", read)


def file_in_memory(root: Any, path: Path) -> h5py.File | None:
    """Return an open file of 10x Genomics, of one genome or of Cell Ranger 3, or a loom file, as a file in memory.

    None if it is something else. The file itself is closed if it is not.
    """
    if not isinstance(root, h5py.File):
        return None
    if is_loom(root):
        names = [next((name for name in known if name in root[of]), None) for of, known in _ATTRIBUTES.items()]
        root.close()
        return _in_memory(path, "a loom file", lambda: _read_loom(path, *names))
    genomes = genomes_of_10x(root)
    if genomes is None or len(genomes) > 1:
        return None
    root.close()

    def read() -> anndata.AnnData:
        import scanpy

        return scanpy.read_10x_h5(path, genome=genomes[0] if genomes else None)

    return _in_memory(path, "a file of 10x Genomics", read)


_ATTRIBUTES = {"col_attrs": CELLS, "row_attrs": GENES}


def _read_loom(path: Path, cells: str | None, genes: str | None) -> anndata.AnnData:
    if find_spec("loompy") is None:
        what = f"{str(path)!r} is a loom file, which anndata reads by the package loompy, and that is not installed"
        raise FileError("missing-reader", what, str(path), "pip install loompy")
    # not by anndata's default for X, one of the layers of RNA velocity: it is the matrix of the file
    names = {"obs_names": cells or "CellID", "var_names": genes or "Gene"}
    return anndata.io.read_loom(path, X_name="", validate=False, **names)


def _in_memory(path: Path, what: str, read: Callable[[], anndata.AnnData]) -> h5py.File:
    file = h5py.File(f"{path} (in memory)", "w", driver="core", backing_store=False)
    try:
        with warnings.catch_warnings(action="ignore"):  # on names that are not unique, which are made so
            adata = read()
            twice = adata.var_names[adata.var_names.duplicated()].unique()
            adata.var_names_make_unique()
            write_elem(file, "/", adata)
            for name in [name for name in file if file[name].attrs.get("encoding-type") == "null"]:
                del file[name]
    except BaseException as error:
        file.close()
        if isinstance(error, FileError) or not isinstance(error, Exception):
            raise
        raise damaged(path, f"{what}: {first_line(error)}") from error
    size = f"{counted(adata.n_obs, 'cell')} x {counted(adata.n_vars, 'gene')}"
    made = f"; made unique: {counted(len(twice), 'repeated gene name')} ({listed(twice, 3)})" if len(twice) else ""
    say(f"{path.name} is {what}", f"read into memory, {size}{made}")
    return file
