"""Population dynamics: closed forms, recovery of simulated populations, left-out times, confidence."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.population_dynamics import DIFFUSION, SCORED, population, recovered, true_growth, true_velocity
from scipy.linalg import expm

from anncoder.dynamics.populations.finite_volumes import Rates, centres, faces, propagate, rates, solve
from anncoder.dynamics.populations.population import Grid, Population, Snapshots, between, cdf
from anncoder.dynamics.populations.population_errors import choose_smoothness, covariance, left_out, profile

N = 200


def constant(diffusion: float, velocity: float, growth: float, *, corrected: bool = True) -> Rates:
    shape = (N - 1,)
    return rates(np.full(shape, diffusion), np.full(shape, velocity), np.full(N, growth), corrected=corrected)


def normal(mean: float, variance: float) -> np.ndarray:
    density = np.exp(-((centres(N) - mean) ** 2) / 2 / variance)
    return density / density.sum()


@pytest.mark.parametrize("corrected", [True, False])
def test_constant_coefficients_have_the_closed_form(corrected: bool) -> None:
    masses = solve(constant(1e-3, 0.1, 0.3, corrected=corrected), normal(0.25, 0.002), [0, 1, 2, 4])
    for t, mass in zip((1, 2, 4), masses[1:], strict=True):
        total, s = mass.sum(), centres(N)
        mean = mass @ s / total
        assert total == pytest.approx(np.exp(0.3 * t), rel=1e-10)
        assert mean == pytest.approx(0.25 + 0.1 * t, abs=1e-4)
        # the numerical diffusion of the faces is 4 % of D here, and corrected none
        exact = 0.002 + 2e-3 * t
        assert mass @ (s - mean) ** 2 / total == pytest.approx(exact, rel=1e-3 if corrected else 0.02)


def test_the_uncorrected_faces_give_the_numbers_of_the_reference() -> None:
    masses = solve(constant(1e-3, 0.1, 0.3, corrected=False), normal(0.25, 0.002), [0, 1, 2, 4])
    s = centres(N)
    means = masses @ s / masses.sum(axis=1)
    variances = [m @ (s - mean) ** 2 / m.sum() for m, mean in zip(masses, means, strict=True)]
    np.testing.assert_allclose(means[1:], [0.35, 0.45, 0.649991], atol=1e-6)
    np.testing.assert_allclose(variances[1:], [0.004041, 0.006083, 0.010159], atol=1e-6)


def test_propagation_is_that_of_the_matrix_exponential() -> None:
    random = np.random.default_rng(0)
    n = 30
    law = rates(random.uniform(1e-3, 0.05, n - 1), random.normal(0, 0.3, n - 1), random.normal(0, 1, n))
    matrix = np.diag(law.diagonal) + np.diag(law.up, -1) + np.diag(law.down, 1)
    mass = random.random((3, n))
    np.testing.assert_allclose(propagate(law, mass, 1.7), mass @ expm(1.7 * matrix).T, rtol=1e-11)
    np.testing.assert_array_equal(propagate(law, mass, 0.0), mass)


@pytest.mark.parametrize("corrected", [True, False])
def test_mass_stays_and_is_never_negative(corrected: bool) -> None:
    start = np.zeros(N)
    start[10] = 1
    mass = propagate(constant(1e-5, 0.5, 0.0, corrected=corrected), start, 5.0)
    assert mass.sum() == pytest.approx(1, rel=1e-12)
    assert (mass >= 0).all()
    assert mass[-1] > 0.9  # no flux through the end


def test_without_growth_the_steady_state_is_that_of_drift_and_diffusion() -> None:
    # with constant v and D u is proportional to exp(v s / D), and the faces of Scharfetter and Gummel hold it exactly
    n = 40
    law = rates(np.full(n - 1, 0.2), np.ones(n - 1), np.zeros(n), corrected=False)
    expected = np.exp(5 * centres(n)) / np.exp(5 * centres(n)).sum()
    np.testing.assert_allclose(propagate(law, np.full(n, 1 / n), 15.0), expected, rtol=1e-8)


def test_values_between_knots() -> None:
    knots = np.array([1.0, 3.0, 2.0])
    np.testing.assert_allclose(between(np.array([0, 0.25, 0.5, 0.75, 1.0]), knots), [1, 2, 3, 2.5, 2])
    np.testing.assert_allclose(between(np.array([0.1, 0.9]), np.array([[4.0], [5.0]])), [[4, 4], [5, 5]])
    np.testing.assert_allclose(cdf(np.array([0.3, 0.1, 0.2]), np.array([0.05, 0.15, 1.0])), [0, 1 / 3, 1])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_simulated_population_is_recovered(seed: int) -> None:
    found = recovered(seed)
    assert found.velocity >= 0.95
    assert found.growth >= 0.95
    assert 0.5 <= found.diffusion <= 2
    assert found.left_out.area <= 0.03
    assert found.left_out.area <= found.left_out.null_area / 3
    assert abs(found.left_out.size_error) < abs(found.left_out.null_size_error)


def test_a_fit_that_knows_the_truth_stays_near_it() -> None:
    """Ten times the cells and ten times the precision: velocity and growth to a few per cent."""
    data = population(7, n=5000)._replace(log_sd=np.full(5, 0.003))
    data.log_sizes[:] = np.log(np.array([m.sum() for m in _truth()]))
    fit = Population(data, Grid(smoothness=0.25)).fit()
    inside = SCORED[10:-10]
    assert np.median(np.abs(fit.velocity(inside) / true_velocity(inside) - 1)) < 0.05
    assert np.abs(fit.growth(inside) - true_growth(inside)).mean() < 0.04
    assert fit.diffusion(inside)[0] == pytest.approx(DIFFUSION, rel=0.25)


def _truth() -> np.ndarray:
    from benchmarks.population_dynamics import _true_masses

    return _true_masses()


def test_the_unit_of_time_is_of_no_effect() -> None:
    data = population(3)
    days = Population(data, Grid()).fit()
    hours = Population(data._replace(times=data.times * 24), Grid()).fit()
    np.testing.assert_allclose(hours.velocity(SCORED) * 24, days.velocity(SCORED), rtol=2e-3)
    np.testing.assert_allclose(hours.growth(SCORED) * 24, days.growth(SCORED), atol=2e-3)
    assert hours.cost == pytest.approx(days.cost, rel=1e-3)


def test_the_jacobian_is_that_of_the_residuals() -> None:
    fit = Population(population(0), Grid(n_grid=60))
    found = fit.jacobian(fit.theta)
    for k in (0, 8, 16, 17):
        step = np.zeros(len(fit.theta))
        step[k] = 1e-4
        both = [np.concatenate([fit.residuals(t), fit.roughness(t)]) for t in (fit.theta + step, fit.theta - step)]
        np.testing.assert_allclose(found[:, k], (both[0] - both[1]) / 2e-4, rtol=1e-3, atol=1e-3)


def test_confidence_grows_with_the_cells_and_the_profile_agrees_with_the_jacobian() -> None:
    few, many = (Population(population(4, n=n), Grid(n_grid=100)).fit() for n in (150, 2400))
    errors = [np.sqrt(np.diag(covariance(fit))[16]) for fit in (few, many)]
    assert errors[0] > 1.5 * errors[1]
    spread = covariance(many)
    low, high = profile(many, spread).interval
    error = np.sqrt(spread[16, 16])
    assert np.log(high / low) == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert low < np.exp(many.theta[16]) < high


def test_several_knots_of_diffusion() -> None:
    fit = Population(population(0), Grid(n_grid=80, diffusion=3)).fit()
    assert (fit.diffusion(SCORED) > 0).all()
    assert profile(fit, covariance(fit), n=2).diffusion[2] == pytest.approx(1)


def test_three_times_are_enough() -> None:
    data = population(0).without(1).without(2)
    assert choose_smoothness(data, Grid()) == 1.0
    (one,) = left_out(Population(data, Grid()).fit())
    assert one.time == 4.0
    assert one.area < one.null_area


def test_times_need_not_be_even() -> None:
    data = population(0)
    fit = Population(Snapshots(*data.without(1)), Grid()).fit()
    assert np.corrcoef(fit.velocity(SCORED), true_velocity(SCORED))[0, 1] > 0.9
    assert fit.cdfs([0.0, 3.0]).shape == (2, len(faces(200)))
