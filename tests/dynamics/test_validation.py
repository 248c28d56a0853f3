"""Distances against POT, and the test on held-out times against its published outcome."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anncoder.datasets import branching
from anncoder.dynamics.transport.cost import Cost, median_cost, squared_distances
from anncoder.dynamics.transport.plans import Plan
from anncoder.dynamics.transport.sinkhorn import solve
from anncoder.dynamics.transport.validation import (
    NULLS,
    Triplet,
    energy_distance,
    held_out,
    interpolate,
    sentence,
    verdict,
    wasserstein2,
)


def cells(seed: int) -> list[np.ndarray]:
    adata = branching(seed=seed)
    return [adata.obsm["X_sim"][adata.obs["time"] == t] for t in range(5)]


X, OTHERS = cells(20260), cells(20261)
RATE = np.split(branching().obs["growth_true"].to_numpy(), 5)


def fared(first: int) -> pd.DataFrame:
    x, y = X[first], X[first + 2]
    cost = Cost(x, y, median_cost(x, y), 0.05)
    solution = solve(cost, RATE[first] ** 2)
    triplet = Triplet(x, X[first + 1], y, 0.5, OTHERS[first + 1])
    return held_out(triplet, Plan(cost, solution.f, solution.g))


@pytest.mark.parametrize(("n", "m"), [(60, 60), (150, 50), (50, 150), (30, 45), (1, 7)])
def test_exact_transport_is_that_of_pot(n: int, m: int) -> None:
    ot = pytest.importorskip("ot", reason="POT, the oracle, is not installed")
    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)) + 0.5
    exact = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), squared_distances(x, y))
    assert wasserstein2(x, y) == pytest.approx(np.sqrt(exact), rel=1e-9)


def test_sizes_without_a_small_common_multiple_are_near_to_exact() -> None:
    ot = pytest.importorskip("ot", reason="POT, the oracle, is not installed")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(85, 5)), rng.normal(size=(81, 5)) + 0.5
    exact = ot.emd2(np.full(85, 1 / 85), np.full(81, 1 / 81), squared_distances(x, y))
    assert wasserstein2(x, y) == pytest.approx(np.sqrt(exact), rel=0.01)


def test_distances_of_what_is_known() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    assert wasserstein2(x, x[::-1]) == pytest.approx(0, abs=1e-12)
    assert wasserstein2(x, x + np.array([3, 0, 4])) == pytest.approx(5)
    assert wasserstein2(np.zeros((3, 2)), np.zeros((5, 2))) == 0
    y = np.random.default_rng(1).normal(size=(50, 3)) + 1
    absolute = [np.sqrt(squared_distances(a, b)) for a, b in ((x, y), (x, x), (y, y))]
    by_hand = 2 * absolute[0].mean() - absolute[1].sum() / (40 * 39) - absolute[2].sum() / (50 * 49)
    assert energy_distance(x, y) == pytest.approx(by_hand)


def test_separated_branches_are_a_win() -> None:
    table = fared(2)
    assert table.loc["I", "W2"] < 0.50
    assert table.loc["I", "E"] < 0.02
    assert table.loc["I", "W2"] == pytest.approx(0.469, abs=0.005)
    assert table.loc["P", ["W2", "E"]].tolist() == pytest.approx([0.516, -0.013], abs=5e-4)
    assert table.loc["F", ["W2", "E"]].tolist() == pytest.approx([1.703, 1.167], abs=5e-4)
    assert table.loc["L", ["W2", "E"]].tolist() == pytest.approx([2.002, 1.297], abs=6e-4)
    assert table.loc["R", "W2"] == pytest.approx(1.036, abs=0.04)
    assert table.loc["Rg", "W2"] == pytest.approx(1.024, abs=0.04)
    for measure in ("W2", "E"):
        for null in NULLS:
            spread = np.hypot(table.loc["I", f"{measure}_sd"], table.loc[null, f"{measure}_sd"])
            assert table.loc["I", measure] < table.loc[null, measure] - 3 * spread
    assert verdict(table) == "win"


def test_a_branch_point_just_before_is_a_tie_and_one_inside_a_loss() -> None:
    tie, loss = fared(1), fared(0)
    assert verdict(tie) == "tie"
    assert verdict(loss) == "loss"
    assert tie.loc["I", "W2"] == pytest.approx(0.720, abs=0.028)
    assert loss.loc["I", "W2"] == pytest.approx(0.617, abs=0.005)
    assert loss.loc["R", "W2"] == pytest.approx(0.571, abs=0.005)
    assert sentence("0, 1, 2", loss).startswith("0, 1, 2: a loss: W2 0.61")
    assert "a tie" in sentence("1, 2, 3", tie)


def test_permuted_times_do_not_win() -> None:
    rng = np.random.default_rng(5)
    order = rng.permutation(1000)
    x, z, y = (np.concatenate(X)[part] for part in np.split(order, 5)[:3])
    cost = Cost(x, y, median_cost(x, y), 0.05)
    solution = solve(cost)
    table = held_out(Triplet(x, z, y, 0.5, None), Plan(cost, solution.f, solution.g))
    assert verdict(table) != "win"
    # in E alone the plan beats random pairs here: averages of near cells are cells, those of random ones are not
    best = table.loc[list(NULLS), "E"].min()
    assert table.loc["I", "E"] > best - 2 * table.loc["I", "E_sd"]


def test_interpolation_at_the_ends_are_the_cells_there() -> None:
    cost = Cost(X[0], X[1], median_cost(X[0], X[1]), 0.05)
    solution = solve(cost)
    plan = Plan(cost, solution.f, solution.g)
    rng = np.random.default_rng(0)
    first, last = (interpolate(plan, X[0], X[1], s, 2000, rng) for s in (0.0, 1.0))
    # W = T / g at s = 0: every cell the same number of times
    assert np.unique(first, axis=0, return_counts=True)[1].tolist() == pytest.approx([10] * 200, abs=1)
    assert energy_distance(last, X[1]) < 0.01


def test_numbers_that_do_not_vary_are_judged_all_the_same() -> None:
    table = pd.DataFrame(0.0, index=["I", *NULLS, "P"], columns=["W2", "W2_sd", "E", "E_sd"])
    table.loc[list(NULLS), ["W2", "E"]] = 1.0
    assert verdict(table) == "win"
    table.loc["I", "E"] = 1.0
    assert verdict(table) == "tie"
    table.loc["I", "W2"] = 2.0
    assert verdict(table) == "loss"
