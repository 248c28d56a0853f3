"""scScope on simulated cells with dropout: what it fills in, what a second round adds, and whether batches mix.

Deng et al. 2019, doi 10.1038/s41592-019-0353-7. The analogue of the paper's first simulation (2,000 cells, 500 genes, 5
groups, Splatter's dropout of midpoint 4), library-size normalised, no logarithm. Error: absolute, relative to the sum
of the noiseless means, over the entries that dropout made zero. Clusters: k-means of 5.
"""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
from benchmarks.data import Splat, splat
from benchmarks.published import Claim, Row, values
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from anncoder import ScScope

Array = np.ndarray[Any, Any]


def clusters(latent: Array, group: Array, seed: int) -> float:
    """Return the ARI of k-means with the groups."""
    k = len(np.unique(group))
    return float(adjusted_rand_score(group, KMeans(k, n_init=10, random_state=seed).fit_predict(latent)))


def mixing(latent: Array, batch: Array, n_neighbors: int = 30) -> float:
    """Return the share of neighbours that are of another batch over the expected share."""
    near = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(latent).kneighbors(latent)[1][:, 1:]
    return float((batch[near] != batch[:, None]).mean() / np.mean([np.mean(batch != b) for b in batch]))


def filled_in(data: Splat, expected: Array) -> float:
    """Return the error of the expected counts, (n, g), at the entries that dropout made zero."""
    dropped = (data.counts == 0) & (data.true_counts > 0)
    return float(np.abs(expected - data.mean)[dropped].sum() / data.mean[dropped].sum())


def measure(seed: int) -> Row:
    """Return errors and agreements of one seed."""
    data = splat(seed, n_vars=500, n_obs=2000, n_groups=5, mid=4.0)
    sizes = data.counts.sum(1, keepdims=True)
    factor = sizes / np.median(sizes)
    x = data.counts / factor
    adata, principal = anndata.AnnData(csr_matrix(data.counts.astype(np.float32))), PCA(50, random_state=seed).fit(x)
    row = {
        "error, mean of the gene": filled_in(data, x.mean(0) * factor),
        "error, mean of the gene's non-zeros": filled_in(data, observed_mean(x) * factor),
        "ARI, PCA-50": clusters(principal.transform(x), data.group, seed),
    }
    for name, settings in VARIANTS.items():
        model = ScScope(**settings).fit(adata, seed=seed, progress=False)
        latent, k = model.embed(adata), model.config.n_latent
        row[f"error, {name}"] = filled_in(data, model.denoise(adata))
        row[f"ARI, {name}"] = clusters(latent, data.group, seed)
        row[f"ARI, {name}, last round"] = clusters(latent[:, -k:], data.group, seed)
    return row | batches(data, x, seed)


VARIANTS: dict[str, dict[str, Any]] = {"T=1": {"n_rounds": 1}, "T=2": {}, "T=2 faithful": {"faithful": True}}


def batches(data: Splat, x: Array, seed: int) -> Row:
    """Return how three batches mix that differ by an additive shift of the observed entries of each gene."""
    random = np.random.default_rng([seed, 1])
    batch = random.integers(0, 3, len(x))
    shift = random.uniform(0, 1, (3, x.shape[1])) * observed_mean(x)
    shifted = np.where(x > 0, x + shift[batch], 0)
    adata = anndata.AnnData(csr_matrix(shifted.astype(np.float32)))
    adata.obs["plate"] = batch.astype(str)
    centered = shifted.copy()
    for b in range(3):
        centered[batch == b] -= shifted[batch == b].mean(0)
    row = {}
    for name, latent in {
        "PCA-50": PCA(50, random_state=seed).fit_transform(shifted),
        "PCA-50, batches centred": PCA(50, random_state=seed).fit_transform(centered),
        "T=2, no batch layer": embedded(adata, seed, None),
        "T=2, batch layer": embedded(adata, seed, "plate"),
    }.items():
        row[f"mixing, {name}"] = mixing(latent, batch)
        row[f"ARI with batches, {name}"] = clusters(latent, data.group, seed)
    return row


def embedded(adata: anndata.AnnData, seed: int, batch_key: str | None) -> Array:
    """Return the latent of a fit to expression values."""
    model = ScScope(transform="none").fit(adata, batch_key=batch_key, max_epochs=50, seed=seed, progress=False)
    return model.embed(adata)


def observed_mean(x: Array) -> Array:
    """Return the mean of the non-zero entries of each gene, (g,)."""
    mean: Array = x.sum(0) / np.maximum((x > 0).sum(0), 1)
    return mean


def _median(rows: list[Row], name: str) -> float:
    return float(np.median(values(rows, name)))


CLAIMS = [
    Claim(
        "T=2 fills in no worse than T=1 on 4 of 5 seeds",
        lambda rows: sum(row["error, T=2"] <= row["error, T=1"] for row in rows) >= 0.8 * len(rows),
    ),
    Claim("T=2 fills in with a median error of at most 0.12", lambda rows: _median(rows, "error, T=2") <= 0.12),
    Claim(
        "T=2 fills in better than the mean of the gene's non-zeros (median)",
        lambda rows: _median(rows, "error, T=2") < _median(rows, "error, mean of the gene's non-zeros"),
    ),
    Claim(
        "median ARI of T=2 at least that of PCA-50",
        lambda rows: _median(rows, "ARI, T=2") >= _median(rows, "ARI, PCA-50"),
    ),
    Claim("median ARI of T=2 at least 0.48", lambda rows: _median(rows, "ARI, T=2") >= 0.48),
    Claim(
        "the batch layer raises the mixing of batches on every seed",
        lambda rows: all(row["mixing, T=2, batch layer"] > row["mixing, T=2, no batch layer"] for row in rows),
    ),
]
