"""Fits with other seeds: the agreements against independent ones, which fits are compared, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

import anncoder as ac
from anncoder.errors import ConfigError, DivergenceError, InputError
from anncoder.evaluation import clusters
from anncoder.evaluation.clusters import leiden
from anncoder.evaluation.comparison import Evaluation, evaluate
from anncoder.evaluation.graph import neighbor_graph
from anncoder.evaluation.stability import (
    AGAIN,
    BETWEEN,
    OF_PCA,
    SCORES,
    Question,
    Stability,
    compared,
    pseudotime,
    rank_correlation,
)
from anncoder.reporting import maps
from anncoder.reporting.page import report
from anncoder.reporting.stability import sentences

FIT: dict[str, Any] = {"max_epochs": 3, "batch_size": 32, "valid_fraction": 0.2, "threads": 1, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "RESOLUTIONS", (1.0,))
        yield


def made(**settings: Any) -> ac.CountAutoencoder:
    return ac.CountAutoencoder(n_latent=3, n_hidden=(8,), **settings)


@pytest.fixture(scope="module")
def model(simulated: anndata.AnnData) -> ac.CountAutoencoder:
    return made().fit(simulated, seed=4, **FIT)


@pytest.fixture(scope="module")
def found(model: ac.CountAutoencoder, simulated: anndata.AnnData) -> Evaluation:
    return evaluate(model, simulated, labels="group", seeds=3, root=simulated.obs_names[7])


def of(found: Evaluation) -> Stability:
    assert found.stability is not None
    return found.stability


class TestAgreements:
    random = np.random.default_rng(0)
    line = np.column_stack([np.linspace(0, 60, 90), random.normal(0, 0.3, 90)]).astype(np.float32)

    def test_equal_latents_agree_and_random_ones_do_not(self) -> None:
        noise = self.random.normal(size=(2, 200, 3)).astype(np.float32)
        same, _ = compared({3: noise[0], 9: noise[0].copy()}, noise[1], Question(None, 5), 0)
        assert (same.loc[same["compared"] == BETWEEN, list(SCORES)].to_numpy() == 1).all()
        assert same.loc[0, ["first", "second"]].tolist() == [3, 9]
        other, _ = compared({3: noise[0], 9: noise[1]}, noise[1], Question(None, None), 0)
        between = other.iloc[0]
        assert abs(between["leiden_ari"]) < 0.1
        assert abs(between["neighbors"] - 14 / 199) < 0.03  # by chance
        assert np.isnan(between["pseudotime"])

    def test_shares_and_clusters_are_those_by_hand(self) -> None:
        one, other = self.random.normal(size=(2, 120, 3)).astype(np.float32)
        other += 2 * one
        pairs, facts = compared({0: one, 1: other}, one, Question(None, None), 0)

        def neighbors(z: Any) -> list[set[int]]:
            distance = np.linalg.norm(z[:, None] - z[None], axis=2)
            return [set(np.argsort(row)[1:15]) for row in distance]

        share = np.mean([len(a & b) / 14 for a, b in zip(neighbors(one), neighbors(other), strict=True)])
        assert pairs.loc[0, "neighbors"] == pytest.approx(share)
        labels = [leiden(z, (1.0,), 0)[0] for z in (one, other)]
        assert pairs.loc[0, "leiden_ari"] == pytest.approx(adjusted_rand_score(*labels))
        assert [facts[k]["clusters"] for k in (0, 1)] == [len(set(found)) for found in labels]

    def test_pseudotime_follows_a_line_and_stops_where_the_graph_does(self) -> None:
        times = pseudotime(neighbor_graph(self.line, 15), 0)
        assert spearmanr(times, self.line[:, 0]).statistic > 0.99
        apart = self.line + np.where(np.arange(90) < 30, 0, 1000)[:, None].astype(np.float32)
        _, facts = compared({0: self.line, 1: apart}, self.line, Question(None, 0), 0)
        assert (facts[0]["parts"], facts[0]["outside"], facts[0]["unreached"]) == (1, 0, 0)
        assert (facts[1]["parts"], facts[1]["outside"], facts[1]["unreached"]) == (2, 30, 60)

    def test_ranks_are_compared_where_both_are_reached(self) -> None:
        one, other = self.random.normal(size=(2, 30))
        one[:5], other[3:9] = np.inf, np.inf
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one[9:], other[9:]).statistic)
        assert np.isnan(rank_correlation(one[:6], other[:6]))

    def test_a_latent_that_knows_nothing_is_no_error(self) -> None:
        same = np.ones((40, 2), np.float32)
        pairs, facts = compared({0: same, 1: same}, self.line[:40], Question(None, 0), 0)
        assert len(pairs) == 3
        assert facts[0]["parts"] >= 1


class TestFits:
    def test_they_are_those_of_the_next_seeds(self, found: Evaluation, simulated: anndata.AnnData) -> None:
        moved = of(found)
        assert moved.own
        assert moved.seeds == [4, 5, 6]
        assert moved.fits.index.tolist() == [4, 5, 6, "pca"]
        truth = simulated.obs["group"].astype(str)
        for seed in moved.seeds:
            latent = made().fit(simulated, seed=seed, **FIT).embed(simulated)
            (labels,) = leiden(latent, (1.0,), 0)
            assert moved.fits.loc[seed, "labels_ari"] == pytest.approx(adjusted_rand_score(truth, labels))
        assert (moved.fits["unreached"] <= moved.fits["outside"].max()).all()

    def test_pca_agrees_with_itself_and_clusterings_with_their_seed(self, found: Evaluation) -> None:
        table = of(found).table
        assert table.index.tolist() == [BETWEEN, AGAIN, OF_PCA]
        assert (table.loc[[AGAIN, OF_PCA], ["neighbors", "pseudotime"]] == 1).all(axis=None)
        assert len(of(found).pairs) == 9
        assert ((of(found).lowest <= table) & (table <= 1)).all(axis=None)
        assert table.loc[BETWEEN, "neighbors"] < 1

    def test_it_is_shown_and_kept_as_plain_values(self, found: Evaluation) -> None:
        assert "3 fits with seeds 4, 5, 6 (the fitted model and others like it), 120 cells" in str(found)
        assert BETWEEN in str(found)
        assert BETWEEN in found._repr_html_()
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))["stability"]
        assert plain["seeds"] == [4, 5, 6]
        assert plain["scores"][BETWEEN]["neighbors"]["mean"] == pytest.approx(of(found).table.loc[BETWEEN, "neighbors"])
        assert [fit["seed"] for fit in plain["fits"]] == [4, 5, 6, "pca"]
        assert plain["fits"][-1]["epochs"] is None
        assert len(plain["pairs"]) == 9

    def test_nothing_is_changed_and_none_is_the_default(
        self, model: ac.CountAutoencoder, simulated: anndata.AnnData, found: Evaluation
    ) -> None:
        before, latent = simulated.copy(), model.embed(simulated)
        plain = evaluate(model, simulated, labels="group")
        assert plain.stability is None
        assert "stability" not in plain.to_dict()
        pd.testing.assert_frame_equal(plain.table, found.table)
        np.testing.assert_array_equal(model.embed(simulated), latent)
        assert (before.X != simulated.X).nnz == 0
        assert not simulated.obsm

    def test_files_give_the_same(
        self, model: ac.CountAutoencoder, simulated: anndata.AnnData, found: Evaluation, tmp_path: Path
    ) -> None:
        simulated.write_h5ad(tmp_path / "in.h5ad")
        again = evaluate(model, tmp_path / "in.h5ad", labels="group", seeds=3, root=simulated.obs_names[7])
        pd.testing.assert_frame_equal(of(again).pairs, of(found).pairs)

    def test_of_other_cells_the_fitted_model_is_none_of_them(
        self, model: ac.CountAutoencoder, simulated: anndata.AnnData
    ) -> None:
        new = simulated.copy()
        new.obs_names = [f"new{i}" for i in range(new.n_obs)]
        part = simulated[:60].copy()
        for cells, options in ((new, {"max_cells": 60}), (part, {}), (simulated, {"max_cells": 60})):
            moved = of(evaluate(model, cells, seeds=2, **options))
            assert not moved.own
            assert moved.seeds == [4, 5]
            assert "all of them fits to these cells" in moved.head

    def test_the_root_is_scanpys_and_always_among_the_cells(
        self, model: ac.CountAutoencoder, counts: anndata.AnnData
    ) -> None:
        counts.uns["iroot"] = 11
        moved = of(evaluate(model, counts, seeds=2, max_cells=40))
        assert moved.root == counts.obs_names[11]
        assert moved.n_obs == 40
        assert moved.pairs["pseudotime"].notna().all()

    def test_columns_of_the_fit(self, simulated: anndata.AnnData) -> None:
        cells = simulated.copy()
        cells.obs["plate"] = np.where(np.arange(cells.n_obs) % 2, "a", "b")
        model = made().fit(cells, batch_key="plate", valid_stratify="group", mask_var=None, **FIT)
        assert of(evaluate(model, cells, seeds=2)).own

    def test_a_model_of_ones_own(self, simulated: anndata.AnnData) -> None:
        class Own(ac.CountAutoencoder):
            name = "own"

        moved = of(evaluate(Own(n_latent=3, n_hidden=(8,)).fit(simulated, **FIT), simulated, seeds=2))
        assert moved.seeds == [0, 1]

    def test_a_fit_that_diverges_is_said_and_left_out(
        self, simulated: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = made().fit(simulated, **FIT)
        fit = ac.CountAutoencoder.fit

        def diverging(self: Any, *arguments: Any, seed: int = 0, **options: Any) -> Self:  # type: ignore[misc]
            fit(self, *arguments, seed=seed, **options)
            if seed >= last:
                self.stopped_ = "diverged"
                raise DivergenceError("the loss is not finite")
            return self

        monkeypatch.setattr(ac.CountAutoencoder, "fit", diverging)
        last = 2
        moved = of(evaluate(model, simulated, seeds=3))
        assert moved.seeds == [0, 1]
        assert moved.notes[0] == "seed 2: the fit diverged"
        assert "Seed 2: the fit diverged." in sentences(moved)
        last = 1
        with pytest.raises(InputError, match="1 of 2 fits") as error:
            evaluate(model, simulated, seeds=2)
        assert error.value.code == "too-few-fits"


class TestWords:
    def moved(self, between: float, again: float, time: float, parts: int = 1) -> Stability:
        rows = [{"compared": name, "first": 0, "second": 1, **dict.fromkeys(SCORES, 1.0)} for name in (BETWEEN, OF_PCA)]
        rows[0] |= {"leiden_ari": between, "neighbors": 0.44, "pseudotime": time}
        pairs = pd.DataFrame([*rows, rows[1] | {"compared": AGAIN, "leiden_ari": again}])
        facts = {"epochs": 5, "stopped": "early", "clusters": 4, "parts": 1, "outside": 0, "unreached": 0}
        broken = facts | {"parts": parts, "outside": 3, "unreached": 84}
        fits = pd.DataFrame.from_dict({0: facts, 1: broken, "pca": facts | {"stopped": ""}}, orient="index")
        return Stability(pairs, fits, 340, "E1", own=True)

    def test_what_moves_is_said(self) -> None:
        stable = sentences(self.moved(0.97, 0.99, 0.95))
        assert stable[0].startswith("The clusters do not depend on the seed.")
        assert stable[1].startswith("The order of the cells in pseudotime from E1 holds")
        assert stable[2] == "Of the 14 nearest neighbours of a cell two fits have 44% in common."
        moving = sentences(self.moved(0.5, 0.99, 0.2, parts=2))
        assert moving[0].startswith("The clusters depend on the seed.")
        assert "depends on the seed" in moving[1]
        assert moving[3] == "Seed 1: the neighbour graph falls into 2 parts, and 84 of 340 cells have no pseudotime."
        assert sentences(self.moved(0.85, 0.99, 1.0))[0].startswith("Some cells change their cluster")

    def test_the_report_has_a_section(
        self,
        found: Evaluation,
        model: ac.CountAutoencoder,
        simulated: anndata.AnnData,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(maps, "EMBEDDED", 8)  # no t-SNE
        cells = simulated.copy()
        evil = "<script>alert(1)</script>"
        cells.obs_names = [evil, *cells.obs_names[1:]]
        page = report(cells, model, labels="group", seeds=2, root=evil)
        assert "<h2>Stability: the same fit with other seeds</h2>" in page.html
        assert "<script" not in page.html
        assert "pseudotime from &lt;script&gt;alert(1)&lt;/script&gt;" in page.html
        assert "seeds=2, root=" in page.html
        given = report(simulated, model, evaluation=found).html
        assert all(text in given for text in ("seeds=3, root=", "seed 6", BETWEEN, "--seeds 3"))
        without = report(simulated, model, evaluation=replace(found, stability=None)).html
        assert "Stability: the same fit" not in without
        assert "<code>--seeds 5</code>" in without


class TestBadInput:
    @pytest.mark.parametrize("seeds", [1, -1, 21, 2.5, True, "5"])
    def test_no_number_of_fits(self, seeds: Any, model: ac.CountAutoencoder, simulated: anndata.AnnData) -> None:
        for call in (evaluate, lambda m, a, **k: report(a, m, **k)):
            with pytest.raises(ConfigError, match="seeds") as error:
                call(model, simulated, seeds=seeds)
            assert error.value.code == "bad-value"

    def test_no_root(self, model: ac.CountAutoencoder, simulated: anndata.AnnData) -> None:
        def refused(code: str, root: Any, seeds: int | None = 2) -> None:
            with pytest.raises(ConfigError, match="root") as error:
                evaluate(model, twice, seeds=seeds, root=root)
            assert error.value.code == code

        twice = simulated.copy()
        twice.obs_names = ["a", "a", *simulated.obs_names[2:]]
        refused("unknown-key", "nobody")
        refused("bad-value", "a")
        refused("bad-value", 3)
        refused("bad-value", simulated.obs_names[5], None)


def test_on_the_command_line(
    anncoder: Callable[..., Any], model: ac.CountAutoencoder, simulated: anndata.AnnData, tmp_path: Path
) -> None:
    simulated.write_h5ad(tmp_path / "in.h5ad")
    model.save(tmp_path / "model")
    words = ["evaluate", tmp_path / "model", tmp_path / "in.h5ad", "-o", tmp_path / "it.json"]
    done = anncoder(*words, "--seeds", 2, "--root", simulated.obs_names[3])
    assert done.exit_code == 0, done.output
    assert BETWEEN in done.stdout
    written = json.loads((tmp_path / "it.json").read_text())["stability"]
    assert (written["seeds"], written["root"]) == ([4, 5], simulated.obs_names[3])
    assert anncoder(*words, "--seeds", 1).exit_code == 2
    assert anncoder(*words, "--seeds", 21).exit_code == 2
    assert anncoder(*words, "--seeds", 2, "--root", "nobody").exit_code == 2
