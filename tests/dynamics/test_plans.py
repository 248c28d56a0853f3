"""Plans rebuilt from potentials, chains of them, metacells: against dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anncoder.datasets import branching
from anncoder.dynamics.transport.cost import Cost, median_cost, squared_distances
from anncoder.dynamics.transport.fates import fates, flow, indicator, pulled_back, pushed_forward, shares, trend
from anncoder.dynamics.transport.metacells import metacells, solve_with_metacells
from anncoder.dynamics.transport.plans import Plan
from anncoder.dynamics.transport.sinkhorn import solve

ADATA = branching(60)
TIME = ADATA.obs["time"].to_numpy()
X = [ADATA.obsm["X_sim"][t == TIME] for t in range(5)]
LABEL = [ADATA.obs["label"].to_numpy()[t == TIME] for t in range(5)]


def plan_of(x: Any, y: Any, **settings: Any) -> Plan:
    cost = Cost(x, y, median_cost(x, y), 0.05, **settings)
    solution = solve(cost)
    return Plan(cost, solution.f, solution.g)


@pytest.fixture(scope="module")
def chain() -> list[Plan]:
    return [plan_of(X[t], X[t + 1], block_rows=7) for t in range(4)]


@pytest.fixture(scope="module")
def dense(chain: list[Plan]) -> list[Any]:
    found = []
    for t, plan in enumerate(chain):
        f, g = plan.u.numpy() * 0.05, plan.v.numpy() * 0.05
        cost = squared_distances(X[t], X[t + 1]) / plan.cost.scale
        found.append(np.exp((f[:, None] + g - cost) / 0.05) / 60)
    return found


def test_sums_and_products_are_those_of_the_dense_matrix(chain: list[Plan], dense: list[Any]) -> None:
    values = np.random.default_rng(0).normal(size=(60, 3))
    for plan, matrix in zip(chain, dense, strict=True):
        assert plan.row_sums() == pytest.approx(matrix.sum(axis=1), rel=1e-10)
        assert plan.pull_back(values) == pytest.approx(matrix @ values, rel=1e-9, abs=1e-12)
        assert plan.push_forward(values) == pytest.approx(matrix.T @ values, rel=1e-9, abs=1e-12)
        assert plan.pull_back(values[:, 0]).shape == (60,)


def test_rows_are_those_of_the_dense_matrix(chain: list[Plan], dense: list[Any]) -> None:
    assert chain[0].rows().toarray() == pytest.approx(dense[0], rel=1e-9)
    some = np.array([3, 59, 0])
    assert chain[0].rows(some).toarray() == pytest.approx(dense[0][some], rel=1e-9)
    few = chain[0].rows(some, top=4)
    assert few.has_canonical_format
    assert (few.getnnz(axis=1) == 4).all()
    for row, full in zip(few.toarray(), dense[0][some], strict=True):
        assert np.sort(row)[-4:] == pytest.approx(np.sort(full)[-4:], rel=1e-9)
    assert chain[0].rows(np.array([], int)).shape == (0, 60)


def test_pairs_are_drawn_in_proportion(chain: list[Plan], dense: list[Any]) -> None:
    weights = np.random.default_rng(1).random(60) + 0.1
    n = 200_000
    i, j = chain[0].draw(weights, (np.arange(n) + 0.5) / n)
    assert (np.diff(i) >= 0).all()
    drawn = np.zeros((60, 60))
    np.add.at(drawn, (i, j), 1 / n)
    wanted = dense[0] * weights[:, None]
    assert drawn == pytest.approx(wanted / wanted.sum(), abs=2 / n)


def test_chains_are_products_of_matrices(chain: list[Plan], dense: list[Any]) -> None:
    labels = indicator((LABEL[4] == "A").astype(int), 2)
    product = dense[2] @ dense[3] @ labels
    back = pulled_back(chain[2:], labels)
    assert [len(values) for values in back] == [60, 60, 60]
    assert back[0] == pytest.approx(product, rel=1e-9)
    assert fates(chain[2:], labels)[0] == pytest.approx(product / product.sum(axis=1, keepdims=True), rel=1e-9)
    forward = pushed_forward(chain[:2], np.ones(60))
    assert forward[-1] == pytest.approx(np.ones(60) @ dense[0] @ dense[1], rel=1e-9)
    assert np.isnan(shares(np.array([[0.0, 0.0], [1.0, 3.0]]))).tolist() == [[True, True], [False, False]]


def test_flow_sums_to_the_mean_growth(chain: list[Plan], dense: list[Any]) -> None:
    frame = flow(chain[1], LABEL[1], LABEL[2])
    assert list(zip(frame["label0"], frame["label1"], strict=True)) == [("P", "A"), ("P", "B")]
    assert frame["mass"].sum() == pytest.approx(dense[1].sum(axis=1).mean())
    assert frame["mass"][0] == pytest.approx(dense[1][:, LABEL[2] == "A"].sum() / 60)


def test_trend_is_the_weighted_mean_and_equal_weights_count_every_cell() -> None:
    from scipy.sparse import csr_matrix

    values, weights = np.array([[1.0, 0.0], [2.0, 0.0], [5.0, 3.0]]), np.array([1.0, 1.0, 2.0])
    found = trend(csr_matrix(values), weights)
    assert found.mean == pytest.approx([3.25, 1.5])
    assert found.sd == pytest.approx([np.sqrt(0.25 * 2.25**2 + 0.25 * 1.25**2 + 0.5 * 1.75**2), 1.5])
    assert found.n_eff == pytest.approx(16 / 6)
    assert trend(values, np.full(3, 0.2)).n_eff == pytest.approx(3)
    assert trend(values, np.zeros(3)).n_eff == 0


def test_metacells_are_near_their_cells_and_the_same_every_time() -> None:
    x = np.random.default_rng(0).normal(size=(500, 2))
    found, again = metacells(x, 40), metacells(x, 40)
    assert (found.members == again.members).all()
    assert len(found.centroids) <= 40
    assert found.share.sum() == pytest.approx(1)
    distances = squared_distances(x, found.centroids)
    assert (distances.argmin(axis=1) == found.members).mean() > 0.99
    assert distances[np.arange(500), found.members].mean() < 0.1 * x.var()
    assert len(metacells(x[:5], 40).centroids) == 5
    assert len(metacells(np.zeros((9, 2)), 4).centroids) == 1


def test_as_many_metacells_as_cells_give_the_full_solution() -> None:
    x, y = X[2], X[3]
    scale, prior = median_cost(x, y), np.linspace(0.5, 2, 60)
    full = solve(Cost(x, y, scale, 0.05), prior, growth_iters=2)
    few = solve_with_metacells(x, y, scale, 0.05, prior, max_cells=60, growth_iters=2)
    assert few.growth == pytest.approx(full.growth, rel=1e-4)
    assert few.f == pytest.approx(full.f, abs=1e-5)


def test_metacells_find_the_fates_and_growth_of_the_full_solution() -> None:
    """Five thousand cells a time point, by five hundred metacells."""
    adata = branching(5000)
    time = adata.obs["time"].to_numpy()
    cells = [adata.obsm["X_sim"][time == t] for t in range(4)]
    label = [adata.obs["label"].to_numpy()[time == t] for t in range(4)]
    found: dict[str, list[Plan]] = {"full": [], "few": []}
    for t in (1, 2):
        x, y = cells[t], cells[t + 1]
        scale = median_cost(x, y)
        cost = Cost(x, y, scale, 0.05, precision="float32")
        few = solve_with_metacells(x, y, scale, 0.05, max_cells=500, precision="float32")
        for name, solution in (("full", solve(cost)), ("few", few)):
            found[name].append(Plan(cost, solution.f, solution.g))
    grown = {name: plans[1].row_sums() for name, plans in found.items()}
    for branch in "AB":
        full, few_ = (grown[name][label[2] == branch].mean() for name in ("full", "few"))
        assert few_ == pytest.approx(full, rel=0.02)
    labels = indicator((label[3] == "A").astype(int), 2)
    full, few_ = (fates(found[name], labels)[0][:, 1] for name in ("full", "few"))
    assert np.corrcoef(full, few_)[0, 1] > 0.99
