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


def _of_10x(root: Any, path: Path, names: set[str]) -> tuple[str, str] | None:
    read, p = "scanpy.read_10x_h5", repr(str(path))
    if "matrix" in names and "barcodes" in _names(root["matrix"]):
        return "a file of 10x Genomics, not of anndata", in_python("scanpy", f"{read}({p})", path)
    genomes = [name for name in sorted(names) if {"barcodes", "genes", "indptr"} <= _names(root[name])]
    if genomes:
        several = f", of the genomes {listed(genomes)}" if len(genomes) > 1 else ""
        what = f"a file of 10x Genomics (Cell Ranger before version 3), not of anndata{several}"
        return what, in_python("scanpy", f"{read}({p}, genome={genomes[0]!r})", path)
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
    if {"matrix", "row_attrs", "col_attrs"} <= names:
        return "a loom file", _read_loom(root, path)
    if {"assays", "cell.names"} <= names:
        line = f"SeuratDisk::Convert('{path}', dest = '{new_name(path)}')"
        return "a file of Seurat", f"convert it, in R: {line}"
    if text_of(root, "PYTABLES_FORMAT_VERSION"):
        what = "a table of pandas (HDFStore)"
        return what, in_python("anndata, pandas", f"anndata.AnnData(pandas.read_hdf({p}))", path)
    if encoding_of(root) in ("csr_matrix", "csc_matrix", "dataframe", "array"):
        return f"a single {encoding_of(root)}, not an AnnData", "give the file, or folder, that it is part of"
    return None


def _read_loom(root: Any, path: Path) -> str:
    """Return the line that reads counts and names, which needs no loompy."""
    frames = []
    for attributes, known in (("col_attrs", CELLS), ("row_attrs", GENES)):
        there = _names(root[attributes])
        name = next((name for name in known if name in there), next(iter(sorted(there)), None))
        index = f"index=f[{f'{attributes}/{name}'!r}].asstr()[:]" if name is not None else ""
        frames.append(f"pandas.DataFrame({index})" if index else "None")
    matrix = "scipy.sparse.csr_matrix(f['matrix'][:].T)"
    line = f"f = h5py.File({str(path)!r}); a = anndata.AnnData({matrix}, {', '.join(frames)})"
    write = f"a.var_names_make_unique(); a.write_h5ad({str(new_name(path))!r})"
    return f"convert it, in Python: import anndata, h5py, pandas, scipy.sparse; {line}; {write}"


def _names(item: Any) -> set[str]:
    try:
        return set(item) if hasattr(item, "keys") and not is_null(item) else set()
    except Exception:  # noqa: BLE001 - zarr opens what it lists; what it cannot open is said later
        return set()
