"""Files and folders of other formats, told by their first bytes: text, archives, R, mtx."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from anncoder.data.formats.failures import other_format
from anncoder.errors import FileError, listed

HDF5 = b"\x89HDF\r\n\x1a\n"
COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ\x00": lzma}
R_DATA = (b"X\n", b"A\n", b"RDX2", b"RDX3", b"RDA2", b"RDA3")
WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml")
SEPARATORS = ("\t", ";", ",")
TABLE = "a table of text, not an AnnData"
HEAD = 4096  # bytes that are looked at
# the files of a sample of 10x: of Cell Ranger 3 and later, and of earlier versions
NEW, OLD = ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"), ("matrix.mtx", "genes.tsv", "barcodes.tsv")


def refuse_foreign_file(path: Path) -> None:
    """Raise a FileError that says what a file, which is not HDF5, is, and how it is converted.

    Raises
    ------
    FileError
        Always, unless the file is HDF5.
    OSError
        It cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if head.startswith(HDF5) or _has_user_block(path):
        return
    if found := _told_by_bytes(path, head):
        raise other_format(path, *found)
    remedy = "give an .h5ad file or a .zarr folder; read other formats with scanpy and write_h5ad first"
    raise FileError("not-hdf5", f"{str(path)!r} is not an HDF5 file", str(path), remedy)


