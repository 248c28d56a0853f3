"""A fitted model adapted to new experimental batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import anncoder as ac
from anncoder.datasets import simulate
from anncoder.errors import AnncoderError, ConfigError, InputError
from anncoder.models import find
from anncoder.models.base import Autoencoder

MODELS = ("count", "denoising", "undercomplete")
EPOCHS = {"count": 12, "denoising": 40, "undercomplete": 12}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Return 1,200 cells of four groups in four batches with strong effects; not to be changed."""
    return simulate(
        n_obs=1200, n_vars=300, n_groups=4, n_batches=4, batch_fac_loc=0.2, batch_fac_scale=0.4, lib_loc=6.9, seed=3
    )


@pytest.fixture(scope="module")
def reference(cells: anndata.AnnData) -> anndata.AnnData:
    """Return the cells of three batches, without those that the fit does not see."""
    return cells[(cells.obs["batch"] != "Batch4") & (np.arange(1200) % 4 != 0)].copy()


@pytest.fixture(scope="module")
def query(cells: anndata.AnnData) -> anndata.AnnData:
    """Return the cells of the fourth batch, without one of the groups."""
    return cells[(cells.obs["batch"] == "Batch4") & (cells.obs["group"] != "Group2")].copy()


@pytest.fixture(scope="module")
def models(reference: anndata.AnnData) -> dict[str, Any]:
    """Return the models of three batches; not to be changed."""
    return {
        name: find(name)(n_latent=6, n_hidden=(32,)).fit(
            reference, batch_key="batch", max_epochs=EPOCHS[name], progress=False
        )
        for name in MODELS
    }


def distance(model: Autoencoder, query: anndata.AnnData, others: anndata.AnnData) -> float:
    """Return the distance of the means of a group in two sets of cells over its spread: a mean over groups."""
    left, right = model.embed(query), model.embed(others)
    found = []
    for group in query.obs["group"].unique():
        here, there = left[query.obs["group"] == group], right[others.obs["group"] == group]
        found.append(np.linalg.norm(here.mean(axis=0) - there.mean(axis=0)) / np.sqrt(there.var(axis=0).sum()))
    return float(np.mean(found))


@pytest.mark.parametrize("name", MODELS)
def test_a_new_batch_is_brought_to_cells_like_its_own_and_all_else_stays(
    name: str, cells: anndata.AnnData, reference: anndata.AnnData, query: anndata.AnnData, models: dict[str, Any]
) -> None:
    model = models[name]
    latent, before = model.embed(reference), {k: v.clone() for k, v in model.network_.state_dict().items()}
    adapted = model.adapt(query, batch_key="batch")
    assert type(adapted) is type(model)
    assert (adapted.batches_, model.batches_) == ([f"Batch{i}" for i in (1, 2, 3, 4)], [f"Batch{i}" for i in (1, 2, 3)])
    np.testing.assert_array_equal(adapted.embed(reference), latent)
    for key, value in model.network_.state_dict().items():
        assert value.equal(before[key]), key  # the model itself is unchanged
        now = adapted.network_.state_dict()[key]
        if now.shape == value.shape:
            assert now.equal(value), key
        else:  # what the known batches have is there
            assert key.startswith(
                ("decoder.", "heads.", "output.", "inputs.batches.", "shifts.shift", "shifts.of_groups")
            ), key
            if key in ("inputs.batches.inverse", "shifts.shift", "shifts.of_groups"):
                assert now[:3].equal(value[:3]), key
            elif key != "decoder.coding":
                assert now[:, :-1].equal(value), key
    np.testing.assert_allclose(
        adapted.denoise(reference, batch="mean"), model.denoise(reference, batch="mean"), rtol=1e-4, atol=1e-5
    )
    held_out = cells[(cells.obs["batch"] != "Batch4") & (np.arange(1200) % 4 == 0)].copy()
    assert distance(adapted, query, held_out) < 0.5 * distance(model, query, held_out)


