"""Covariates beside the experimental batch: categories and numbers, in every model of ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import anncoder as ac
from anncoder.data.loaders.covariates import Covariates, coded, fitted_covariates
from anncoder.datasets import simulate
from anncoder.errors import AnncoderError, ConfigError
from anncoder.evaluation.graph import nearest
from anncoder.evaluation.mixing import foreign_share
from anncoder.models import find
from anncoder.nn.effects.covariates import log_effects
from anncoder.types import CSR

MODELS = ("count", "denoising", "undercomplete", "variational")
SMALL: dict[str, Any] = {"n_latent": 5, "n_hidden": (24,)}
EPOCHS = {"count": 8, "denoising": 12, "undercomplete": 8, "variational": 80}
KEYS: dict[str, Any] = {"categorical_keys": "sex", "continuous_keys": ["stress"]}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Return 600 cells of three groups; a number and a category change a fifth of the genes each."""
    found = simulate(n_obs=600, n_vars=200, n_groups=3, lib_loc=8.0, de_prob=0.3, seed=4)
    rng = np.random.default_rng(0)
    stress, second = rng.normal(3.0, 2.0, 600), rng.random(600) < 0.4
    by_stress, by_sex = (np.where(rng.random(200) < 0.2, 0.6 * rng.standard_normal(200), 0) for _ in range(2))
    kept = 0.3 * np.exp((stress[:, None] - 3) / 2 * by_stress + np.where(second, 1, -1)[:, None] * by_sex)
    found.X = sp.csr_matrix(rng.binomial(found.X.toarray().astype(int), np.minimum(kept, 1)).astype(np.float32))
    found.obs["stress"], found.obs["sex"] = stress, np.where(second, "m", "f")
    found.var["by_stress"], found.var["by_sex"] = by_stress, by_sex
    return found


@pytest.fixture(scope="module")
def models(cells: anndata.AnnData) -> dict[str, Any]:
    """Return the models, fitted with the covariates; not to be changed."""
    return {name: find(name)(**SMALL).fit(cells, max_epochs=EPOCHS[name], progress=False, **KEYS) for name in MODELS}


def traces(latent: np.ndarray, cells: anndata.AnnData) -> tuple[float, float]:
    """Return how well neighbours of a group tell the number (a correlation), and the mixing of the category."""
    group = cells.obs["group"].astype(str).to_numpy()
    stress, sex = cells.obs["stress"].to_numpy(), (cells.obs["sex"] == "m").to_numpy().astype(int)
    told = []
    for name in np.unique(group):
        here = group == name
        told.append(np.corrcoef(stress[here], stress[here][nearest(latent[here], 15)[1]].mean(axis=1))[0, 1])
    return float(np.mean(told)), foreign_share(nearest(latent, 30)[1], sex, group)


@pytest.mark.parametrize("name", MODELS[:3])
def test_their_effects_are_gone_from_the_latent(name: str, cells: anndata.AnnData, models: dict[str, Any]) -> None:
    plain = traces(find(name)(**SMALL).fit(cells, max_epochs=EPOCHS[name], progress=False).embed(cells), cells)
    told, mixed = traces(models[name].embed(cells), cells)
    assert plain[0] > 0.5
    assert plain[1] < 0.6
    assert abs(told) < 0.3
    assert mixed > 0.85


