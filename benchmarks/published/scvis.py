"""scvis on the paper's own synthetic set, and on ten classes that no plane of principal components tells apart."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
from benchmarks.data import Array, nine_dimensional, simplex
from benchmarks.published import Claim, Row, values
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from anncoder import SCVIS

TESTED = 4000  # cells of those mapped whose class is predicted


def mapped_accuracy(fitted: Array, label: Array, mapped: Array, truth: Array) -> float:
    """Return how often the five nearest fitted cells tell the class of a mapped one."""
    neighbours = KNeighborsClassifier(5).fit(fitted, label)
    return float(neighbours.score(mapped, truth))


def published_set(seed: int, **settings: Any) -> Row:
    """Fit 2,200 points, map 22,000 others, both over the largest fitted value of each column."""
    (x, label), (new, truth) = nine_dimensional(seed), nine_dimensional(1000 + seed, times=10)
    scale = np.abs(x).max(axis=0)
    x, new = (x / scale).astype(np.float32), (new / scale).astype(np.float32)
    some = np.random.default_rng(seed).permutation(len(new))[:TESTED]
    model = SCVIS(transform="none").fit(anndata.AnnData(x), seed=seed, progress=False, **settings)
    pca = PCA(2).fit(x)
    deviation = new - x.mean(axis=0)
    far = np.einsum("ij,jk,ik->i", deviation, np.linalg.inv(np.cov(x.T)), deviation)
    outlier = truth == -1
    scores = {
        "model, -log-likelihood": -model.log_likelihood(anndata.AnnData(new)),
        "Mahalanobis distance": far,
        "10-NN distance": NearestNeighbors(n_neighbors=10).fit(x).kneighbors(new)[0][:, -1],
        "PCA-2 error": np.square(new - pca.inverse_transform(pca.transform(new))).sum(axis=1),
    }
    spaces = {
        "model": (model.embed(anndata.AnnData(x)), model.embed(anndata.AnnData(new[some]))),
        "PCA-2": (pca.transform(x), pca.transform(new[some])),
        "9-D": (x, new[some]),
    }
    accuracy = {f"9-D set, mapped 5-NN: {k}": mapped_accuracy(a, label, b, truth[some]) for k, (a, b) in spaces.items()}
    return accuracy | {f"outliers, AUROC: {k}": float(roc_auc_score(outlier, s)) for k, s in scores.items()}


def ten_classes(seed: int, n_obs: int = 2200, **settings: Any) -> Row:
    """Fit 2,200 cells of ten classes in 50 dimensions, map 4,000 others."""
    (x, label), (new, truth) = simplex(seed, n_obs), simplex(1000 + seed, TESTED)
    model = SCVIS(transform="none").fit(anndata.AnnData(x.astype(np.float32)), seed=seed, progress=False, **settings)
    pca = PCA(2).fit(x)
    latent = [model.embed(anndata.AnnData(part.astype(np.float32))) for part in (x, new)]
    return {
        "simplex, mapped 5-NN: model": mapped_accuracy(latent[0], label, latent[1], truth),
        "simplex, mapped 5-NN: PCA-2": mapped_accuracy(pca.transform(x), label, pca.transform(new), truth),
    }


def measure(seed: int) -> Row:
    """Return the numbers of one seed."""
    return published_set(seed) | ten_classes(seed)


def _median(rows: list[Row], name: str) -> float:
    return float(np.median(values(rows, name)))


CLAIMS = [
    Claim(
        "9-D set: median accuracy of the mapped cells no worse than PCA-2's by more than 0.01",
        lambda rows: (
            _median(rows, "9-D set, mapped 5-NN: model") >= _median(rows, "9-D set, mapped 5-NN: PCA-2") - 0.01
        ),
    ),
    Claim(
        "9-D set: median AUROC of the outliers at least 0.95",
        lambda rows: _median(rows, "outliers, AUROC: model, -log-likelihood") >= 0.95,
    ),
    Claim(
        "simplex: median accuracy of the mapped cells at least 0.90 (PCA-2: 0.44)",
        lambda rows: _median(rows, "simplex, mapped 5-NN: model") >= 0.90,
    ),
]
