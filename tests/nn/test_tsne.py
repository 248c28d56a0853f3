"""Principal components as a first layer, and t-SNE's affinities, against scikit-learn and plain bisection."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.manifold._t_sne import _joint_probabilities_nn
from sklearn.neighbors import NearestNeighbors

from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.nn import inputs as projection
from anncoder.nn.inputs import Projection
from anncoder.nn.tsne import affinities, joint_affinities, others, squared_distances, without_self
from anncoder.types import Batch

POINTS = np.random.default_rng(0).normal(size=(200, 6)) * [1, 1, 2, 5, 0.1, 30]


def bisected(distances: Any, perplexity: float, tolerance: float) -> Any:
    """Van der Maaten's search as he published it: from precision 1, doubled or halved until both sides are known."""
    p = np.zeros_like(distances)
    for i, row in enumerate(distances):
        others, beta, low, high = np.arange(len(row)) != i, 1.0, 0.0, math.inf
        for _ in range(200):
            weights = np.exp(-row[others] * beta)
            entropy = math.log(weights.sum()) + beta * (row[others] @ weights) / weights.sum()
            if abs(entropy - math.log(perplexity)) < tolerance:
                break
            low, high = (beta, high) if entropy > math.log(perplexity) else (low, beta)
            beta = beta * 2 if math.isinf(high) else (low + high) / 2
        p[i, others] = weights / weights.sum()
    return p


def loader_of(matrix: Any) -> MemoryLoader:
    return MemoryLoader(Stored.of(csr_matrix(matrix)), np.ones(len(matrix)), np.arange(len(matrix)), batch_size=37)


class TestAffinities:
    @pytest.mark.parametrize("perplexity", [1.5, 5, 50])
    def test_they_are_those_of_plain_bisection(self, perplexity: float) -> None:
        distances = squared_distances(torch.from_numpy(POINTS))
        found = affinities(without_self(distances), perplexity)
        np.testing.assert_allclose(found, bisected(distances.numpy(), perplexity, 1e-10), rtol=1e-6, atol=1e-9)
        in_float32 = affinities(without_self(distances.float()), perplexity)
        np.testing.assert_allclose(in_float32, found, atol=1e-4)

    def test_duplicates_and_outliers_do_not_break_them(self) -> None:
        x = torch.cat([torch.zeros(30, 3), torch.randn(30, 3) * 1e-3, torch.full((1, 3), 1e4)])
        p = affinities(without_self(squared_distances(x)), 10)
        assert torch.isfinite(p).all()
        torch.testing.assert_close(p.sum(dim=1), torch.ones(61))

    def test_joint_ones_are_scikit_learns(self) -> None:
        ours = joint_affinities(POINTS.astype(np.float32), 20)
        neighbours = NearestNeighbors(n_neighbors=60).fit(POINTS.astype(np.float32))
        theirs = _joint_probabilities_nn(neighbours.kneighbors_graph(mode="distance").power(2), 20, 0)
        np.testing.assert_allclose(ours.toarray(), theirs.toarray(), atol=2e-7)
        assert ours.sum() == pytest.approx(1, abs=1e-6)
        assert abs(ours - ours.T).max() < 1e-9

    def test_nobody_is_a_neighbour_of_himself(self) -> None:
        indices, distances = others(np.array([[0, 2, 1], [0, 2, 1], [0, 1, 3]]), np.array([[0.0, 1, 2]] * 3))
        assert indices.tolist() == [[2, 1], [0, 2], [0, 1]]
        assert distances.tolist() == [[1, 2], [0, 1], [0, 1]]


class TestProjection:
    @pytest.mark.parametrize("exact", [True, False])
    def test_components_are_pcas(self, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        r = np.random.default_rng(0)
        matrix = (r.normal(size=(150, 5)) * [9, 7, 5, 4, 3]) @ r.normal(size=(5, 40)) + r.normal(size=(150, 40)) * 0.1
        matrix = np.maximum(matrix, 0).astype(np.float32)
        monkeypatch.setattr(projection, "EXACT_GENES", 2048 if exact else 10)
        layer, loader = Projection(40, 5), loader_of(matrix)
        layer.start_from(loader, lambda batch: batch.counts)
        scores = torch.cat([layer(batch.counts) for batch in loader.epoch(0)]).numpy()
        pca = PCA(5, svd_solver="full").fit(matrix.astype(np.float64))
        theirs = pca.transform(matrix)
        np.testing.assert_allclose(np.abs(scores), np.abs(theirs), atol=1e-3 * np.abs(theirs).max())
        np.testing.assert_allclose(layer.inverse(torch.from_numpy(scores)), pca.inverse_transform(theirs), atol=2e-2)

    def test_fewer_cells_than_components_leave_zeros(self) -> None:
        layer = Projection(30, 20)
        matrix = np.random.default_rng(0).poisson(2.0, (6, 30)).astype(np.float32)
        layer.start_from(loader_of(matrix), lambda batch: batch.counts)
        assert (layer.components.norm(dim=0) > 0.5).sum() == 5  # centred cells span one dimension less

    def test_without_components_the_input_passes(self) -> None:
        batch: Batch = next(loader_of(POINTS.astype(np.float32)).epoch(0))
        layer = Projection(6, 0)
        layer.start_from(loader_of(POINTS), lambda b: b.counts)
        torch.testing.assert_close(layer.inverse(layer(batch.counts)), batch.counts.to_dense())
