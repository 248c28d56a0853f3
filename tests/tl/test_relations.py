"""``tl.gene_relations`` and ``tl.drivers``: results in an AnnData, what they refuse, and real cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import ttest_ind

import anncoder as ac
from anncoder.dynamics.genes.dremi import Array, dremi
from anncoder.dynamics.genes.relations import neighbor_average
from anncoder.errors import AnncoderError, ConfigError, InputError

QUICK: dict[str, Any] = {"n_shuffles": 5, "progress": False}
COLUMNS = ["score", "correlation", "null_mean", "null_sd", "z", "p", "q", "reason"]


@pytest.fixture(scope="module")
def denoised(simulated: anndata.AnnData) -> anndata.AnnData:
    """Return cells with the results of a model; not to be changed."""
    adata = simulated.copy()
    ac.tl.autoencode(adata, n_latent=3, n_hidden=(8,), max_epochs=3, denoise=True, progress=False)
    return adata


@pytest.fixture
def cells(denoised: anndata.AnnData) -> anndata.AnnData:
    """Return ten genes of them, to do with as one likes; the library sizes are those of the ten."""
    adata = denoised[:, :10].copy()
    adata.var_names = [f"gene{i}" for i in range(10)]
    return adata


@pytest.fixture
def series() -> anndata.AnnData:
    """Return 80 cells at each of times 1 and 2 and 12 smooth genes; gene 1 follows gene 0, one time later."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((160, 12))
    values[80:, 1] = 2 * np.sin(3 * values[:80, 0]) + 0.3 * values[80:, 1]
    adata = anndata.AnnData(values, obs=pd.DataFrame({"day": np.repeat([1.0, 2.0], 80)}, index=map(str, range(160))))
    adata.obs["label"] = np.tile(["a", "b"], 80)
    adata.layers["smooth"] = values
    adata.obsp["transport"] = csr_matrix((np.ones(80), (np.arange(80), np.arange(80, 160))), shape=(160, 160))
    return adata


LAGGED: dict[str, Any] = {**QUICK, "method": "lagged", "layer": "smooth", "time_key": "day"}


def logs_of(adata: anndata.AnnData, matrix: Any) -> Array:
    sizes = np.asarray(adata.X.sum(axis=1)).ravel()
    matrix = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    return np.log1p(matrix * (np.median(sizes) / sizes)[:, None].astype(float))


def test_scores_are_those_of_logs_at_the_median_library_size_and_of_averages(cells: anndata.AnnData) -> None:
    before = cells.copy()
    table = ac.tl.gene_relations(cells, "gene2", **QUICK)
    assert sorted(table.index) == sorted(set(cells.var_names) - {"gene2"})
    assert [name for name in table if not name.startswith("smoothed")] == COLUMNS
    assert table["score"].is_monotonic_decreasing
    logs = logs_of(cells, cells.layers["ae_denoised"])
    averages = neighbor_average(cells.obsm["X_ae"].astype(float), 15) @ logs_of(cells, cells.X)
    for gene in table.index[:4]:
        i = cells.var_names.get_loc(gene)
        assert table.loc[gene, "score"] == pytest.approx(dremi(logs[:, 2], logs[:, i]), rel=1e-6)
        assert table.loc[gene, "smoothed"] == pytest.approx(dremi(averages[:, 2], averages[:, i]), rel=1e-6)
    assert (before.X != cells.X).nnz == 0
    np.testing.assert_array_equal(before.layers["ae_denoised"], cells.layers["ae_denoised"])
    assert set(cells.uns) - set(before.uns) == {"relations"}


def test_the_result_survives_a_file(cells: anndata.AnnData, tmp_path: Path) -> None:
    table = ac.tl.gene_relations(cells, "gene2", **QUICK)
    ranked = ac.tl.drivers(cells, (cells.obs["group"] == cells.obs["group"].iloc[0]).astype(float))
    cells.write_h5ad(tmp_path / "it.h5ad")
    read = anndata.read_h5ad(tmp_path / "it.h5ad")
    pd.testing.assert_frame_equal(read.uns["relations"]["table"], table, check_dtype=False, check_index_type=False)
    pd.testing.assert_frame_equal(read.uns["drivers"]["table"], ranked, check_dtype=False, check_index_type=False)
    assert json.loads(read.uns["relations"]["params_json"])["source"] == "gene2"


