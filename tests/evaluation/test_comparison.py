"""The comparison with PCA and the gene means: its numbers against independent ones, and that it is fair."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import poisson
from sklearn.decomposition import PCA

import anncoder as ac
from anncoder.data.loaders.memory import Stored
from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation import baselines, clusters, comparison
from anncoder.evaluation.baselines import Cells, GeneMean, Principal, Trained, blocks
from anncoder.evaluation.clusters import cluster_scores
from anncoder.evaluation.comparison import evaluate, reconstruction_mse
from anncoder.evaluation.heldout import HELD_OUT, gene_factors, heldout_nll, thin
from anncoder.models.base import Autoencoder
from anncoder.types import Batch

COLUMNS = ["heldout_nll", "reconstruction_mse", "neighbor_consistency", "depth_agreement"]
COLUMNS += ["leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi", "silhouette"]
QUICK: dict[str, Any] = {"batch_size": 32, "learning_rate": 3e-3, "threads": 1, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Look at two resolutions instead of eleven: the three groups are distinct."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "RESOLUTIONS", (0.5, 1.0))
        yield


@pytest.fixture(scope="module")
def grouped() -> anndata.AnnData:
    """Return 150 cells of three distinct groups x 60 genes, Poisson around known means; not to be changed."""
    parameters = {"n_obs": 150, "n_vars": 60, "n_groups": 3, "de_prob": 0.5, "de_fac_loc": 1.0, "lib_loc": 6.0}
    cells = ac.datasets.simulate(**parameters, seed=1, keep_means=True)
    drawn = np.random.default_rng(0).poisson(cells.layers["true_mean"])
    cells.X = csr_matrix(drawn.astype(np.float32))
    return cells


@pytest.fixture
def counts(grouped: anndata.AnnData) -> anndata.AnnData:
    return grouped.copy()


@pytest.fixture(scope="module")
def fitted(grouped: anndata.AnnData) -> Autoencoder:
    """Return a count model, fitted well; 30 cells were held out."""
    model: Autoencoder = ac.CountAutoencoder(n_latent=4, n_hidden=(32,))
    return model.fit(grouped, max_epochs=60, valid_fraction=0.2, **QUICK)


@pytest.fixture(scope="module")
def found(grouped: anndata.AnnData, fitted: Autoencoder) -> comparison.Evaluation:
    return evaluate(fitted, grouped, labels="group")


@pytest.fixture
def dense(grouped: anndata.AnnData, fitted: Autoencoder) -> dict[str, Any]:
    """Return what the comparison is made of, by textbook formulae on dense float64 arrays."""
    held = grouped.obs_names.isin(fitted.valid_obs_)
    scored = grouped.X[held].toarray().astype(np.float64)
    rest, taken = thin(Cells(grouped.X[held]), 0)
    kept, aside = (part.toarray().astype(np.float64) for part in (rest.matrix, taken))
    scale = fitted.library_size_

    def normalized(x: Any) -> Any:
        return x / x.sum(1, keepdims=True) * scale

    counted = grouped.X[~held].toarray().astype(np.float64)
    others = normalized(counted)
    pca, pca_50 = (PCA(k, svd_solver="full").fit(np.log1p(others)) for k in (4, 50))
    pooled = counted.sum(0) / counted.sum() * scale

    def by_pca(x: Any, pca: PCA = pca) -> Any:
        logs = np.log1p(normalized(x))
        return np.expm1((logs - pca.mean_) @ pca.components_.T @ pca.components_ + pca.mean_).clip(0)

    def by_model(x: Any) -> Any:
        return fitted.denoise(anndata.AnnData(csr_matrix(x.astype(np.float32)), var=grouped.var), scale="normalized")

    floor = np.asarray(grouped.X.sum(0, dtype=np.float64)).ravel() / grouped.X.sum(dtype=np.float64)
    parts = {"scored": scored, "kept": kept, "aside": aside, "normalized": normalized, "floor": floor}
    parts |= {"others": counted, "mean_log": np.log1p(others).mean(0)}
    parts |= {"pca_50": lambda x: by_pca(x, pca_50)}
    return parts | {"model": by_model, "pca": by_pca, "gene_mean": lambda x: np.tile(pooled, (len(x), 1))}


METHODS = ["model", "pca", "pca_50", "gene_mean"]


@pytest.mark.parametrize("method", METHODS)
def test_held_out_likelihood_is_scipys(found: comparison.Evaluation, dense: dict[str, Any], method: str) -> None:
    def shares(x: Any) -> Any:
        values = dense[method](x)
        return values / values.sum(1, keepdims=True)

    counted = dense["others"]
    factor = (counted.sum(0) + 1) / ((shares(counted) * counted.sum(1, keepdims=True)).sum(0) + 1)
    scaled = shares(dense["kept"]) * factor
    share = 0.99 * scaled / scaled.sum(1, keepdims=True) + 0.01 * dense["floor"]
    rate = share / share.sum(1, keepdims=True) * dense["kept"].sum(1, keepdims=True) / 9
    expected = -poisson.logpmf(dense["aside"], rate).sum(1).mean()
    assert found.table.loc[method, "heldout_nll"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_reconstruction_error_is_numpys(found: comparison.Evaluation, dense: dict[str, Any], method: str) -> None:
    logs, expected = np.log1p(dense["normalized"](dense["scored"])), np.log1p(dense[method](dense["scored"]))
    if method == "gene_mean":  # what a constant is best at is the mean of the logarithms
        expected = dense["mean_log"]
    mse = np.square(logs - expected).mean()
    assert found.table.loc[method, "reconstruction_mse"] == pytest.approx(mse, rel=1e-3)


def test_the_rows_are_always_there(found: comparison.Evaluation, grouped: anndata.AnnData) -> None:
    assert list(found.table.index) == METHODS
    assert list(found.table.columns) == COLUMNS
    assert (found.n_obs, found.n_scored, found.scored, found.labels) == (grouped.n_obs, 30, "held-out", "group")
    printed = str(found)
    assert all(word in printed for word in [*METHODS, *COLUMNS])


def test_a_good_model_of_groups_is_better_than_the_mean(found: comparison.Evaluation) -> None:
    model, mean = found.table.loc["model"], found.table.loc["gene_mean"]
    assert model["heldout_nll"] < mean["heldout_nll"]
    assert model["reconstruction_mse"] < mean["reconstruction_mse"]
    assert min(model["leiden_ari"], model["kmeans_ari"]) > 0.9
    assert mean[["leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi"]].tolist() == [0, 0, 0, 0]
    assert np.isnan(mean["silhouette"])


def test_a_bad_model_is_worse_than_pca(grouped: anndata.AnnData, found: comparison.Evaluation) -> None:
    bad = ac.CountAutoencoder(n_latent=4).fit(
        grouped, max_epochs=1, valid_fraction=0.2, **QUICK | {"learning_rate": 1e-6}
    )
    table = evaluate(bad, grouped, labels="group").table
    assert table.loc["model", "heldout_nll"] > table.loc["pca", "heldout_nll"]
    assert table.loc["model", "reconstruction_mse"] > table.loc["pca", "reconstruction_mse"]
    # the baselines are of the data and the width, not of the model
    pd.testing.assert_frame_equal(table.loc[METHODS[1:]], found.table.loc[METHODS[1:]])


class Known:
    """A method that needs no fit."""

    def __init__(self, expected: Any) -> None:
        self.mean = expected

    def latent(self, cells: Cells) -> None:
        return None

    def expected(self, cells: Cells) -> Any:
        yield self.mean if len(self.mean) == cells.matrix.shape[0] else cells.matrix.toarray()  # factors of one

    def reconstructed(self, cells: Cells) -> Any:
        raise AssertionError


def test_nothing_beats_the_truth(grouped: anndata.AnnData, fitted: Autoencoder, found: comparison.Evaluation) -> None:
    held = grouped.obs_names.isin(fitted.valid_obs_)
    floor, parts = GeneMean(fitted, Cells(grouped.X)).mean, (*thin(Cells(grouped.X[held]), 0), Cells(grouped.X[~held]))
    truth = heldout_nll(Known(grouped.layers["true_mean"][held].astype(np.float64)), *parts, floor)
    assert truth < found.table["heldout_nll"].min()
    # a method that has seen the molecules set aside does: it must not be let see them
    cheat = heldout_nll(Known(grouped.X[held].toarray().astype(np.float64)), *parts, floor)
    assert cheat < truth


def test_no_method_has_seen_what_it_is_scored_on(
    counts: anndata.AnnData, fitted: Autoencoder, found: comparison.Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[csr_matrix] = []
    for name in ("Principal", "GeneMean"):
        original = getattr(comparison, name)
        monkeypatch.setattr(
            comparison,
            name,
            lambda model, cells, *rest, of=original: seen.append(cells.matrix) or of(model, cells, *rest),
        )
    table = evaluate(fitted, counts, labels="group").table
    pd.testing.assert_frame_equal(table, found.table)
    held = counts.obs_names.isin(fitted.valid_obs_)
    others = counts.X[~held]
    assert sum((matrix.shape == others.shape) and (matrix != others).nnz == 0 for matrix in seen) == 3


def test_cells_that_all_have_seen_are_scored_on_no_molecules(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    few = grouped[~grouped.obs_names.isin(fitted.valid_obs_[:15])].copy()  # 15 of the 30 are left
    only = grouped[grouped.obs_names.isin(fitted.valid_obs_)].copy()  # none is left for the baselines
    for data in (few, only):
        found = evaluate(fitted, data)
        assert (found.scored, found.n_scored) == ("seen", data.n_obs)
        assert found.table["heldout_nll"].isna().all()
        assert found.table["reconstruction_mse"].notna().all()
        assert "no heldout_nll" in str(found)


def test_of_new_cells_half_is_scored_and_the_baselines_are_of_the_other(
    grouped: anndata.AnnData, fitted: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = grouped.copy()
    new.obs_names = [f"new{i}" for i in range(new.n_obs)]
    seen: list[Any] = []
    original = comparison.Principal
    monkeypatch.setattr(
        comparison,
        "Principal",
        lambda model, cells, *rest: seen.append(cells.matrix.toarray()) or original(model, cells, *rest),
    )
    found = evaluate(fitted, new)
    assert (found.scored, found.n_scored) == ("new", 75)
    others, again = seen  # PCA of the model's width and of 50 components
    np.testing.assert_array_equal(others, again)
    assert len(others) == 75
    assert not any(np.array_equal(others, half) for half in (new.X[:75].toarray(), new.X[75:].toarray()))  # at random
    assert found.table["heldout_nll"].notna().all()


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_cells_held_out_are_known_where_names_repeat(grouped: anndata.AnnData, found: comparison.Evaluation) -> None:
    counts = grouped.copy()
    counts.obs_names = [f"c{i % 75}" for i in range(150)]  # of two samples with the same barcodes
    model = ac.CountAutoencoder(n_latent=4, n_hidden=(32,)).fit(counts, max_epochs=60, valid_fraction=0.2, **QUICK)
    same = evaluate(model, counts, labels="group")
    pd.testing.assert_frame_equal(same.table, found.table)
    assert same.n_scored == 30
    # in other data nobody can tell which of two was held out
    part = evaluate(model, counts[:100].copy())
    assert (part.scored, part.n_scored) == ("seen", 100)
    alone = evaluate(model, counts[:75].copy())  # unique here, but not where they were fitted
    assert model.valid_obs_.is_unique or alone.scored == "seen"


def test_cells_of_the_same_names_are_not_taken_for_those_of_the_fit(
    grouped: anndata.AnnData, fitted: Autoencoder, tmp_path: Path
) -> None:
    other = grouped.copy()
    other.X = csr_matrix(np.random.default_rng(5).poisson(grouped.layers["true_mean"]).astype(np.float32))
    assert evaluate(fitted, other).scored == "seen"
    fitted.save(tmp_path / "it.ac")
    assert evaluate(ac.load(tmp_path / "it.ac"), other).scored == "seen"
    assert evaluate(ac.load(tmp_path / "it.ac"), grouped).scored == "held-out"


def test_zero_inflation_is_part_of_what_is_observed(grouped: anndata.AnnData) -> None:
    lost = grouped.copy()
    keep = np.random.default_rng(0).random(lost.shape) < np.linspace(0.2, 1, lost.n_vars)  # more of some genes
    lost.X = csr_matrix(lost.X.multiply(keep).astype(np.float32))
    for model in (
        ac.CountAutoencoder(n_latent=4, n_hidden=(32,), likelihood="zinb"),
        ac.DCA(ae_type="zinb-conddisp", n_hidden=(32,), n_latent=4),
        ac.VariationalAutoencoder(n_latent=4, n_hidden=(32,), likelihood="zinb"),
    ):
        model.fit(lost, max_epochs=30, **QUICK)
        network: Any = model.network_
        sizes = torch.from_numpy(library_sizes(lost.X) / model.library_size_).float()
        batch = Batch(Stored.of(lost.X).take(np.arange(lost.n_obs)), sizes, torch.arange(lost.n_obs))
        with torch.no_grad():
            if model.name == "variational":
                parameters = network.decode(network.encode(batch), None)
            else:
                parameters = network.parameters_of(batch)
            pi = torch.sigmoid(parameters.pi_logits.double())
            mean = parameters.log_mean.double().exp()
        expected = np.concatenate(list(Trained(model).expected(Cells(lost.X))))
        np.testing.assert_allclose(expected, (1 - pi) * mean, rtol=1e-4)
        np.testing.assert_allclose(model.denoise(lost, scale="normalized"), mean, rtol=1e-4)
        assert pi.max() > 0.1


def test_one_factor_a_gene_takes_a_bias_away(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    class Biased(Trained):
        def expected(self, cells: Cells) -> Any:
            for block in super().expected(cells):
                yield block * np.linspace(0.5, 2, block.shape[1])

    held = grouped.obs_names.isin(fitted.valid_obs_)
    others = Cells(grouped.X[~held])
    floor, parts = GeneMean(fitted, Cells(grouped.X)).mean, (*thin(Cells(grouped.X[held]), 0), others)
    fair, biased = (heldout_nll(method, *parts, floor) for method in (Trained(fitted), Biased(fitted)))
    assert biased == pytest.approx(fair, rel=1e-3)
    np.testing.assert_allclose(gene_factors(GeneMean(fitted, others), others), 1, rtol=1e-6)


def test_a_gene_that_only_scored_cells_have_is_no_infinity(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    held = counts.obs_names.isin(fitted.valid_obs_)
    matrix = counts.X.toarray()
    matrix[~held, 3] = 0
    matrix[held, 3] = 50
    counts.X = csr_matrix(matrix)
    counts_changed = copy.copy(fitted)
    counts_changed.valid_sizes_ = np.asarray(matrix[held].sum(1))
    assert np.isfinite(evaluate(counts_changed, counts).table["heldout_nll"]).all()


def test_a_scale_of_its_own_does_not_help_a_method(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    class Half(Trained):
        def expected(self, cells: Cells) -> Any:
            for block in super().expected(cells):
                yield block / 2

    cells = Cells(grouped.X)
    floor, parts = GeneMean(fitted, cells).mean, (*thin(cells, 0), cells)
    whole, half = (heldout_nll(method, *parts, floor) for method in (Trained(fitted), Half(fitted)))
    assert half == pytest.approx(whole, rel=1e-6)


def test_thinning_is_binomial_and_sums_back(grouped: anndata.AnnData) -> None:
    big = csr_matrix(np.random.default_rng(0).poisson(20, (300, 50)).astype(np.float32))
    (kept, *_), aside = thin(Cells(big), 0)
    assert kept.shape == aside.shape == big.shape
    assert (kept + aside != big).nnz == 0
    for part in (kept, aside):
        assert (part.data > 0).all()
        assert np.array_equal(part.data, np.rint(part.data))
    n, p = big.sum(), HELD_OUT
    assert abs(aside.sum() - n * p) < 4 * np.sqrt(n * p * (1 - p))
    counts, taken = big.toarray(), aside.toarray()
    assert np.square(taken - p * counts).sum() / (p * (1 - p) * counts.sum()) == pytest.approx(1, abs=0.05)
    again, other = thin(Cells(big), 0)[1], thin(Cells(big), 1)[1]
    assert (again != aside).nnz == 0
    assert (other != aside).nnz > 0


def test_thinning_leaves_out_cells_without_a_molecule_and_leaves_its_input() -> None:
    few = csr_matrix(np.tile(np.eye(1, 4, dtype=np.float32), (200, 1)))
    before = [part.copy() for part in (few.data, few.indices, few.indptr)]
    (kept, *_), aside = thin(Cells(few), 0)
    assert kept.shape[0] == aside.shape[0]
    assert 150 < kept.shape[0] < 200
    assert (kept.sum(axis=1) > 0).all()
    assert aside.sum() == 0
    for part, old in zip((few.data, few.indices, few.indptr), before, strict=True):
        np.testing.assert_array_equal(part, old)


def test_the_data_and_every_random_state_stay_what_they_were(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    before = counts.copy()
    np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
    random.seed(1)
    torch.manual_seed(1)
    states = (np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state())  # noqa: NPY002
    evaluate(fitted, counts, labels="group")
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert random.getstate() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(counts.X, part), getattr(before.X, part))
    assert not counts.obsm
    assert list(counts.obs) == list(before.obs)


def test_the_same_seed_gives_the_same_numbers(
    grouped: anndata.AnnData, fitted: Autoencoder, found: comparison.Evaluation
) -> None:
    again = evaluate(fitted, grouped, labels="group")
    pd.testing.assert_frame_equal(again.table, found.table)
    other = evaluate(fitted, grouped, labels="group", seed=1)
    assert (other.table["heldout_nll"] != found.table["heldout_nll"]).all()


def test_where_the_data_are_does_not_matter(
    grouped: anndata.AnnData, fitted: Autoencoder, found: comparison.Evaluation, tmp_path: Path
) -> None:
    grouped.write_h5ad(tmp_path / "it.h5ad")
    dense = anndata.AnnData(grouped.X.toarray(), obs=grouped.obs, var=grouped.var)
    layered = anndata.AnnData(grouped.X.log1p(), obs=grouped.obs, var=grouped.var, layers={"counts": grouped.X})
    order = np.random.default_rng(0).permutation(grouped.n_vars)
    for data, layer in ((tmp_path / "it.h5ad", None), (dense, None), (layered, "counts"), (grouped[:, order], None)):
        table = evaluate(fitted, data, labels="group", layer=layer).table
        pd.testing.assert_frame_equal(table, found.table, rtol=1e-4)


def test_clusters_compile_nothing_and_leave_the_threads_alone() -> None:
    """umap-learn, whose graph this is, compiles in every process for longer than all else takes."""
    code = (
        "import sys, numpy as np, torch; from anncoder.evaluation.clusters import kmeans, leiden; "
        "z = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32); n = torch.get_num_threads(); "
        "leiden(z, (1.0,), 0); kmeans(z, 3, 0); print('umap' in sys.modules, torch.get_num_threads() - n)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0"]


def test_without_labels(grouped: anndata.AnnData, fitted: Autoencoder, found: comparison.Evaluation) -> None:
    table = evaluate(fitted, grouped).table
    assert table[["leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi"]].isna().all(axis=None)
    assert table.loc[["model", "pca"], "silhouette"].notna().all()  # of the clusters themselves
    pd.testing.assert_series_equal(table["heldout_nll"], found.table["heldout_nll"])


def test_cells_without_a_label_are_not_scored(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    latent = fitted.embed(counts)
    truth = counts.obs["group"].to_numpy(dtype=object).copy()
    truth[:20] = np.nan
    scores = cluster_scores(latent, truth, 0)
    truth[:20] = [f"cell {i}" for i in range(20)]  # as labels of their own they would count
    assert scores["leiden_ari"] > 0.9 > cluster_scores(latent, truth, 0)["leiden_ari"]
    counts.obs.loc[counts.obs_names[:20], "group"] = np.nan
    assert evaluate(fitted, counts, labels="group").table.loc["model", "leiden_ari"] > 0.9


def test_labels_that_tell_nothing_are_not_scored(
    counts: anndata.AnnData, fitted: Autoencoder, caplog: pytest.LogCaptureFixture
) -> None:
    latent = fitted.embed(counts)[:30]
    for labels in (["a"] * 30, [str(i) for i in range(30)], ["a"] * 20 + [None] * 10, [None] * 30):
        for one in (latent, None):
            assert np.isnan(list(cluster_scores(one, np.array(labels, dtype=object), 0).values())).all()
    counts.obs["constant"] = "a"
    table = evaluate(fitted, counts, labels="constant").table
    assert table[["leiden_ari", "kmeans_ari", "kmeans_nmi", "silhouette"]].isna().all(axis=None)
    assert table["reconstruction_mse"].notna().all()
    assert "no clusters are scored: the labels 'constant'" in caplog.text


def test_only_a_column_of_a_file_has_labels(counts: anndata.AnnData, fitted: Autoencoder, tmp_path: Path) -> None:
    counts.obs.index.name = "barcode"
    counts.write_h5ad(tmp_path / "in.h5ad")
    for name in ("barcode", "group/codes", "_index"):
        with pytest.raises(ConfigError, match="unknown key"):
            evaluate(fitted, tmp_path / "in.h5ad", labels=name)


def test_numbers_may_be_labels(counts: anndata.AnnData, fitted: Autoencoder, found: comparison.Evaluation) -> None:
    counts.obs["number"] = counts.obs["group"].cat.codes
    pd.testing.assert_frame_equal(evaluate(fitted, counts, labels="number").table, found.table)


def test_a_wrong_column_is_named_with_the_nearest(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    with pytest.raises(ConfigError, match="did you mean 'group'"):
        evaluate(fitted, grouped, labels="groups")


@pytest.mark.parametrize("labels", [["group"], 3])
def test_labels_that_are_no_name_are_refused(
    counts: anndata.AnnData, fitted: Autoencoder, labels: Any, tmp_path: Path
) -> None:
    counts.write_h5ad(tmp_path / "in.h5ad")
    for data in (counts, tmp_path / "in.h5ad"):
        with pytest.raises(ConfigError, match="unknown key"):
            evaluate(fitted, data, labels=labels)


def test_labels_of_two_columns_are_refused_before_the_work(
    counts: anndata.AnnData, fitted: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "heldout_nll", None)
    counts.obs = pd.concat([counts.obs, counts.obs[["group"]]], axis=1)
    with pytest.raises(ConfigError, match="2 columns of the name 'group'"):
        evaluate(fitted, counts, labels="group")


@pytest.mark.parametrize("n_obs", [1, 4, 19])
def test_too_few_cells(grouped: anndata.AnnData, fitted: Autoencoder, n_obs: int) -> None:
    with pytest.raises(InputError) as error:
        evaluate(fitted, grouped[:n_obs].copy())
    assert error.value.code == "too-few-cells"


def test_genes_that_do_not_match(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    narrow = grouped[:, 5:].copy()
    with pytest.raises(InputError) as error:
        evaluate(fitted, narrow)
    assert error.value.code == "missing-genes"
    found = evaluate(fitted, narrow, allow_missing=0.1)
    assert found.table["heldout_nll"].notna().all()
    assert found.scored == "held-out"


def test_at_most_so_many_cells(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    some = evaluate(fitted, grouped, max_cells=50)
    assert some.n_obs == 50
    pd.testing.assert_frame_equal(evaluate(fitted, grouped, max_cells=50).table, some.table)


def test_plain_values_for_a_file(found: comparison.Evaluation) -> None:
    values = found.to_dict()
    assert set(values) == {"schema", "n_obs", "n_scored", "scored", "labels", "methods"}
    assert list(values["methods"]) == METHODS
    assert all(list(row) == COLUMNS for row in values["methods"].values())
    assert values["methods"]["gene_mean"]["silhouette"] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize(
    ("model", "settings"), [("undercomplete", {}), ("count", {"likelihood": "gaussian"}), ("denoising", {})]
)
def test_models_of_expression(counts: anndata.AnnData, model: str, settings: dict[str, Any]) -> None:
    counts.X = csr_matrix(counts.X.log1p())
    settings = settings | {
        "transform": "none",
        "n_latent": 4,
        "n_hidden": (32,),
        "max_epochs": 100,
        "valid_fraction": 0,
    }
    fitted = ac.tl.autoencode(counts, model, **settings, **QUICK)
    table = evaluate(fitted, counts, labels="group").table
    assert table["heldout_nll"].isna().all()
    x = counts.X.toarray().astype(np.float64)
    pca = PCA(4, svd_solver="full").fit(x)
    expected = {
        "model": fitted.denoise(counts, scale="normalized"),
        "pca": pca.inverse_transform(pca.transform(x)),
        "gene_mean": x.mean(0),
    }
    for name, values in expected.items():
        assert table.loc[name, "reconstruction_mse"] == pytest.approx(np.square(x - values).mean(), rel=1e-3)
    assert table.loc["model", "reconstruction_mse"] < table.loc["gene_mean", "reconstruction_mse"]


def test_a_linear_autoencoder_scores_as_pca_does(grouped: anndata.AnnData) -> None:
    model = ac.UndercompleteAutoencoder(n_latent=2, n_hidden=(), norm="none")  # as many as three groups span
    to_the_end: dict[str, Any] = {"early_stopping": False, "keep_best": False, "reduce_lr_patience": 5}
    model.fit(grouped, max_epochs=200, valid_fraction=0.2, **QUICK | to_the_end | {"learning_rate": 0.01})
    table = evaluate(model, grouped, labels="group").table
    assert table.loc["model", "reconstruction_mse"] == pytest.approx(table.loc["pca", "reconstruction_mse"], rel=0.01)
    assert table.loc["model", "heldout_nll"] == pytest.approx(table.loc["pca", "heldout_nll"], rel=0.01)


@pytest.mark.parametrize("n", [20, 1024, 1025, 3000])
def test_blocks_cover_all_cells_and_none_is_alone(n: int) -> None:
    slices = list(blocks(n))
    np.testing.assert_array_equal(np.concatenate([np.arange(n)[rows] for rows in slices]), np.arange(n))
    sizes = [rows.stop - rows.start for rows in slices]
    assert max(sizes) <= baselines.BLOCK
    assert min(sizes) > max(sizes) - 2


def test_blocks_give_what_the_whole_gives(
    grouped: anndata.AnnData, fitted: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = Cells(grouped.X)
    mean = GeneMean(fitted, cells)
    methods = (Trained(fitted), Principal(fitted, cells, fitted.config.width, 0), mean)

    def scores() -> list[float]:
        return [reconstruction_mse(m, cells, fitted) for m in methods] + [
            heldout_nll(m, *thin(cells, 0), cells, mean.mean) for m in methods
        ]

    whole = scores()
    monkeypatch.setattr(baselines, "BLOCK", 17)
    np.testing.assert_allclose(scores(), whole, rtol=1e-5)


def test_a_seed_out_of_range_is_refused_and_the_last_one_is_taken(
    grouped: anndata.AnnData, fitted: Autoencoder
) -> None:
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match="seed = "):
            evaluate(fitted, grouped, seed=seed)
    assert evaluate(fitted, grouped, seed=2**32 - 1).table["reconstruction_mse"].notna().all()


def test_no_cells_are_too_few(grouped: anndata.AnnData, fitted: Autoencoder, tmp_path: Path) -> None:
    grouped[:0].write_h5ad(tmp_path / "none.h5ad")
    for data in (grouped[:0].copy(), tmp_path / "none.h5ad"):
        with pytest.raises(InputError) as caught:
            evaluate(fitted, data)
        assert caught.value.code == "too-few-cells"


def test_counts_that_are_not_whole_have_no_molecules_to_set_aside(
    counts: anndata.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    counts.X = counts.X * np.float32(0.37)
    model = ac.DCA(check_counts=False).fit(counts, max_epochs=3, valid_fraction=0.2, **QUICK)
    table = evaluate(model, counts).table
    assert table["heldout_nll"].isna().all()
    assert table["reconstruction_mse"].notna().all()
    assert "not whole" in caplog.text


def test_a_model_that_expects_less_than_nothing_is_scored(counts: anndata.AnnData) -> None:
    """A squared error may give negative means; PCA's are cut off as well."""
    model = ac.DCA(ae_type="normal", faithful=True).fit(counts, max_epochs=4, valid_fraction=0.2, **QUICK)
    assert model.denoise(counts, scale="normalized").min() < 0
    assert evaluate(model, counts).table.loc["model", ["heldout_nll", "reconstruction_mse"]].notna().all()