@pytest.mark.parametrize("name", MODELS)
def test_saved_from_disk_and_of_new_cells(
    name: str, cells: anndata.AnnData, models: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, latent = models[name], models[name].embed(cells)
    model.save(tmp_path / "model")
    again = ac.load(tmp_path / "model")
    assert again.covariates_ == model.covariates_
    np.testing.assert_array_equal(again.embed(cells), latent)
    cells[:250].copy().write_h5ad(tmp_path / "a.h5ad")
    cells[250:].copy().write_h5ad(tmp_path / "b.h5ad")
    files = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    np.testing.assert_array_equal(again.embed(files), latent)
    np.testing.assert_array_equal(again.denoise(files), model.denoise(cells))
    query = cells[:60].copy()
    del query.obs["stress"]
    query.obs["sex"] = ["m"] * 20 + ["other"] * 20 + [None] * 20
    with caplog.at_level(logging.WARNING, "anncoder"):
        unknown = model.embed(query)
    assert ("no obs['stress']" in caplog.text) == (name != "variational")  # whose encoder does not read them
    with caplog.at_level(logging.WARNING, "anncoder"):
        decoded = model.denoise(query)
    assert "40 cells of no category that the model knows ('other') in obs['sex']" in caplog.text
    query.obs["stress"], rest = model.covariates_.continuous["stress"][0], slice(20, 60)
    np.testing.assert_allclose(model.embed(query), unknown, rtol=1e-4, atol=1e-5)
    mean = model.denoise(query, covariates={"sex": "mean", "stress": "mean"})
    np.testing.assert_allclose(decoded[rest], mean[rest], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_cells_are_decoded_as_with_other_values(name: str, cells: anndata.AnnData, models: dict[str, Any]) -> None:
    model = models[name]
    mean, deviation = model.covariates_.continuous["stress"]
    low, high = (
        model.denoise(cells, scale="normalized", covariates={"stress": mean + by * deviation}).mean(axis=0)
        for by in (-0.5, 0.5)
    )
    counted = np.asarray(cells.X.mean(axis=0)).ravel() > 0.5
    found = np.log(np.maximum(high, 1e-3) / np.maximum(low, 1e-3))
    assert np.corrcoef(found[counted], cells.var["by_stress"][counted])[0, 1] > 0.8
    own = model.denoise(cells[:9])
    as_own = model.denoise(cells[:9], covariates={"stress": cells.obs["stress"].iloc[3]})
    np.testing.assert_allclose(as_own[3], own[3], rtol=1e-4, atol=1e-5)
    for wanted, words in (
        ({"strss": 1}, "did you mean 'stress'"),
        ({"sex": "M"}, "known keys: f, m"),
        ({"stress": "x"}, "x"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.denoise(cells, covariates=wanted)


def test_a_fit_goes_on_from_a_checkpoint_and_refuses_other_values(cells: anndata.AnnData, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "progress": False,
        "checkpoint": ac.models.base.Checkpoint(tmp_path, remove=False),
    }
    model = find("count")(**SMALL).fit(cells, **settings, **KEYS)
    again = find("count")(**SMALL).fit(cells, **settings, **KEYS)
    np.testing.assert_array_equal(again.embed(cells), model.embed(cells))
    other = cells.copy()
    other.obs["stress"] = -cells.obs["stress"]
    with pytest.raises(ConfigError, match="other covariates"):
        find("count")(**SMALL).fit(other, **settings, **KEYS)


def test_an_encoder_need_not_know_them(cells: anndata.AnnData) -> None:
    cells = cells.copy()
    cells.obs["batch"] = np.arange(600) % 2
    model = find("undercomplete")(**SMALL, batches_in_encoder=False)
    model.fit(cells, batch_key="batch", max_epochs=2, progress=False, **KEYS)
    bare = cells.copy()
    bare.obs = bare.obs[[]]
    np.testing.assert_array_equal(model.embed(bare), model.embed(cells))
    assert not np.allclose(model.denoise(cells, batch=0), model.denoise(cells, batch=1))
    with pytest.raises(ConfigError, match="batches_in_encoder"):
        model.adapt(bare)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_a_dispersion_of_each_batch(likelihood: str) -> None:
    rng = np.random.default_rng(1)
    batch = np.arange(400) % 2
    size, theta = rng.lognormal(0, 0.3, (400, 1)), np.where(batch, 0.5, 8.0)[:, None]
    mean = size * rng.gamma(3.0, 2.0, 40)
    counts = rng.poisson(mean * rng.gamma(theta, 1 / theta, (400, 40)))
    cells = anndata.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    cells.obs["batch"] = np.array(["a", "b"])[batch]
    model = ac.CountAutoencoder(n_latent=2, n_hidden=(8,), likelihood=likelihood, dispersion="gene-batch")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_key"):
        model.fit(cells)
    ac.tl.autoencode(cells, model, batch_key="batch", max_epochs=15, progress=False)
    found = cells.varm["ae_theta"]
    assert found.shape == (40, 2)
    assert (found[:, 0] > 1.5 * found[:, 1]).mean() > 0.9
    np.testing.assert_array_equal(model.dispersion(), found)
    # an unknown batch has the mean of the known ones
    query = cells[:3].copy()
    query.obs["batch"] = "new"
    of_query = model._apply(query, lambda b: model.network_.parameters_of(b).log_theta.exp(), None, 0.0)
    np.testing.assert_allclose(of_query[0], np.sqrt(found[:, 0] * found[:, 1]), rtol=1e-4)
    # without a graph, to the same bits
    network = model.network_.train()
    matrix = cells.X[:64].tocsr()
    parts = [
        torch.from_numpy(np.asarray(part))
        for part in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)
    ]
    minibatch = ac.types.Batch(CSR(*parts, 40), torch.ones(64), torch.arange(64), torch.from_numpy(batch[:64]))
    network.input_noise.kind = "none"
    loss = network(minibatch)
    loss.total.backward()
    by_graph = network.heads.gene_log_theta.grad.clone()
    without = network.gradients(minibatch)
    assert without is not None
    torch.testing.assert_close(without.total, loss.total, rtol=0, atol=0)
    torch.testing.assert_close(network.heads.gene_log_theta.grad, by_graph, rtol=0, atol=0)


def test_effects_are_found_beside_types_and_nothing_is_found_where_nothing_is() -> None:
    rng = np.random.default_rng(2)
    group = np.arange(1500) % 2
    x = np.stack([rng.normal(size=1500) + group, rng.normal(size=1500)], axis=1).astype(np.float32)  # tied to the type
    truth = np.where(rng.random(60) < 0.3, 0.5 * rng.standard_normal(60), 0)
    mean = rng.gamma(2, 2, (2, 60))[group] * np.exp(x[:, :1] * truth)
    matrix = sp.csr_matrix(rng.poisson(mean).astype(np.float32))
    counts = CSR(
        *(
            torch.from_numpy(part)
            for part in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)
        ),
        60,
    )
    found = log_effects(counts, torch.from_numpy(x), torch.from_numpy(group), torch.zeros(2, 60)).numpy()
    assert np.sqrt(np.square(found[0] - truth).mean()) < 0.03
    assert np.abs(found[1]).max() < 0.03


def test_columns_are_coded_as_their_definition_says() -> None:
    values = {"sex": ["f", "m", "m", "f"], "age": [1.0, 2.0, 3.0, 100.0]}
    fitted = np.array([True, True, True, False])
    matrix, known = fitted_covariates(lambda key, what: values[key], ["sex"], ["age"], fitted)
    assert known.categorical == {"sex": {"f": 1 / 3, "m": 2 / 3}}
    assert known.continuous == {"age": (2.0, np.sqrt(2 / 3))}
    assert matrix is not None
    np.testing.assert_allclose(
        matrix[:3], [[2 / 3, -2 / 3, -1.224745], [-1 / 3, 1 / 3, 0], [-1 / 3, 1 / 3, 1.224745]], rtol=1e-6
    )
    np.testing.assert_allclose(matrix[3], [2 / 3, -2 / 3, 10], rtol=1e-6)  # far away is ten deviations
    assert known.at({"age": 2, "sex": "m"}) == pytest.approx({0: -1 / 3, 1: 1 / 3, 2: 0.0})
    assert coded(lambda key, what: values[key], Covariates({}, {}), 4) is None


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"categorical_keys": "sx"}, "unknown-key"),
        ({"continuous_keys": "sex"}, "bad-covariate"),
        ({"categorical_keys": "stress"}, "bad-covariate"),
        ({"continuous_keys": "one"}, "bad-covariate"),
        ({"categorical_keys": "one"}, "bad-covariate"),
        ({"continuous_keys": "holes"}, "missing-values"),
        ({"categorical_keys": "gaps"}, "missing-values"),
        ({"continuous_keys": "infinite"}, "bad-covariate"),
        ({"batch_key": "sex", "categorical_keys": "sex"}, "bad-covariate"),
        ({"categorical_keys": ["sex", "sex"]}, "bad-covariate"),
    ],
)
def test_bad_columns_are_named(settings: dict[str, Any], code: str, cells: anndata.AnnData) -> None:
    bad = cells[:100].copy()
    bad.obs["one"], bad.obs["holes"], bad.obs["infinite"] = 1, [np.nan, *range(99)], [np.inf, *range(99)]
    bad.obs["gaps"] = [None, *["x", "y", "z"] * 33]
    with pytest.raises(AnncoderError) as error:
        find("count")(**SMALL).fit(bad, max_epochs=1, progress=False, **settings)
    assert error.value.code == code
    assert error.value.remedy


@pytest.mark.parametrize(("name", "options"), [("dca", {}), ("undercomplete", {"tied": True, "norm": "none"})])
def test_models_without_covariates_refuse_them(name: str, options: dict[str, Any], cells: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="makes no use of covariates"):
        find(name)(n_latent=4, **options).fit(cells, progress=False, **KEYS)
    plain = find("undercomplete")(n_latent=4).fit(cells, max_epochs=1, progress=False)
    with pytest.raises(ConfigError, match="was fitted without"):
        plain.denoise(cells, covariates={"stress": 1})
