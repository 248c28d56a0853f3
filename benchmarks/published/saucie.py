"""SAUCIE on six Gaussian groups in 50 dimensions: batches mixed, groups kept, clusters found."""

from __future__ import annotations

from statistics import median
from typing import Any

import anndata
import numpy as np
from benchmarks.data import blobs
from benchmarks.published import Claim, Row, values
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from anncoder import SAUCIE

NEIGHBOURS = 30


def neighbours(latent: Any, k: int = NEIGHBOURS) -> Any:
    """Return the nearest neighbours of each cell, itself left out, (n, k)."""
    return NearestNeighbors(n_neighbors=k + 1).fit(latent).kneighbors(latent)[1][:, 1:]


def mixing(latent: Any, batch: Any, k: int = NEIGHBOURS) -> float:
    """Return the share of neighbours from other batches, over what is expected of cells that are mixed at random."""
    codes = np.unique(batch, return_inverse=True)[1]
    expected = 1 - np.bincount(codes)[codes] / len(codes)
    return float(np.mean((codes[neighbours(latent, k)] != codes[:, None]).mean(axis=1) / expected))


def accuracy(latent: Any, group: Any, k: int = NEIGHBOURS) -> float:
    """Return the share of cells whose neighbours are mostly of their own group."""
    codes = np.unique(group, return_inverse=True)[1]
    votes = [np.bincount(row).argmax() for row in codes[neighbours(latent, k)]]
    return float(np.mean(votes == codes))


def corrected(seed: int, lambda_b: float, **settings: Any) -> tuple[float, float]:
    """Return batch mixing and group accuracy of the latent."""
    data = blobs(seed)
    cells = anndata.AnnData(data.x)
    cells.obs["batch"] = np.where(data.batch, "second", "first")
    if lambda_b:
        settings["batch_key"] = "batch"
    model = SAUCIE(lambda_b=lambda_b, transform="none", rescale=10)
    latent = model.fit(cells, seed=seed, threads=1, progress=False, **settings).embed(cells)
    return mixing(latent, data.batch), accuracy(latent, data.group)


def clustered(seed: int, **settings: Any) -> tuple[float, float, float]:
    """Return the number of clusters, the share of cells in one, and the ARI (the cells in none count as one group)."""
    data = blobs(seed, shift=0)
    cells = anndata.AnnData(data.x)
    model = SAUCIE(lambda_c=0.1, lambda_d=0.2, transform="none", rescale=10)
    found = model.fit(cells, seed=seed, threads=1, progress=False, **settings).clusters(cells)
    return found.n_clusters, found.pct_assigned, float(adjusted_rand_score(data.group, found.labels))


def measure(seed: int) -> Row:
    """Return the numbers of one seed."""
    data = blobs(seed)
    pca = PCA(2, random_state=0).fit_transform(data.x)
    row = {
        "mixing, PCA-2": mixing(pca, data.batch),
        "group accuracy, PCA-2": accuracy(pca, data.group),
    }
    for lambda_b in (0, 0.1):
        mixed, accurate = corrected(seed, lambda_b)
        row |= {f"mixing, lambda_b = {lambda_b}": mixed, f"group accuracy, lambda_b = {lambda_b}": accurate}
    n_clusters, assigned, ari = clustered(seed)
    single = blobs(seed, shift=0)
    kmeans = KMeans(6, n_init=10, random_state=0).fit_predict(single.x)
    return row | {
        "clusters": n_clusters,
        "assigned, %": assigned,
        "ARI": ari,
        "ARI, k-means with k = 6": float(adjusted_rand_score(single.group, kmeans)),
    }


def _keeps_groups(rows: list[Row]) -> bool:
    return all(row["group accuracy, lambda_b = 0.1"] >= 0.9 * row["group accuracy, lambda_b = 0"] for row in rows)


CLAIMS = [
    Claim("mixing is below 0.3 without lambda_b", lambda rows: max(values(rows, "mixing, lambda_b = 0")) < 0.3),
    Claim("mixing is above 0.7 with it", lambda rows: min(values(rows, "mixing, lambda_b = 0.1")) > 0.7),
    Claim("group accuracy with it is at least 0.9 of that without", _keeps_groups),
    Claim(
        "at least 80 % of the cells are in a cluster (median)", lambda rows: median(values(rows, "assigned, %")) >= 80
    ),
    Claim("ARI is at least 0.8 (median)", lambda rows: median(values(rows, "ARI")) >= 0.8),
]
