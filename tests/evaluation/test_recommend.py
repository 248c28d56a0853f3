"""Recommendations: every method on the same molecules, PCA where it is enough, resumed, and in a folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import anncoder as ac
from anncoder.errors import ConfigError, FileError, InputError
from anncoder.evaluation.baselines import Cells, GeneMean, Normalized, Principal
from anncoder.evaluation.comparison import heldout_score
from anncoder.evaluation.selection import recommend as module
from anncoder.evaluation.selection.recommend import Recommendation, candidates, recommend

Run = Callable[..., Any]
QUICK: dict[str, Any] = {"max_epochs": 8, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Return 300 cells of three groups x 120 genes; not to be changed."""
    return ac.datasets.simulate(n_obs=300, n_vars=120, n_groups=3, de_prob=0.5, lib_loc=6.5, seed=1)


@pytest.fixture(scope="module")
def found(cells: anndata.AnnData) -> Recommendation:
    return recommend(cells, models=["count"], widths=[4, 8], n_genes=[60, 120], **QUICK)


def test_every_method_is_scored_on_the_same_cells_and_genes(found: Recommendation, cells: anndata.AnnData) -> None:
    table = found.table
    assert len(table) == 2 * 2 + 2 * 3 * 2
    assert set(table["n_genes"]) == {60, 120}
    assert table["heldout_nll"].is_monotonic_increasing
    assert (found.n_obs, found.n_held_out) == (300, 30)
    # of all genes it is what evaluate scores, of other draws: the same to the noise of molecules
    whole = recommend(cells, models=["count"], widths=[4], n_genes=[120], **QUICK)
    assert whole.model is None or list(whole.genes) == list(cells.var_names)
    model = ac.CountAutoencoder(n_latent=4).fit(cells, **QUICK)
    assert whole.table.loc["count-4, 120 genes", "heldout_nll"] == pytest.approx(heldout_score(model, cells), rel=1e-3)
    assert 0 < table["neighbor_consistency"].min() < table["neighbor_consistency"].max() < 1
    assert table["depth_agreement"].isna().all()  # no deep cells


def test_standard_errors_are_of_the_differences_to_the_best_pca(found: Recommendation) -> None:
    of_pca = found.table[found.table["model"] == "pca"]
    assert of_pca["se"].iloc[0] == 0
    assert (found.table["se"].drop(of_pca.index[0]) > 0).all()


def test_pca_is_enough_where_nothing_beats_it(cells: anndata.AnnData, found: Recommendation) -> None:
    noise = cells.copy()
    noise.X = csr_matrix(np.random.default_rng(0).poisson(np.full(cells.shape, 2.0)).astype(np.float32))
    nothing = recommend(noise, models=["count"], widths=[4], n_genes=[120], **QUICK)
    assert nothing.denoising.method.startswith("pca")
    assert "PCA is enough" in nothing.denoising.why
    assert found.denoising.method in found.table.index
    assert found.clusters.method == found.trajectories.method == "no advice"


