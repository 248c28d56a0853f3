"""Mixing of batches and conservation of labels: against scib-metrics, brute force, and cases with known answers."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_samples
from typer.testing import Result

import anncoder as ac
from anncoder.errors import ConfigError
from anncoder.evaluation import clusters
from anncoder.evaluation.graph import nearest
from anncoder.evaluation.mixing import (
    KEPT,
    MIXED,
    batch_silhouette,
    foreign_share,
    graph_connectivity,
    harmonized,
    lisi,
    mixing_scores,
    warn_of_confounding,
    warn_of_merging,
)

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at two resolutions instead of eleven."""
    monkeypatch.setattr(clusters, "RESOLUTIONS", (0.5, 1.0))


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points of three labels, and of three batches shifted against each other."""
    rng = np.random.default_rng(0)
    labels, batches = np.repeat([0, 1, 2], 100), rng.integers(0, 3, 300)
    batches[:20] = 0
    x = rng.normal(size=(300, 4)) + 2.0 * np.eye(3, 4)[labels] * 1.2 + 0.8 * np.eye(3, 4)[batches][:, ::-1]
    return x, labels, batches


def test_scores_are_those_of_scib_metrics(points: Any) -> None:
    """Values of scib-metrics 0.5.10, with ninety neighbours (the cell itself is one)."""
    x, labels, batches = points
    found = mixing_scores(x, batches, labels.astype(object), 0)
    assert found["ilisi"] == pytest.approx(0.75963426, abs=2e-6)
    assert found["clisi"] == pytest.approx(0.8898146, abs=2e-6)
    assert found["batch_silhouette"] == pytest.approx(0.89430016, abs=2e-6)
    np.testing.assert_allclose(lisi(*nearest(x, 89), batches)[:3], [2.959299, 2.1026697, 2.8748705], rtol=5e-6)


def test_the_index_is_that_of_its_definition(points: Any) -> None:
    x, _, batches = points
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    for cell in (0, 17, 250):
        row = np.sort(distances[cell])[:89]
        codes = batches[np.argsort(distances[cell])[:89]]
        low, high = 1e-6, 1e3  # precision, bisected until the entropy is log 30
        for _ in range(200):
            beta = np.sqrt(low * high)
            p = np.exp(-beta * (row - row[0]))
            p /= p.sum()
            low, high = (beta, high) if -(p * np.log(p + 1e-300)).sum() > np.log(30) else (low, beta)
        expected = 1 / sum(p[codes == code].sum() ** 2 for code in range(3))
        assert lisi(*nearest(x, 89), batches)[cell] == pytest.approx(expected, rel=1e-5)


def test_connectivity_and_silhouette_are_those_of_their_definitions(points: Any) -> None:
    x, labels, batches = points
    near = nearest(x, 15)[1]
    shares = []
    for label in range(3):
        left, largest = set(np.flatnonzero(labels == label)), 0
        n = len(left)
        while left:
            front = {left.pop()}
            size = 0
            while front:
                size += len(front)
                touching = {j for i in front for j in range(300) if j in near[i] or i in near[j]}
                front = touching & left
                left -= front
            largest = max(largest, size)
        shares.append(largest / n)
    assert graph_connectivity(near, labels) == pytest.approx(np.mean(shares))
    apart = np.concatenate([x, x + 100])  # two far halves of every label
    assert graph_connectivity(nearest(apart, 15)[1], np.tile(labels, 2)) == pytest.approx(np.mean(shares) / 2)
    widths = [1 - np.abs(silhouette_samples(x[labels == k], batches[labels == k])).mean() for k in range(3)]
    assert batch_silhouette(x, batches, labels, 0) == pytest.approx(np.mean(widths))
    assert np.isnan(batch_silhouette(x, labels, labels, 0))  # no label is in two batches


def test_mixing_is_one_by_chance_and_zero_apart() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 3))
    batches = (rng.random(2000) < 0.1).astype(int)
    scores = mixing_scores(x, batches, None, 0)
    assert tuple(scores) == MIXED
    assert scores["mixing"] == pytest.approx(1, abs=0.03)
    assert mixing_scores(x + 100 * batches[:, None], batches, None, 0) == {"mixing": 0, "ilisi": pytest.approx(0)}
    # a label that one batch lacks: no neighbour of another batch can be expected there
    labels = np.where(x[:, 0] > 0, "a", "b")
    batches = (rng.random(2000) < 0.5).astype(int)
    here = (labels == "a") | (batches == 0)
    latent = x[here] + 100 * (labels[here] == "a")[:, None]
    with_labels = mixing_scores(latent, batches[here], labels[here].astype(object), 0)
    assert tuple(with_labels) == (*MIXED, *KEPT)
    assert with_labels["mixing"] == pytest.approx(1, abs=0.05)
    assert with_labels["clisi"] == pytest.approx(1)
    around = nearest(latent, 30)[1]
    assert foreign_share(around, batches[here]) < 0.75
    assert np.isnan(foreign_share(around, np.zeros(len(latent))))
    unknown = labels[here].astype(object)
    unknown[::3] = None
    assert mixing_scores(latent, batches[here], unknown, 0)["mixing"] == pytest.approx(1, abs=0.08)
    assert all(np.isnan(v) for v in mixing_scores(None, batches, labels, 0).values())


def shifted(cells: anndata.AnnData) -> anndata.AnnData:
    """Return cells, half of which lost most molecules of every fourth gene."""
    found = cells.copy()
    dense = found.X.toarray()
    found.obs["plate"] = np.where(np.arange(found.n_obs) % 2, "p1", "p2")
    found.obs["run"] = np.where(np.arange(found.n_obs) % 3, 1, 2)
    rng = np.random.default_rng(0)
    dense[::2, ::4] = rng.binomial(dense[::2, ::4].astype(int), 0.15)
    found.X = type(found.X)(dense)
    return found


def test_evaluate_scores_mixing_for_every_row(counts: anndata.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    cells = shifted(counts)
    small: dict[str, Any] = {"n_latent": 4, "n_hidden": (16,)}
    model = ac.CountAutoencoder(**small).fit(cells, batch_key="plate", max_epochs=10, progress=False)
    found = ac.evaluate(model, cells, labels="group")  # by the batches of the fit
    assert list(found.table.columns[-5:]) == [*MIXED, *KEPT]
    assert found.table.loc["model", "mixing"] > found.table.loc["pca", "mixing"]
    assert found.table.loc["gene_mean", "mixing"] != found.table.loc["gene_mean", "mixing"]
    without = ac.evaluate(model, cells[::2].copy(), labels="group").table  # of a single batch
    assert "mixing" not in without
    both = ac.evaluate(model, cells, batch_key=("plate", "run")).table
    assert list(both.columns[-2:]) == list(MIXED)
    plain = ac.CountAutoencoder(**small).fit(cells, max_epochs=1, progress=False)
    assert "mixing" not in ac.evaluate(plain, cells).table
    with caplog.at_level(logging.WARNING, "anncoder"):
        ac.evaluate(plain, cells, labels="group", batch_key="group")
    assert "every label is in one batch only" in caplog.text


@pytest.mark.parametrize(("column", "code"), [("nope", "unknown-key"), ("one", "one-batch"), ("gap", "missing-values")])
def test_wrong_batches_are_refused(fitted: Any, counts: anndata.AnnData, column: str, code: str) -> None:
    counts.obs["one"], counts.obs["gap"] = "a", pd.Series([None, *["a", "b"] * 59, "a"], index=counts.obs_names)
    with pytest.raises(ConfigError) as caught:
        ac.evaluate(fitted, counts, batch_key=column)
    assert caught.value.code == code
    assert caught.value.remedy


def test_batches_and_labels_that_cannot_be_told_apart_are_named(caplog: pytest.LogCaptureFixture) -> None:
    batches, labels = np.array(["a", "b", "c", "c"]), np.array(["x", "y", "x", "y"], dtype=object)
    with caplog.at_level(logging.WARNING, "anncoder"):
        warn_of_confounding(batches, labels)
    assert "no label is shared by the batches 'a' and 'b':" in caplog.text
    caplog.clear()
    names = ["mixing", "leiden_ari", "clisi"]
    table = pd.DataFrame([[0.9, 0.6, 0.9], [0.4, 0.9, 0.92]], index=["model", "pca"], columns=names)
    every = np.repeat(["a", "b"], 2), np.array(["x", "y", "x", "y"], dtype=object)
    with caplog.at_level(logging.WARNING, "anncoder"):
        warn_of_merging(table, *every)
    assert "cell types were merged: mixing is 0.50 above that of PCA, but leiden_ari is 0.30 below" in caplog.text
    caplog.clear()
    table.loc["model", "leiden_ari"] = 0.88
    with caplog.at_level(logging.WARNING, "anncoder"):
        warn_of_merging(table, *every)
    assert not caplog.text


def test_harmony_has_a_row_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, batches = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32), np.arange(20) % 2
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    assert harmonized(x, batches, 0) is None
    module: Any = ModuleType("harmonypy")
    monkeypatch.setitem(sys.modules, "harmonypy", module)
    for values in (x + 1, x.T + 1):  # a cell in each row, or in each column
        module.run_harmony = lambda data, meta, keys, *, random_state, verbose, values=values: SimpleNamespace(
            Z_corr=values
        )
        np.testing.assert_array_equal(harmonized(x, batches, 0), x + 1)


def test_the_commands_take_batch_keys(anncoder: Run, counts: anndata.AnnData, tmp_path: Path) -> None:
    shifted(counts).write_h5ad(tmp_path / "in.h5ad")
    few = ["--set", "max_epochs=1", "--set", "n_latent=3", "--set", "n_hidden=[8]", "--quiet"]
    keys = ["--batch-key", "plate", "--batch-key", "run"]
    done = anncoder("train", tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad", *keys, *few)
    assert done.exit_code == 0, done.output
    model = ac.load(tmp_path / "out.anncoder" / "model")
    assert model.batches_ == ["p1 · 1", "p1 · 2", "p2 · 1", "p2 · 2"]
    report = tmp_path / "evaluation.json"
    done = anncoder(
        "evaluate", tmp_path / "out.anncoder" / "model", tmp_path / "in.h5ad", "-o", report, "--batch-key", "plate"
    )
    assert done.exit_code == 0, done.output
    assert "ilisi" in json.loads(report.read_text())["methods"]["model"]
