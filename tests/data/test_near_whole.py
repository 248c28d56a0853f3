"""Counts that are whole but for the noise of rounding are counts, and are read as whole numbers wherever they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse as sp

import anncoder as ac
from anncoder.data.matrix.arrays import near_whole
from anncoder.data.sources import DiskSource, open_source
from anncoder.errors import InputError

QUICK: dict[str, Any] = {"max_epochs": 1, "threads": 1, "progress": False}
FORMS: dict[str, Any] = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}


def float64_noise(x: Any) -> Any:
    return np.expm1(np.log1p(x.astype(np.float64)))


def one_ulp_below(x: Any) -> Any:
    return np.where(x > 0, np.nextafter(x.astype(np.float32), np.float32(0)), x).astype(np.float32)


NOISE: dict[str, Callable[[Any], Any]] = {"float64": float64_noise, "one ulp": one_ulp_below}


def written(adata: anndata.AnnData, place: str, folder: Path) -> Any:
    if place == "memory":
        return adata
    if place == "blocks":
        rows = np.array_split(np.arange(adata.n_obs), 3)
        return ac.IterableSource(lambda: ((adata.X[r], r) for r in rows), adata.var_names, adata.n_obs, adata.obs)
    path = folder / f"in{place}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata's, on zarr versions
        adata.write_zarr(path) if place == ".zarr" else adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["memory", ".h5ad", ".zarr", "blocks"])
def test_every_reader_gives_whole_numbers_and_says_so_once(
    counts: anndata.AnnData, place: str, form: str, noise: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = counts.X.toarray()
    near = NOISE[noise](truth)
    assert (near != truth).sum() > 100
    counts.X = FORMS[form](near)
    source = open_source(written(counts, place, tmp_path), None, counts=True)
    np.testing.assert_array_equal(source.sizes, truth.sum(axis=1))
    for matrix, rows in source.blocks(np.ones(120, dtype=bool), 50):
        np.testing.assert_array_equal(matrix.toarray(), truth[rows])
    assert caplog.text.count("whole but for the noise of rounding") == 1
    assert "taken rounded" in caplog.text
    left = counts.X.toarray() if form != "dense" else counts.X
    np.testing.assert_array_equal(left, near)  # the user's own


@pytest.mark.parametrize("form", FORMS)
def test_larger_files_are_whole_in_pools_too(
    counts: anndata.AnnData, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anncoder.data.sources.POOL_BYTES", 0)  # nothing is kept
    truth = counts.X.toarray()
    counts.X = FORMS[form](float64_noise(truth))
    counts.write_h5ad(tmp_path / "in.h5ad")
    source = open_source(tmp_path / "in.h5ad", None, counts=True)
    assert isinstance(source, DiskSource)
    for matrix, rows in source.blocks(np.ones(120, dtype=bool), 50):
        np.testing.assert_array_equal(matrix.toarray(), truth[rows])
    model = ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(tmp_path / "in.h5ad", **QUICK)
    exact = counts.copy()
    exact.X = truth
    np.testing.assert_array_equal(model.embed(tmp_path / "in.h5ad"), model.embed(exact))


def test_a_fit_to_them_is_that_of_the_counts(counts: anndata.AnnData) -> None:
    near = counts.copy()
    near.X = sp.csr_matrix(float64_noise(counts.X.toarray()))
    models = [ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(data, **QUICK) for data in (counts, near)]
    assert models[0].library_size_ == models[1].library_size_
    np.testing.assert_array_equal(models[0].embed(counts), models[1].embed(near))
    assert (models[0].aligned_matrix(near) != counts.X).nnz == 0  # what is evaluated


def test_the_report_says_so_and_is_not_an_error(counts: anndata.AnnData, tmp_path: Path) -> None:
    counts.X = float64_noise(counts.X.toarray())
    for data in (counts, written(counts, ".h5ad", tmp_path)):
        report = ac.check(data)
        assert (report.ok, report.kind) == (True, "counts")
        (found,) = [problem for problem in report.problems if problem.code == "rounded"]
        assert found.severity == "info"
        assert "of 7,200 values" in found.what
        assert "rounding" in str(report)
    assert not [problem for problem in ac.check(counts, counts=False).problems if problem.code == "rounded"]


def test_noise_around_zero_is_zero_and_no_negative_count(counts: anndata.AnnData) -> None:
    x = counts.X.toarray().astype(np.float64)
    truth = x.copy()
    x[x == 0] = -1e-12
    x[7] = 1e-9
    counts.X = x
    report = ac.check(counts)
    assert report.ok
    assert [problem.where for problem in report.problems if problem.code == "empty-cells"] == ["X, cell 'Cell8'"]
    source = open_source(counts, None, counts=True)
    (block,) = [matrix.toarray() for matrix, _ in source.blocks(np.ones(120, dtype=bool), 200)]
    np.testing.assert_array_equal(block, np.where(np.arange(120)[:, None] == 7, 0, truth))
    assert not np.signbit(block).any()


@pytest.mark.parametrize("value", [2.5, 0.3, 2.999, 1000.01, 600000.3, 0.001])
def test_real_fractions_are_no_counts(counts: anndata.AnnData, value: float) -> None:
    x = float64_noise(counts.X.toarray())
    x[3, 4] = value
    counts.X = x
    report = ac.check(counts)
    assert [problem.code for problem in report.problems if problem.severity == "error"] == ["not-integer"]
    assert "1 of 7,200 values" in report.problems[0].what
    assert "rounded" not in [problem.code for problem in report.problems]
    with pytest.raises(InputError, match="not an integer"):
        ac.CountAutoencoder(n_latent=2).fit(counts, **QUICK)


def test_where_counts_need_not_be_whole_they_are_taken_as_they_are(counts: anndata.AnnData) -> None:
    near = float64_noise(counts.X.toarray())
    counts.X = near
    source = open_source(counts, None, counts=True, integers=False)
    (block,) = [matrix.toarray() for matrix, _ in source.blocks(np.ones(120, dtype=bool), 200)]
    np.testing.assert_array_equal(block, near.astype(np.float32))


def test_what_is_near_a_whole_number() -> None:
    x = np.array([0, 3, 2.9999998, 1e-7, -1e-12, 1e6 + 1e-3, 2.5, 0.3, 2.9999, -1e-3, np.nan, np.inf])
    assert near_whole(x).tolist() == [True] * 6 + [False] * 6


def test_from_the_shell_a_file_and_a_table_are_counts(
    anncoder: Callable[..., Any], counts: anndata.AnnData, tmp_path: Path
) -> None:
    near = float64_noise(counts.X.toarray())
    pd.DataFrame(near.T, counts.var_names, counts.obs_names).to_csv(tmp_path / "near.csv")
    counts.X = near
    counts.write_h5ad(tmp_path / "near.h5ad")
    result = anncoder("dca", tmp_path / "near.csv", tmp_path / "dca", "-e", 1, "-s", "4,2,4")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("whole but for the noise of rounding") == 1
    words = ("--set", "max_epochs=1", "--set", "n_latent=3", "--no-evaluation")
    result = anncoder("train", tmp_path / "near.h5ad", "-o", tmp_path / "out.h5ad", *words)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("whole but for the noise of rounding") == 1
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").X, near)


def test_totals_that_another_tool_stored_as_float32_are_no_other_totals(counts: anndata.AnnData) -> None:
    counts = counts[:, np.ravel(counts.X.sum(axis=0)) > 0].copy()
    totals = np.ravel(counts.X.sum(axis=1))
    for name, values in {"n_counts": totals, "size_factors": totals / np.median(totals)}.items():
        counts.obs[name] = values.astype(np.float32)
    ac.tl.dca(counts, mode="latent", epochs=1, hidden_size=(4, 2, 4), training_kwds={"validation_split": 0.0})
    assert not [name for name in counts.obs if name.endswith("_before_dca")]
