"""The neighbour graph of a latent is scanpy's."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st

from anncoder.evaluation.graph import _scales, neighbor_graph


@pytest.mark.parametrize(("n", "d", "k"), [(40, 2, 5), (700, 10, 15), (1500, 30, 15)])
def test_it_is_scanpys(n: int, d: int, k: int) -> None:
    random = np.random.default_rng(n)
    latent = (random.standard_normal((n, d)) * random.gamma(1, size=d)).astype(np.float32)
    latent[: n // 4] += 5  # two groups
    cells = anndata.AnnData(obsm={"z": latent})
    sc.pp.neighbors(cells, use_rep="z", n_neighbors=k)
    difference = abs(neighbor_graph(latent, k) - cells.obsp["connectivities"])
    assert difference.max() < 1e-4
    assert difference.mean() < 1e-7


@given(st.integers(0, 2**32 - 1), st.integers(4, 40), st.integers(3, 15))
@settings(max_examples=40, deadline=None)
def test_weights_of_a_point_sum_to_the_logarithm_of_their_number(seed: int, n: int, k: int) -> None:
    distances = np.sort(np.random.default_rng(seed).gamma(2, size=(n, k - 1)), axis=1)
    rho, sigma = _scales(distances)
    np.testing.assert_array_equal(rho, distances[:, 0])
    weights = np.exp(-(distances - rho[:, None]) / sigma[:, None])
    np.testing.assert_allclose(weights.sum(axis=1), np.log2(k), atol=2e-5)


def test_equal_cells_are_neighbours_and_nothing_is_infinite() -> None:
    latent = np.zeros((30, 2), dtype=np.float32)
    latent[20:] = np.random.default_rng(0).standard_normal((10, 2))
    graph = neighbor_graph(latent, 10)
    assert np.isfinite(graph.data).all()
    assert (graph.data > 0).all()
    assert graph.data.max() <= 1
    assert abs(graph - graph.T).max() == 0
    assert graph.diagonal().sum() == 0
    assert graph[:20, :20].data.min() == 1
    same = neighbor_graph(np.zeros((12, 3), dtype=np.float32), 5)
    assert (same.data == 1).all()
