"""Population balance: potential and fates against direct solutions, a tree with known fates, bad rates."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.population_dynamics import fates_of, tree
from scipy.sparse import block_diag, csr_matrix, diags

from anncoder.dynamics.populations.balance import balanced_rates, drop_of, fates, potential, symmetric_graph
from anncoder.errors import ConfigError, InputError


def chain(n: int) -> csr_matrix:
    return symmetric_graph(diags([np.ones(n - 1)], [1]))


def test_a_graph_becomes_symmetric_without_loops() -> None:
    graph = symmetric_graph(csr_matrix([[5.0, 0.3, 0], [0, 0, 0], [2, 0, 0]]))
    np.testing.assert_array_equal(graph.toarray(), [[0, 1, 1], [1, 0, 0], [1, 0, 0]])


def test_the_potential_is_that_of_the_pseudo_inverse() -> None:
    one = tree(300, 0)
    graph = one.graph()
    net = balanced_rates(graph, one.entries, one.exits).net
    degree = np.asarray(graph.sum(axis=1)).ravel()
    right = degree * net - (degree * net).mean()
    expected = np.linalg.pinv(np.diag(degree) - graph.toarray()) @ right
    np.testing.assert_allclose(potential(graph, net), expected, atol=1e-7 * np.ptp(expected))


@pytest.mark.parametrize("scale", ["balanced", "published"])
@pytest.mark.parametrize("diffusion", [0.02, 0.3])
def test_fates_are_those_of_a_dense_solution(scale: str, diffusion: float) -> None:
    one = tree(300, 1)
    graph = one.graph()
    rates = balanced_rates(graph, one.entries, one.exits)
    values = potential(graph, rates.net)
    d = diffusion * drop_of(values, rates)
    walk = graph.toarray() * np.exp((values[:, None] - values) / d)
    leaving = rates.exits * (2 * graph.toarray().sum(axis=1)[:, None] / d if scale == "balanced" else 1)
    total = walk.sum(axis=1) + leaving.sum(axis=1)
    expected = np.linalg.solve(np.diag(total) - walk, leaving)
    found = fates(graph, values, rates, diffusion, exit_scale=scale)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_gamblers_ruin() -> None:
    """Without a fall of the potential along a chain, the share of an exit falls evenly to the other."""
    n = 21
    graph = chain(n)
    entries, exits = np.zeros(n), np.zeros((n, 2))
    entries[n // 2], exits[0, 0], exits[-1, 1] = 1, 0.5, 0.5
    rates = balanced_rates(graph, entries, exits)
    found = fates(graph, potential(graph, rates.net), rates, 1e4, exit_scale="published")[:, 0]
    # the walk is even, and from both ends it leaves with probability 1/3 a step
    expected = np.linspace(0, 1, n + 4)[2:-2][::-1]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def golden(scale: str, diffusion: float) -> np.ndarray:
    rows = []
    for seed in range(4):
        one = tree(1500, seed)
        graph = one.graph()
        rates = balanced_rates(graph, one.entries, one.exits)
        rows.append(fates_of(one, graph, rates, potential(graph, rates.net), diffusion, scale))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(
    ("diffusion", "expected"),
    [
        (0.02, (0.730, 1.0, 0.0)),
        (0.05, (0.725, 1.0, 0.044)),
        (0.10, (0.839, 0.999, 0.464)),
        (0.30, (0.881, 0.943, 0.769)),
    ],
)
def test_fates_of_a_tree_with_exits_as_published(diffusion: float, expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(golden("published", diffusion), expected, atol=0.04)


@pytest.mark.parametrize("diffusion", [0.02, 0.05, 0.10])
def test_fates_of_a_tree(diffusion: float) -> None:
    root, tip, other = golden("balanced", diffusion)
    assert root == pytest.approx(0.70, abs=0.08)
    assert tip >= 0.98
    assert other <= 0.10


def test_with_balanced_exits_neither_the_scale_of_the_rates_nor_of_d_decides() -> None:
    one = tree(800, 2)
    graph = one.graph()
    found = []
    for factor in (1.0, 1000.0):
        rates = balanced_rates(graph, factor * one.entries, factor * one.exits)
        found.append(fates(graph, potential(graph, rates.net), rates, 0.05))
    np.testing.assert_allclose(found[0], found[1], atol=1e-8)
    root = [golden("balanced", diffusion)[0] for diffusion in (0.02, 0.3)]
    assert abs(root[0] - root[1]) < 0.05


def test_exits_are_scaled_to_the_entries_in_each_part() -> None:
    graph = symmetric_graph(block_diag([chain(4), chain(3)]))
    entries = np.array([1.0, 0, 0, 0, 2, 0, 0])
    exits = np.zeros((7, 1))
    exits[3], exits[6] = 0.5, 2.0
    rates = balanced_rates(graph, entries, exits)
    assert rates.net[:4].sum() == pytest.approx(0, abs=1e-15)
    assert rates.net[4:].sum() == pytest.approx(0, abs=1e-15)
    assert rates.rescaled == pytest.approx(1.0)
    values = potential(graph, rates.net)
    assert values[:4].mean() == pytest.approx(0, abs=1e-12)
    assert (np.diff(values[:4]) < 0).all()
    assert (np.diff(values[4:]) < 0).all()
    np.testing.assert_allclose(fates(graph, values, rates, 0.05), 1, atol=1e-6)


def test_a_part_without_exit_is_refused_by_name() -> None:
    graph = symmetric_graph(block_diag([chain(4), chain(3)]))
    entries = np.array([1.0, 0, 0, 0, 1, 0, 0])
    exits = np.zeros((7, 1))
    exits[3] = 1
    with pytest.raises(InputError, match=r"part 1 of 2 .*3 cells, the first at row 4.* has no exit") as refused:
        balanced_rates(graph, entries, exits)
    assert refused.value.code == "graph-in-parts"
    with pytest.raises(InputError, match="has no entry") as refused:
        balanced_rates(chain(4), np.zeros(4), np.ones((4, 1)))
    assert refused.value.code == "bad-rates"


@pytest.mark.parametrize("diffusion", [0, -0.05, float("nan"), float("inf"), "0.05", True, None])
def test_a_diffusion_that_is_no_positive_number_is_refused(diffusion: object) -> None:
    graph = chain(4)
    rates = balanced_rates(graph, np.array([1.0, 0, 0, 0]), np.array([[0.0], [0], [0], [1]]))
    with pytest.raises(ConfigError) as refused:
        fates(graph, potential(graph, rates.net), rates, diffusion)  # type: ignore[arg-type]
    assert refused.value.code == "bad-value"
