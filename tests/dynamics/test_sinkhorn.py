"""Unbalanced Sinkhorn against the published tool's numbers, POT, and limits that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anncoder.datasets import branching
from anncoder.device import threads_set
from anncoder.dynamics.transport.cost import Cost, median_cost, squared_distances
from anncoder.dynamics.transport.plans import Plan
from anncoder.dynamics.transport.sinkhorn import Solution, solve

ADATA = branching()
X = [ADATA.obsm["X_sim"][ADATA.obs["time"] == t] for t in range(5)]
LABEL = [ADATA.obs["label"].to_numpy()[ADATA.obs["time"] == t] for t in range(5)]
RATE = [ADATA.obs["growth_true"].to_numpy()[ADATA.obs["time"] == t] for t in range(5)]

# of wot 1.0.8 with its defaults: prior, iterations, pair, median cost, sum, mean, sd, first three rows, ratio A/B,
# correlation of log row sums with the true rate
GOLDEN = [
    ("none", 1, 0, 1.716511, 196.653, 0.98327, 0.20253, (0.95818, 0.79141, 1.22436), None, None),
    ("none", 1, 1, 2.745081, 196.591, 0.98296, 0.14700, (0.83750, 1.02924, 1.08538), None, None),
    ("none", 1, 2, 3.749228, 197.081, 0.98541, 0.29862, (0.90788, 1.14661, 0.90823), 1.822, 0.881),
    ("none", 1, 3, 3.232533, 196.723, 0.98362, 0.25827, (1.06055, 1.13969, 0.92664), 1.817, 0.849),
    ("none", 3, 0, 1.716511, 190.556, 0.95278, 0.54323, (0.79754, 0.46855, 1.59416), None, None),
    ("none", 3, 1, 2.745081, 190.184, 0.95092, 0.40853, (0.56878, 1.02273, 1.18708), None, None),
    ("none", 3, 2, 3.749228, 191.898, 0.95949, 0.50640, (0.52066, 1.01092, 0.52113), 1.844, 0.552),
    ("none", 3, 3, 3.232533, 190.775, 0.95388, 0.47742, (0.91565, 1.12056, 0.62200), 1.838, 0.522),
    ("true", 1, 0, 1.716511, 265.376, 1.32688, 0.27331, (1.29303, 1.06797, 1.65222), None, None),
    ("true", 1, 1, 2.745081, 265.292, 1.32646, 0.19838, (1.13018, 1.38892, 1.46467), None, None),
    ("true", 1, 2, 3.749228, 301.674, 1.50837, 0.46287, (1.39350, 1.75992, 1.39404), 1.844, 0.885),
    ("true", 1, 3, 3.232533, 321.260, 1.60630, 0.42618, (1.73479, 1.86425, 1.51576), 1.839, 0.853),
    ("true", 3, 0, 1.716511, 256.998, 1.28499, 0.73263, (1.07562, 0.63192, 2.15000), None, None),
    ("true", 3, 2, 3.749228, 293.495, 1.46748, 0.77450, (0.79632, 1.54613, 0.79704), 1.844, 0.552),
    ("true", 3, 3, 3.232533, 311.248, 1.55624, 0.77890, (1.49388, 1.82819, 1.01478), 1.838, 0.522),
]


def solved(pair: int, prior: str = "none", epsilon: float = 0.05, **settings: Any) -> tuple[Cost, Solution]:
    x, y = X[pair], X[pair + 1]
    blocks = {name: settings.pop(name) for name in ("precision", "block_rows") if name in settings}
    cost = Cost(x, y, median_cost(x, y), epsilon, **blocks)
    return cost, solve(cost, RATE[pair] if prior == "true" else None, **settings)


@pytest.mark.parametrize(
    ("prior", "iters", "pair", "median", "total", "mean", "sd", "rows", "ratio", "correlation"), GOLDEN
)
def test_row_sums_are_those_of_wot(
    prior: str,
    iters: int,
    pair: int,
    median: float,
    total: float,
    mean: float,
    sd: float,
    rows: tuple[float, ...],
    ratio: float | None,
    correlation: float | None,
) -> None:
    cost, solution = solved(pair, prior, growth_iters=iters)
    sums = solution.growth
    assert solution.converged
    assert cost.scale == pytest.approx(median, abs=1e-6)
    assert sums.sum() == pytest.approx(total, abs=2e-3)
    assert (sums.mean(), sums.std()) == pytest.approx((mean, sd), abs=2e-5)
    assert sums[:3] == pytest.approx(rows, abs=2e-5)
    if ratio is not None:
        is_a = LABEL[pair] == "A"
        assert sums[is_a].mean() / sums[~is_a].mean() == pytest.approx(ratio, abs=1e-3)
        assert np.corrcoef(np.log(sums), np.log(RATE[pair]))[0, 1] == pytest.approx(correlation, abs=1e-3)


@pytest.mark.parametrize("prior", ["none", "true"])
@pytest.mark.parametrize("iters", [1, 3])
@pytest.mark.parametrize("pair", range(4))
def test_plan_is_that_of_pot(pair: int, iters: int, prior: str) -> None:
    ot = pytest.importorskip("ot", reason="POT, the oracle, is not installed")
    cost, solution = solved(pair, prior, growth_iters=iters)
    n = 200
    matrix = squared_distances(X[pair], X[pair + 1]) / cost.scale
    growth = RATE[pair] if prior == "true" else np.ones(n)
    for _ in range(iters):
        plan = ot.unbalanced.sinkhorn_unbalanced(
            growth / n,
            np.full(n, growth.mean() / n),
            matrix,
            0.05,
            (1.0, 50.0),
            method="sinkhorn",
            reg_type="kl",
            c=np.full((n, n), 1 / n**2),
            stopThr=1e-12,
            numItermax=3000,
        )
        growth = n * plan.sum(axis=1)
    ours = Plan(cost, solution.f, solution.g).rows().toarray() / n
    assert np.abs(ours - plan).sum() / plan.sum() < 1e-5


def test_potentials_are_a_fixed_point_of_the_published_scaling() -> None:
    from scipy.special import logsumexp

    cost, s = solved(2, "true", tolerance=1e-11)
    matrix, eps, growth = squared_distances(X[2], X[3]) / cost.scale, 0.05, RATE[2]
    f = 1 / 1.05 * eps * (np.log(growth) - logsumexp((s.g - matrix) / eps - np.log(200), axis=1))
    target = np.log(growth.mean()) - logsumexp((f[:, None] - matrix) / eps - np.log(200), axis=0)
    assert s.f == pytest.approx(f, abs=1e-11)
    assert s.g == pytest.approx(50 / 50.05 * eps * target, abs=1e-10)


@pytest.mark.parametrize("pair", [0, 3])
def test_size_of_blocks_does_not_matter(pair: int) -> None:
    found = [solved(pair, "true", block_rows=rows)[1] for rows in (7, 64, 200)]
    for other in found[1:]:
        assert other.iterations == found[0].iterations
        assert other.f == pytest.approx(found[0].f, abs=1e-10)
        assert other.g == pytest.approx(found[0].g, abs=1e-10)


def test_a_rerun_has_the_same_bits_on_any_number_of_threads() -> None:
    first, again = (solved(1, block_rows=64)[1] for _ in range(2))
    assert (first.f == again.f).all()
    assert (first.g == again.g).all()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        other = solved(1, block_rows=64)[1]
    finally:
        torch.set_num_threads(before)
    assert (other.f == first.f).all()
    assert (other.g == first.g).all()


@pytest.mark.parametrize("pair", range(4))
def test_small_epsilon_in_float32_keeps_the_masses_of_the_target(pair: int) -> None:
    cost, solution = solved(pair, epsilon=0.001, precision="float32")
    assert solution.converged
    assert np.isfinite(solution.f).all()
    assert np.isfinite(solution.g).all()
    columns = Plan(cost, solution.f, solution.g).push_forward(np.full(200, 1 / 200))
    # the optimum itself has columns of q exp(-g / 50), up to 1 % off; the solution has those of the optimum
    exact = solved(pair, epsilon=0.001)[1]
    optimum = np.exp(-exact.g / 50) / 200
    assert columns == pytest.approx(optimum, rel=5e-3)


@pytest.mark.parametrize("pair", range(4))
def test_large_penalties_give_the_balanced_plan(pair: int) -> None:
    cost, solution = solved(pair, lambda1=1e4, lambda2=1e4)
    assert solution.growth == pytest.approx(np.ones(200), rel=1e-2)
    plan = Plan(cost, solution.f, solution.g)
    assert plan.push_forward(np.full(200, 1 / 200)) == pytest.approx(np.full(200, 1 / 200), rel=1e-2)
    kernel = np.exp(-squared_distances(X[pair], X[pair + 1]) / cost.scale / 0.05)
    column = np.ones(200)
    for _ in range(3000):  # balanced Sinkhorn, as in the textbook
        row = 1 / (kernel @ column)
        column = 1 / (row @ kernel)
    balanced = row[:, None] * kernel * column
    assert np.abs(plan.rows().toarray() - balanced).sum() / 200 < 1e-2


def test_cells_far_from_all_others_are_transported_all_the_same() -> None:
    x, y = X[0].copy(), X[1].copy()
    y[0] += 100  # exponents beyond float64 from every cell of the source
    cost = Cost(x, y, median_cost(x, y), 0.05)
    solution = solve(cost)
    assert solution.converged
    assert np.isfinite(solution.g).all()
    columns = Plan(cost, solution.f, solution.g).push_forward(np.full(200, 1 / 200))
    assert columns == pytest.approx(np.exp(-solution.g / 50) / 200, rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_one_cell_far_out_does_not_end_the_iterations_early(precision: str) -> None:
    x = X[0].copy()
    x[0] += 300
    cost = Cost(x, X[1], median_cost(X[0], X[1]), 0.05, precision=precision)
    solution = solve(cost)
    assert solution.converged
    assert solution.iterations > 5
    assert solution.growth[0] < 1e-9  # it has no descendants
    columns = Plan(cost, solution.f, solution.g).push_forward(np.full(200, 1 / 200))
    assert columns == pytest.approx(np.exp(-solution.g / 50) / 200, rel=1e-3)


def test_shares_are_as_cells_that_stand_several_times_at_one_place() -> None:
    x, y = X[2][:30], X[3][:40]
    times_x, times_y = np.arange(30) % 3 + 1, np.arange(40) % 2 + 1
    scale = median_cost(x, y)
    shares = {"x_share": times_x / times_x.sum(), "y_share": times_y / times_y.sum()}
    few = solve(Cost(x, y, scale, 0.05, **shares), tolerance=1e-10)
    many = solve(Cost(x.repeat(times_x, 0), y.repeat(times_y, 0), scale, 0.05), tolerance=1e-10)
    assert many.f == pytest.approx(few.f.repeat(times_x), abs=1e-8)
    assert many.g == pytest.approx(few.g.repeat(times_y), abs=1e-8)
    assert many.growth == pytest.approx(few.growth.repeat(times_x), abs=1e-8)


def test_a_start_near_the_solution_saves_sweeps_and_max_iter_is_kept() -> None:
    cost, solution = solved(0)
    assert solve(cost, start=solution.g).iterations < solution.iterations
    seen: list[tuple[int, float]] = []
    short = solve(cost, max_iter=3, report=lambda iteration, error: seen.append((iteration, error)))
    assert (short.iterations, short.converged) == (3, False)
    assert [iteration for iteration, _ in seen] == [1, 2, 3]
    assert seen[-1][1] == short.error > 1e-6


def test_median_of_many_pairs_is_that_of_a_sample() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2500, 3)), rng.normal(size=(2400, 3)) + 1
    assert median_cost(x, y) == median_cost(x, y)
    assert median_cost(x, y, seed=1) != median_cost(x, y)
    assert median_cost(x, y) == pytest.approx(np.median(squared_distances(x, y)), rel=0.02)


def test_memory_does_not_grow_with_the_pairs() -> None:
    """Two clouds of 6,000 cells have 36 million pairs, 144 MB of float32; blocks of them are a few MB."""
    from torch.profiler import ProfilerActivity, profile

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6000, 2)), rng.normal(size=(6000, 2))
    with threads_set(1):  # the profiler does not see what other threads allocate
        cost = Cost(x, y, 8.0, 0.5)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        solution = solve(cost, max_iter=1)
        Plan(cost, solution.f, solution.g).pull_back(np.ones((6000, 2)))
    largest = max(abs(event.self_cpu_memory_usage) for event in seen.events())
    assert 2**18 < largest < 2**24
