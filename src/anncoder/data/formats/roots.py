"""Contents of other programs in HDF5 and zarr: 10x, loom, MuData, SpatialData, Seurat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from anncoder.data.formats.attributes import encoding_of, is_null, text_of
from anncoder.data.formats.failures import other_format
from anncoder.data.formats.foreign import in_python, new_name
from anncoder.errors import FileError, listed

FIRST = ("rna", "RNA", "gex", "GEX", "Gene Expression")  # modalities that hold counts of genes
CELLS, GENES = ("CellID", "obs_names", "cell_names", "barcode"), ("Gene", "var_names", "gene_names", "Accession")


def refuse_foreign_root(root: Any, path: Path) -> None:
    """Raise a FileError if an open HDF5 file or zarr group is not one AnnData: what it is, and how it is converted."""
    names = set(root)
    told = _of_10x(root, path, names) or _of_several(root, path, names) or _of_others(root, path, names)
    if told is not None:
        raise other_format(path, *told)
    if not {"obs", "var"} <= names:
        what = f"not of anndata: it holds {listed(sorted(names)) or 'nothing'}, and not both obs and var"
        raise other_format(path, what, "convert it to .h5ad with the program that it comes from")
    if not all(hasattr(root[frame], "keys") for frame in ("obs", "var")):
        what = f"{str(path)!r} was written by anndata before version 0.7"
        raise FileError("old-layout", what, str(path), _anew(root, path))


def _anew(root: Any, path: Path) -> str:
    read = f"anndata.{'read_h5ad' if isinstance(root, h5py.Group) else 'read_zarr'}({str(path)!r})"
    return in_python("anndata", read, path).replace("convert it", "write it anew")


def genomes_of_10x(root: Any) -> list[str] | None:
    """Return the genomes of a file of Cell Ranger before version 3, none of a later one; None of another file."""
    names = set(root)
    if "matrix" in names and "barcodes" in _names(root["matrix"]):
        return []
    return [name for name in sorted(names) if {"barcodes", "genes", "indptr"} <= _names(root[name])] or None


def is_loom(root: Any) -> bool:
    """Tell whether an open file is a loom file."""
    return {"matrix", "row_attrs", "col_attrs"} <= set(root)


def _of_10x(root: Any, path: Path, names: set[str]) -> tuple[str, str] | None:
    if genomes := genomes_of_10x(root):  # those of one genome are read
        line = f"scanpy.read_10x_h5({str(path)!r}, genome={genomes[0]!r})"
        what = f"a file of 10x Genomics (Cell Ranger before version 3), of the genomes {listed(genomes)}"
        return what, in_python("scanpy", line, path)
    if {"barcode_idx", "umi"} <= names:
        what = "a list of molecules of 10x Genomics, not a matrix"
        return what, "give the matrix that stands beside it, filtered_feature_bc_matrix.h5"
    return None


def _of_several(root: Any, path: Path, names: set[str]) -> tuple[str, str] | None:
    """Return what holds several AnnData, and which of them to take."""
    for slot, what in (
        ("mod", "a MuData, which holds several AnnData"),
        ("tables", "SpatialData"),
        ("table", "SpatialData"),
    ):
        tables = sorted(_names(root[slot])) if slot in names else []
        if not tables or (slot != "mod" and "obs" in names):
            continue
        first = next((name for name in FIRST if name in tables), tables[0])
        said = f"{what}: {listed(tables)}"
        if not isinstance(root, h5py.Group):
            return said, f"give one of them: {str(path / slot / first)!r}"
        table = f"anndata.io.read_elem(h5py.File({str(path)!r})[{f'{slot}/{first}'!r}])"
        return said, in_python("anndata, h5py", table, path)
    return None


def _of_others(root: Any, path: Path, names: set[str]) -> tuple[str, str] | None:
    p = repr(str(path))
    if {"assays", "cell.names"} <= names:
        line = f"SeuratDisk::Convert('{path}', dest = '{new_name(path)}')"
        return "a file of Seurat", f"convert it, in R: {line}"
    if text_of(root, "PYTABLES_FORMAT_VERSION"):
        what = "a table of pandas (HDFStore)"
        return what, in_python("anndata, pandas", f"anndata.AnnData(pandas.read_hdf({p}))", path)
    if encoding_of(root) in ("csr_matrix", "csc_matrix", "dataframe", "array"):
        return f"a single {encoding_of(root)}, not an AnnData", "give the file, or folder, that it is part of"
    return None


def _names(item: Any) -> set[str]:
    try:
        return set(item) if hasattr(item, "keys") and not is_null(item) else set()
    except Exception:  # noqa: BLE001 - zarr opens what it lists; what it cannot open is said later
        return set()
