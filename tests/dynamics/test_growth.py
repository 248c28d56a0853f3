"""Growth rates from scores: published numbers; scores by hand."""

from __future__ import annotations

import numpy as np
import pytest

from anncoder.dynamics.transport.growth import (
    RateConstants,
    factor_of_doubling_time,
    genes_of_species,
    growth_factor,
    score,
)


@pytest.mark.parametrize(
    ("p", "q", "factor"),
    [(0, 0, 1.0), (0.25, 0.1, 1.0), (1, 0, 3.420047), (-0.5, 0.5, 0.247568), (0.5, -0.2, 3.420047)],
)
def test_factors_are_the_published_ones(p: float, q: float, factor: float) -> None:
    assert growth_factor(np.array([p]), np.array([q])) == pytest.approx(factor, abs=1e-6)


def test_factors_are_bounded_and_of_the_unit_of_time() -> None:
    most, least = growth_factor(np.array([99.0, -99.0]), np.array([-99.0, 99.0]))
    assert (most, least) == pytest.approx((np.exp(1.4), np.exp(-1.4)))
    a_day = growth_factor(np.array([0.7]), np.array([0.0]))
    assert growth_factor(np.array([0.7]), np.array([0.0]), unit_hours=1) ** 24 == pytest.approx(a_day)
    assert growth_factor(np.array([0.7]), np.array([0.0]), unit_hours=48) == pytest.approx(a_day**2)
    slow = RateConstants(range=0.7)
    assert growth_factor(np.array([0.7]), np.array([0.0]), constants=slow) == pytest.approx(a_day**0.5)


def test_a_doubling_time_is_two_to_one_over_it() -> None:
    assert factor_of_doubling_time(np.array([1.0, 0.5, np.inf])) == pytest.approx([2, 4, 1])


def test_scores_are_means_of_clipped_z_scores() -> None:
    logs = np.random.default_rng(0).normal(size=(200, 3))
    logs[0, 0], logs[:, 2] = 100.0, 1.0
    z = (logs[:, :2] - logs[:, :2].mean(axis=0)) / logs[:, :2].std(axis=0)
    assert z[0, 0] > 5
    wanted = np.column_stack([np.clip(z, -5, 5), np.zeros(200)]).mean(axis=1)
    assert score(logs) == pytest.approx(wanted)


def test_lists_of_genes_are_of_a_species() -> None:
    human, mouse = genes_of_species("human"), genes_of_species("mouse")
    assert {"MKI67", "TOP2A"} <= set(human["proliferation"])
    assert {"Mki67", "Top2a", "Rad51ap1", "H2az1"} - set(mouse["proliferation"]) == {"H2az1"}
    assert "Casp3" in mouse["apoptosis"]
    for genes in human.values():
        assert len(genes) == len(set(genes)) > 25