@pytest.mark.parametrize("names", ["numbers", "words"])
def test_cells_that_only_have_numbers_are_not_taken_for_those_held_out(counts: anndata.AnnData, names: str) -> None:
    """Of expression there are no totals that could tell: the same numbers are of any cells."""
    sc_counts = counts.copy()
    sc_counts.X = sc_counts.X.log1p()
    sc_counts.obs_names = [f"{'cell' if names == 'words' else ''}{i}" for i in range(sc_counts.n_obs)]
    model = ac.DenoisingAutoencoder(n_latent=3, n_hidden=(8,), transform="none")
    model.fit(sc_counts, max_epochs=2, valid_fraction=0.2, **QUICK)
    assert evaluate(model, sc_counts).scored == {"numbers": "seen", "words": "held-out"}[names]


def test_genes_that_are_called_by_numbers(counts: anndata.AnnData) -> None:
    """The totals tell other cells of the same names apart, whatever the genes are called."""
    half = counts.n_obs // 2
    plates = [counts[:half].copy(), counts[half : 2 * half].copy()]
    for plate in plates:
        plate.obs_names = [f"barcode-{i}" for i in range(half)]
        plate.var.index = pd.Index(range(plate.n_vars))
    model = ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(plates[0], max_epochs=2, valid_fraction=0.4, **QUICK)
    assert [evaluate(model, plate).scored for plate in plates] == ["held-out", "seen"]


@pytest.mark.parametrize("max_cells", [0, 5, "all", None])
def test_numbers_of_cells_that_tell_nothing(max_cells: Any, fitted: Autoencoder, grouped: anndata.AnnData) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(fitted, grouped, max_cells=max_cells)
    assert caught.value.where == "max_cells"


def test_genes_that_are_fewer_than_latent_units(counts: anndata.AnnData) -> None:
    model = ac.AutoImpute(n_latent=20).fit(counts[:, :15].copy(), max_epochs=1, **QUICK)
    with pytest.raises(InputError) as caught:
        evaluate(model, counts[:, :15].copy())
    assert "narrower latent" in caught.value.remedy


def test_a_batch_column_that_is_missing_is_called_that(counts: anndata.AnnData) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    model = ac.VariationalAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, batch_key="plate", max_epochs=1, **QUICK)
    del counts.obs["plate"]
    with pytest.raises(ConfigError) as caught:
        evaluate(model, counts)
    assert caught.value.where.startswith("batch_key")
