"""Scores of one gene against many, with their nulls; relations with the descendants."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from anncoder.dynamics.genes.dremi import Array, dremi
from anncoder.dynamics.genes.relations import (
    Pair,
    Scores,
    adjusted,
    correlation_with,
    descendants_of,
    directed,
    dremi_with,
    joined,
    neighbor_average,
    rank_correlation,
    shuffles_of,
    significance,
)


def targets_of(x: Array, m: int, seed: int) -> Array:
    # independent of x, but for the first column
    values = np.random.default_rng(seed).standard_normal((len(x), m))
    values[:, 0] = np.sin(6 * x) + 0.2 * values[:, 0]
    return values


def test_scores_are_those_of_single_genes_and_depend_on_nothing_else() -> None:
    x = np.random.default_rng(0).random(200)
    values, genes = targets_of(x, 7, seed=1), np.arange(10, 17)
    shuffles = shuffles_of(x, 6, seed=3)
    together = dremi_with(x, shuffles, threads=2)(values, genes)
    parts = [dremi_with(x, shuffles, threads=1)(values[:, [i]], genes[[i]]) for i in range(7)]
    apart = joined(parts)
    np.testing.assert_array_equal(together.score, apart.score)
    np.testing.assert_array_equal(together.null, apart.null)
    np.testing.assert_allclose(together.score, [dremi(x, column) for column in values.T], rtol=1e-12)
    drawn = shuffles.drawn(12)
    np.testing.assert_allclose(together.null[2], [dremi(shuffles.values[:, i], values[:, 2]) for i in drawn])


def test_independent_genes_are_within_their_shuffles_and_the_related_one_is_not() -> None:
    x = np.random.default_rng(0).random(500)
    found = dremi_with(x, shuffles_of(x, 20, seed=0))(targets_of(x, 60, seed=2), np.arange(60))
    by_chance = significance(found)
    assert np.abs(by_chance.z[1:]).mean() < 1.2  # of a standard normal 0.8; the deviation is that of 20 shuffles
    assert (np.abs(by_chance.z[1:]) < 2).mean() > 0.85
    assert 0.02 < by_chance.null_mean.mean() < 0.06  # bits: the bias of independent genes
    assert by_chance.z[0] > 10
    assert by_chance.p[0] == pytest.approx(1 / (1 + 60 * 20))
    assert by_chance.q[0] < 0.06
    assert stats.kstest(by_chance.p[1:], "uniform").pvalue > 0.01


def test_the_golden_independent_pair_is_within_two_deviations_of_its_shuffles() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(500)
    y = rng.standard_normal((5, 500))[4]
    found = dremi_with(x, shuffles_of(x, 20, seed=0))(y[:, None], np.array([0]))
    assert found.score[0] == pytest.approx(0.041973, abs=1e-6)
    assert abs(significance(found).z[0]) < 2


def test_a_target_without_density_has_a_reason_and_no_score() -> None:
    x = np.random.default_rng(0).random(100)
    values = np.column_stack([np.zeros(100), targets_of(x, 1, seed=0)[:, 0]])
    found = dremi_with(x, shuffles_of(x, 5, seed=0))(values, np.arange(2))
    assert found.reason == ["constant", ""]
    by_chance = significance(found)
    for column in (found.score, by_chance.z, by_chance.p, by_chance.q):
        np.testing.assert_array_equal(np.isnan(column), [True, False])
    nothing = significance(found._replace(score=found.score[:1], null=found.null[:1]))
    assert np.isnan(nothing.q).all()


def test_shuffles_stay_in_their_stratum() -> None:
    strata = np.repeat([0, 1, 2], [30, 50, 20])
    order = np.random.default_rng(0).permutation(100)
    x, strata = np.arange(100.0)[order], strata[order]
    shuffles = shuffles_of(x, 5, seed=0, strata=strata)
    for column in shuffles.values.T:
        assert not np.array_equal(column, x)
        for stratum in range(3):
            assert set(column[strata == stratum]) == set(x[strata == stratum])
    assert len(set(shuffles.drawn(3))) == 5


def test_each_shuffle_is_compared_with_the_others() -> None:
    null = np.random.default_rng(0).random((1, 6))
    apart = [(null[0, i] - (o := np.delete(null[0], i)).mean()) / o.std(ddof=1) for i in range(6)]
    for score, larger in ((null.max() + 5, 0), (null.min() - 5, 6)):
        p = significance(Scores(np.array([score]), null, [""])).p[0]
        assert p == pytest.approx((1 + larger) / 7)
    middle = np.sort(apart)[3]  # as many deviations from the mean of all six
    score = null.mean() + (middle - 1e-9) * null.std(ddof=1)
    assert significance(Scores(np.array([score]), null, [""])).p[0] == pytest.approx((1 + 3) / 7)


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    p = np.array([0.01, np.nan, 0.02, 0.03, 0.5])
    np.testing.assert_allclose(adjusted(p), [0.04, np.nan, 0.04, 0.04, 0.5])


def test_rank_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x, values = rng.random(80), rng.integers(0, 9, (80, 4)).astype(float)
    expected = [stats.spearmanr(x, column).statistic for column in values.T]
    np.testing.assert_allclose(rank_correlation(x, values), expected)
    found = correlation_with(x, shuffles_of(x, 5, seed=0))(values, np.arange(4), None)
    np.testing.assert_allclose(found.score, np.abs(expected))


def test_the_partial_correlation_is_that_of_residuals_of_ranks() -> None:
    rng = np.random.default_rng(0)
    given = rng.random((90, 1))
    x, y = given[:, 0] + rng.random(90), given + rng.random((90, 1))
    found = correlation_with(x, shuffles_of(x, 5, seed=0))(y, np.array([0]), given)
    ranks = [stats.rankdata(values) for values in (x, y[:, 0], given[:, 0])]
    rest = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    assert found.score[0] == pytest.approx(abs(stats.pearsonr(*rest).statistic))


def test_a_constant_target_has_no_correlation() -> None:
    x = np.random.default_rng(0).random(60)
    found = correlation_with(x, shuffles_of(x, 5, seed=0))(np.column_stack([np.ones(60), x]), np.arange(2), None)
    assert found.reason == ["constant", ""]
    np.testing.assert_allclose(found.score, [np.nan, 1])


def test_neighbour_averages() -> None:
    line = np.arange(6.0)[:, None]
    average = neighbor_average(line, 3)
    np.testing.assert_allclose(average @ np.ones(6), 1)
    np.testing.assert_allclose((average @ line)[1:-1], line[1:-1])
    assert (average.toarray() > 0).sum() == 18


def lagged_cells(n: int, m: int, *, seed: int) -> tuple[Array, Array, Array, Pair]:
    """Return source, present and later values of m genes, and the pair; the first is made by the source."""
    rng = np.random.default_rng(seed)
    x, now, later = rng.random(n), rng.standard_normal((n, m)), rng.standard_normal((3 * n, m))
    parent = np.repeat(np.arange(n), 3)  # of each later cell
    later[:, 0] = np.sin(2 * np.pi * x[parent]) + 0.5 * later[:, 0]
    plan = (parent == np.arange(n)[:, None]) / 3.0

    def pull_back(values: Array) -> Array:
        return np.asarray(plan @ values)

    return x, now, later, Pair(np.arange(n), n + np.arange(3 * n), pull_back)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_true_lagged_pair_is_found_among_two_hundred(seed: int) -> None:
    x, now, later, pair = lagged_cells(150, 200, seed=seed)
    expected = descendants_of([pair], np.concatenate([now, later]))
    measure = dremi_with(x, shuffles_of(x, 8, seed=0))
    ahead, present = measure(expected, np.arange(200)), measure(now, np.arange(200))
    by_chance, at_once = significance(ahead), significance(present)
    assert np.argsort(-ahead.score).tolist().index(0) < 5
    assert ahead.score[0] > present.score[0]
    found = directed(ahead, by_chance, present, at_once)
    assert found[0]
    assert found[1:].sum() <= 6  # 1 % of the null is 2


def test_the_partial_correlation_finds_a_monotone_pair_and_not_its_own_past() -> None:
    rng = np.random.default_rng(0)
    x, now = rng.random(300), rng.standard_normal((300, 2))
    now[:, 1] += 3 * x  # this gene only goes on as it is
    later = now + 0.3 * rng.standard_normal((300, 2))
    later[:, 0] += 2 * x
    found = correlation_with(x, shuffles_of(x, 50, seed=0))(later, np.arange(2), now)
    by_chance = significance(found)
    assert by_chance.p[0] < 0.02
    assert by_chance.p[1] > 0.05
