"""What anndata cannot read is said when a file is opened, by all commands alike, and not after the training."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import write_elem
from scipy import sparse

from anncoder import CountAutoencoder, check, tl
from anncoder.data.adata import open_data
from anncoder.data.formats import elements
from anncoder.data.opening import open_stores
from anncoder.data.sources import open_source
from anncoder.errors import FileError
from anncoder.models.base import Autoencoder

pytestmark = pytest.mark.filterwarnings("ignore")  # anndata's and zarr's own, on what comes in their next versions

COUNTS = np.random.default_rng(0).poisson(3, (20, 6)).astype(np.float32) + 1


def make(kind: type = sparse.csr_matrix) -> anndata.AnnData:
    obs = pd.DataFrame({"group": pd.Categorical(["a", "b"] * 10)}, index=[f"cell{i}" for i in range(20)])
    return anndata.AnnData(kind(COUNTS), obs, pd.DataFrame(index=[f"gene{j}" for j in range(6)]))


def written(path: Path, change: Callable[[h5py.File], object]) -> Path:
    make().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def refused(path: Path) -> FileError:
    """Return the one error of all that opens a file; nothing is fitted before it comes."""
    said = []
    out = path.with_name("out.h5ad")
    for use in (check, open_data, CountAutoencoder().fit, lambda data: tl.autoencode(data, output=out)):
        with pytest.raises(FileError) as error:
            use(path)
        said.append(str(error.value))
    assert said == said[:1] * 4
    assert not out.exists()
    assert "damaged" not in said[0]
    return error.value


def slashed(slot: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        adata = make()
        values = {"varm": np.ones((6, 2)), "varp": np.eye(6), "obsp": np.eye(20)}.get(slot, COUNTS)
        if slot == "raw/varm":
            adata.varm["a/b"] = np.ones((6, 2))
            adata.raw = adata.copy()
            del adata.varm["a/b"]
        else:
            getattr(adata, slot).update({"a/b": values, "a/c/d": values, "other": values})
        adata.write_h5ad(path)

    return write


@pytest.mark.parametrize("slot", ["layers", "obsm", "obsp", "varm", "varp", "raw/varm"])
def test_names_with_a_slash(slot: str, tmp_path: Path) -> None:
    slashed(slot)(path := tmp_path / "in.h5ad")
    error = refused(path)
    assert error.code == "unreadable-element"
    assert f"{slot}/a" in error.what
    assert "a name with a slash ('a/b')" in error.what
    exec(error.remedy.partition("in Python: ")[2], {})
    found = open_data(path)
    renamed = found.raw.varm if slot == "raw/varm" else getattr(found, slot)
    assert ({"a_b"} if slot == "raw/varm" else {"a_b", "a_c_d", "other"}) == {*renamed}
    check(path).raise_if_bad()


def other_encoding(file: h5py.File) -> None:
    file["uns"].create_dataset("new", data=1).attrs.update({"encoding-type": "of-tomorrow", "encoding-version": "9"})


def missing_column(file: h5py.File) -> None:
    file["obs"].attrs["column-order"] = np.array(["nowhere"], dtype=h5py.string_dtype())


FAULTS = {
    "named datatype": (lambda file: file.require_group("uns/types").__setitem__("t", np.dtype("f4")), "uns/types/t"),
    "group at the top": (lambda file: file.create_group("extra"), "extra"),
    "rows of others": (lambda file: write_elem(file["obsm"], "e", np.ones((15, 2))), "obsm/e"),
    "genes of others": (lambda file: write_elem(file["layers"], "e", np.ones((20, 5))), "layers/e"),
    "of a newer anndata": (other_encoding, "uns/new"),
    "bytes of another code": (lambda file: file["uns"].create_dataset("e", data=np.array([b"\xe9"])), "uns/e"),
    "a link to nothing": (lambda file: file["uns"].__setitem__("link", h5py.SoftLink("/nowhere")), "uns/link"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_elements_that_anndata_cannot_read(name: str, tmp_path: Path) -> None:
    change, place = FAULTS[name]
    path = written(tmp_path / "in.h5ad", change)
    error = refused(path)
    assert error.code == "unreadable-element"
    assert f"anndata cannot read {place!r}" in error.what
    if name == "of a newer anndata":
        assert "pip install -U anndata" in error.remedy
    exec(error.remedy.partition("in Python: ")[2], {})
    open_data(path)


def test_a_frame_that_names_a_column_it_does_not_have(tmp_path: Path) -> None:
    assert "anndata cannot read 'obs'" in refused(written(tmp_path / "in.h5ad", missing_column)).what


def test_a_large_file_is_not_read_to_see_whether_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "in.h5ad", missing_column)
    read: list[str] = []
    original = elements.read_elem
    monkeypatch.setattr(elements, "read_elem", lambda item: read.append(item.name) or original(item))
    monkeypatch.setattr(elements, "SMALL", 100)
    with h5py.File(path) as file:
        (fault,) = elements.faults(file, path)
        assert (fault.path, fault.why) == ("obs", "it names columns that are not there: nowhere")
    assert "/obs/group" in read
    assert not {"/X", "/obs", "/obs/_index"} & {*read}


class TestWrittenAnyway:
    """What anndata cannot read of the input, but reads of the output."""

    def run(self, path: Path) -> anndata.AnnData:
        model = tl.autoencode(
            path, "undercomplete", output=path.with_name("out.h5ad"), n_latent=2, n_hidden=(), **QUICK
        )
        assert isinstance(model, Autoencoder)
        check(path).raise_if_bad()
        np.testing.assert_array_equal(open_data(path).to_df(), COUNTS)
        return anndata.read_h5ad(path.with_name("out.h5ad"))

    def test_an_anndata_by_another_name(self, tmp_path: Path) -> None:
        path = written(tmp_path / "in.h5ad", lambda file: file.attrs.__setitem__("encoding-type", "AnnData"))
        found = self.run(path)
        np.testing.assert_array_equal(found.to_df(), COUNTS)

    def test_a_structured_array_of_zarr(self, tmp_path: Path) -> None:
        make().write_zarr(path := tmp_path / "in.zarr")
        names = np.zeros(3, dtype=[("g1", "<U6"), ("g2", "<U6")])
        names["g1"] = "gene1"
        uns = zarr.open_group(str(path), mode="a")["uns"]
        uns.create_array("names", shape=names.shape, dtype=names.dtype)[:] = names
        zarr.consolidate_metadata(str(path))
        found = self.run(path)
        assert [*found.uns["names"]["g1"]] == ["gene1"] * 3
        with h5py.File(tmp_path / "out.h5ad") as file:
            assert "raw" not in file  # which stands for nothing in zarr, and which older versions cannot read

    def test_text_attributes_of_a_fixed_length(self, tmp_path: Path) -> None:
        adata = make()
        adata.obs["n"] = pd.array([1, None] * 10, dtype="Int64")
        adata.layers["counts"], adata.obsm["X_user"] = adata.X.copy(), COUNTS[:, :2]
        adata.uns["user"] = {"text": "a", "frame": adata.obs.copy()}
        adata.raw = adata.copy()
        adata.write_h5ad(path := tmp_path / "in.h5ad")
        with h5py.File(path, "r+") as file:
            file.visititems(lambda _, item: fixed(item))
            fixed(file)
            assert isinstance(file["X"].attrs["encoding-type"], bytes)
        assert check(path).slots == dict.fromkeys(("X", "layers['counts']", "raw.X"), "counts")
        found = self.run(path)
        assert list(found.obs.columns) == ["group", "n"]
        assert found.uns["user"]["frame"].equals(adata.uns["user"]["frame"])
        np.testing.assert_array_equal(check(path, layer="counts").n_stored, check(path).n_stored)

    def test_columns_are_found_by_attributes_of_a_fixed_length(self, tmp_path: Path) -> None:
        path = written(tmp_path / "in.h5ad", lambda file: fixed(file["obs"]))
        (store,) = open_stores(path, None) or []
        assert [*store.column("group", what="batch_key")] == ["a", "b"] * 10

    def test_a_raw_that_stands_for_nothing(self, tmp_path: Path) -> None:
        def null(file: h5py.File) -> None:
            empty = file.create_dataset("raw", data=h5py.Empty("f4"))
            empty.attrs.update({"encoding-type": "null", "encoding-version": "0.1.0"})

        path = written(tmp_path / "in.h5ad", null)
        self.run(path)
        with h5py.File(tmp_path / "out.h5ad") as file:
            assert "raw" not in file


def fixed(item: h5py.Group | h5py.Dataset) -> None:
    """Store all text attributes as Julia, R and C do."""
    for name, value in [*item.attrs.items()]:
        if isinstance(value, str):
            item.attrs.create(name, value, dtype=h5py.string_dtype("utf-8", max(len(value), 1)))
        elif isinstance(value, np.ndarray) and value.dtype == object and value.size:
            item.attrs.create(name, np.array([text.encode() for text in value]))


QUICK = {"max_epochs": 1, "threads": 1, "progress": False}


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(
    ("indices", "pointers"), [("u1", "u4"), ("u4", "u8"), ("u8", "i8"), ("i8", ">u8"), (">u2", "u2")]
)
def test_indices_of_any_integer(kind: type, indices: str, pointers: str, tmp_path: Path) -> None:
    make(kind).write_h5ad(path := tmp_path / "in.h5ad")
    with h5py.File(path, "r+") as file:
        for name, dtype in (("indices", indices), ("indptr", pointers)):
            values = file["X"][name][:]
            del file["X"][name]
            file["X"][name] = values.astype(dtype)
    for data in (path, anndata.read_h5ad(path)):
        found = check(data)
        assert found.ok
        assert found.n_stored == COUNTS.size
    for data in (path, anndata.read_h5ad(path), anndata.read_h5ad(path, backed="r")):
        source = open_source(data, None, counts=True)
        ((matrix, _),) = source.blocks(np.ones(20, dtype=bool), 20)
        np.testing.assert_array_equal(matrix.toarray(), COUNTS)


@pytest.mark.parametrize("index", [2**64 - 1, 2**63, 2**32 + 1])
def test_indices_that_lie_outside_of_every_matrix(index: int, tmp_path: Path) -> None:
    make().write_h5ad(path := tmp_path / "in.h5ad")
    with h5py.File(path, "r+") as file:
        values = file["X/indices"][:].astype("u8")
        values[7] = index
        del file["X/indices"]
        file["X/indices"] = values
    found = check(path)
    assert [problem.code for problem in found.problems if problem.severity == "error"] == ["sparse-indices"]


@pytest.mark.parametrize("part", ["X/data", "uns/names", "X", "all"])
def test_codecs_that_zarr_does_not_know(part: str, tmp_path: Path) -> None:
    adata = make(np.array if part == "X" else sparse.csr_matrix)
    adata.uns["names"] = np.arange(3)
    adata.write_zarr(path := tmp_path / "in.zarr")
    for file in path.rglob(".zmetadata" if part == "all" else f"{part}/.zarray"):
        file.write_text(re.sub('"compressor": ({[^}]*}|null)', '"compressor": {"id": "of-tomorrow"}', file.read_text()))
    if part != "all":
        (path / ".zmetadata").unlink()  # in which zarr looks first
    error = refused(path)
    assert "of-tomorrow" in error.what
    assert "pip install -U" in error.remedy


def test_a_file_that_is_being_written_is_not_damaged(tmp_path: Path) -> None:
    make().write_h5ad(path := tmp_path / "in.h5ad")
    code = f"import h5py, time; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        try:
            with pytest.raises(FileError, match="another program has it open") as error:
                check(path)
        finally:
            other.kill()
    assert error.value.code == "unreadable"
