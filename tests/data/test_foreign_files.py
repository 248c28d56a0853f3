"""Files of other programs: recognised by every command alike, read or converted by the line of the remedy."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import write_elem
from scipy import sparse
from scipy.io import mmwrite
from typer.testing import Result

from anncoder import CountAutoencoder, check
from anncoder.data.adata import open_data
from anncoder.errors import FileError

pytestmark = pytest.mark.filterwarnings("ignore")  # anndata's and zarr's own, on what comes in their next versions

N_OBS, N_VARS = 12, 5
COUNTS = np.random.default_rng(0).poisson(3, (N_OBS, N_VARS)).astype(np.float32) + 1
CELLS, GENES = [f"cell{i}" for i in range(N_OBS)], [f"gene{j}" for j in range(N_VARS)]
TEXT = h5py.string_dtype()


def adata() -> anndata.AnnData:
    return anndata.AnnData(sparse.csr_matrix(COUNTS), pd.DataFrame(index=CELLS), pd.DataFrame(index=GENES))


def of_10x(group: h5py.Group, *, features: bool) -> None:
    by_cell = sparse.csc_matrix(COUNTS.T.astype("i4"))
    group["barcodes"] = np.array(CELLS, "S")
    group["data"], group["indices"], group["indptr"] = by_cell.data, by_cell.indices, by_cell.indptr
    group["shape"] = np.array(by_cell.shape)
    names = np.array(GENES, "S")
    if not features:
        group["genes"], group["gene_names"] = names, names
        return
    kinds = {"id": names, "name": names, "feature_type": np.array(["Gene Expression"] * N_VARS, "S")}
    for name, values in (kinds | {"genome": np.array(["GRCh38"] * N_VARS, "S")}).items():
        group[f"features/{name}"] = values


def cell_ranger_3(path: Path) -> None:
    with h5py.File(path, "w") as file:
        of_10x(file.create_group("matrix"), features=True)


def cell_ranger_2(*genomes: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for genome in genomes:
                of_10x(file.create_group(genome), features=False)

    return make


def loom(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["matrix"] = COUNTS.T
        file["row_attrs/Gene"], file["col_attrs/CellID"] = np.array(GENES, "S"), np.array(CELLS, "S")
        file.create_group("layers")


def mudata(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs["encoding-type"] = "MuData"
        for name in ("adt", "rna"):
            write_elem(file, f"mod/{name}", adata())
        write_elem(file, "obs", pd.DataFrame(index=CELLS))
        write_elem(file, "var", pd.DataFrame(index=GENES))


def zipped(path: Path) -> None:
    adata().write_zarr(folder := path.with_name("to_zip"))
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))


def before_07(path: Path) -> None:
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    root.create_array("X", shape=COUNTS.shape, dtype="f4")[:] = COUNTS
    for name, index in (("obs", CELLS), ("var", GENES)):
        records = np.zeros(len(index), dtype=[("index", "S8")])
        records["index"] = np.array(index, "S")
        root.create_array(name, shape=records.shape, dtype=records.dtype)[:] = records


def before_07_in_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["X"] = COUNTS
        file["obs"] = np.array([(name.encode(),) for name in CELLS], dtype=[("index", "S8")])
        file["var"] = np.array([(name.encode(),) for name in GENES], dtype=[("index", "S8")])


def mtx(names: dict[str, list[str]], *, by_cell: bool = False) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name, columns in names.items():
            content = io.BytesIO()
            if ".mtx" in name:
                mmwrite(content, sparse.coo_matrix((COUNTS if by_cell else COUNTS.T).astype(int)))
            else:
                content.write("".join(f"{line}\n" for line in columns).encode())
            data = content.getvalue()
            (path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return make


def table(separator: str, *, packed: bool = False) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        text = pd.DataFrame(COUNTS.T.astype(int), GENES, CELLS).to_csv(sep=separator).encode()
        path.write_bytes(gzip.compress(text) if packed else text)

    return make


def packed(path: Path) -> None:
    adata().write_h5ad(plain := path.with_name("plain_one"))
    path.write_bytes(gzip.compress(plain.read_bytes()))


def packed_matrix(path: Path) -> None:
    mmwrite(content := io.BytesIO(), sparse.coo_matrix(COUNTS.T.astype(int)))
    path.write_bytes(gzip.compress(content.getvalue()))


def tables_of_spatialdata(path: Path) -> None:
    root = zarr.open_group(str(path), mode="w")
    write_elem(root.create_group("tables"), "cells", adata())


def archive(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"))


def groups(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name in names:
                file.create_group(name)

    return make


def folder(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).touch()

    return make


def newer_zarr(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 4, "node_type": "group"}))


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


SYMBOLS = [f"ENSG{j}\t{name}\tGene Expression" for j, name in enumerate(GENES)]
CONVERTED = {
    "cell_ranger_2.h5": (cell_ranger_2("GRCh38", "mm10"), "before version 3.*GRCh38, mm10"),
    "counts.h5mu": (mudata, "a MuData, which holds several AnnData: adt, rna"),
    "counts.zarr.zip": (zipped, "a zarr folder that is zipped"),
    "zipped.h5ad": (zipped, "a zarr folder that is zipped"),
    "old.zarr": (before_07, "before version 0.7"),
    "old.h5ad": (before_07_in_hdf5, "before version 0.7"),
    "of_two_samples": (
        mtx(
            {
                f"{sample}{name}": names
                for sample in ("GSM1_", "GSM2_")
                for name, names in (("barcodes.tsv", CELLS), ("features.tsv", SYMBOLS), ("matrix.mtx", []))
            }
        ),
        "mtx",
    ),
    "kallisto": (
        mtx(
            {"cells_x_genes.barcodes.txt": CELLS, "cells_x_genes.genes.txt": GENES, "cells_x_genes.mtx": []},
            by_cell=True,
        ),
        "mtx",
    ),
    "bare_mtx": (mtx({"counts.mtx": []}), "mtx"),
    "packed.mtx.gz": (packed_matrix, "a matrix as text"),
    "comma.csv": (table(","), "a table of text"),
    "semicolon.csv": (table(";"), "a table of text"),
    "tab.tsv.gz": (table("\t", packed=True), "a table of text"),
    "named_so.h5ad": (table(","), "a table of text"),
    "packed.h5ad.gz": (packed, "compressed as a whole"),
    "matrix.npz": (lambda path: sparse.save_npz(path, sparse.csc_matrix(COUNTS)), "a matrix of scipy"),
    "array.npy": (lambda path: np.save(path, COUNTS), "an array of numpy"),
    "tables.zarr": (tables_of_spatialdata, "SpatialData: cells"),
}
R_OBJECT = b"X\n\x00\x00\x00\x03\x00\x04\x02\x00"
NAMED = {
    "empty.h5ad": (content(b""), "empty", "download it again"),
    "page.h5ad": (content(b"\n<!DOCTYPE html><html><body>log in</body></html>"), "a web page", "download it again"),
    "refused.h5ad": (content(b"<?xml version='1.0'?><Error><Code>AccessDenied"), "a web page", "download it again"),
    "pointer.h5ad": (content(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "git-lfs", "git lfs pull"),
    "seurat.rds": (content(gzip.compress(R_OBJECT)), "a file of R", r"writeH5AD\(readRDS"),
    "seurat_xz.rds": (
        content(lzma.compress(R_OBJECT)),
        "a file of R",
        r"as.SingleCellExperiment\(readRDS\('[^()]*'\)\), '",
    ),
    "seurat.h5seurat": (groups("assays", "cell.names"), "a file of Seurat", "SeuratDisk::Convert"),
    "archive.tar": (archive, "an archive", "extractall"),
    "cut.h5ad.gz": (content(gzip.compress(b"some bytes" * 99)[:12]), "damaged or incomplete", "download it again"),
    "molecule_info.h5": (groups("barcode_idx", "umi"), "a list of molecules", "filtered_feature_bc_matrix.h5"),
    "image.h5": (groups("image", "mask"), "not of anndata: it holds image, mask", "convert it"),
    "nothing": (folder(), "it holds nothing", "a .zarr folder"),
    "samples": (folder("a.h5ad", "b.h5ad"), "a folder with .h5ad files: a.h5ad, b.h5ad", r"samples/\*.h5ad"),
    "outs": (folder("filtered_feature_bc_matrix.h5"), "Cell Ranger's results", "outs/filtered_feature_bc_matrix.h5"),
    "model.ac": (folder("manifest.json"), "a folder of anncoder's results", "h5ad file with the cells"),
    "newer.zarr": (newer_zarr, "zarr of format 4", "pip install -U zarr"),
}


def refused(path: Path) -> FileError:
    """Return the one error of all that opens a file: checks, fits on disk, and what reads it into memory."""
    said = []
    for use in (check, lambda data: CountAutoencoder().fit(data, max_epochs=1), open_data):
        with pytest.raises(FileError) as error:
            use(path)
        said.append(str(error.value))
    assert said == said[:1] * 3
    return error.value


@pytest.mark.parametrize("name", CONVERTED)
def test_other_formats_are_converted_by_the_line_in_the_remedy(name: str, tmp_path: Path) -> None:
    make, what = CONVERTED[name]
    make(path := tmp_path / name)
    before = {*tmp_path.rglob("*")}
    error = refused(path)
    assert error.code in ("other-format", "old-layout")
    assert pd.Series([error.what]).str.contains(what).all(), error.what
    assert "damaged" not in str(error)
    _, _, line = error.remedy.partition("in Python")
    line, _, then = line.partition(": ")[2].partition("; then give ")
    if line:
        exec(line, {})  # pasted
        new = eval(then) if then else next(iter({*tmp_path.rglob("*.h5ad")} - before))
    else:
        new = eval(error.remedy.removeprefix("give one of them: "))
    found = open_data(Path(new))
    np.testing.assert_array_equal(check(new).raise_if_bad() or found.to_df().to_numpy(), COUNTS)
    if name not in ("matrix.npz", "array.npy", "bare_mtx", "packed.mtx.gz"):
        assert (list(found.obs_names), list(found.var_names)) == (CELLS, GENES)


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_data_is_called_by_its_name(name: str, tmp_path: Path) -> None:
    make, what, remedy = NAMED[name]
    make(path := tmp_path / name)
    error = refused(path)
    assert error.code == "other-format"
    assert pd.Series([error.what]).str.contains(what).all(), error.what
    assert pd.Series([error.remedy]).str.contains(remedy).all(), error.remedy


FILES_3 = {"barcodes.tsv.gz": CELLS, "features.tsv.gz": SYMBOLS, "matrix.mtx.gz": []}
FILES_2 = {"barcodes.tsv": CELLS, "genes.tsv": SYMBOLS, "matrix.mtx": []}
READ = {
    "cell_ranger_3.h5": cell_ranger_3,
    "cell_ranger_2.h5": cell_ranger_2("GRCh38"),
    "cell_ranger_3_mtx": mtx(FILES_3),
    "cell_ranger_2_mtx": mtx(FILES_2),
    "of_one_sample": mtx({f"GSM1_{name}": lines for name, lines in FILES_3.items()}),
    "counts.loom": loom,
}


@pytest.mark.parametrize("name", READ)
def test_files_of_10x_and_loom_are_read_as_any_other(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, anncoder: Callable[..., Result]
) -> None:
    if name.endswith(".loom"):
        pytest.importorskip("loompy")
    READ[name](path := tmp_path / name)
    found = open_data(path)
    np.testing.assert_array_equal(found.to_df().to_numpy(), COUNTS)
    assert (list(found.obs_names), list(found.var_names)) == (CELLS, GENES)
    assert check(path).ok
    assert f"{name} is a" in caplog.text
    assert "read into memory, 12 cells x 5 genes" in caplog.text
    settings: dict[str, Any] = {"max_epochs": 2, "progress": False}
    model = CountAutoencoder(n_latent=2, n_hidden=(4,)).fit(path, **settings)
    same = CountAutoencoder(n_latent=2, n_hidden=(4,)).fit(adata(), **settings)
    np.testing.assert_array_equal(model.embed(path), same.embed(adata()))
    model.save(tmp_path / "model")
    anncoder("embed", tmp_path / "model", path, "-o", tmp_path / "out.h5ad")
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.X.toarray(), COUNTS)
    np.testing.assert_array_equal(written.obsm["X_ae"], same.embed(adata()))


def test_repeated_symbols_of_10x_are_made_unique_and_antibodies_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [line.replace("gene1", "gene0") for line in SYMBOLS[:4]] + ["CD3\tCD3\tAntibody Capture"]
    mtx({**FILES_3, "features.tsv.gz": lines})(path := tmp_path / "folder")
    found = open_data(path)
    assert list(found.var_names) == ["gene0", "gene0-1", "gene2", "gene3"]
    np.testing.assert_array_equal(found.to_df().to_numpy(), COUNTS[:, :4])
    assert "made unique: 1 repeated gene name (gene0)" in caplog.text


def test_a_file_of_10x_that_was_cut_is_damaged(tmp_path: Path) -> None:
    cell_ranger_3(path := tmp_path / "cut.h5")
    with h5py.File(path, "r+") as file:
        del file["matrix/features"]
    assert refused(path).code == "unreadable"
    mtx({**FILES_3, "barcodes.tsv.gz": CELLS[:5]})(folder := tmp_path / "cut")
    assert refused(folder).code == "unreadable"


def test_a_loom_file_without_loompy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loom(path := tmp_path / "cells.loom")
    monkeypatch.setattr("anncoder.data.formats.converted.find_spec", lambda _: None)
    error = refused(path)
    assert (error.code, error.remedy) == ("missing-reader", "pip install loompy")


def test_the_matrix_of_a_folder_is_read_by_its_folder(tmp_path: Path) -> None:
    mtx(FILES_3)(path := tmp_path / "folder")
    assert refused(path / "matrix.mtx.gz").remedy == f"give the folder: {str(path)!r}"
