"""Neighbour graph of a latent, with UMAP's weights: what scanpy clusters, without compiling.

McInnes, Healy, Melville 2018, arXiv 1802.03426, section 3.1, algorithms 2 and 3: an edge to a neighbour at distance d
weighs exp(-(d - rho) / sigma), with rho the distance of the nearest other point, and sigma such that the weights of the
k neighbours (the point itself is the first) sum to log2(k); both directions are joined by a + b - ab. ``umap-learn``
compiles the same anew in every process, which takes longer than the whole comparison.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from anncoder.models.base import Array

STEPS = 64  # of the bisection
TOLERANCE = 1e-5  # of the sum of the weights
LEAST_SIGMA = 1e-3  # of the mean distance


def neighbor_graph(latent: Array, n_neighbors: int) -> csr_matrix:
    """Return the symmetric graph of some points, (n, n) float32, weights from 0 to 1.

    Parameters
    ----------
    latent
        (n, d) coordinates, with Euclidean distances; the neighbours are exact.
    n_neighbors
        Neighbours of a point, itself included, at most n.
    """
    distances, others = nearest(latent, n_neighbors - 1)
    distances = distances.astype(np.float32).astype(np.float64)
    rho, sigma = _scales(distances)
    beyond = np.maximum(distances - rho[:, None], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(beyond > 0, np.exp(-beyond / sigma[:, None]), 1.0)
    n = len(latent)
    start = np.arange(0, n * (n_neighbors - 1) + 1, n_neighbors - 1)
    directed = csr_matrix((weights.ravel(), others.ravel(), start), shape=(n, n))
    back = directed.T.tocsr()
    joined = directed + back - directed.multiply(back)
    joined.eliminate_zeros()
    return joined.astype(np.float32)


def nearest(latent: Array, k: int) -> tuple[Any, Any]:
    """Return distances and positions of each row's k nearest neighbours, itself left out, (n, k), Euclidean, exact."""
    from sklearn.neighbors import NearestNeighbors

    with threadpool_limits(1, "openmp"):  # of scikit-learn's own OpenMP, which spins where other programs run
        distances, positions = NearestNeighbors(n_neighbors=k).fit(latent).kneighbors()
    return distances, positions


def _scales(distances: Any) -> tuple[Any, Any]:
    """Return rho and sigma of each point, (n,), from the distances to its neighbours, itself left out, (n, k - 1)."""
    n, k = distances.shape[0], distances.shape[1] + 1
    positive = np.where(distances > 0, distances, np.inf)
    rho = np.where(np.isfinite(positive.min(axis=1)), positive.min(axis=1), 0)
    beyond = np.maximum(distances - rho[:, None], 0)
    target, low, high, middle = np.log2(k), np.zeros(n), np.full(n, np.inf), np.ones(n)
    open_ones = np.ones(n, dtype=bool)
    for _ in range(STEPS):
        total = np.exp(-beyond / middle[:, None]).sum(axis=1)
        open_ones &= np.abs(total - target) >= TOLERANCE
        if not open_ones.any():
            break
        above = open_ones & (total > target)
        below = open_ones & ~above
        high[above], low[below] = middle[above], middle[below]
        middle[open_ones] = np.where(np.isinf(high), 2 * middle, (low + high) / 2)[open_ones]
    # a neighbour of zero distance is the point itself, too: the means are over k
    mean = np.where(rho > 0, distances.sum(axis=1) / k, distances.sum() / (n * k))
    return rho, np.maximum(middle, LEAST_SIGMA * mean)
