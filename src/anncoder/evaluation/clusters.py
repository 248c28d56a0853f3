"""Clusters against labels: Leiden and k-means ARI and NMI, silhouette."""

from __future__ import annotations

import warnings
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from anncoder.evaluation.graph import neighbor_graph
from anncoder.models.base import Array

RESOLUTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
N_NEIGHBORS = 15  # scanpy's default, the cell itself included
LARGEST_SILHOUETTE = 5000  # cells: it looks at every pair


def cluster_scores(latent: Array | None, truth: Any, seed: int) -> dict[str, float]:
    """Return how well clusters of a latent agree with labels.

    Parameters
    ----------
    latent
        (n, k), or None for a method without: all its cells are one cluster, with agreement 0.
    truth
        (n,) labels, None or NaN where a cell has none; such cells are clustered, but not scored. None for no labels.
    seed
        Start of the clusterings.

    Returns
    -------
    dict
        ``leiden_ari``, ``leiden_nmi``, ``kmeans_ari``, ``kmeans_nmi``, ``silhouette``; NaN for labels of a single
        class, or of as many classes as cells, with which any clusters agree wholly or not at all.
    """
    names = ("leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi")
    if truth is not None and not comparable(truth):
        return dict.fromkeys((*names, "silhouette"), np.nan)
    if latent is None:
        return dict.fromkeys(names, np.nan if truth is None else 0.0) | {"silhouette": np.nan}
    if truth is None:
        clusters = leiden(latent, (1.0,), seed)[0]
        return dict.fromkeys(names, np.nan) | {"silhouette": _silhouette(latent, clusters, seed)}
    known = pd.notna(truth)
    labels = truth[known].astype(str)
    agreements = [_agreement(labels, clusters[known]) for clusters in leiden(latent, RESOLUTIONS, seed)]
    best = [max(values) for values in zip(*agreements, strict=True)]
    found = [*best, *_agreement(labels, kmeans(latent, len(set(labels)), seed)[known])]
    return dict(zip(names, found, strict=True)) | {"silhouette": _silhouette(latent[known], labels, seed)}


def kmeans(latent: Array, n_clusters: int, seed: int) -> Any:
    """Return k-means clusters of a latent, the best of ten starts, (n,)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # limits scikit-learn's own OpenMP, which spins where other programs run
    with threadpool_limits(1, "openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # where points are the same
        return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(latent)


def leiden(latent: Array, resolutions: tuple[float, ...], seed: int) -> list[Any]:
    """Return scanpy's Leiden clusters of a latent, one array of labels a resolution."""
    return leiden_of(neighbor_graph(latent, min(N_NEIGHBORS, len(latent))), resolutions, seed)


def leiden_of(graph: csr_matrix, resolutions: tuple[float, ...], seed: int) -> list[Any]:
    """Return scanpy's Leiden clusters of a graph, (n, n), one array of labels a resolution."""
    import scanpy as sc

    cells = anndata.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(graph.shape[0])]))
    found = []
    for resolution in resolutions:
        options: dict[str, Any] = {"flavor": "igraph", "n_iterations": 2, "directed": False, "random_state": seed}
        sc.tl.leiden(cells, resolution, adjacency=graph, **options)
        found.append(cells.obs["leiden"].to_numpy())
    return found


def comparable(truth: Any) -> bool:
    """Return whether labels (None or NaN for none) put some cells together and others apart."""
    labels = truth[pd.notna(truth)].astype(str)
    return 1 < len(set(labels)) < len(labels)


def _agreement(labels: Any, clusters: Any) -> tuple[float, float]:
    # adjusted Rand index and normalised mutual information
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return float(adjusted_rand_score(labels, clusters)), float(normalized_mutual_info_score(labels, clusters))


def _silhouette(latent: Array, labels: Any, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    if len(latent) > LARGEST_SILHOUETTE:
        sample = np.random.default_rng([seed, 5]).choice(len(latent), LARGEST_SILHOUETTE, replace=False)
        latent, labels = latent[sample], labels[sample]
    if not 1 < len(set(labels)) < len(labels):  # it compares clusters
        return float("nan")
    return float(silhouette_score(latent, labels))
