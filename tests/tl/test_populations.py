"""Population dynamics, balance and root in AnnData: results, files, and every bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from benchmarks.population_dynamics import TIMES, population, tree
from scipy.sparse import csr_matrix

import anncoder as ac
from anncoder.errors import AnncoderError

SIZES = dict(zip(TIMES.tolist(), np.exp(population(0).log_sizes).tolist(), strict=True))
QUICK: dict[str, Any] = {"n_grid": 60, "smoothness": 1.0}


def cells() -> anndata.AnnData:
    """Return 500 cells of five times with their coordinate."""
    data = population(0, n=100)
    obs = {"day": np.repeat(data.times, 100), "s": np.concatenate(data.coordinates)}
    names = [f"c{i}" for i in range(500)]
    return anndata.AnnData(obs=pd.DataFrame(obs, index=names))


def branching() -> anndata.AnnData:
    """Return 600 cells of a tree, with labels of entry and exits."""
    one = tree(600, 0)
    label = np.select([one.entry, one.tips[:, 0], one.tips[:, 1]], ["HSC", "Ery", "Mono"], "rest")
    obs = pd.DataFrame({"type": pd.Categorical(label)}, index=[f"c{i}" for i in range(600)])
    obs["rate"] = one.entries - one.exits.sum(axis=1)
    return anndata.AnnData(obs=obs, obsm={"X_ae": one.points.astype(np.float32)})


def unchanged(adata: anndata.AnnData, call: Callable[[anndata.AnnData], Any], code: str, said: str) -> None:
    """Hold that a call is refused, says why with a remedy, and has written nothing."""
    before = (list(adata.obs), list(adata.obsm), list(adata.uns))
    with pytest.raises(AnncoderError, match=said) as refused:
        call(adata)
    assert refused.value.code == code
    assert refused.value.remedy
    assert (list(adata.obs), list(adata.obsm), list(adata.uns)) == before


def test_dynamics_writes_what_h5ad_can_hold(tmp_path: Path) -> None:
    adata = cells()
    ac.tl.dynamics(adata, "day", "s", sizes=SIZES, **QUICK)
    adata.write_h5ad(tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad").uns["dynamics"]
    for name in "vgD":
        assert found[name].shape == (60,)
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()
    assert found["cdf_measured"].shape == found["cdf_fitted"].shape == (5, 59)
    assert list(found["left_out"]["time"]) == [2, 4, 6]
    np.testing.assert_allclose(found["sizes"]["size"], list(SIZES.values()))
    np.testing.assert_allclose(np.log(found["sizes"]["fitted"] / found["sizes"]["size"]), 0, atol=0.2)
    np.testing.assert_allclose(found["density"].sum(axis=1) / 60, found["sizes"]["fitted"])
    settings = json.loads(found["params_json"])
    assert (settings["time_key"], settings["coordinate"], settings["smoothness"]) == ("day", "s", 1.0)


def test_dynamics_again_and_on_a_copy() -> None:
    adata = cells()
    copied = ac.tl.dynamics(adata, "day", "s", sizes=SIZES, copy=True, **QUICK)
    assert "dynamics" not in adata.uns
    assert copied is not None
    first = copied.uns["dynamics"]
    ac.tl.dynamics(copied, "day", "s", sizes=SIZES, **QUICK)  # over its own results
    np.testing.assert_array_equal(copied.uns["dynamics"]["theta"], first["theta"])


@pytest.mark.parametrize("kind", ["categorical", "digits", "int", "float32", "view"])
def test_times_of_any_type_are_the_same(kind: str) -> None:
    adata = cells()
    ac.tl.dynamics(adata, "day", "s", sizes=SIZES, **QUICK)
    expected = adata.uns.pop("dynamics")
    if kind == "view":
        adata = adata[np.arange(500)]
    else:
        kinds = {"categorical": "category", "digits": str}
        adata.obs["day"] = adata.obs["day"].astype(kinds.get(kind, kind))
    ac.tl.dynamics(adata, "day", "s", sizes=SIZES, **QUICK)
    np.testing.assert_array_equal(adata.uns["dynamics"]["theta"], expected["theta"])


def test_sizes_of_any_kind_are_the_same() -> None:
    from anncoder.tl.time_series.populations import log_sizes

    table = pd.DataFrame({"time": list(SIZES), "size": list(SIZES.values())})
    expected, sd = log_sizes(SIZES, TIMES)
    np.testing.assert_allclose(sd, 0.05)
    for sizes in (table, pd.Series(SIZES), {int(t): size for t, size in SIZES.items()}, table.iloc[::-1]):
        np.testing.assert_array_equal(log_sizes(sizes, TIMES)[0], expected)
    np.testing.assert_allclose(log_sizes(table.assign(sd=0.1 * table["size"]), TIMES)[1], 0.1)
    logs, sd = log_sizes({0: [90, 110], 1: [200, 200], 2: 400}, np.array([0.0, 1.0, 2.0]))
    assert logs[0] == pytest.approx(np.log([90, 110]).mean())
    np.testing.assert_allclose(sd[0] * np.sqrt(2), sd[2])
    np.testing.assert_allclose(sd[2], np.sqrt(np.log(110 / 90) ** 2 / 2 / 2))


def test_dynamics_refuses_other_times() -> None:
    def call(key: str) -> Callable[[anndata.AnnData], Any]:
        return lambda adata: ac.tl.dynamics(adata, key, "s", sizes=SIZES, **QUICK)

    adata = cells()
    unchanged(adata, call("dya"), "unknown-key", "dya")
    adata.obs["text"] = "day" + adata.obs["day"].astype(int).astype(str)
    unchanged(adata, call("text"), "bad-times", "text.*day0")
    adata.obs["date"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(adata.obs["day"], unit="D")
    unchanged(adata, call("date"), "bad-times", "dates")
    adata.obs["late"] = adata.obs["day"] > 2
    unchanged(adata, call("late"), "bad-times", "True and False")
    unchanged(adata[:0].copy(), call("day"), "too-few-times", "0 times")
    adata.obs["gap"] = np.where(adata.obs["day"] == 2, np.nan, adata.obs["day"])
    unchanged(adata, call("gap"), "bad-times", "no time for 100 cells")
    adata.obs["endless"] = np.where(adata.obs["day"] == 2, np.inf, adata.obs["day"])
    unchanged(adata, call("endless"), "bad-times", "inf")
    adata.obs["two"] = np.minimum(adata.obs["day"], 2)
    unchanged(adata, call("two"), "too-few-times", "2 times")


def test_the_remedy_for_times_in_words_works() -> None:
    adata = cells()
    adata.obs["text"] = "day" + adata.obs["day"].astype(str)
    with pytest.raises(AnncoderError) as refused:
        ac.tl.dynamics(adata, "text", "s", sizes=SIZES)
    exec(refused.value.remedy, {"adata": adata, "pd": pd})
    np.testing.assert_array_equal(adata.obs["text"], adata.obs["day"])


def test_dynamics_refuses_other_coordinates() -> None:
    def call(key: str) -> Callable[[anndata.AnnData], Any]:
        return lambda adata: ac.tl.dynamics(adata, "day", key, sizes=SIZES, **QUICK)

    adata = cells()
    unchanged(adata, call("t"), "unknown-key", "t")
    adata.obs["far"] = 2 * adata.obs["s"] - 0.1
    unchanged(adata, call("far"), "bad-coordinates", "not from 0 to 1")
    adata.obs["inf"] = np.where(np.arange(500) < 3, np.inf, adata.obs["s"])
    unchanged(adata, call("inf"), "bad-coordinates", "3 cells of 500")
    adata.obs["words"] = "early"
    unchanged(adata, call("words"), "bad-coordinates", "no numbers")
    adata.obs["steps"] = np.round(adata.obs["s"] * 3) / 3
    unchanged(adata, call("steps"), "bad-coordinates", "4 different values")


def test_ties_and_few_cells_are_said(caplog: pytest.LogCaptureFixture) -> None:
    adata = cells()
    adata = adata[(adata.obs["day"] != 2) | (np.arange(500) % 25 == 0)].copy()
    adata.obs.loc[adata.obs["day"] == 8, "s"] = 0.9
    ac.tl.dynamics(adata, "day", "s", sizes=SIZES, n_grid=24, smoothness=1.0)  # all at one place: D is near 0
    assert "few cells at time 2 (4)" in caplog.text
    assert "100 of 404 cells have the same obs['s'] (0.9)" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "code", "said"),
    [
        (None, "no-sizes", "up to a constant"),
        (3.0, "bad-value", "float"),
        ({0: 1, 2: 2, 4: 3, 6: 4}, "bad-sizes", "no size for time 8"),
        ({**SIZES, 10: 2.0}, "bad-sizes", "time 10, at which there are no cells"),
        ({**SIZES, 2: 0}, "bad-sizes", "no positive"),
        ({**SIZES, 2: -1}, "bad-sizes", "no positive"),
        ({**SIZES, 2: "many"}, "bad-sizes", "no number"),
        ({**SIZES, 2: float("nan")}, "bad-sizes", "no number"),
        (pd.DataFrame({"day": [0], "size": [1]}), "bad-sizes", "no column time"),
        (pd.DataFrame({"time": TIMES, "size": 1.0, "sd": 0.0}), "bad-sizes", "sd"),
    ],
)
def test_dynamics_refuses_other_sizes(sizes: Any, code: str, said: str) -> None:
    unchanged(cells(), lambda adata: ac.tl.dynamics(adata, "day", "s", sizes=sizes, **QUICK), code, said)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("knots_velocity", 0),
        ("knots_growth", 2.5),
        ("knots_diffusion", True),
        ("n_grid", 5),
        ("smoothness", 0),
        ("smoothness", "much"),
        ("smoothness", float("nan")),
    ],
)
def test_dynamics_refuses_other_settings(option: str, value: Any) -> None:
    unchanged(cells(), lambda a: ac.tl.dynamics(a, "day", "s", sizes=SIZES, **{option: value}), "bad-value", option)


def test_results_of_others_stay() -> None:
    adata = cells()
    adata.uns["dynamics"] = {"mine": 1}
    unchanged(adata, lambda a: ac.tl.dynamics(a, "day", "s", sizes=SIZES), "key-taken", "dynamics")
    unchanged(adata, lambda a: ac.tl.dynamics(a, "day", "s", sizes=SIZES, key_added="a/b"), "bad-key", "a/b")
    other = branching()
    other.obs["balance_V"] = 0.0
    unchanged(other, lambda a: ac.tl.balance(a, labels="type", entry="HSC", exits=["Ery"]), "key-taken", "balance_V")
    other.uns["root"] = "mine"
    unchanged(other, lambda a: ac.tl.root(a, label=("type", "HSC")), "key-taken", "root")


def test_balance_by_labels_and_by_rates_is_the_same(tmp_path: Path) -> None:
    adata = branching()
    ac.tl.balance(adata, labels="type", entry="HSC", exits={"Ery": 7, "Mono": 3})
    adata.write_h5ad(tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(found.uns["balance"]["names"]) == ["Ery", "Mono"]
    fates, v = found.obsm["balance_fates"], found.obs["balance_V"]
    np.testing.assert_allclose(fates.sum(axis=1), 1, atol=1e-6)
    of_type = found.obs["type"]
    assert fates[of_type == "HSC", 0].mean() == pytest.approx(0.7, abs=0.08)
    assert fates[of_type == "Ery", 0].mean() >= 0.98
    assert fates[of_type == "Mono", 0].mean() <= 0.10
    drop = v[of_type == "HSC"].mean() - (0.7 * v[of_type == "Ery"].mean() + 0.3 * v[of_type == "Mono"].mean())
    assert found.uns["balance"]["drop"] == pytest.approx(drop)
    at_entry = found.uns["balance"]["entry_fates"]
    assert list(at_entry.index) == ["0.025", "0.05", "0.1"]
    np.testing.assert_allclose(at_entry.loc["0.05", "Ery"], fates[of_type == "HSC", 0].mean(), atol=1e-9)
    by_rates = ac.tl.balance(branching(), labels="type", rates="rate", copy=True)
    assert by_rates is not None
    np.testing.assert_allclose(by_rates.obsm["balance_fates"], fates, atol=1e-8)


def test_balance_on_a_graph_of_scanpy() -> None:
    adata = branching()
    ac.tl.balance(adata, labels="type", entry=["HSC"], exits=["Ery", "Mono"], n_neighbors=10)
    expected = adata.obsm["balance_fates"]
    from sklearn.neighbors import NearestNeighbors

    graph = NearestNeighbors(n_neighbors=10).fit(adata.obsm["X_ae"]).kneighbors_graph(mode="distance")
    for key, slot in (("neighbors", "connectivities"), ("own", "own_connectivities")):
        adata.obsp[slot] = csr_matrix(graph)
        ac.tl.balance(adata, labels="type", entry=["HSC"], exits=["Ery", "Mono"], neighbors_key=key)
        np.testing.assert_allclose(adata.obsm["balance_fates"], expected, atol=1e-9)


def test_rates_that_do_not_sum_to_zero_are_scaled_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    adata = branching()
    ac.tl.balance(adata, labels="type", rates="rate")
    assert "do not sum" not in caplog.text
    expected = adata.obsm["balance_fates"]
    adata.obs["rate"] = np.where(adata.obs["rate"] < 0, adata.obs["rate"] / 2, adata.obs["rate"])
    ac.tl.balance(adata, labels="type", rates="rate")
    assert "do not sum to 0: those of the exits were scaled, by up to 100 %" in caplog.text
    np.testing.assert_allclose(adata.obsm["balance_fates"], expected, atol=1e-8)


FLOWS: dict[str, Any] = {"labels": "type", "entry": "HSC", "exits": {"Ery": 0.7, "Mono": 0.3}}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"labels": "kind"}, "unknown-key", "kind"),
        ({"entry": "HCS"}, "unknown-key", "HCS"),
        ({"exits": {"Eri": 1}}, "unknown-key", "Eri"),
        ({"exits": {"Ery": 0}}, "bad-value", "rate of the exit 'Ery' is 0"),
        ({"exits": {"Ery": -1.0}}, "bad-value", "-1.0"),
        ({"exits": []}, "bad-value", "no exits"),
        ({"exits": ["Ery", "HSC"]}, "bad-value", "HSC is both entry and exit"),
        ({"exits": None}, "bad-value", "either entry and exits, or rates"),
        ({"entry": None}, "bad-value", "either entry and exits, or rates"),
        ({"rates": "rate"}, "bad-value", "either entry and exits, or rates"),
        ({"D": -0.05}, "bad-value", "-0.05"),
        ({"D": "small"}, "bad-value", "small"),
        ({"exit_scale": "mine"}, "unknown-key", "mine"),
        ({"n_neighbors": 0}, "bad-value", "n_neighbors = 0"),
        ({"n_neighbors": 600}, "bad-value", "n_neighbors = 600"),
        ({"key": "pca"}, "unknown-key", "X_pca"),
        ({"use_rep": "X_umap"}, "unknown-key", "X_umap"),
        ({"neighbors_key": "neighbors"}, "unknown-key", "connectivities"),
    ],
)
def test_balance_refuses(options: dict[str, Any], code: str, said: str) -> None:
    unchanged(branching(), lambda adata: ac.tl.balance(adata, **{**FLOWS, **options}), code, said)


def test_balance_refuses_other_rates() -> None:
    def call(key: str) -> Callable[[anndata.AnnData], Any]:
        return lambda adata: ac.tl.balance(adata, labels="type", rates=key)

    adata = branching()
    unchanged(adata, call("r"), "unknown-key", "r")
    adata.obs["entering"] = adata.obs["rate"].abs()
    unchanged(adata, call("entering"), "bad-rates", "no negative rate")
    adata.obs["leaving"] = -adata.obs["entering"]
    unchanged(adata, call("leaving"), "bad-rates", "no positive rate")
    adata.obs["gaps"] = np.where(adata.obs["rate"] < 0, np.nan, 1.0)
    unchanged(adata, call("gaps"), "bad-rates", "finite numbers")
    unchanged(adata, call("type"), "bad-rates", "finite numbers")
    adata.obs["type"] = adata.obs["type"].cat.remove_categories(["Ery"])
    unchanged(adata, call("rate"), "missing-values", "no label")


def test_balance_refuses_a_latent_of_other_things_and_a_graph_in_parts() -> None:
    adata = branching()
    adata.obsm["X_far"] = adata.obsm["X_ae"].copy()
    adata.obsm["X_far"][adata.obs["type"] == "Mono"] += 100
    unchanged(adata, lambda a: ac.tl.balance(a, **FLOWS, key="far"), "graph-in-parts", "part 1 of 2 .* no entry")
    adata.obsm["X_gap"] = np.full((600, 2), np.nan)
    unchanged(adata, lambda a: ac.tl.balance(a, **FLOWS, key="gap"), "bad-coordinates", "finite")


def test_the_root_is_of_the_earliest_time_and_typical() -> None:
    adata = branching()
    adata.obs["day"] = np.where(adata.obs["type"] == "HSC", 1, 2)
    adata.obs["root_cells"] = np.arange(600.0)  # times count more
    ac.tl.root(adata, time_key="day")
    first = np.flatnonzero(adata.obs["day"] == 1)
    points = adata.obsm["X_ae"][first]
    sums = np.linalg.norm(points[:, None] - points, axis=2).sum(axis=1)
    assert adata.uns["iroot"] == first[sums.argmin()]
    assert adata.uns["root"]["source"] == f"the earliest time, obs['day'] == 1 ({len(first)} cells)"
    ac.tl.root(adata, time_key="day", label=("type", "Ery"))
    assert adata.obs["type"].iloc[adata.uns["iroot"]] == "Ery"
    assert "== 2" in adata.uns["root"]["source"]


def test_the_root_by_label_and_by_velocities() -> None:
    adata = branching()
    ac.tl.root(adata, label=("type", "HSC"))
    assert adata.obs["type"].iloc[adata.uns["iroot"]] == "HSC"
    assert adata.uns["root"]["source"] == "obs['type'] == 'HSC'"
    adata.obs["root_cells"] = np.where(np.arange(600) == 17, 1.0, 0.2)
    ac.tl.root(adata)
    assert (adata.uns["iroot"], adata.uns["root"]["cell"]) == (17, "c17")
    assert adata.uns["root"]["source"] == "scVelo's obs['root_cells']"
    ac.tl.root(adata, velocity=False, label=("type", "HSC"))
    assert adata.uns["root"]["source"] == "obs['type'] == 'HSC'"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({}, "no-root", "nothing here tells"),
        ({"velocity": True}, "no-root", "not there"),
        ({"velocity": "yes"}, "bad-value", "yes"),
        ({"time_key": "day"}, "unknown-key", "day"),
        ({"time_key": "type"}, "bad-times", "text, not times"),
        ({"label": "HSC"}, "bad-value", "label"),
        ({"label": ("kind", "HSC")}, "unknown-key", "kind"),
        ({"label": ("type", "HCS")}, "unknown-key", "HCS"),
        ({"label": ("type", "HSC"), "key": "pca"}, "unknown-key", "X_pca"),
    ],
)
def test_root_refuses(options: dict[str, Any], code: str, said: str) -> None:
    unchanged(branching(), lambda adata: ac.tl.root(adata, **options), code, said)


def test_root_refuses_velocities_without_a_root() -> None:
    adata = branching()
    adata.obs["root_cells"] = np.nan
    unchanged(adata, ac.tl.root, "no-root", "no cell is a root")
    adata.obs["root_cells"] = "none"
    unchanged(adata, ac.tl.root, "no-root", "no numbers")
    unchanged(branching()[:0].copy(), lambda a: ac.tl.root(a, label=("type", "HSC")), "too-few-cells", "no cells")


def test_the_root_of_dentate_gyrus(shared_data: Path) -> None:
    adata = anndata.read_h5ad(shared_data / "dentate_velocity_100.h5ad")
    ac.tl.root(adata)
    assert adata.obs["label"].iloc[adata.uns["iroot"]] == "Neuroblast"
    assert adata.uns["root"]["source"] == "scVelo's obs['root_cells']"
    del adata.obs["root_cells"]
    ac.tl.root(adata)
    assert adata.obs["label"].iloc[adata.uns["iroot"]] == "Neuroblast"
    assert "velocity_graph" in adata.uns["root"]["source"]
    adata.uns["velocity_graph"] = adata.obsp.pop("velocity_graph")
    row = adata.uns["iroot"]
    ac.tl.root(adata)
    assert adata.uns["iroot"] == row
    adata.obsm["X_ae"] = np.log1p(adata.layers["spliced"].toarray())[:, :20]
    ac.tl.root(adata, time_key="time")
    assert adata.obs["time"].iloc[adata.uns["iroot"]] == 12
    assert adata.uns["root"]["source"] == "the earliest time, obs['time'] == 12 (35 cells)"