def test_the_winner_is_fitted_and_its_line_fits_it_again(
    cells: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a PCA that finds nothing: it is the model that must win
    monkeypatch.setattr(module, "Principal", lambda scale, fitted, *_, **__: GeneMean(scale, fitted))
    found = recommend(cells, models=["count"], widths=[4], n_genes=[60], max_epochs=60, threads=1, progress=False)
    assert found.denoising.method == "count-4, 60 genes"
    assert "better than the best PCA" in found.denoising.why
    assert found.model is not None
    assert list(found.model.var_names_) == list(found.genes)
    latent = found.model.embed(cells)
    assert latent.shape == (300, 4)
    adata = cells
    namespace = {"ac": ac, "adata": adata, "found": found}
    line = found.command.replace("seed=0", "seed=0, max_epochs=60, threads=1, progress=False")
    again = eval(line, namespace)
    np.testing.assert_array_equal(again.embed(cells), latent)


def test_a_stopped_run_goes_on(cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, fits = tmp_path / "it.jsonl", []
    fit = module._fit

    def counted(*arguments: Any) -> Any:
        fits.append(arguments[0])
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(*arguments)

    monkeypatch.setattr(module, "_fit", counted)
    words: dict[str, Any] = {"models": ["count"], "widths": [4, 8], "n_genes": [120], "journal": journal, **QUICK}
    with pytest.raises(KeyboardInterrupt):
        recommend(cells, **words)
    assert len(journal.read_text().splitlines()) == 1 + 6 + 1  # what it is of, PCA, one fit
    again = recommend(cells, **words)
    monkeypatch.undo()
    whole = recommend(cells, **{**words, "journal": None})
    scores = ["heldout_nll", "neighbor_consistency"]
    pd.testing.assert_frame_equal(again.table[scores].sort_index(), whole.table[scores].sort_index())
    with pytest.raises(ConfigError, match="another search"):
        recommend(cells, **{**words, "widths": [5]})


def test_scaled_pca_is_scikit_learns(cells: anndata.AnnData) -> None:
    scale = Normalized(float(np.median(cells.X.sum(axis=1).A1)))
    ours = Principal(scale, Cells(cells.X), 5, 0, unit_variance=True)
    counts = cells.X.toarray().astype(np.float64)
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * scale.library_size_)
    scaler = StandardScaler().fit(logs)
    z = scaler.transform(logs)
    z = np.minimum(z, 10)
    theirs = PCA(5, svd_solver="full").fit(z)
    np.testing.assert_allclose(np.abs(ours.latent(Cells(cells.X))), np.abs(theirs.transform(z)), atol=2e-3)
    expected = np.expm1((theirs.inverse_transform(theirs.transform(z)) * scaler.scale_ + scaler.mean_).clip(0))
    np.testing.assert_allclose(np.concatenate(list(ours.expected(Cells(cells.X)))), expected, atol=0.02, rtol=0.01)


def test_it_takes_files_and_leaves_the_data_alone(cells: anndata.AnnData, tmp_path: Path) -> None:
    adata = cells.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = csr_matrix(np.log1p(adata.X.toarray()))
    adata.write_h5ad(tmp_path / "it.h5ad")
    words: dict[str, Any] = {"models": ["count"], "widths": [4], "n_genes": [120], "layer": "counts", **QUICK}
    of_file, of_object = recommend(tmp_path / "it.h5ad", **words), recommend(adata, **words)
    scores = ["heldout_nll", "neighbor_consistency"]
    pd.testing.assert_frame_equal(of_file.table[scores], of_object.table[scores], rtol=1e-5)
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), cells.X.toarray())
    few = recommend(adata, max_cells=150, **words)
    assert few.n_obs == 150


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"models": ["netsne"]}, "no-decoder"),
        ({"models": ["cuont"]}, "unknown-key"),
        ({"models": "count"}, "bad-value"),
        ({"widths": [0]}, "bad-value"),
        ({"widths": []}, "bad-value"),
        ({"n_genes": [1.5]}, "bad-value"),
        ({"n_latent": 3}, "bad-value"),
        ({"valid_fraction": 0}, "bad-value"),
        ({"max_epoch": 3}, "unknown-key"),
    ],
)
def test_wrong_words_are_refused(cells: anndata.AnnData, words: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recommend(cells, **words)
    assert caught.value.code == code


def test_data_that_are_too_few_or_no_counts_are_refused(cells: anndata.AnnData) -> None:
    with pytest.raises(InputError) as few:
        recommend(cells[:30].copy(), **QUICK)
    assert few.value.code == "too-few-cells"
    with pytest.raises(InputError) as wide:
        recommend(cells, widths=[500], **QUICK)
    assert wide.value.code == "latent-too-wide"
    logs = cells.copy()
    logs.X = csr_matrix(np.log1p(logs.X.toarray()))
    with pytest.raises(InputError):
        recommend(logs, **QUICK)


def test_methods_wider_than_the_data_are_left_out() -> None:
    among = candidates(["count", "variational"], [10, 32], [1000, 2000], (300, 40))
    assert {one.n_latent for one in among} == {10, 32}
    assert {one.n_genes for one in among} == {40}
    names = [one.name for one in among]
    assert len(names) == len(set(names))


def test_the_command_writes_a_folder_and_says_what_to_run(
    anncoder: Run, cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Principal", lambda scale, fitted, *_, **__: GeneMean(scale, fitted))
    path, folder = tmp_path / "my cells.h5ad", tmp_path / "out"
    cells.write_h5ad(path)
    words = ["--models", "count", "--widths", "4", "--genes", "60", "--set", "max_epochs=60", "--threads", "1"]
    result = anncoder("recommend", path, "-o", folder, *words)
    assert result.exit_code == 0, result.output
    names = {entry.name for entry in folder.iterdir()}
    assert names == {"genes.txt", "model", "recommendation.csv", "recommendation.json", "recommendation.png"}
    assert (folder / "recommendation.png").stat().st_size > 10_000
    scores = json.loads((folder / "recommendation.json").read_text())
    assert "count-4, 60 genes" in scores["methods"]
    for purpose in ("denoising:", "trajectories:", "clusters: no advice"):
        assert purpose in result.stdout
    assert "anncoder embed" in result.stdout
    latent = ac.load(folder / "model").embed(path)
    assert latent.shape == (300, 4)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("the same fit again: ")]
    words_again = shlex.split(line.partition(": anncoder ")[2].replace("FOLDER", shlex.quote(str(tmp_path / "again"))))
    assert anncoder(*words_again, "--threads", "1").exit_code == 0
    np.testing.assert_array_equal(ac.load(tmp_path / "again" / "model").embed(path), latent)
    again = anncoder("recommend", path, "-o", folder, *words)
    assert again.exit_code == 0, again.output
    (folder / "mine.txt").write_text("x")
    refused = anncoder("recommend", path, "-o", folder, *words)
    assert refused.exit_code == FileError("", "", "").exit_code
    assert "mine.txt" in refused.stderr


def test_the_picture_has_a_row_a_method(found: Recommendation) -> None:
    axes = ac.pl.recommendation(found)
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels == list(found.table.index[::-1])
    import matplotlib.pyplot as plt

    plt.close(axes[0].figure)


def test_an_interrupted_command_goes_on_and_a_refused_one_leaves_nothing(
    anncoder: Run, cells: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "it.h5ad", tmp_path / "out"
    cells.write_h5ad(path)
    words = ["--models", "count", "--widths", "4", "--genes", "60", "--set", "max_epochs=2", "--threads", "1"]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_fit", interrupted)
        stopped = anncoder("recommend", path, "-o", folder, *words)
    assert stopped.exit_code == 130
    assert "goes on after the last whole method" in stopped.stderr
    assert [entry.name for entry in folder.iterdir()] == ["methods.jsonl"]
    assert anncoder("recommend", path, "-o", folder, *words).exit_code == 0
    assert not (folder / "methods.jsonl").exists()

    few = cells[:30].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    refused = anncoder("recommend", tmp_path / "few.h5ad", "-o", tmp_path / "none", *words)
    assert refused.exit_code == 4
    assert "too-few-cells" in refused.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_cells_of_plates_may_share_their_names(cells: anndata.AnnData) -> None:
    twice = cells.copy()
    twice.obs_names = [f"cell{i % 150}" for i in range(300)]
    words: dict[str, Any] = {"models": ["count"], "widths": [4], "n_genes": [60], **QUICK}
    scores = ["heldout_nll", "neighbor_consistency"]
    pd.testing.assert_frame_equal(recommend(twice, **words).table[scores], recommend(cells, **words).table[scores])


def test_an_option_beats_set_and_other_words_in_it_are_refused(
    anncoder: Run, cells: anndata.AnnData, tmp_path: Path
) -> None:
    path = tmp_path / "it.h5ad"
    cells.write_h5ad(path)
    words = ["recommend", path, "--models", "count", "--widths", "4", "--genes", "60"]
    sets = ["--set", "max_epochs=1", "--set", "threads=1", "--set", "seed=3", "--set", "device=cpu"]
    assert anncoder(*words, "-o", tmp_path / "a", *sets).exit_code == 0
    assert anncoder(*words, "-o", tmp_path / "b", "--set", "max_epochs=1", "--seed", "3").exit_code == 0
    tables = [pd.read_csv(tmp_path / name / "recommendation.csv")["heldout_nll"] for name in "ab"]
    np.testing.assert_allclose(*tables)
    for wrong in ("models=[count]", "journal=x", "n_latent=3", "layer=counts"):
        refused = anncoder(*words, "-o", tmp_path / "c", "--set", wrong)
        assert refused.exit_code == 2, refused.output
        assert not (tmp_path / "c").exists()


def test_few_fitted_cells_leave_wide_methods_out(cells: anndata.AnnData) -> None:
    found = recommend(cells, models=["count"], widths=[4], n_genes=[120], valid_fraction=0.85, **QUICK)
    assert set(found.table["n_latent"]) == {4}  # 45 cells have no 50 components
    with pytest.raises(ConfigError, match="not a recommendation"):
        ac.pl.recommendation(found.table)  # type: ignore[arg-type]