def refuse_no_table(path: Path) -> None:
    """Raise a FileError if a file that should be a table of text is something else that its first bytes tell."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    found = _told_by_bytes(path, head)
    if found and found[0] != TABLE:
        raise other_format(path, *found)


def refuse_foreign_folder(path: Path) -> None:
    """Raise a FileError that says what a folder is that is not one of zarr or 10x, and how its content is converted."""
    names = sorted(item.name for item in path.iterdir())
    if {"zarr.json", ".zgroup", ".zarray", ".zmetadata"} & {*names} or prefix_of_10x(names) is not None:
        return
    matrices = [name for name in names if name.removesuffix(".gz").endswith(".mtx")]
    files = [name for name in names if name.endswith(".h5ad")]
    of_10x = [name for name in names if name.endswith("feature_bc_matrix.h5")]
    if matrices:
        raise other_format(path, "a folder of text files with a matrix (mtx)", _read_mtx(path, matrices[0], names))
    if of_10x:
        raise other_format(path, "a folder of Cell Ranger's results", f"name the matrix: {str(path / of_10x[-1])!r}")
    if files:
        what = f"a folder with .h5ad files: {listed(files)}"
        raise other_format(path, what, f"name the files, or all of them: {str(path / '*.h5ad')!r}")
    if "manifest.json" in names or path.suffix == ".anncoder":
        raise other_format(path, "a folder of anncoder's results, not of data", "give the .h5ad file with the cells")
    what = f"a folder, and none of zarr: it holds {listed(names) or 'nothing'}"
    raise other_format(path, what, "give an .h5ad file or a .zarr folder")


def prefix_of_10x(names: list[str]) -> str | None:
    """Return what stands before ``matrix.mtx`` in the names of a folder of one sample of 10x; None of another folder.

    scanpy reads the files of Cell Ranger 3 and later, compressed, and those of earlier versions, not compressed.
    """
    matrices = [name for name in names if name.removesuffix(".gz").endswith(".mtx")]
    for matrix, genes, cells in (NEW, OLD):
        for name in matrices if len(matrices) == 1 else ():
            prefix = name.removesuffix(matrix)
            if prefix + matrix == name and {prefix + genes, prefix + cells} <= {*names}:
                return prefix
    return None


def new_name(path: Path) -> Path:
    """Return the name that the line in a remedy gives the converted file."""
    bare = path
    while bare.suffix in (".gz", ".bz2", ".xz", ".zip"):
        bare = bare.with_suffix("")
    new = bare.with_suffix(".h5ad")
    return new.with_name(f"{new.stem}_converted.h5ad") if new == path or new.exists() else new


def in_python(imports: str, adata: str, path: Path) -> str:
    """Return the remedy that a line of Python is, which makes an AnnData and writes it beside a file."""
    return f"convert it, in Python: import {imports}; {adata}.write_h5ad({str(new_name(path))!r})"


def _has_user_block(path: Path) -> bool:
    # h5mu files have one: HDF5 then begins at 512 bytes, or twice as many, and so on
    size, at = path.stat().st_size, 512
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            if file.read(len(HDF5)) == HDF5:
                return True
            at *= 2
    return False


def _told_by_bytes(path: Path, head: bytes) -> tuple[str, str] | None:
    """Return what a file is, and the remedy; None if nothing tells."""
    if not head:
        return "empty: it has no bytes", "copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, which stands for the file", f"fetch it: git lfs pull --include={path.name}"
    if head.lstrip().lower().startswith(WEB_PAGE):
        return "a web page, not data", "open it in a browser: it says why the download gave no file; download it again"
    if head.startswith(b"PK\x03\x04"):
        return _zipped(path)
    for magic, module in COMPRESSED.items():
        if head.startswith(magic):
            return _compressed(path, module)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "compressed (Zstandard)", f"in a shell: unzstd '{path}'"
    return _plain(path, head)


def _plain(path: Path, head: bytes) -> tuple[str, str] | None:
    """Return what content that is not compressed is, or was before it was."""
    p = repr(str(path))
    if head.startswith(R_DATA):
        return _of_r(path)
    if head[257:262] == b"ustar":
        return "an archive (tar)", _unpack(f"tarfile; tarfile.open({p}).extractall(", path)
    if head.startswith(b"%%MatrixMarket"):
        beside = [file.name for file in path.parent.iterdir()]
        if prefix_of_10x(beside) is not None:
            return "the matrix of a folder of 10x Genomics", f"give the folder: {str(path.parent)!r}"
        return "a matrix as text (mtx)", _read_mtx(path.parent, path.name, beside)
    if head.startswith(b"PAR1"):
        frame = "a data frame of Parquet"
        return frame, in_python("anndata, pandas", f"anndata.AnnData(pandas.read_parquet({p}))", path)
    if head.startswith(b"\x93NUMPY"):
        return "an array of numpy", in_python("anndata, numpy", f"anndata.AnnData(numpy.load({p}))", path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle", in_python("pandas", f"pandas.read_pickle({p})", path)
    separator = _separator(head)
    if separator is None:
        return None
    table = f"anndata.AnnData(pandas.read_csv({p}, sep={separator!r}, index_col=0).T)"
    remedy = in_python("anndata, pandas", table, path).replace(":", " (without .T where a row is a cell):", 1)
    return TABLE, remedy


def _separator(head: bytes) -> str | None:
    """Return what separates the columns of a table of text; None if it is no table."""
    try:
        lines = head.decode("utf-8", "strict" if len(head) < HEAD else "ignore").splitlines()
    except UnicodeDecodeError:
        return None
    if "\0" in head.decode("latin-1") or len(lines) < 2:
        return None
    return next((each for each in SEPARATORS if lines[0].count(each) and lines[1].count(each)), None)


def _zipped(path: Path) -> tuple[str, str]:
    p = repr(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "a zip archive that is damaged or incomplete", "copy or download it again"
    if any(name.endswith(".npy") for name in names):
        sparse = f"anndata.AnnData(scipy.sparse.load_npz({p}).tocsr())"
        return "a matrix of scipy (npz)", in_python("anndata, scipy.sparse", sparse, path)
    if "xl/workbook.xml" in names:
        table = f"anndata.AnnData(pandas.read_excel({p}, index_col=0).T)"
        return "a workbook of Excel", in_python("anndata, pandas", table, path)
    roots = sorted({name.rpartition("/")[0] for name in names if name.rsplit("/")[-1] in (".zgroup", "zarr.json")})
    if not roots:
        return f"a zip archive of {listed(names)}", _unpack(f"zipfile; zipfile.ZipFile({p}).extractall(", path)
    folder = path.with_suffix("") if path.suffix == ".zip" else path.with_name(f"{path.stem}_unpacked")
    folder = folder if folder.suffix == ".zarr" or roots[0] else folder.with_name(f"{folder.name}.zarr")
    line = f"import zipfile; zipfile.ZipFile({p}).extractall({str(folder)!r})"
    return "a zarr folder that is zipped", f"unpack it, in Python: {line}; then give {str(folder / roots[0])!r}"


def _compressed(path: Path, module: Any) -> tuple[str, str]:
    """Return what is inside of a file that is compressed as a whole."""
    inside = b""
    with suppress(OSError, EOFError, lzma.LZMAError), module.open(path) as file:
        inside = file.read(HEAD)
    if not inside:
        return f"compressed ({module.__name__}), and damaged or incomplete", "copy or download it again"
    if inside.startswith(HDF5):
        new = path.with_suffix("") if path.suffix in (".gz", ".bz2", ".xz") else new_name(path)
        copy = f"shutil.copyfileobj({module.__name__}.open({str(path)!r}), open({str(new)!r}, 'wb'))"
        line = f"import {module.__name__}, shutil; {copy}"
        return f"compressed as a whole ({module.__name__})", f"unpack it, in Python: {line}"
    found = _plain(path, inside)
    unknown = f"compressed ({module.__name__}), and not an AnnData inside"
    return found or (unknown, "unpack it, and read it with the program it comes from")


def _of_r(path: Path) -> tuple[str, str]:
    line = f"zellkonverter::writeH5AD(readRDS('{path}'), '{new_name(path)}')"
    seurat = line.replace("readRDS(", "Seurat::as.SingleCellExperiment(readRDS(").replace("'), ", "')), ", 1)
    return "a file of R", f"convert it, in R: {line}; of a Seurat object: {seurat}"


def _unpack(begin: str, path: Path) -> str:
    return (
        f"unpack it, in Python: import {begin}{str(path.parent / f'{path.stem}_unpacked')!r}); then give what is in it"
    )


def _read_mtx(folder: Path, matrix: str, names: list[str]) -> str:
    """Return the line that reads a matrix of text and the names of its cells and genes, if they are beside it."""
    by_cell = "cells_x_genes" in matrix  # of kallisto; others have a row a gene
    new = (folder / matrix).with_name(f"{matrix.split('.')[0]}.h5ad")
    line = (
        f"scipy.io; m = scipy.io.mmread({str(folder / matrix)!r}){'' if by_cell else '.T'}.tocsr().astype('float32'); "
    )
    prefix = matrix.split("matrix" if "matrix" in matrix else ".mtx")[0]
    cells, genes = (_beside(prefix, names, words) for words in (("barcodes", "cells"), ("features", "genes")))
    if cells is None or genes is None:
        return f"convert it, in Python: import anndata, {line}anndata.AnnData(m).write_h5ad({str(new)!r})"
    read = "pandas.DataFrame(index=pandas.read_csv({!r}, sep='\\t', header=None, dtype=str).iloc[:, {}].tolist())"
    obs = read.format(str(folder / cells), 0)
    var = read.format(str(folder / genes), ":2].iloc[:, -1")  # the symbol, where there is one beside the identifier
    made = f"a = anndata.AnnData(m, {obs}, {var}); a.var_names_make_unique(); a.write_h5ad({str(new)!r})"
    return f"convert it, in Python: import anndata, pandas, {line}{made}"


def _beside(prefix: str, names: list[str], words: tuple[str, ...]) -> str | None:
    """Return the file of names that belongs to a matrix of text."""
    for name in names:
        last = re.split(r"[._-]", name.removesuffix(".gz").rpartition(".")[0])[-1]
        if name.startswith(prefix) and last in words:
            return name
    return None
