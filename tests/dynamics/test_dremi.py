"""kNN-DREMI against published definitions, golden numbers of another implementation, and a direct search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from anncoder.dynamics.genes.dremi import (
    BINS,
    CONSTANT,
    NOT_FINITE,
    TIES,
    Array,
    axis,
    dremi,
    drevi,
    joint_density,
    mutual_information,
    score,
    source_axis,
    why_not,
)
from anncoder.dynamics.genes.mesh_distances import squared_distances, strips

# measured with scprep 1.2.3 (knnDREMI), numpy's generator of seed 0: DREMI of y on x, of x on y, mutual information
GOLDEN = {
    "line": (1.124973, 1.160274, 1.112748),
    "sine": (1.236634, 1.195699, 1.218029),
    "parabola": (0.752069, 0.747248, 0.760531),
    "step": (0.657430, 0.534763, 0.677121),
    "independent": (0.041973, 0.032066, 0.040088),
}


def curves() -> dict[str, tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    x = rng.random(500)
    means = {
        "line": x,
        "sine": np.sin(2 * np.pi * x),
        "parabola": (2 * x - 1) ** 2,
        "step": (x > 0.7).astype(float),
    }
    found = {name: (x, mean + 0.1 * rng.standard_normal(500)) for name, mean in means.items()}
    found["independent"] = (x, rng.standard_normal(500))
    skewed = rng.beta(1, 6, 500)
    found["skewed"] = (skewed, skewed + 0.05 * rng.standard_normal(500))
    return found


def information(x: Array, y: Array) -> float:
    return mutual_information(joint_density(source_axis(x), axis(y)))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_table(name: str) -> None:
    x, y = curves()[name]
    np.testing.assert_allclose([dremi(x, y), dremi(y, x), information(x, y)], GOLDEN[name], rtol=0, atol=1e-6)


def test_the_golden_number_of_a_skewed_source() -> None:
    x, y = curves()["skewed"]
    np.testing.assert_allclose([dremi(x, y), information(x, y)], [0.817248, 0.947917], rtol=0, atol=1e-6)


def cells(kind: str, n: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(n)
    if kind == "lumps":
        zeros = rng.random((2, n)) < [[0.6], [0.4]]
        return tuple(np.where(zeros, 0, rng.exponential(size=(2, n))))  # type: ignore[return-value]
    if kind == "line":
        x = rng.standard_normal(n)
        return x, x + 1e-3 * rng.standard_normal(n)
    if kind == "outlier":
        x, y = rng.standard_normal((2, n))
        x[0] = y[1] = 300.0
        return x, y
    return tuple(rng.lognormal(sigma=2, size=(2, n)))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["lumps", "line", "outlier", "skewed"])
@pytest.mark.parametrize(("n", "k"), [(50, 1), (311, 10), (2000, 10), (53, 53)])
def test_distances_are_those_of_a_tree(kind: str, n: int, k: int) -> None:
    x, y = cells(kind, n)
    target, (along, mesh) = axis(y), source_axis(x)
    found = squared_distances(along, target.values, target.order, (mesh, target.mesh), k)
    points = np.stack(np.meshgrid(mesh, target.mesh, indexing="ij"), axis=-1).reshape(-1, 2)
    expected = cKDTree(np.column_stack([along.x, target.values])).query(points, k=[k])[0]
    np.testing.assert_allclose(np.sqrt(found).ravel(), expected.ravel(), rtol=1e-12)


def test_strips_are_ascending_and_of_as_many_cells() -> None:
    found = strips(np.random.default_rng(0).standard_normal(101))
    assert len(found.low) == 10
    assert set(np.diff(found.start)) <= {10, 11}
    assert (found.high[:-1] <= found.low[1:]).all()
    assert ((found.x >= found.low[found.of]) & (found.x <= found.high[found.of])).all()


def test_invariants() -> None:
    x, y = curves()["sine"]
    joint = joint_density(source_axis(x), axis(y))
    assert joint.shape == (BINS, BINS)
    assert joint.sum() == pytest.approx(1)
    np.testing.assert_allclose(drevi(joint).sum(axis=1), 1)
    assert dremi(3 * x - 7, 0.1 * y + 2) == pytest.approx(dremi(x, y), abs=1e-9)  # of any scale
    order = np.random.default_rng(1).permutation(len(x))
    assert dremi(x[order], y[order]) == pytest.approx(dremi(x, y), abs=1e-9)
    assert score(np.full((BINS, BINS), 1 / BINS**2)) == pytest.approx(0, abs=1e-12)
    assert score(np.eye(BINS) / BINS) == pytest.approx(np.log2(BINS))
    assert mutual_information(joint.T) == pytest.approx(mutual_information(joint))


def test_values_that_have_no_density_give_no_number() -> None:
    x = np.random.default_rng(0).random(100)
    mostly = np.where(np.arange(100) < 91, 0.0, x)
    for bad, why in ((np.full(100, 0.1), CONSTANT), (mostly, TIES), (np.where(x < 0.5, np.nan, x), NOT_FINITE)):
        assert why_not(bad) == why
        assert np.isnan(dremi(x, bad))
        assert np.isnan(dremi(bad, x))
    assert not why_not(np.where(np.arange(100) < 89, 0.0, x))
    assert not why_not(x)
