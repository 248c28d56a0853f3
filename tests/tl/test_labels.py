"""Label transfer by nearest neighbours in a latent."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

import anncoder as ac
from anncoder.errors import AnncoderError, ConfigError, InputError
from anncoder.tl.labels import vote


def cells(latent: Any, labels: Any = None) -> anndata.AnnData:
    latent = np.asarray(latent, np.float32)
    found = anndata.AnnData(np.ones((len(latent), 2), np.float32))
    found.obsm["X_ae"] = latent
    if labels is not None:
        found.obs["type"] = labels
    return found


@pytest.fixture
def reference() -> anndata.AnnData:
    """Return sixty cells around three corners."""
    corners = np.repeat([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], 20, axis=0)
    return cells(corners + np.random.default_rng(0).normal(0, 0.5, corners.shape), np.repeat(["b", "a", "c"], 20))


def test_the_vote_is_that_of_the_formula() -> None:
    latent, query = np.array([[0.0], [1.0], [3.0], [10.0]]), np.array([[0.0]])
    found = vote(query, latent, np.array([0, 1, 1, 0]), 2, 3)
    spread = (0 + 1 + 9) / 3
    weights = np.exp(-np.array([0, 1, 9]) / (2 * spread))
    assert found.best[0] == 1
    assert found.probability[0] == pytest.approx((weights[1] + weights[2]) / weights.sum(), rel=1e-6)
    scaled = vote(100 * query, 100 * latent, np.array([0, 1, 1, 0]), 2, 3)
    np.testing.assert_allclose(scaled.probability, found.probability, rtol=1e-6)
    same = vote(query, np.zeros((4, 1)), np.array([0, 0, 0, 1]), 2, 4)
    assert (same.best[0], same.probability[0]) == (0, pytest.approx(0.75))


def test_labels_are_those_of_the_cells_around(reference: anndata.AnnData) -> None:
    query = cells([[0.2, 0.1], [9.0, 0.3], [0.0, 9.5], [4.8, 5.1]])
    assert ac.tl.transfer_labels(query, reference, "type", n_neighbors=20, threshold=0.7) is None
    assert query.obs["type_transferred"].tolist() == ["b", "a", "c", "unknown"]
    assert query.obs["type_transferred"].cat.categories.tolist() == ["a", "b", "c", "unknown"]
    probability = query.obs["type_transferred_probability"]
    assert probability.dtype == np.float32
    assert (probability[:3] == 1).all()
    assert 1 / 3 < probability.iloc[3] < 0.7  # as far from each corner
    again = ac.tl.transfer_labels(query, reference, "type", n_neighbors=20, threshold=0, copy=True)
    assert again is not None
    assert "unknown" not in again.obs["type_transferred"].tolist()
    assert query.obs["type_transferred"].iloc[3] == "unknown"


def test_one_cell_and_reference_cells_without_a_label(reference: anndata.AnnData) -> None:
    labels = reference.obs["type"].astype(object).to_numpy(copy=True)
    labels[:18] = np.nan
    reference.obs["type"] = pd.Categorical(labels, categories=["c", "b", "a", "none"])
    query = cells([[0.0, 0.0]])
    ac.tl.transfer_labels(query, reference, "type", n_neighbors=2, key_added="mine")
    assert query.obs["mine"].tolist() == ["b"]
    assert query.obs["mine"].cat.categories.tolist() == ["c", "b", "a", "unknown"]
    ac.tl.transfer_labels(query, reference, "type", n_neighbors=10, key_added="mine", threshold=0.9)  # its own slots
    assert query.obs["mine"].tolist() == ["unknown"]


def spoiled(what: str, query: anndata.AnnData, reference: anndata.AnnData) -> dict[str, Any]:
    if what == "width":
        query.obsm["X_ae"] = np.zeros((query.n_obs, 3))
    if what == "nan":
        query.obsm["X_ae"][0, 0] = np.nan
    if what == "text":
        reference.obsm["X_ae"] = pd.DataFrame({"x": ["a"] * reference.n_obs}, index=reference.obs_names)
    if what == "slot":
        del reference.obsm["X_ae"]
    if what == "none":
        reference.obs["type"] = None
    if what == "taken":
        query.obs["type_transferred_probability"] = 1.0
    return {
        "column": {"key": "typ"},
        "neighbors": {"n_neighbors": 61},
        "zero": {"n_neighbors": 0},
        "half": {"n_neighbors": 1.5},
        "threshold": {"threshold": 1.5},
        "word": {"unknown": "a"},
        "key": {"key_added": "a/b"},
    }.get(what, {})


@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [
        ("width", InputError, "other-latent"),
        ("nan", InputError, "latent-not-finite"),
        ("text", InputError, "bad-coordinates"),
        ("slot", ConfigError, "unknown-key"),
        ("none", InputError, "no-labels"),
        ("taken", ConfigError, "key-taken"),
        ("column", ConfigError, "unknown-key"),
        ("neighbors", InputError, "too-few-cells"),
        ("zero", ConfigError, "bad-value"),
        ("half", ConfigError, "bad-value"),
        ("threshold", ConfigError, "bad-value"),
        ("word", ConfigError, "bad-value"),
        ("key", ConfigError, "bad-key"),
    ],
)
def test_what_cannot_be_transferred_is_refused(
    what: str, kind: type[AnncoderError], code: str, reference: anndata.AnnData
) -> None:
    query = cells([[0.0, 0.0], [9.0, 0.0]])
    options = {"key": "type"} | spoiled(what, query, reference)
    before = query.obs.copy()
    with pytest.raises(kind) as caught:
        ac.tl.transfer_labels(query, reference, **options)
    assert caught.value.code == code
    assert caught.value.remedy
    pd.testing.assert_frame_equal(query.obs, before)
    assert not query.uns


def test_latents_of_other_models_are_refused(counts: anndata.AnnData, fitted: ac.CountAutoencoder) -> None:
    other = ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, max_epochs=1, seed=1, progress=False)
    query, options = counts[:40].copy(), {"key": "group", "n_neighbors": 10}
    ac.tl.embed(counts, fitted)
    ac.tl.embed(query, other)
    with pytest.raises(InputError, match="of different models") as caught:
        ac.tl.transfer_labels(query, counts, **options)
    assert caught.value.code == "other-latent"
    ac.tl.embed(query, fitted)
    ac.tl.transfer_labels(query, counts, **options)
    assert set(query.obs["group_transferred"]) <= {*counts.obs["group"], "unknown"}
    with pytest.raises(InputError) as caught:
        ac.tl.transfer_labels(query, "reference.h5ad", **options)  # type: ignore[arg-type]
    assert caught.value.code == "not-anndata"
