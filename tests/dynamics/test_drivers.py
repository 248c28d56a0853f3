"""Genes of a fate: Welch's test with weights, held to scipy's and to sums written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control, ttest_ind

from anncoder.dynamics.genes.dremi import Array
from anncoder.dynamics.genes.drivers import PSEUDO, contrast, effective_numbers


def logged(n: int, g: int) -> Array:
    return np.log1p(np.random.default_rng(0).poisson(1.5, (n, g)).astype(float))


@pytest.mark.parametrize("matrix", [np.asarray, csr_matrix])
def test_of_weights_of_zero_and_one_it_is_the_usual_test(matrix) -> None:  # type: ignore[no-untyped-def]
    values, inside = logged(90, 6), np.random.default_rng(1).random(90) < 0.3
    parts = [(matrix(values[:50]), np.arange(50)), (matrix(values[50:]), np.arange(50, 90))]
    found = contrast(parts, inside.astype(float))
    expected = ttest_ind(values[inside], values[~inside], equal_var=False)
    np.testing.assert_allclose(found.t, expected.statistic, rtol=1e-10)
    np.testing.assert_allclose(found.df, expected.df, rtol=1e-10)
    np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-10)
    np.testing.assert_allclose(found.q, false_discovery_control(expected.pvalue), rtol=1e-10)
    np.testing.assert_allclose(found.fraction, (values[inside] > 0).mean(axis=0))
    ratio = (np.expm1(values[inside]).mean(axis=0) + PSEUDO) / (np.expm1(values[~inside]).mean(axis=0) + PSEUDO)
    np.testing.assert_allclose(found.log_fold_change, np.log2(ratio))


def test_weights_written_out() -> None:
    values, weights = logged(70, 3), np.random.default_rng(2).random(70)
    found = contrast([(values, np.arange(70))], weights)
    means, errors = [], []
    for w in (weights, 1 - weights):
        n, mean = w.sum() ** 2 / (w**2).sum(), np.average(values, axis=0, weights=w)
        means.append(mean)
        errors.append(np.average((values - mean) ** 2, axis=0, weights=w) / (n - 1))
    np.testing.assert_allclose(found.mean, means[0])
    np.testing.assert_allclose(found.mean_others, means[1])
    np.testing.assert_allclose(found.t, (means[0] - means[1]) / np.sqrt(errors[0] + errors[1]))


def test_probabilities_near_a_half_count_as_one_group_of_cells_each() -> None:
    np.testing.assert_allclose(effective_numbers(np.full(40, 0.5)), [40, 40])
    np.testing.assert_allclose(effective_numbers(np.array([1.0, 0, 0, 0])), [1, 3])
    np.testing.assert_allclose(effective_numbers(np.ones(4)), [4, 0])


def test_the_other_fate_is_the_mirror_image_and_a_constant_gene_has_no_test() -> None:
    values, weights = logged(60, 4), np.random.default_rng(3).random(60)
    values[:, 2] = 0.3
    one, other = (contrast([(values, np.arange(60))], w) for w in (weights, 1 - weights))
    np.testing.assert_allclose(one.t, -other.t)
    np.testing.assert_allclose(one.p, other.p)
    np.testing.assert_allclose(one.log_fold_change, -other.log_fold_change, atol=1e-9)
    np.testing.assert_array_equal(np.isnan(one.t), [False, False, True, False])
    assert np.isnan(one.q[2])