@pytest.mark.parametrize("name", MODELS)
def test_the_factors_are_found_and_decoded(
    name: str, cells: anndata.AnnData, query: anndata.AnnData, models: dict[str, Any]
) -> None:
    adapted = models[name].adapt(query)
    known = np.asarray(query.X.mean(axis=0)).ravel() > 0.3
    truth = np.log(cells.var[[f"batch_factor_Batch{i}" for i in (1, 2, 3, 4)]].to_numpy())
    truth = (truth[:, 3] - truth[:, :3].mean(axis=1))[known]
    found = -adapted.network_.inputs.batches.inverse[3].log().numpy()[known]
    assert np.corrcoef(found, truth)[0, 1] > 0.95
    own, mean = (adapted.denoise(query, scale="normalized", batch=batch)[:, known] for batch in (None, "mean"))
    assert np.corrcoef(np.log(own.mean(axis=0) / mean.mean(axis=0)), truth)[0, 1] > 0.95
    as_fourth = adapted.denoise(query, scale="normalized", batch="Batch4")[:, known]
    np.testing.assert_array_equal(as_fourth, own)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_saved_loaded_adapted_again_and_its_labels_transferred(
    name: str, reference: anndata.AnnData, query: anndata.AnnData, models: dict[str, Any], tmp_path: Path
) -> None:
    models[name].adapt(query).save(tmp_path / "adapted")
    adapted = ac.load(tmp_path / "adapted")
    np.testing.assert_array_equal(adapted.embed(query), models[name].adapt(query).embed(query))
    halves = query.copy()
    halves.obs["batch"] = np.where(np.arange(query.n_obs) % 2, "even", "odd")
    both = adapted.adapt(halves)
    assert both.batches_[3:] == ["Batch4", "even", "odd"]
    np.testing.assert_array_equal(both.embed(query), adapted.embed(query))
    known, new = reference.copy(), query.copy()
    ac.tl.embed(known, models[name])  # the reference's own model has the same latent
    ac.tl.embed(new, adapted)
    ac.tl.transfer_labels(new, known, "group")
    assert (new.obs["group_transferred"].astype(str) == new.obs["group"].astype(str)).mean() > 0.95


def test_genes_that_are_missing_keep_a_factor_of_one(query: anndata.AnnData, models: dict[str, Any]) -> None:
    adapted = models["count"].adapt(query[:, 20:].copy(), allow_missing=0.1)
    inverse = adapted.network_.inputs.batches.inverse[3]
    assert (inverse[:20] == 1).all()
    there = np.asarray(query.X.sum(axis=0)).ravel()[20:] > 0
    assert (inverse[20:].numpy()[there] != 1).all()


def broken(what: str, query: anndata.AnnData) -> tuple[anndata.AnnData, dict[str, Any]]:
    query = query.copy()
    if what in ("known", "mixed"):
        query.obs["batch"] = np.where(np.arange(query.n_obs) % 2, "Batch2", "Batch1" if what == "known" else "new")
    if what == "missing":
        query.obs["batch"] = [None, *["new"] * (query.n_obs - 1)]
    if what == "column":
        del query.obs["batch"]
    if what == "genes":
        query = query[:, :270].copy()
    if what == "logs":
        query.X = query.X.log1p()
    return query, {"batch_key": "group"} if what == "key" else {}


@pytest.mark.parametrize(
    ("what", "kind", "code", "remedy"),
    [
        ("known", InputError, "known-batch", "embed"),
        ("mixed", InputError, "known-batch", "isin(model.batches_)"),
        ("missing", ConfigError, "missing-values", "fill"),
        ("column", ConfigError, "unknown-key", ""),
        ("genes", InputError, "missing-genes", "allow_missing"),
        ("logs", InputError, "not-integer", ""),
        ("key", ConfigError, "bad-value", "'batch'"),
    ],
)
def test_a_query_that_cannot_be_used_is_refused(
    what: str, kind: type[AnncoderError], code: str, remedy: str, query: anndata.AnnData, models: dict[str, Any]
) -> None:
    spoiled, options = broken(what, query)
    with pytest.raises(kind) as caught:
        models["count"].adapt(spoiled, **options)
    assert caught.value.code == code
    assert remedy in caught.value.remedy
    assert models["count"].batches_ == ["Batch1", "Batch2", "Batch3"]


def test_models_without_such_batches_are_refused(
    query: anndata.AnnData, reference: anndata.AnnData, fitted: ac.CountAutoencoder
) -> None:
    with pytest.raises(ConfigError, match="fitted without batch_key") as caught:
        fitted.adapt(query)
    assert caught.value.code == "batches-unused"
    variational = ac.VariationalAutoencoder(n_latent=2, n_hidden=(8,))
    variational.fit(reference, batch_key="batch", max_epochs=1, progress=False)
    with pytest.raises(ConfigError, match="VariationalAutoencoder cannot be adapted") as caught:
        variational.adapt(query)
    assert "CountAutoencoder" in caught.value.remedy
    with pytest.raises(ConfigError, match="not fitted"):
        ac.CountAutoencoder().adapt(query)
