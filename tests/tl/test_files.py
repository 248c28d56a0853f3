"""Files in, files out: everything of the user's is in the output as it was, and memory does not grow with the cells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse as sp

import anncoder as ac
from anncoder import CountAutoencoder, UndercompleteAutoencoder
from anncoder.data import sources
from anncoder.data.opening import paths_of
from anncoder.errors import AnncoderError, ConfigError, FileError, InputError, ResourceError
from anncoder.io import h5ad_copy
from anncoder.io.h5ad_copy import copy_h5ad
from anncoder.io.hdf5 import new_h5
from anncoder.tl import files
from anncoder.tl.files import OutputSpec, write_files
from anncoder.tl.latent_check import LatentCheck

Run = Callable[..., Any]

QUICK = ("--set", "max_epochs=2", "--set", "n_hidden=[8]", "--set", "n_latent=3", "--no-evaluation")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(path: Path) -> dict[str, Any]:
    """Return every attribute and every array of an HDF5 file, as plain values."""
    found: dict[str, Any] = {}

    def look(name: str, item: Any) -> None:
        for key, value in item.attrs.items():
            reference = isinstance(value, h5py.Reference)
            found[f"{name}@{key}"] = item.file[value].name if reference else np.asarray(value).tolist()
        if isinstance(item, h5py.Dataset):
            values = None if item.shape is None else np.asarray(item[()]).tolist()
            found[name] = (str(item.dtype), item.shape, item.chunks, item.compression, values)

    with h5py.File(path) as file:
        look("", file)
        file.visititems(look)
    return found


@pytest.fixture
def everything(counts: anndata.AnnData, tmp_path: Path) -> Path:
    """Return a file with every kind of thing that anndata writes, one that it does not know, and an old category."""
    n, m = counts.shape
    generator = np.random.default_rng(0)
    counts.obs["number"] = generator.random(n)
    counts.obs["flag"] = pd.array([True, None] * (n // 2), dtype="boolean")
    counts.obs["whole"] = pd.array([1, None] * (n // 2), dtype="Int64")
    counts.obs["text"] = [f"cell {i}" for i in range(n)]
    counts.obs["kind"] = pd.Categorical(["a", "b", "c"] * (n // 3), ordered=True)
    counts.layers["dense"] = counts.X.toarray().astype(np.int32)
    counts.layers["by_gene"] = counts.X.tocsc()
    counts.obsm["X_user"] = generator.random((n, 3))
    counts.obsm["frame"] = pd.DataFrame({"u": np.arange(n), "v": counts.obs["kind"]}, index=counts.obs_names)
    counts.obsm["sparse"] = sp.csr_matrix(generator.poisson(0.5, (n, 4)))
    counts.obsp["near"] = sp.csr_matrix(generator.poisson(0.1, (n, n)).astype(np.float32))
    counts.obsp["near_csc"] = counts.obsp["near"].tocsc()
    counts.obsp["dense"] = generator.random((n, n)).astype(np.float32)
    counts.varm["loadings"] = generator.random((m, 2))
    counts.varp["corr"] = sp.csr_matrix(np.eye(m))
    counts.uns["deep"] = {"er": {"array": np.arange(3), "word": "x", "n": 1.5, "empty": {}}}
    counts.uns["frame"] = pd.DataFrame({"a": [1.0, 2.0]}, index=["x", "y"])
    counts.uns["records"] = np.array([(1, 2.0)], dtype=[("i", "i4"), ("f", "f8")])
    counts.raw = counts.copy()
    path = tmp_path / "in.h5ad"
    counts.write_h5ad(path, convert_strings_to_categoricals=False)
    with h5py.File(path, "r+") as file:
        file.create_group("uns/from_elsewhere").attrs["encoding-type"] = "of the year 2050"
        file["uns/from_elsewhere/bits"] = np.frombuffer(b"abc", dtype="V1")
        file["uns/soft"] = h5py.SoftLink("/X")
        # anndata 0.7: codes with a reference to their names
        file["obs/__categories/old"] = np.array(["p", "q"], dtype=h5py.string_dtype())
        file["obs/old"] = generator.integers(0, 2, n).astype(np.int8)
        file["obs/old"].attrs["categories"] = file["obs/__categories/old"].ref
        file["obs"].attrs["column-order"] = np.array([*file["obs"].attrs["column-order"], "old"], dtype=object)
        data = generator.integers(0, 9, (500, 40))
        file.create_dataset("uns/packed", data=data, chunks=(64, 40), compression="gzip", shuffle=True)
        file.create_dataset("uns/sparse_chunks", (10**6,), "f8", chunks=(10**4,))[5 * 10**5] = 1.0
        file["uns/nothing"] = h5py.Empty("f4")
    return path


def kept(n_obs: int, rows: Any) -> Any:
    return None if rows is None else np.isin(np.arange(n_obs), rows)


def copied(path: Path, target: Path, rows: Any = None, **options: Any) -> Path:
    with h5py.File(path) as source, new_h5(target) as (file, disk):
        copy_h5ad(source, file, disk, keep=kept(source["X"].attrs["shape"][0], rows), **options)
    return target


class TestCopy:
    @pytest.mark.parametrize("at_once", [h5ad_copy.AT_ONCE, 256])
    def test_all_of_a_file_is_there_as_it_was(
        self, everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
    ) -> None:
        monkeypatch.setattr(h5ad_copy, "AT_ONCE", at_once)  # bytes: by chunks what else is copied whole
        before, after = contents(everything), contents(copied(everything, tmp_path / "out.h5ad"))
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert after[name] == value, name
        with h5py.File(tmp_path / "out.h5ad") as file:
            assert file.get("uns/soft", getlink=True).path == "/X"
            assert file["uns/sparse_chunks"].id.get_storage_size() == 8 * 10**4  # what was not stored is not now

    def test_what_is_left_out_is_not_there(self, everything: Path, tmp_path: Path) -> None:
        out = copied(everything, tmp_path / "out.h5ad", without={"layers/dense", "uns/deep"})
        with h5py.File(out) as file:
            assert set(file["layers"]) == {"by_gene"}
            assert "deep" not in file["uns"]

    @pytest.mark.parametrize(
        ("array", "at", "value", "said"),
        [
            ("layers/by_gene/indices", 3, 10**6, "outside"),
            ("layers/by_gene/indices", 3, -1, "outside"),
            ("layers/by_gene/indptr", 2, 0, "pointers fall"),
            ("obsp/near/indptr", 0, 1, "pointers fall"),
            ("obsp/near/indptr", -1, 10**6, "index pointer"),
        ],
    )
    def test_a_sparse_matrix_that_lies_is_not_selected_from(
        self, everything: Path, tmp_path: Path, array: str, at: int, value: int, said: str
    ) -> None:
        with h5py.File(everything, "r+") as file:
            file[array][at if at >= 0 else len(file[array]) + at] = value
        with pytest.raises(ValueError, match=said):
            copied(everything, tmp_path / "out.h5ad", np.array([0, 3, 4]))

    @pytest.mark.filterwarnings("ignore")  # anndata's own, about the old category and what comes in its next versions
    @pytest.mark.parametrize("compression", [None, "gzip"])
    def test_the_cells_that_are_left_are_those_anndata_would_leave(
        self, everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
    ) -> None:
        with h5py.File(everything, "r+") as file:
            del file["uns/from_elsewhere"], file["uns/soft"], file["uns/nothing"]
        given = anndata.read_h5ad(everything)
        if compression:
            given.write_h5ad(everything, compression=compression)
        monkeypatch.setattr(h5ad_copy, "AT_ONCE", 1000)
        rows = np.array([0, 3, 4, 5, 77, 118])
        out = anndata.read_h5ad(copied(everything, tmp_path / "out.h5ad", rows))
        with anndata.settings.override(remove_unused_categories=False):
            self.assert_same(out, given[rows].copy())

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("rows", [None, np.array([2, 3, 50, 119])], ids=["all", "some"])
    def test_from_zarr(self, everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
        import zarr

        with h5py.File(everything, "r+") as file:
            del file["uns/from_elsewhere"], file["uns/soft"], file["uns/nothing"], file["uns/records"]
        given = anndata.read_h5ad(everything)
        given.write_zarr(tmp_path / "in.zarr")
        monkeypatch.setattr(h5ad_copy, "AT_ONCE", 4000)
        with new_h5(tmp_path / "out.h5ad") as (file, disk):
            source = zarr.open_group(str(tmp_path / "in.zarr"), mode="r")
            copy_h5ad(source, file, disk, keep=kept(given.n_obs, rows))
        out = anndata.read_h5ad(tmp_path / "out.h5ad")
        with anndata.settings.override(remove_unused_categories=False):
            self.assert_same(out, given if rows is None else given[rows].copy())

    def assert_same(self, left: anndata.AnnData, right: anndata.AnnData) -> None:
        pd.testing.assert_frame_equal(left.obs, right.obs)
        pd.testing.assert_frame_equal(left.var, right.var)
        pairs = [(left.X, right.X), (left.raw.X, right.raw.X)]
        for group in ("layers", "obsm", "obsp", "varm", "varp"):
            here, there = dict(getattr(left, group)), dict(getattr(right, group))
            assert here.keys() == there.keys()
            pairs += [(here[name], there[name]) for name in here]
        for here, there in pairs:
            assert type(here) is type(there)
            if isinstance(here, pd.DataFrame):
                pd.testing.assert_frame_equal(here, there)
            else:
                assert here.dtype == there.dtype
                np.testing.assert_array_equal(*(v.toarray() if sp.issparse(v) else v for v in (here, there)))
        assert left.uns.keys() == right.uns.keys()
        assert left.uns["deep"]["er"]["word"] == "x"


class TestTl:
    """The functions of scanpy's manners give the same of a file as of an AnnData."""

    def test_of_a_file_and_of_memory(self, counts: anndata.AnnData, counts_file: Path, tmp_path: Path) -> None:
        counts = anndata.read_h5ad(counts_file)
        model = ac.tl.autoencode(counts, n_latent=3, max_epochs=2, denoise=True, progress=False)
        again = ac.tl.autoencode(
            counts_file, n_latent=3, max_epochs=2, denoise=True, progress=False, output=tmp_path / "a.h5ad"
        )
        ac.tl.embed(str(counts_file), model, key_added="e", output=tmp_path / "e.h5ad")
        ac.tl.denoise(counts_file, model, scale="normalized", key_added="d", output=tmp_path / "d.h5ad")
        a, e, d = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in "aed")
        np.testing.assert_array_equal(a.obsm["X_ae"], counts.obsm["X_ae"])
        np.testing.assert_array_equal(a.layers["ae_denoised"], counts.layers["ae_denoised"])
        np.testing.assert_array_equal(a.var["ae_theta"], counts.var["ae_theta"])
        recorded = [json.loads(x.uns["ae"]["params_json"]) for x in (a, counts)]
        assert recorded[0] == recorded[1]
        assert list(a.uns["ae"]["valid_obs"]) == list(counts.uns["ae"]["valid_obs"])
        np.testing.assert_array_equal(e.obsm["X_e"], model.embed(counts))
        np.testing.assert_array_equal(d.layers["d_denoised"], model.denoise(counts, scale="normalized"))
        assert "X_d" not in d.obsm
        np.testing.assert_array_equal(again.embed(counts), model.embed(counts))

    def test_what_the_next_model_writes_takes_the_place_of_the_last(self, counts_file: Path, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"n_latent": 3, "max_epochs": 1, "progress": False}
        one, two, three = (tmp_path / f"{name}.h5ad" for name in ("one", "two", "three"))
        first = ac.tl.autoencode(counts_file, denoise=True, output=one, **settings)
        ac.tl.autoencode(one, "undercomplete", output=two, **settings)  # by another model
        found = anndata.read_h5ad(two)
        assert "ae_denoised" not in found.layers
        assert "ae_theta" not in found.var
        assert list(found.var.columns) == list(anndata.read_h5ad(counts_file).var.columns)
        ac.tl.embed(one, first, output=three)  # the same model: the layer stays
        assert "ae_denoised" in anndata.read_h5ad(three).layers
        assert sorted(anndata.read_h5ad(three).var.columns) == sorted(anndata.read_h5ad(one).var.columns)

    def test_outputs_that_are_refused(self, counts: anndata.AnnData, counts_file: Path, tmp_path: Path) -> None:
        model = CountAutoencoder(n_latent=3).fit(counts, max_epochs=1, progress=False)
        before = counts_file.read_bytes()
        with pytest.raises(ConfigError, match="none is named") as error:
            ac.tl.embed(counts_file, model)
        assert error.value.code == "no-output"
        with pytest.raises(ConfigError, match="output is the input"):
            ac.tl.denoise(counts_file, model, output=counts_file)
        with pytest.raises(ConfigError, match="output is for files"):
            ac.tl.embed(counts, model, output=tmp_path / "o.h5ad")
        assert counts_file.read_bytes() == before
        assert names(tmp_path) == ["in.h5ad"]

    def test_a_latent_that_says_nothing_is_noticed_block_by_block(self, caplog: pytest.LogCaptureFixture) -> None:
        latent = np.random.default_rng(0).normal(1000, 1, (300, 3)).astype(np.float32)
        latent[:, 1] = 1000.0
        look = LatentCheck("ae")
        for block in np.array_split(latent, 7):
            look.add(block)
        look.close()
        assert "1 of 3 latent units" in caplog.text
        latent[[5, 290], 2] = np.nan
        look = LatentCheck("ae")
        for block in np.array_split(latent, 7):
            look.add(block)
        with pytest.raises(AnncoderError, match="2 cells") as error:
            look.close()
        assert error.value.code == "latent-not-finite"