def test_a_target_has_one_score_whatever_else_is_asked_and_with_any_threads(cells: anndata.AnnData) -> None:
    whole = ac.tl.gene_relations(cells, "gene2", threads=3, **QUICK)
    one = ac.tl.gene_relations(cells, "gene2", "gene7", threads=1, **QUICK)
    same = ["score", "null_mean", "null_sd", "z", "smoothed", "smoothed_null_mean", "smoothed_null_sd"]
    np.testing.assert_array_equal(one.loc["gene7", same].to_numpy(float), whole.loc["gene7", same].to_numpy(float))
    other = ac.tl.gene_relations(cells, "gene2", "gene7", **{**QUICK, "seed": 1})
    assert other.loc["gene7", "score"] == one.loc["gene7", "score"]
    assert other.loc["gene7", "null_mean"] != one.loc["gene7", "null_mean"]


def test_blocks_of_genes_are_the_same_as_all_at_once(cells: anndata.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ac.tl.gene_relations(cells, "gene2", **QUICK)
    monkeypatch.setattr("anncoder.tl.time_series.relations.GENES", 4)
    pd.testing.assert_frame_equal(ac.tl.gene_relations(cells, "gene2", **QUICK), whole)


def test_denoised_counts_at_the_median_library_size_are_not_scaled_again(cells: anndata.AnnData) -> None:
    cells.uns["ae"] = {**cells.uns["ae"], "denoised_scale": "normalized"}
    table = ac.tl.gene_relations(cells, "gene2", "gene3", n_neighbors=None, **QUICK)
    logs = np.log1p(cells.layers["ae_denoised"].astype(float))
    assert table.loc["gene3", "score"] == pytest.approx(dremi(logs[:, 2], logs[:, 3]), rel=1e-9)
    assert list(table) == COLUMNS


def test_constant_targets_have_reasons(cells: anndata.AnnData) -> None:
    cells.layers["ae_denoised"][:, 4] = 0
    cells.X = csr_matrix(cells.X.toarray() * (np.arange(10) != 5))
    table = ac.tl.gene_relations(cells, "gene2", **QUICK)
    assert table.loc["gene4", "reason"] == "constant"
    assert table.loc["gene4", COLUMNS[:-1]].isna().all()
    assert table.loc["gene5", "reason"] == "averages: constant"
    assert np.isnan(table.loc["gene5", "smoothed"])
    assert table["score"].drop("gene4").notna().all()


def test_a_view_becomes_an_object_and_its_parent_stays(denoised: anndata.AnnData) -> None:
    view = denoised[:60]
    ac.tl.gene_relations(view, "Gene2", "Gene3", **QUICK)
    assert "relations" in view.uns
    assert "relations" not in denoised.uns


def test_cells_on_disk(cells: anndata.AnnData, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "sparse.h5ad")
    expected = ac.tl.gene_relations(cells, "gene2", "gene3", **QUICK)
    ranked = ac.tl.drivers(cells, (cells.obs["group"] == cells.obs["group"].iloc[0]).astype(float))
    cells.X = cells.X.toarray()
    cells.write_h5ad(tmp_path / "dense.h5ad")
    for name in ("sparse", "dense"):
        backed = anndata.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        pd.testing.assert_frame_equal(ac.tl.gene_relations(backed, "gene2", "gene3", **QUICK), expected)
        first = (backed.obs["group"] == backed.obs["group"].iloc[0]).astype(float)
        pd.testing.assert_frame_equal(ac.tl.drivers(backed, first), ranked)
        backed.file.close()


def test_dense_and_sparse_layers_and_columns_in_any_order(cells: anndata.AnnData) -> None:
    logs = logs_of(cells, cells.layers["ae_denoised"])
    cells.layers["dense"], cells.layers["csr"] = logs, csr_matrix(logs)
    chosen = ["gene9", "gene1", "gene9", "gene5"]
    found = [ac.tl.gene_relations(cells, "gene2", chosen, layer=name, **QUICK) for name in ("dense", "csr")]
    pd.testing.assert_frame_equal(*found)
    assert sorted(found[0].index) == ["gene1", "gene5", "gene9"]


def test_a_lagged_relation_is_directed_and_others_are_not(series: anndata.AnnData) -> None:
    table = ac.tl.gene_relations(series, "0", **{**LAGGED, "n_shuffles": 20})
    assert list(table) == [*COLUMNS[:-1], "lag0", "lag0_z", "directed", "reason"]
    assert table.index[0] == "1"
    assert table.loc["1", "directed"]
    assert table["directed"].sum() == 1
    assert table.loc["1", "score"] > 2 * table.loc["1", "lag0"]
    values = series.layers["smooth"]
    assert table.loc["1", "score"] == pytest.approx(dremi(values[:80, 0], values[80:, 1]), rel=1e-9)
    assert table.loc["3", "lag0"] == pytest.approx(dremi(values[:80, 0], values[:80, 3]), rel=1e-9)


def test_lagged_within_labels_as_correlation_and_of_a_dense_transport(series: anndata.AnnData) -> None:
    series.layers["smooth"][80:, 1] = series.layers["smooth"][:80, 0] ** 3
    series.obsp["transport"] = series.obsp["transport"].toarray() * 7  # rows are made shares
    table = ac.tl.gene_relations(
        series, "0", measure="correlation", groups="label", times=(1, 2), **{**LAGGED, "n_shuffles": 50}
    )
    assert table.index[0] == "1"
    assert table.loc["1", "score"] > 0.99
    assert table.loc["1", "correlation"] == pytest.approx(1)
    assert table.loc["1", "directed"]


def test_too_few_shuffles_for_a_direction_are_said(series: anndata.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    found = [ac.tl.gene_relations(series, "0", "1", **{**LAGGED, "n_shuffles": n}) for n in (20, 100)]
    assert [table.loc["1", "directed"] for table in found] == [False, True]
    assert [record.getMessage().split(" cannot")[0] for record in caplog.records] == ["20 shuffles in all"]


def test_cells_without_descendants_are_left_out(series: anndata.AnnData) -> None:
    plan = series.obsp["transport"].tolil()
    plan[:20] = 0
    series.obsp["transport"] = csr_matrix(plan)
    table = ac.tl.gene_relations(series, "0", "1", **LAGGED)
    values = series.layers["smooth"]
    assert table.loc["1", "score"] == pytest.approx(dremi(values[20:80, 0], values[100:, 1]), rel=1e-9)


def change(call: Callable[[anndata.AnnData], Any]) -> Callable[[anndata.AnnData], anndata.AnnData]:
    def changed(adata: anndata.AnnData) -> anndata.AnnData:
        call(adata)
        return adata

    return changed


def few(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[:49].copy()


def constant(adata: anndata.AnnData) -> None:
    adata.layers["ae_denoised"][:, 2] = 0


def not_finite(adata: anndata.AnnData) -> None:
    adata.layers["ae_denoised"][3, 7] = np.nan


def mostly_tied(adata: anndata.AnnData) -> None:
    adata.layers["tied"] = np.where(np.arange(120)[:, None] < 110, 0.0, np.random.default_rng(0).random((120, 10)))


def other_model(adata: anndata.AnnData) -> None:
    adata.layers["vae_denoised"], adata.uns["vae"] = adata.layers["ae_denoised"], adata.uns["ae"]


BAD: dict[str, tuple[Callable[[anndata.AnnData], Any], dict[str, Any], type[AnncoderError], str, str]] = {
    "source": (change(lambda a: None), {"source": "gene22"}, ConfigError, "unknown-key", "gene2"),
    "number as source": (change(lambda a: None), {"source": 2}, ConfigError, "unknown-key", "known keys"),
    "target": (change(lambda a: None), {"target": ["gene1", "gone"]}, ConfigError, "unknown-key", "did you mean"),
    "no target": (change(lambda a: None), {"target": []}, ConfigError, "bad-value", "name other genes"),
    "method": (change(lambda a: None), {"method": "mi"}, ConfigError, "bad-value", "'lagged'"),
    "measure": (change(lambda a: None), {"measure": "mi"}, ConfigError, "bad-value", "'correlation'"),
    "shuffles": (change(lambda a: None), {"n_shuffles": 2}, ConfigError, "bad-value", "from 5"),
    "threads": (change(lambda a: None), {"threads": 0}, ConfigError, "bad-value", "from 1"),
    "seed": (change(lambda a: None), {"seed": -1}, ConfigError, "bad-value", "from 0"),
    "neighbours": (change(lambda a: None), {"n_neighbors": 1}, ConfigError, "bad-value", "from 2 to 120"),
    "layer": (change(lambda a: None), {"layer": "gone"}, ConfigError, "unknown-key", "ae_denoised"),
    "raw counts": (change(lambda a: None), {"layer": "X"}, InputError, "tied-values", "ac.tl.denoise"),
    "ties": (change(mostly_tied), {"layer": "tied"}, InputError, "tied-values", "more cells express"),
    "other key": (change(other_model), {"layer": "vae_denoised"}, ConfigError, "bad-value", "key='vae'"),
    "few cells": (few, {}, InputError, "too-few-cells", "more cells"),
    "all-zero gene": (change(constant), {}, InputError, "constant-gene", "varies"),
    "NaN": (change(not_finite), {}, InputError, "not-finite", "leave these genes out"),
    "no layer": (change(lambda a: a.layers.pop("ae_denoised")), {}, InputError, "not-denoised", "ac.tl.denoise"),
    "no latent": (change(lambda a: a.obsm.pop("X_ae")), {}, InputError, "no-results", "use_rep='X_pca'"),
    "latent": (change(lambda a: a.obsm["X_ae"].fill(np.inf)), {}, InputError, "bad-coordinates", "ac.tl.embed"),
    "number as target": (change(lambda a: None), {"target": 3}, ConfigError, "bad-value", "names of genes"),
    "key": (change(lambda a: None), {"key": None}, ConfigError, "bad-value", "'ae'"),
    "number in uns": (change(lambda a: a.uns.update(relations=3)), {}, ConfigError, "key-taken", "pop"),
    "own uns": (change(lambda a: a.uns.update(relations={"mine": 1})), {}, ConfigError, "key-taken", "pop"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written(name: str, cells: anndata.AnnData) -> None:
    prepare, arguments, kind, code, remedy = BAD[name]
    adata = prepare(cells)
    before = dict(adata.uns)
    with pytest.raises(kind) as caught:
        ac.tl.gene_relations(adata, **{"source": "gene2", **QUICK, **arguments})
    assert caught.value.code == code
    assert remedy in caught.value.remedy
    assert set(adata.uns) == set(before)


def test_names_that_are_there_twice_and_other_things_than_cells(cells: anndata.AnnData) -> None:
    cells.var_names = ["a", "a", *cells.var_names[2:]]
    for call, data, code in (
        (ac.tl.gene_relations, cells, "duplicate-genes"),
        (ac.tl.drivers, cells, "duplicate-genes"),
        (ac.tl.gene_relations, cells.X, "not-anndata"),
        (ac.tl.drivers, "cells.h5ad", "not-anndata"),
    ):
        with pytest.raises(InputError) as caught:
            call(data, "gene2")
        assert caught.value.code == code


def texts(adata: anndata.AnnData) -> None:
    adata.obs["day"] = np.where(adata.obs["day"] == 1, "day1", "day2")


def missing(adata: anndata.AnnData) -> None:
    adata.obs["day"] = adata.obs["day"].where(adata.obs["day"] == 1)


def backwards(adata: anndata.AnnData) -> None:
    adata.obsp["transport"] = csr_matrix(adata.obsp["transport"].T)


def negative(adata: anndata.AnnData) -> None:
    adata.obsp["transport"] = -adata.obsp["transport"]


def few_parents(adata: anndata.AnnData) -> None:
    plan = adata.obsp["transport"].tolil()
    plan[40:] = 0
    adata.obsp["transport"] = csr_matrix(plan)


BAD_SERIES: dict[str, tuple[Callable[[anndata.AnnData], Any], dict[str, Any], type[AnncoderError], str, str]] = {
    "no time": (change(lambda a: None), {"time_key": None}, ConfigError, "bad-value", "time_key='day'"),
    "time_key": (change(lambda a: None), {"time_key": "dya"}, ConfigError, "unknown-key", "'day'"),
    "text": (change(texts), {}, InputError, "bad-times", "pd.to_numeric"),
    "missing times": (change(missing), {}, InputError, "bad-times", "notna()"),
    "one time": (change(lambda a: a.obs.__setitem__("day", 1.0)), {}, InputError, "too-few-times", "two times"),
    "times": (change(lambda a: None), {"times": (2, 1)}, ConfigError, "bad-value", "an earlier and a later"),
    "no transport": (change(lambda a: None), {"transport": "gone"}, InputError, "no-transport", "descendants"),
    "backwards": (change(backwards), {}, InputError, "no-transport", "transpose"),
    "negative": (change(negative), {}, InputError, "bad-transport", "from 0 on"),
    "few parents": (change(few_parents), {}, InputError, "too-few-cells", "more cells"),
    "groups": (change(lambda a: None), {"groups": "lable"}, ConfigError, "unknown-key", "'label'"),
}


@pytest.mark.parametrize("name", BAD_SERIES)
def test_bad_time_series_are_refused_and_nothing_is_written(name: str, series: anndata.AnnData) -> None:
    prepare, arguments, kind, code, remedy = BAD_SERIES[name]
    adata = prepare(series)
    with pytest.raises(kind) as caught:
        ac.tl.gene_relations(adata, "0", **{**LAGGED, **arguments})
    assert caught.value.code == code
    assert remedy in caught.value.remedy
    assert "relations" not in adata.uns


def test_drivers_of_a_label_are_those_of_a_t_test(cells: anndata.AnnData) -> None:
    first = cells.obs["group"] == cells.obs["group"].iloc[0]
    table = ac.tl.drivers(cells, first.astype(float))
    logs = logs_of(cells, cells.X)
    expected = ttest_ind(logs[first], logs[~first], equal_var=False)
    np.testing.assert_allclose(table.loc[cells.var_names, "t"], expected.statistic, rtol=1e-4)  # counts are float32
    assert table["t"].is_monotonic_decreasing
    few_genes = ac.tl.drivers(cells, first, genes=["gene3", "gene1"])
    assert sorted(few_genes.index) == ["gene1", "gene3"]
    np.testing.assert_allclose(few_genes["p"], table.loc[few_genes.index, "p"])
    assert few_genes["q"].max() == pytest.approx(few_genes["p"].max())  # over these two


def test_drivers_of_a_fate_at_a_time(cells: anndata.AnnData) -> None:
    rng = np.random.default_rng(0)
    share = rng.random(120)
    cells.obsm["fates"] = np.column_stack([share, 1 - share])
    cells.obsm["fates"][100:] = np.nan
    cells.uns["fates"] = {"names": np.array(["left", "right"])}
    cells.obs["day"] = np.repeat([0.0, 1.0], 60)
    cells.obs["share"] = share
    at = ac.tl.drivers(cells, "right", at=0, time_key="day")
    weights = pd.Series(1 - share, cells.obs_names).iloc[:60]
    pd.testing.assert_frame_equal(at, ac.tl.drivers(cells, weights))
    whole = ac.tl.drivers(cells, "left")
    pd.testing.assert_frame_equal(whole, ac.tl.drivers(cells[:100].copy(), "share"), rtol=1e-4)


def test_drivers_of_logs_and_of_denoised_values(cells: anndata.AnnData) -> None:
    first = (cells.obs["group"] == cells.obs["group"].iloc[0]).astype(float)
    cells.layers["logs"] = csr_matrix(logs_of(cells, cells.X))
    pd.testing.assert_frame_equal(ac.tl.drivers(cells, first, layer="logs"), ac.tl.drivers(cells, first), rtol=1e-4)
    found = ac.tl.drivers(cells, first, layer="ae_denoised")
    logs = logs_of(cells, cells.layers["ae_denoised"])
    np.testing.assert_allclose(found["mean"], logs[first == 1].mean(axis=0)[cells.var_names.get_indexer(found.index)])


BAD_FATES: dict[str, tuple[Any, dict[str, Any], type[AnncoderError], str, str]] = {
    "unknown": ("Batch0", {}, ConfigError, "unknown-key", "batch0"),
    "labels": ("group", {}, InputError, "not-numeric", "== 'Group"),
    "percent": (lambda a: pd.Series(50.0, a.obs_names), {}, InputError, "bad-weights", "from 0 to 1"),
    "other cells": (lambda a: pd.Series([1.0], ["cell"]), {}, InputError, "bad-weights", "adata.obs_names"),
    "all cells": (lambda a: pd.Series(1.0, a.obs_names), {}, InputError, "too-few-cells", "another"),
    "no probability": (lambda a: pd.Series(np.nan, a.obs_names), {}, InputError, "too-few-cells", "another"),
    "genes": ("batch0", {"genes": ["gene1", "gone"]}, ConfigError, "unknown-genes", "such as gene0"),
    "number as genes": ("batch0", {"genes": 3}, ConfigError, "bad-value", "names of genes"),
    "at of text": ("batch0", {"at": "x", "time_key": "day"}, ConfigError, "bad-value", "one of 0, 1"),
    "no genes": ("batch0", {"genes": []}, ConfigError, "unknown-genes", "such as"),
    "at": ("batch0", {"at": 7, "time_key": "day"}, ConfigError, "bad-value", "one of 0, 1"),
    "at without times": ("batch0", {"at": 7}, ConfigError, "bad-value", "time_key='day'"),
    "scaled": ("batch0", {"layer": "scaled"}, InputError, "not-expression", "counts"),
}


@pytest.mark.parametrize("name", BAD_FATES)
def test_bad_fates_are_refused_and_nothing_is_written(name: str, cells: anndata.AnnData) -> None:
    fate, arguments, kind, code, remedy = BAD_FATES[name]
    cells.obs["batch0"], cells.obs["day"] = np.tile([0.0, 1.0], 60), np.repeat([0, 1], 60)
    cells.layers["scaled"] = np.random.default_rng(0).standard_normal(cells.shape)
    with pytest.raises(kind) as caught:
        ac.tl.drivers(cells, fate(cells) if callable(fate) else fate, **arguments)
    assert caught.value.code == code
    assert remedy in caught.value.remedy
    assert "drivers" not in cells.uns


def test_real_blood_progenitors(shared_data: Path) -> None:
    adata = anndata.read_h5ad(shared_data / "larry_781.h5ad")
    logs = logs_of(adata, adata.X)
    centred = logs - logs.mean(axis=0)
    adata.obsm["X_pca"] = np.linalg.svd(centred, full_matrices=False)[0][:, :20] * 100
    adata.layers["smooth"] = neighbor_average(adata.obsm["X_pca"], 15) @ logs
    ranked = ac.tl.drivers(adata, (adata.obs["label"] == "Neutrophil").astype(float))
    assert {"S100a8", "S100a9"} <= set(ranked.index[:10])
    assert ranked.loc["Gata2", "t"] < 0  # of the erythroid side
    table = ac.tl.gene_relations(
        adata, "Gata1", ["Gata2", "S100a8", "Elane", "Mpo"], layer="smooth", use_rep="X_pca", n_neighbors=15, **QUICK
    )
    assert (table["z"] > 3).all()
    assert table.loc["Gata2", "correlation"] > 0.5
    np.testing.assert_allclose(table["score"], table["smoothed"], rtol=1e-3)  # the layer is what the second score makes
