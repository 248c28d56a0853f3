"""The comparison with PCA and the gene means: its numbers against independent ones, and that it is fair."""

from __future__ import annotations

import json
import random
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
from anncoder import baselines, evaluation
from anncoder.autoencoder import Autoencoder
from anncoder.baselines import Cells, GeneMean, Principal, Trained, blocks
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation import HELD_OUT, cluster_scores, evaluate, heldout_nll, reconstruction_mse, thin

COLUMNS = ["heldout_nll", "reconstruction_mse", "leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi", "silhouette"]
QUICK: dict[str, Any] = {"batch_size": 32, "learning_rate": 3e-3, "threads": 1, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Look at two resolutions instead of eleven: the three groups are distinct."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "RESOLUTIONS", (0.5, 1.0))
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
def found(grouped: anndata.AnnData, fitted: Autoencoder) -> evaluation.Evaluation:
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

    others = normalized(grouped.X[~held].toarray().astype(np.float64))
    pca = PCA(4, svd_solver="full").fit(np.log1p(others))

    def by_pca(x: Any) -> Any:
        logs = np.log1p(normalized(x))
        return np.expm1((logs - pca.mean_) @ pca.components_.T @ pca.components_ + pca.mean_).clip(0)

    def by_model(x: Any) -> Any:
        return fitted.denoise(anndata.AnnData(csr_matrix(x.astype(np.float32)), var=grouped.var), scale="normalized")

    floor = normalized(grouped.X.toarray().astype(np.float64)).mean(0)
    parts = {"scored": scored, "kept": kept, "aside": aside, "normalized": normalized, "floor": floor}
    return parts | {"model": by_model, "pca": by_pca, "gene_mean": lambda x: np.tile(others.mean(0), (len(x), 1))}


METHODS = ["model", "pca", "gene_mean"]


@pytest.mark.parametrize("method", METHODS)
def test_held_out_likelihood_is_scipys(found: evaluation.Evaluation, dense: dict[str, Any], method: str) -> None:
    share = 0.99 * dense[method](dense["kept"]) + 0.01 * dense["floor"]
    rate = share / share.sum(1, keepdims=True) * dense["kept"].sum(1, keepdims=True) / 9
    expected = -poisson.logpmf(dense["aside"], rate).sum(1).mean()
    assert found.table.loc[method, "heldout_nll"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_reconstruction_error_is_numpys(found: evaluation.Evaluation, dense: dict[str, Any], method: str) -> None:
    logs, expected = np.log1p(dense["normalized"](dense["scored"])), np.log1p(dense[method](dense["scored"]))
    mse = np.square(logs - expected).mean()
    assert found.table.loc[method, "reconstruction_mse"] == pytest.approx(mse, rel=1e-3)


def test_the_three_rows_are_always_there(found: evaluation.Evaluation, grouped: anndata.AnnData) -> None:
    assert list(found.table.index) == METHODS
    assert list(found.table.columns) == COLUMNS
    assert (found.n_obs, found.n_scored, found.labels) == (grouped.n_obs, 30, "group")
    printed = str(found)
    assert all(word in printed for word in [*METHODS, *COLUMNS])


def test_a_good_model_of_groups_is_better_than_the_mean(found: evaluation.Evaluation) -> None:
    model, mean = found.table.loc["model"], found.table.loc["gene_mean"]
    assert model["heldout_nll"] < mean["heldout_nll"]
    assert model["reconstruction_mse"] < mean["reconstruction_mse"]
    assert min(model["leiden_ari"], model["kmeans_ari"]) > 0.9
    assert mean[["leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi"]].tolist() == [0, 0, 0, 0]
    assert np.isnan(mean["silhouette"])


def test_a_bad_model_is_worse_than_pca(grouped: anndata.AnnData, found: evaluation.Evaluation) -> None:
    bad = ac.CountAutoencoder(n_latent=4).fit(
        grouped, max_epochs=1, valid_fraction=0.2, **QUICK | {"learning_rate": 1e-6}
    )
    table = evaluate(bad, grouped, labels="group").table
    assert table.loc["model", "heldout_nll"] > table.loc["pca", "heldout_nll"]
    assert table.loc["model", "reconstruction_mse"] > table.loc["pca", "reconstruction_mse"]
    # the baselines are of the data and the width, not of the model
    pd.testing.assert_frame_equal(table.loc[["pca", "gene_mean"]], found.table.loc[["pca", "gene_mean"]])


class Known:
    """A method that needs no fit."""

    def __init__(self, expected: Any) -> None:
        self.mean = expected

    def latent(self, cells: Cells) -> None:
        return None

    def expected(self, cells: Cells) -> Any:
        yield self.mean


def test_nothing_beats_the_truth(grouped: anndata.AnnData, fitted: Autoencoder, found: evaluation.Evaluation) -> None:
    held = grouped.obs_names.isin(fitted.valid_obs_)
    floor, parts = GeneMean(fitted, Cells(grouped.X)).mean, thin(Cells(grouped.X[held]), 0)
    truth = heldout_nll(Known(grouped.layers["true_mean"][held].astype(np.float64)), *parts, floor)
    assert truth < found.table["heldout_nll"].min()
    # a method that has seen the molecules set aside does: it must not be let see them
    cheat = heldout_nll(Known(grouped.X[held].toarray().astype(np.float64)), *parts, floor)
    assert cheat < truth


def test_no_method_has_seen_what_it_is_scored_on(
    counts: anndata.AnnData, fitted: Autoencoder, found: evaluation.Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[csr_matrix] = []
    for name in ("Principal", "GeneMean"):
        original = getattr(evaluation, name)
        monkeypatch.setattr(
            evaluation,
            name,
            lambda model, cells, *rest, of=original: seen.append(cells.matrix) or of(model, cells, *rest),
        )
    table = evaluate(fitted, counts, labels="group").table
    pd.testing.assert_frame_equal(table, found.table)
    held = counts.obs_names.isin(fitted.valid_obs_)
    others = counts.X[~held]
    assert sum((matrix.shape == others.shape) and (matrix != others).nnz == 0 for matrix in seen) == 2


def test_new_cells_are_all_scored(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    new = grouped.copy()
    new.obs_names = [f"new{i}" for i in range(new.n_obs)]
    found = evaluate(fitted, new)
    assert found.n_scored == found.n_obs == new.n_obs
    few = grouped[~grouped.obs_names.isin(fitted.valid_obs_[:15])].copy()  # 15 of the 30 are left
    assert evaluate(fitted, few).n_scored == few.n_obs
    only = grouped[grouped.obs_names.isin(fitted.valid_obs_)].copy()  # none is left for the baselines
    assert evaluate(fitted, only).n_scored == 30


def test_a_gene_that_only_scored_cells_have_is_no_infinity(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    held = counts.obs_names.isin(fitted.valid_obs_)
    matrix = counts.X.toarray()
    matrix[~held, 3] = 0
    matrix[held, 3] = 50
    counts.X = csr_matrix(matrix)
    assert np.isfinite(evaluate(fitted, counts).table["heldout_nll"]).all()


def test_a_scale_of_its_own_does_not_help_a_method(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    class Half(Trained):
        def expected(self, cells: Cells) -> Any:
            for block in super().expected(cells):
                yield block / 2

    floor, parts = GeneMean(fitted, Cells(grouped.X)).mean, thin(Cells(grouped.X), 0)
    whole, half = (heldout_nll(method, *parts, floor) for method in (Trained(fitted), Half(fitted)))
    assert half == pytest.approx(whole, rel=1e-3)  # not equal: of half the mean the floor is twice the share


def test_thinning_is_binomial_and_sums_back(grouped: anndata.AnnData) -> None:
    big = csr_matrix(np.random.default_rng(0).poisson(20, (300, 50)).astype(np.float32))
    (kept, _), aside = thin(Cells(big), 0)
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
    (kept, _), aside = thin(Cells(few), 0)
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
    grouped: anndata.AnnData, fitted: Autoencoder, found: evaluation.Evaluation
) -> None:
    again = evaluate(fitted, grouped, labels="group")
    pd.testing.assert_frame_equal(again.table, found.table)
    other = evaluate(fitted, grouped, labels="group", seed=1)
    assert (other.table["heldout_nll"] != found.table["heldout_nll"]).all()


def test_where_the_data_are_does_not_matter(
    grouped: anndata.AnnData, fitted: Autoencoder, found: evaluation.Evaluation, tmp_path: Path
) -> None:
    grouped.write_h5ad(tmp_path / "it.h5ad")
    dense = anndata.AnnData(grouped.X.toarray(), obs=grouped.obs, var=grouped.var)
    layered = anndata.AnnData(grouped.X.log1p(), obs=grouped.obs, var=grouped.var, layers={"counts": grouped.X})
    order = np.random.default_rng(0).permutation(grouped.n_vars)
    for data, layer in ((tmp_path / "it.h5ad", None), (dense, None), (layered, "counts"), (grouped[:, order], None)):
        table = evaluate(fitted, data, labels="group", layer=layer).table
        pd.testing.assert_frame_equal(table, found.table, rtol=1e-4)


def test_the_number_of_threads_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import scanpy as sc

    neighbors, before = sc.pp.neighbors, torch.get_num_threads()

    def as_if_numba_started(*arguments: Any, **options: Any) -> None:  # which it does once in a process
        neighbors(*arguments, **options)
        torch.set_num_threads(before + 1)

    monkeypatch.setattr(sc.pp, "neighbors", as_if_numba_started)
    evaluation.leiden(np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), (1.0,), 0)
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before


def test_without_labels(grouped: anndata.AnnData, fitted: Autoencoder, found: evaluation.Evaluation) -> None:
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


def test_labels_that_tell_nothing(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    latent = fitted.embed(grouped)[:30]
    for labels in (["a"] * 30, [str(i) for i in range(30)]):
        scores = cluster_scores(latent, np.array(labels, dtype=object), 0)
        assert np.isnan(scores.pop("silhouette"))
        assert np.isfinite(list(scores.values())).all()


def test_numbers_may_be_labels(counts: anndata.AnnData, fitted: Autoencoder, found: evaluation.Evaluation) -> None:
    counts.obs["number"] = counts.obs["group"].cat.codes
    pd.testing.assert_frame_equal(evaluate(fitted, counts, labels="number").table, found.table)


def test_a_wrong_column_is_named_with_the_nearest(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    with pytest.raises(ConfigError, match="did you mean 'group'"):
        evaluate(fitted, grouped, labels="groups")


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
    assert evaluate(fitted, narrow, allow_missing=0.1).table["heldout_nll"].notna().all()


def test_at_most_so_many_cells(grouped: anndata.AnnData, fitted: Autoencoder) -> None:
    some = evaluate(fitted, grouped, max_cells=50)
    assert some.n_obs == 50
    pd.testing.assert_frame_equal(evaluate(fitted, grouped, max_cells=50).table, some.table)


def test_plain_values_for_a_file(found: evaluation.Evaluation) -> None:
    values = found.to_dict()
    assert set(values) == {"schema", "n_obs", "n_scored", "labels", "methods"}
    assert list(values["methods"]) == METHODS
    assert all(list(row) == COLUMNS for row in values["methods"].values())
    assert values["methods"]["gene_mean"]["silhouette"] is None
    assert json.loads(json.dumps(values, allow_nan=False)) == values


@pytest.mark.parametrize(
    ("model", "settings"), [("undercomplete", {}), ("count", {"likelihood": "gaussian"}), ("denoising", {})]
)
def test_models_of_expression(counts: anndata.AnnData, model: str, settings: dict[str, Any]) -> None:
    counts.X = csr_matrix(counts.X.log1p())
    settings = settings | {"transform": "none", "n_latent": 4, "n_hidden": (32,), "max_epochs": 30, "valid_fraction": 0}
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
    model = ac.UndercompleteAutoencoder(n_latent=4, n_hidden=(), norm="none")
    model.fit(grouped, max_epochs=100, valid_fraction=0, **QUICK | {"learning_rate": 0.01})
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
    methods = (Trained(fitted), Principal(fitted, cells, 0), mean)

    def scores() -> list[float]:
        return [reconstruction_mse(m, cells, fitted) for m in methods] + [
            heldout_nll(m, *thin(cells, 0), mean.mean) for m in methods
        ]

    whole = scores()
    monkeypatch.setattr(baselines, "BLOCK", 17)
    np.testing.assert_allclose(scores(), whole, rtol=1e-5)