@pytest.fixture
def two(counts: anndata.AnnData, tmp_path: Path) -> list[Path]:
    """Return two files of one data set, 50 and 70 cells, the second with its genes in reverse."""
    (tmp_path / "in").mkdir()
    counts[:50].copy().write_h5ad(tmp_path / "in" / "a.h5ad")
    counts[50:, ::-1].copy().write_h5ad(tmp_path / "in" / "b.h5ad")
    return [tmp_path / "in" / "a.h5ad", tmp_path / "in" / "b.h5ad"]


class TestSeveralFiles:
    def test_one_without_cells_is_refused_before_the_training(
        self, anncoder: Run, two: list[Path], counts: anndata.AnnData, tmp_path: Path
    ) -> None:
        fitted = CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, progress=False)
        counts[:0].copy().write_h5ad(two[0].parent / "empty.h5ad")
        files, output = str(two[0].parent / "*.h5ad"), tmp_path / "out"
        for call in (
            lambda: ac.tl.embed(files, fitted, output=output),
            lambda: ac.tl.denoise(files, fitted, output=output),
            lambda: ac.tl.autoencode(files, "count", output=output, max_epochs=10**6, progress=False),
        ):
            with pytest.raises(InputError, match=r"no cells") as error:
                call()
            assert error.value.code == "too-few-cells"
            assert error.value.where == str(two[0].parent / "empty.h5ad")
        result = anncoder("train", *two, two[0].parent / "empty.h5ad", "-o", output, *QUICK)
        assert result.exit_code == 4, result.output
        assert "empty.h5ad" in result.stderr
        assert names(tmp_path) == ["in"]

    def test_train_on_all_and_write_each(
        self, anncoder: Run, two: list[Path], counts: anndata.AnnData, tmp_path: Path
    ) -> None:
        result = anncoder("train", *two, "-o", tmp_path / "out", "--denoise", *QUICK)
        assert result.exit_code == 0, result.output
        assert names(tmp_path) == ["in", "out", "out.anncoder"]
        assert names(tmp_path / "out") == ["a.h5ad", "b.h5ad"]
        model = ac.load(tmp_path / "out.anncoder" / "model")
        assert json.loads((tmp_path / "out.anncoder" / "metrics.json").read_text())["n_obs"] == 120
        for path in two:
            given, written = anndata.read_h5ad(path), anndata.read_h5ad(tmp_path / "out" / path.name)
            np.testing.assert_array_equal(written.obsm["X_ae"], model.embed(given))
            expected = model.denoise(given, genes=list(given.var_names))
            np.testing.assert_array_equal(written.layers["ae_denoised"], expected)
            pd.testing.assert_series_equal(
                written.var["ae_theta"].astype(np.float32),
                pd.Series(model.of_genes()["theta"], index=model.var_names_).reindex(given.var_names),
                check_names=False,
            )

    def test_a_quoted_glob_and_the_other_commands(
        self, anncoder: Run, two: list[Path], model_folder: Path, tmp_path: Path
    ) -> None:
        glob = str(two[0].with_name("*.h5ad"))
        for command in ("embed", "denoise"):
            result = anncoder(command, model_folder, glob, "-o", tmp_path / command)
            assert result.exit_code == 0, result.output
            assert names(tmp_path / command) == ["a.h5ad", "b.h5ad"]
        result = anncoder("check", *two, "--json")
        assert [entry["n_obs"] for entry in json.loads(result.stdout)] == [50, 70]
        result = anncoder("evaluate", model_folder, glob, "--labels", "group", "-o", tmp_path / "m.json")
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "m.json").read_text())["n_obs"] == 120

    def test_outputs_of_several(self, anncoder: Run, two: list[Path], model_folder: Path, tmp_path: Path) -> None:
        before = [path.read_bytes() for path in two]
        words = ("embed", model_folder, *two, "-o")
        assert anncoder(*words, tmp_path / "out.h5ad").exit_code == 2
        refused = anncoder(*words, tmp_path / "in")
        assert (refused.exit_code, "the output is the input" in refused.stderr) == (2, True)
        (tmp_path / "again").mkdir()
        shutil.copy(two[0], tmp_path / "again" / "a.h5ad")
        refused = anncoder("embed", model_folder, two[0], tmp_path / "again" / "a.h5ad", "-o", tmp_path / "out")
        assert (refused.exit_code, "2 files have the name a.h5ad" in refused.stderr) == (2, True)
        (tmp_path / "same.h5ad").symlink_to(two[0])
        refused = anncoder("train", two[0], tmp_path / "same.h5ad", "-o", tmp_path / "out")
        assert (refused.exit_code, "is the same file as" in refused.stderr) == (2, True), refused.output
        assert anncoder("check", two[0], tmp_path / "same.h5ad").exit_code == 0
        (two[0].parent / "link.h5ad").symlink_to(two[0])  # of a glob a link is no other file
        assert paths_of(str(two[0].parent / "*.h5ad")) == two
        (two[0].parent / "link.h5ad").unlink()
        assert [path.read_bytes() for path in two] == before
        assert anncoder(*words, tmp_path / "in", "--in-place").exit_code == 0
        assert all("X_ae" in anndata.read_h5ad(path).obsm for path in two)
        (tmp_path / "other").mkdir()
        # not over another of the inputs, even in place
        two[0].rename(tmp_path / "other" / "b.h5ad")
        words = ("embed", model_folder, tmp_path / "other" / "b.h5ad", two[1], "--in-place", "-o", tmp_path / "in")
        assert anncoder(*words).exit_code == 2

    def test_an_output_folder_with_a_manifest_of_the_users_own(
        self, anncoder: Run, two: list[Path], model_folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "manifest.json").write_text("{}")
        assert anncoder("embed", model_folder, *two, "-o", tmp_path / "out").exit_code == 0

    def test_cells_that_are_in_two_files(
        self, anncoder: Run, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where a glob also matches an output; the same barcodes in two samples are another matter."""
        words = ("-o", tmp_path / "out", "--set", "max_epochs=1", "--set", "n_latent=2", "--no-evaluation")
        said = "have the name and the number of molecules of a cell of another file"
        assert said not in anncoder("train", *two, *words).stderr
        sample = anndata.read_h5ad(two[1])
        sample.obs_names = [*anndata.read_h5ad(two[0]).obs_names, *sample.obs_names][: sample.n_obs]
        sample.write_h5ad(tmp_path / "sample.h5ad")
        assert said not in anncoder("train", two[0], tmp_path / "sample.h5ad", *words).stderr
        with monkeypatch.context() as chance:  # of names that are numbers some meet by chance
            chance.setattr(sources, "n_repeated", lambda *_: 0.01 * min(anndata.read_h5ad(p).n_obs for p in two))
            assert said not in anncoder("train", *two, *words).stderr
        shutil.copy(two[0], tmp_path / "c.h5ad")
        result = anncoder("train", *two, tmp_path / "c.h5ad", *words)
        assert (result.exit_code, f"50 cells {said}" in result.stderr) == (0, True), result.output

    def test_a_glob_that_matches_one(self, anncoder: Run, two: list[Path], model_folder: Path, tmp_path: Path) -> None:
        two[1].unlink()
        glob = str(two[0].with_name("*.h5ad"))
        (tmp_path / "there.csv").mkdir()
        for name in ("new", "there.csv", "new.v2"):
            result = anncoder("embed", model_folder, glob, "-o", f"{tmp_path}/{name}/")
            assert result.exit_code == 0, result.output
            assert names(tmp_path / name) == ["a.h5ad"]
        assert anncoder("train", glob, "-o", tmp_path / "new", *QUICK).exit_code == 0
        assert (tmp_path / "new.anncoder" / "model").is_dir()
        refused = anncoder("embed", model_folder, glob, "-o", tmp_path / "in")
        assert (refused.exit_code, "the output is the input" in refused.stderr) == (2, True)
        (tmp_path / "taken").write_text("")
        refused = anncoder("embed", model_folder, glob, "-o", tmp_path / "taken")
        assert (refused.exit_code, "of 1 file is no folder" in refused.stderr) == (2, True)

    def test_two_folders_that_differ_after_a_dot_have_two_runs(
        self, anncoder: Run, two: list[Path], tmp_path: Path
    ) -> None:
        for name in ("out.v1", "out.v2"):
            assert anncoder("train", *two, "-o", tmp_path / name, *QUICK).exit_code == 0
        assert names(tmp_path) == ["in", "out.v1", "out.v1.anncoder", "out.v2", "out.v2.anncoder"]

    @pytest.mark.parametrize("name", [".", "./", "below/.."])
    def test_the_folder_one_stands_in(
        self, anncoder: Run, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (tmp_path / "here" / "below").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here")
        result = anncoder("train", *two, "-o", name, *QUICK)
        assert result.exit_code == 0, result.output
        assert names(tmp_path) == ["here", "here.anncoder", "in"]
        assert names(tmp_path / "here") == ["a.h5ad", "b.h5ad", "below"]

    def test_one_with_other_genes(self, anncoder: Run, two: list[Path], tmp_path: Path) -> None:
        adata = anndata.read_h5ad(two[1])[:, :40].copy()
        adata.write_h5ad(two[1])
        result = anncoder("train", *two, "-o", tmp_path / "out", *QUICK)
        assert result.exit_code == 4
        assert "[other-genes]" in result.stderr
        assert names(tmp_path) == ["in"]

    @pytest.mark.parametrize("command", ["embed", "denoise"])
    def test_what_is_wrong_with_one_names_the_file_and_the_option(
        self, anncoder: Run, two: list[Path], model_folder: Path, tmp_path: Path, command: str
    ) -> None:
        anndata.read_h5ad(two[1])[:, :57].copy().write_h5ad(two[1])
        words = (command, model_folder, *two, "-o", tmp_path / "out")
        refused = anncoder(*words)
        assert refused.exit_code == 4
        assert f"where:  {two[1]}: var_names\n" in refused.stderr
        assert "or allow_missing=0.05 (--allow-missing 0.05) to take these as zero" in refused.stderr
        assert anncoder(*words, "--allow-missing", "0.05").exit_code == 0

    def test_empty_cells_are_left_out_of_each(self, anncoder: Run, two: list[Path], tmp_path: Path) -> None:
        for path, empty in zip(two, ([3, 4], [0]), strict=True):
            adata = anndata.read_h5ad(path)
            dense = adata.X.toarray()
            dense[empty] = 0
            adata.X = sp.csr_matrix(dense)
            adata.write_h5ad(path)
        result = anncoder("train", *two, "-o", tmp_path / "out", "--drop-empty-cells", *QUICK)
        assert result.exit_code == 0, result.output
        assert "left out 2 of 50 cells of a.h5ad" in result.stderr
        sizes = [anndata.read_h5ad(tmp_path / "out" / path.name).n_obs for path in two]
        assert sizes == [48, 69]


class TestLarge:
    """What is larger than a pool is never in memory as a whole."""

    @pytest.fixture(autouse=True)
    def small_pools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "POOL_BYTES", 1000)

    def test_results_are_the_same(self, counts: anndata.AnnData, counts_file: Path, tmp_path: Path) -> None:
        model = UndercompleteAutoencoder(n_latent=3).fit(counts, max_epochs=1, progress=False)
        ac.tl.embed(counts_file, model, output=tmp_path / "e.h5ad")
        ac.tl.denoise(counts_file, model, output=tmp_path / "d.h5ad")
        np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "e.h5ad").obsm["X_ae"], model.embed(counts))
        denoised = anndata.read_h5ad(tmp_path / "d.h5ad").layers["ae_denoised"]
        np.testing.assert_array_equal(denoised, model.denoise(counts))

    def test_a_sample_is_evaluated(self, counts: anndata.AnnData, counts_file: Path) -> None:
        model = CountAutoencoder(n_latent=3).fit(counts, max_epochs=1, progress=False)
        of_memory = ac.evaluate(model, counts, labels="group", max_cells=60)
        of_file = ac.evaluate(model, counts_file, labels="group", max_cells=60)
        pd.testing.assert_frame_equal(of_file.table, of_memory.table)
        assert of_file.n_obs == 60

    def test_the_command(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        result = anncoder("train", counts_file, "-o", tmp_path / "out.h5ad", "--denoise", *QUICK[:-1])
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "out.anncoder" / "metrics.json").read_text())["evaluation"]["n_obs"] == 120


class TestDamage:
    @pytest.mark.parametrize("while_it_is", [(files, "copy_h5ad"), (files._SlotWriter, "write_latent")])
    def test_a_file_that_changes_while_it_is_copied_or_read(
        self,
        fitted: CountAutoencoder,
        counts_file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        while_it_is: tuple[Any, str],
    ) -> None:
        original = getattr(*while_it_is)

        def changed(*given: Any, **named: Any) -> None:
            original(*given, **named)
            os.utime(counts_file, (1, 1))

        monkeypatch.setattr(*while_it_is, changed)
        with pytest.raises(FileError) as error:
            ac.tl.embed(counts_file, fitted, output=tmp_path / "out.h5ad")
        assert error.value.code == "file-changed"
        assert names(tmp_path) == ["in.h5ad"]

    def test_damage_in_what_is_only_copied(
        self, fitted: CountAutoencoder, counts: anndata.AnnData, tmp_path: Path
    ) -> None:
        counts.uns["big"] = np.random.default_rng(0).random(2_000_000)
        path = tmp_path / "in.h5ad"
        counts.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            data = file["uns/big"][:]
            del file["uns/big"]
            file.create_dataset("uns/big", data=data, chunks=(10_000,), fletcher32=True)
            at = file["uns/big"].id.get_chunk_info(3).byte_offset
        with path.open("r+b") as raw:
            raw.seek(at + 100)
            raw.write(b"\xff" * 8)
        ac.tl.embed(path, fitted, output=tmp_path / "out.h5ad")  # copied as it is, damage and all
        with h5py.File(tmp_path / "out.h5ad") as file:
            np.testing.assert_array_equal(file["uns/big"][:30_000], data[:30_000])
            with pytest.raises(OSError, match="Can't"):
                file["uns/big"][30_000:40_000]

    @pytest.mark.parametrize("slot", ["obsm/X_ae", "layers/ae_denoised", "layers/counts", "var/ae_theta"])
    def test_what_was_not_written_as_it_should_is_noticed(
        self, fitted: CountAutoencoder, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slot: str
    ) -> None:
        verify = files._verify

        def spoilt(path: Path, *rest: Any) -> None:
            with h5py.File(path, "r+") as file:
                dataset = file[slot] if isinstance(file[slot], h5py.Dataset) else file[slot]["data"]
                dataset[7] = dataset[7] + 1
            verify(path, *rest)

        monkeypatch.setattr(files, "_verify", spoilt)
        with pytest.raises(ResourceError, match="did not survive writing"):
            write_files(fitted, counts_file, tmp_path / "out.h5ad", OutputSpec("ae", scale="counts"), layer="counts")
        assert names(tmp_path) == ["in.h5ad"]

    def test_a_disk_without_room_is_refused_before_training(
        self, anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from anncoder.tl import files

        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        result = anncoder("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        assert (result.exit_code, "[disk-too-small]" in result.stderr) == (6, True)
        assert names(tmp_path) == ["in.h5ad"]

    def test_a_disk_that_fills_while_blocks_are_written(
        self, model_folder: Path, counts_file: Path, tmp_path: Path
    ) -> None:
        """The limit falls on the copy, on the layer, and on its last bytes."""
        (tmp_path / "out.h5ad").write_text("old")
        code = (
            "import resource, sys, numpy as np\n"
            "from pathlib import Path\n"
            "import anncoder as ac\n"
            "from anncoder.errors import ResourceError\n"
            "model, path = ac.load(sys.argv[1]), Path(sys.argv[2])\n"
            "ac.tl.denoise(path, model, output='whole.h5ad')\n"
            "size = Path('whole.h5ad').stat().st_size\n"
            "limits = [1000, path.stat().st_size, size - 20_000, size - 1]\n"
            "for limit in limits:\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
            "    try:\n"
            "        ac.tl.denoise(path, model, output='out.h5ad')\n"
            "    except ResourceError as error:\n"
            "        print(error.code)\n"
        )
        command = [sys.executable, "-c", code, str(model_folder), str(counts_file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, env=environment
        )
        assert (done.returncode, done.stdout.split()) == (0, ["cannot-write"] * 4), done.stderr[-2000:]
        assert (tmp_path / "out.h5ad").read_text() == "old"
        assert names(tmp_path) == ["in.h5ad", "out.h5ad", "whole.h5ad"]

    def test_two_runs_on_one_output(self, anncoder: Run, counts_file: Path, model_folder: Path, tmp_path: Path) -> None:
        code = (
            "import sys\nfrom anncoder.io.atomic import locked\n"
            "with locked(sys.argv[1]), locked(sys.argv[2]):\n    print('held', flush=True)\n    sys.stdin.read()\n"
        )
        held = [str(tmp_path / name) for name in ("out.h5ad", "out.anncoder")]
        with subprocess.Popen(
            [sys.executable, "-c", code, *held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            for words in (("train", counts_file, *QUICK), ("embed", model_folder, counts_file)):
                refused = anncoder(*words, "-o", tmp_path / "out.h5ad")
                assert (refused.exit_code, "[output-in-use]" in refused.stderr) == (6, True), refused.output
            other.kill()
        # the locks died with their process, and the next one sweeps what is left of them
        assert anncoder("embed", model_folder, counts_file, "-o", tmp_path / "out.h5ad").exit_code == 0
        assert names(tmp_path) == ["in.h5ad", "out.h5ad"]


PEAK = """
import shutil
import sys
from pathlib import Path
import anncoder as ac
from anncoder.data import sources
from benchmarks.speed.machine import peak_memory
from anncoder.data.loaders import disk
sources.POOL_BYTES = disk.POOL_BYTES = 2**21
disk.POOL = 1024
path = Path(sys.argv[1])
settings = dict(n_latent=4, n_hidden=(16,), max_epochs=1, progress=False, denoise=True, threads=1)
ac.tl.autoencode(sys.argv[2], output=path.with_suffix(".out.h5ad"), **settings)  # kernels are compiled, torch is warm
before = peak_memory()
ac.tl.autoencode(path, output=path.with_suffix(".out.h5ad"), **settings)
print(peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say how much there was")
@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_cells(tmp_path: Path) -> None:
    """From 9,000 cells to 27,000 x 2,000 genes the dense layer grows by 144 MB; the peak, measured, by 27 to 29."""
    for n_obs in (9000, 27_000):
        ac.datasets.simulate_to_file(tmp_path / f"{n_obs}.h5ad", n_obs=n_obs, n_vars=2000, lib_loc=4.0)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "27000.h5ad"), str(tmp_path / "9000.h5ad")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 60


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_text_with_a_mask_as_newer_versions_of_anndata_write_it(
    ending: str, anncoder: Any, counts: anndata.AnnData, tmp_path: Path
) -> None:
    """Also where a cell is left out; anndata 0.12 reads it, and would not write it."""
    dense = counts.X.toarray()
    dense[1] = 0
    cells = anndata.AnnData(sp.csr_matrix(dense), obs=pd.DataFrame(index=counts.obs_names))
    cells.obs["note"] = pd.array(["x", None] * (cells.n_obs // 2), dtype="string")
    with warnings.catch_warnings(action="ignore"), anndata.settings.override(allow_write_nullable_strings=True):
        getattr(cells, f"write_{ending}")(tmp_path / f"it.{ending}")
    words = ("--set", "max_epochs=1", "--set", "n_latent=2", "--no-evaluation", "--drop-empty-cells")
    result = anncoder("train", tmp_path / f"it.{ending}", "-o", tmp_path / "out.h5ad", *words)
    assert result.exit_code == 0, result.output
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    kept = np.arange(cells.n_obs) != 1
    assert list(found.obs_names) == list(cells.obs_names[kept])
    assert list(found.obs["note"].isna()) == list(cells.obs["note"].isna()[kept])
    assert list(found.obs["note"].dropna()) == list(cells.obs["note"][kept].dropna())
