"""Growth, transport and what is asked of it, in an AnnData: published numbers, slots, files, interruption."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import anncoder as ac
from anncoder.datasets import branching
from anncoder.dynamics.transport.sinkhorn import Solution, solve
from anncoder.errors import AnncoderError, ConfigError, InputError
from anncoder.tl.time_series import transport_maps
from anncoder.tl.time_series.time_points import read_times

QUIET = {"use_rep": "X_sim", "progress": False}


@pytest.fixture(scope="module")
def made() -> anndata.AnnData:
    """Return a transport with fates; not to be changed."""
    adata = branching()
    ac.tl.transport(adata, "time", **QUIET)
    ac.tl.fates(adata, "label")
    return adata


@pytest.fixture
def moved(made: anndata.AnnData) -> anndata.AnnData:
    return made.copy()


def small() -> anndata.AnnData:
    adata = branching(40, n_times=3)
    adata.X = adata.X.astype(np.float32)
    return adata


def state(adata: anndata.AnnData) -> tuple[Any, ...]:
    return (list(adata.obs), list(adata.obsm), list(adata.uns), list(adata.layers), adata.obs.to_csv())


def test_slots_are_as_documented(made: anndata.AnnData) -> None:
    when = made.obs["time"].to_numpy()
    f, g, grown = (made.obs[f"transport_{name}"].to_numpy() for name in ("f", "g", "growth"))
    assert f.dtype == g.dtype == grown.dtype == np.float64
    assert (np.isnan(f) == (when == 4)).all()
    assert (np.isnan(grown) == (when == 4)).all()
    assert (np.isnan(g) == (when == 0)).all()
    assert grown[:3] == pytest.approx((0.95818, 0.79141, 1.22436), abs=2e-5)
    pairs = made.uns["transport"]["pairs"]
    assert pairs["t0"].tolist() == [0, 1, 2, 3]
    assert pairs["median_cost"].tolist() == pytest.approx([1.716511, 2.745081, 3.749228, 3.232533], abs=1e-6)
    assert pairs["converged"].all()
    assert pairs["mass"].tolist() == pytest.approx([0.98327, 0.98296, 0.98541, 0.98362], abs=2e-5)
    settings = json.loads(made.uns["transport"]["settings_json"])
    assert (settings["time_key"], settings["use_rep"], settings["epsilon"]) == ("time", "X_sim", 0.05)
    assert (made.X == branching().X).all()


def test_growth_of_branches_and_cells(made: anndata.AnnData) -> None:
    label, grown = made.obs["label"].to_numpy(), made.obs["transport_growth"].to_numpy()
    for t in (2, 3):
        here = made.obs["time"].to_numpy() == t
        a, b = (grown[here & (label == branch)].mean() for branch in "AB")
        assert a / b == pytest.approx(1.84, rel=0.03)
        assert np.corrcoef(np.log(grown[here]), np.log(made.obs["growth_true"][here]))[0, 1] > 0.84


def test_many_growth_iterations_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "anncoder"):
        ac.tl.transport(branching(), "time", growth_iters=10, pairs=[(2, 3)], **QUIET)
    assert "is noise" in caplog.text


def test_the_prior_is_to_the_power_of_the_interval() -> None:
    adata = branching()
    ac.tl.growth(adata, rate="growth_true")
    adata.obs["days"] = 2 * adata.obs["time"]  # so the factor of an interval is that of two units of time
    ac.tl.transport(adata, "days", **QUIET)
    x = [adata.obsm["X_sim"][adata.obs["time"] == t] for t in (2, 3)]
    rate = adata.obs["growth_true"].to_numpy()[adata.obs["time"] == 2]
    cost = transport_maps.Cost(*x, transport_maps.median_cost(*x), 0.05)
    wanted = solve(cost, rate**2).growth ** 0.5
    assert adata.obs["transport_growth"].to_numpy()[adata.obs["time"] == 2] == pytest.approx(wanted, rel=1e-9)
    assert json.loads(adata.uns["transport"]["settings_json"])["growth_key"] == "growth"


def test_no_growth_in_no_growth_out() -> None:
    rng, n = np.random.default_rng(0), 300
    label = np.tile(np.repeat(["A", "B"], [180, 120]), 3)
    x = 0.3 * rng.normal(size=(3 * n, 5)) + 2 * (label == "A")[:, None]
    obs = pd.DataFrame({"time": np.repeat([0.0, 1.0, 2.0], n), "label": label}, index=[f"c{i}" for i in range(3 * n)])
    adata = anndata.AnnData(np.zeros((3 * n, 1), np.float32), obs=obs, obsm={"X_sim": x})
    ac.tl.transport(adata, "time", **QUIET)
    means = adata.obs.groupby(["time", "label"])["transport_growth"].mean().dropna()
    assert len(means) == 4
    assert means.to_numpy() == pytest.approx(np.ones(4), rel=0.05)


def test_fates_are_those_of_wot(made: anndata.AnnData) -> None:
    names = [str(name) for name in made.uns["fates"]["names"]]
    assert names == ["A", "B"]
    found, truth, when = made.obsm["fates"][:, 0], made.obs["fate_A"].to_numpy(), made.obs["time"].to_numpy()
    assert made.obsm["fates"].sum(axis=1) == pytest.approx(np.ones(1000), abs=1e-9)
    expected = {0: (0.862, 0.155, 0.8221), 1: (0.986, 0.057, 0.7195)}
    for t, (correlation, error, mean) in expected.items():
        here = when == t
        assert np.corrcoef(found[here], truth[here])[0, 1] == pytest.approx(correlation, abs=1e-3)
        assert np.abs(found[here] - truth[here]).mean() == pytest.approx(error, abs=1e-3)
        assert found[here].mean() == pytest.approx(mean, abs=1e-4)
    assert found[when == 0][:3] == pytest.approx((0.80680, 0.78139, 0.86703), abs=2e-5)
    assert found[when == 1][:3] == pytest.approx((0.97370, 0.93498, 0.99995), abs=2e-5)
    for t in (2, 3, 4):
        assert ((found > 0.5) == (made.obs["label"] == "A"))[when == t].all()


def test_fates_at_a_middle_time_and_cells_without_a_label(moved: anndata.AnnData) -> None:
    cells = np.flatnonzero(moved.obs["time"] == 2)
    moved.obs["label"] = moved.obs["label"].where(~np.isin(np.arange(1000), cells[:50]))
    ac.tl.fates(moved, "label", at=2, key_added="middle")
    assert [str(name) for name in moved.uns["middle"]["names"]] == ["A", "B", "other"]
    found = moved.obsm["middle"]
    assert np.isnan(found[moved.obs["time"] > 2]).all()
    assert found[moved.obs["time"] <= 2].sum(axis=1) == pytest.approx(np.ones(600), abs=1e-9)
    assert (found[cells[:50], 2] == 1).all()


def test_two_time_points_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    adata = branching()
    adata = adata[adata.obs["time"] >= 3].copy()
    ac.tl.transport(adata, "time", **QUIET)
    ac.tl.fates(adata, "label")
    assert adata.obsm["fates"].sum(axis=1) == pytest.approx(np.ones(400), abs=1e-9)
    assert ac.tl.ancestors(adata, "A", 4, 3, labels="label").sum() == pytest.approx(1)
    assert ac.tl.flows(adata, "label")["mass"].sum() == pytest.approx(adata.uns["transport"]["pairs"]["mass"].iloc[0])


def test_ancestors_and_descendants(moved: anndata.AnnData) -> None:
    when = moved.obs["time"].to_numpy()
    weights = ac.tl.ancestors(moved, "B", 4)
    assert weights.index.equals(moved.obs_names)
    sums = weights.groupby(when).sum()
    assert sums.to_numpy() == pytest.approx(np.ones(5))
    assert weights[(when == 3) & (moved.obs["label"] == "A")].sum() < 1e-9
    one = ac.tl.ancestors(moved, "B", 4, 2)
    assert one[when == 2].to_numpy() == pytest.approx(weights[when == 2].to_numpy())
    assert one[when != 2].isna().all()
    cells = moved.obs_names[(when == 2) & (moved.obs["label"] == "B")]
    forward = ac.tl.descendants(moved, list(cells), 2)
    assert forward[when < 2].isna().all()
    assert forward.groupby(when).sum().to_numpy()[2:] == pytest.approx(np.ones(3))
    assert forward[(when == 4) & (moved.obs["label"] == "B")].sum() > 0.999
    mask = np.isin(moved.obs_names, cells)
    pd.testing.assert_series_equal(ac.tl.descendants(moved, mask, 2, 4)[when == 4], forward[when == 4])


def test_trends_of_a_fate(moved: anndata.AnnData) -> None:
    moved.layers["sparse"] = csr_matrix(moved.X)
    table = ac.tl.trends(moved, "B", ["Dim1", "Dim0"], layer="sparse")
    assert list(table) == ["time", "gene", "mean", "sd", "n_eff"]
    mean = table[table["gene"] == "Dim1"].set_index("time")["mean"]
    assert mean.to_numpy()[2:] == pytest.approx([-1, -2, -3], abs=0.15)
    last = table[(table["time"] == 4) & (table["gene"] == "Dim1")].iloc[0]
    b = moved.X[(moved.obs["time"] == 4) & (moved.obs["label"] == "B"), 1]
    assert (last["mean"], last["sd"], last["n_eff"]) == pytest.approx((b.mean(), b.std(), len(b)))
    weights = ac.tl.ancestors(moved, "B", 4)
    again = ac.tl.trends(moved, weights, "Dim1")
    assert again["time"].tolist() == [0, 1, 2, 3, 4]


def test_couple_gives_rows_that_cellrank_takes(moved: anndata.AnnData) -> None:
    when = moved.obs["time"].to_numpy()
    block = ac.tl.couple(moved, 2, 3)
    assert block.shape == (200, 200)
    assert np.asarray(block.sum(axis=1)).ravel() == pytest.approx(np.ones(200))
    few = ac.tl.couple(moved, 2, 3, top=30)
    assert few.nnz == 6000
    square = ac.tl.couple(moved, 2, 3, top=30, square=True)
    assert square.shape == (1000, 1000)
    assert np.asarray(square.sum(axis=1)).ravel() == pytest.approx(np.ones(1000))
    assert (square[when == 2][:, when == 3] != few).nnz == 0
    some = ac.tl.couple(moved, 2, 3, rows=list(moved.obs_names[when == 2][[5, 7]]))
    assert some.toarray() == pytest.approx(block.toarray()[[5, 7]])


def test_interpolated_cells_are_between(moved: anndata.AnnData) -> None:
    cells = ac.tl.interpolate(moved, 2.5, n=300)
    assert cells.shape == (300, 10)
    assert cells[:, 0].mean() == pytest.approx(2.5, abs=0.05)
    assert np.sort(np.abs(cells[:, 1]))[3] > 0.7  # in the branches, which are 1.5 from the middle there
    assert (cells == ac.tl.interpolate(moved, 2.5, n=300)).all()
    for wrong in (-1, 4.5, "2.5", float("nan")):
        with pytest.raises(ConfigError) as raised:
            ac.tl.interpolate(moved, wrong)
        assert raised.value.code == "bad-value"


def test_validation_says_how_it_fared(moved: anndata.AnnData) -> None:
    table = ac.tl.validate_transport(moved, n_seeds=3, n=200, progress=False)
    assert table["guess"].tolist() == ["I", "R", "Rg", "F", "L", "P"] * 3
    assert table[table["guess"] == "I"]["verdict"].tolist()[2] == "win"
    assert str(moved.uns["transport_validation"]["sentences"][2]).startswith("2, 3, 4: a win")
    with pytest.raises(ConfigError):
        ac.tl.validate_transport(moved, n_seeds=1, progress=False)


def test_file_view_backed_and_copy_give_the_same(tmp_path: Path, made: anndata.AnnData) -> None:
    path = tmp_path / "a.h5ad"
    made.write_h5ad(path)
    read = anndata.read_h5ad(path)
    ac.tl.fates(read, "label", key_added="again")
    np.testing.assert_array_equal(read.obsm["again"], made.obsm["fates"])
    assert read.uns["transport"]["pairs"]["t1"].tolist() == [1, 2, 3, 4]
    backed = anndata.read_h5ad(path, backed="r")
    ac.tl.transport(backed, "time", **QUIET)
    assert backed.isbacked
    np.testing.assert_array_equal(backed.obs["transport_f"], made.obs["transport_f"])
    backed.file.close()
    whole = branching()
    view = whole[whole.obs["time"] < 2]
    ac.tl.transport(view, "time", **QUIET)
    np.testing.assert_array_equal(view.obs["transport_f"][:200], made.obs["transport_f"][:200])
    assert "transport_f" not in whole.obs
    copied = ac.tl.transport(whole, "time", copy=True, **QUIET)
    assert copied is not None
    assert "transport" not in whole.uns
    np.testing.assert_array_equal(copied.obs["transport_f"], made.obs["transport_f"])


@pytest.mark.parametrize("kind", ["int", "float32", "text", "category", "ordered"])
def test_times_of_other_types_are_the_same(kind: str) -> None:
    adata = small()
    plain = ac.tl.transport(adata, "time", copy=True, **QUIET)
    whole = adata.obs["time"].astype(int)
    text = whole.astype(str)
    other: dict[str, Any] = {
        "int": whole,
        "float32": whole.astype(np.float32),
        "text": text,
        "category": text.astype("category").cat.add_categories(["day 9"]),
        "ordered": text.astype(pd.CategoricalDtype(["0", "1", "2"], ordered=True)),
    }
    adata.obs["time"] = other[kind]
    ac.tl.transport(adata, "time", **QUIET)
    np.testing.assert_array_equal(adata.obs["transport_f"], plain.obs["transport_f"])


def test_a_changed_latent_is_refused(moved: anndata.AnnData) -> None:
    moved.obsm["X_sim"] = moved.obsm["X_sim"] + 1e-9
    for ask in (
        lambda: ac.tl.fates(moved, "label"),
        lambda: ac.tl.ancestors(moved, "A", 4),
        lambda: ac.tl.couple(moved, 0, 1),
        lambda: ac.tl.interpolate(moved, 0.5),
        lambda: ac.tl.validate_transport(moved),
        lambda: ac.tl.flows(moved, "label"),
    ):
        with pytest.raises(InputError) as raised:
            ask()
        assert raised.value.code == "other-latent"
    with pytest.raises(InputError, match="other-latent"):
        ac.tl.fates(branching_subset(moved), "label")


def branching_subset(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[adata.obs["time"] > 0].copy()


def test_interrupted_it_keeps_what_is_finished(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def stopped(*arguments: Any, **options: Any) -> Solution:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve(*arguments, **options)

    monkeypatch.setattr(transport_maps, "solve", stopped)
    adata = small()
    ac.tl.transport(adata, "time", **QUIET)
    assert "1 of 2 pairs" in caplog.text
    assert adata.uns["transport"]["pairs"]["t1"].tolist() == [1]
    assert adata.obs["transport_f"].notna().sum() == 40
    ac.tl.fates(adata, "label", at=1)
    monkeypatch.setattr(transport_maps, "solve", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    fresh = small()
    before = state(fresh)
    with pytest.raises(KeyboardInterrupt):
        ac.tl.transport(fresh, "time", **QUIET)
    assert state(fresh) == before


def test_pairs_may_skip_and_go_backwards(caplog: pytest.LogCaptureFixture) -> None:
    adata = branching(60)
    ac.tl.transport(adata, "time", pairs=[(4, 2), (0, 2)], **QUIET)
    assert "0 to 2, 2 to 4" in caplog.text
    ac.tl.fates(adata, "label")
    assert np.isnan(adata.obsm["fates"][adata.obs["time"] == 1]).all()
    assert adata.obsm["fates"][adata.obs["time"] == 0].sum(axis=1) == pytest.approx(np.ones(60))
    with pytest.raises(ConfigError) as raised:
        ac.tl.ancestors(adata, "A", 4, 1, labels="label")
    assert raised.value.code == "bad-value"


def test_metacells_of_a_time_point() -> None:
    adata = branching(400, n_times=3)
    full = ac.tl.transport(adata, "time", copy=True, **QUIET)
    ac.tl.transport(adata, "time", max_cells=200, **QUIET)
    assert adata.uns["transport"]["pairs"]["metacells"].tolist() == [200, 200]
    grown, wanted = (a.obs["transport_growth"].dropna() for a in (adata, full))
    assert np.corrcoef(grown, wanted)[0, 1] > 0.9
    assert grown.mean() == pytest.approx(wanted.mean(), rel=0.02)


def test_batches_that_are_times_are_named(caplog: pytest.LogCaptureFixture) -> None:
    adata = small()
    adata.obs["plate"] = "p" + adata.obs["time"].astype(str)
    ac.tl.transport(adata, "time", batch_key="plate", **QUIET)
    assert "differences between batches" in caplog.text


def test_progress_says_a_line_a_pair(capsys: pytest.CaptureFixture[str]) -> None:
    ac.tl.transport(small(), "time", use_rep="X_sim")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["transport 0 to 1", "transport 1 to 2"]
    ac.tl.transport(small(), "time", use_rep="X_sim", progress=True)
    assert "pair" in capsys.readouterr().err


def test_fates_agree_with_clones_of_real_cells(shared_data: Path) -> None:
    """Blood progenitors, of which the named half of the clones; the numbers of all are 0.846 and 4.84."""
    from benchmarks.time_series import clones, with_pca

    found = clones(with_pca(anndata.read_h5ad(shared_data / "larry_781.h5ad")), "X_pca")
    mean, nearest = (np.mean([*scores.values()]) for scores in (found.auc, found.nearest))
    assert mean >= 0.80
    assert mean > nearest
    assert found.same_clone >= 3


@pytest.mark.slow
def test_fates_on_the_latent_agree_with_clones_of_real_cells(shared_data: Path) -> None:
    from benchmarks.time_series import clones

    adata = anndata.read_h5ad(shared_data / "larry_781.h5ad")
    ac.tl.autoencode(adata, "denoising", n_latent=16, progress=False, seed=0)
    found = clones(adata, "X_ae")
    mean, nearest = (np.mean([*scores.values()]) for scores in (found.auc, found.nearest))
    assert mean >= 0.80
    assert mean > nearest
    assert found.same_clone >= 3


def test_held_out_day_of_reprogramming(shared_data: Path) -> None:
    from benchmarks.time_series import with_pca

    adata = with_pca(anndata.read_h5ad(shared_data / "reprogramming_250.h5ad"))
    ac.tl.transport(adata, "time", use_rep="X_pca", progress=False)
    table = ac.tl.validate_transport(adata, n_seeds=3, progress=False).set_index("guess")
    assert table.loc["I", "W2"] < min(table.loc["F", "W2"], table.loc["L", "W2"])
    assert table.loc["I", "W2"] == pytest.approx(18.46, abs=0.1)
    assert table.loc[["F", "L"], "E"].tolist() == pytest.approx([4.19, 1.81], abs=0.02)
    assert table.loc["I", "verdict"] != "win"  # the last day is nearer in energy


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ({"epsilon": 0}, "bad-value"),
        ({"epsilon": 1e-6}, "bad-value"),
        ({"epsilon": float("nan")}, "bad-value"),
        ({"lambda1": 0}, "bad-value"),
        ({"lambda2": -1}, "bad-value"),
        ({"growth_iters": 0}, "bad-value"),
        ({"growth_iters": 1.5}, "bad-value"),
        ({"max_cells": 3}, "bad-value"),
        ({"max_cells": "many"}, "bad-value"),
        ({"tolerance": 0}, "bad-value"),
        ({"max_iter": 0}, "bad-value"),
        ({"seed": -1}, "bad-value"),
        ({"pairs": []}, "bad-pairs"),
        ({"pairs": [(0, 7)]}, "bad-pairs"),
        ({"pairs": [(0, 1), (0, 2)]}, "bad-pairs"),
        ({"pairs": [(1, 1)]}, "bad-pairs"),
        ({"pairs": 3}, "bad-pairs"),
        ({"growth_key": "no"}, "unknown-key"),
        ({"batch_key": "no"}, "unknown-key"),
        ({"use_rep": "X_no"}, "unknown-key"),
        ({"use_rep": None}, "unknown-key"),
        ({"device": "abacus"}, "no-device"),
        ({"key_added": "a/b"}, "bad-key"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(option: dict[str, Any], code: str) -> None:
    adata = small()
    before = state(adata)
    with pytest.raises(AnncoderError) as raised:
        ac.tl.transport(adata, "time", **{**QUIET, **option})
    assert raised.value.code == code
    assert raised.value.remedy
    assert state(adata) == before


def test_the_users_own_slots_are_not_overwritten(moved: anndata.AnnData) -> None:
    adata = small()
    adata.obs["transport_f"] = 1.0
    adata.obs["growth"] = "fast"
    adata.obsm["fates"] = np.zeros((120, 2))
    for ask in (
        lambda: ac.tl.transport(adata, "time", **QUIET),
        lambda: ac.tl.growth(adata, rate=1.0),
        lambda: ac.tl.fates(adata, "label"),
    ):
        with pytest.raises(ConfigError) as raised:
            ask()
        assert raised.value.code == "key-taken"
    ac.tl.transport(moved, "time", **QUIET)  # our own are
    with pytest.raises(ConfigError, match="not written by transport"):
        ac.tl.transport(moved, "time", key_added="fates", **QUIET)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda a: ac.tl.fates(a, "no"), "unknown-key"),
        (lambda a: ac.tl.fates(a, "label", at=9), "bad-value"),
        (lambda a: ac.tl.fates(a, "early"), "no-labels"),
        (lambda a: ac.tl.fates(a, "label", transport="other"), "no-transport"),
        (lambda a: ac.tl.ancestors(a, "P", 4, labels="label"), "no-labels"),
        (lambda a: ac.tl.ancestors(a, ["nobody"], 4), "bad-value"),
        (lambda a: ac.tl.ancestors(a, np.ones(3, bool), 4), "bad-value"),
        (lambda a: ac.tl.descendants(a, "A", 2, 1), "no-transport"),
        (lambda a: ac.tl.couple(a, 0, 2), "no-transport"),
        (lambda a: ac.tl.couple(a, 0, 1, top=0), "bad-value"),
        (lambda a: ac.tl.trends(a, "C", "Dim0"), "unknown-key"),
        (lambda a: ac.tl.trends(a, "A", "Dim77"), "unknown-key"),
        (lambda a: ac.tl.trends(a, np.full(1000, -1.0), "Dim0"), "bad-value"),
        (lambda a: ac.tl.trends(a, np.ones(3), "Dim0"), "bad-value"),
    ],
)
def test_questions_that_have_no_answer(moved: anndata.AnnData, ask: Any, code: str) -> None:
    moved.obs["early"] = moved.obs["label"].astype(object).where(moved.obs["time"] < 2)
    before = state(moved)
    with pytest.raises(AnncoderError) as raised:
        ask(moved)
    assert raised.value.code == code
    assert raised.value.remedy
    if code == "no-labels" and "early" in str(raised.value):
        assert "time 0, 1" in str(raised.value)
    assert state(moved) == before


def test_times_are_read_as_numbers() -> None:
    assert read_times(small(), "time").tolist() == [0.0] * 40 + [1.0] * 40 + [2.0] * 40
