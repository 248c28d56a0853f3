"""net-SNE: new cells of ten classes put into the picture, and the picture's divergence beside t-SNE's own."""

from __future__ import annotations

import time
from typing import Any

import anndata
import numpy as np
from benchmarks.data import simplex
from benchmarks.published import Claim, Row, values
from benchmarks.published.scvis import mapped_accuracy
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from anncoder import NetSNE

PERPLEXITY = 30
MANY = 100_000


def ten_classes(
    seed: int, n_obs: int = 2200, n_new: int = 4000, *, exaggeration_steps: int = 250, **settings: Any
) -> tuple[Row, NetSNE]:
    """Fit 2,200 cells of ten classes in 50 dimensions, map 4,000 others; the fitted model too."""
    (x, label), (new, truth) = simplex(seed, n_obs), simplex(1000 + seed, n_new)
    data = [anndata.AnnData(part.astype(np.float32)) for part in (x, new)]
    unfitted = NetSNE(transform="none", perplexity=PERPLEXITY, exaggeration_steps=exaggeration_steps)
    model = unfitted.fit(data[0], seed=seed, progress=False, **settings)
    pca = PCA(2).fit(x)
    fitted, mapped = (model.embed(part) for part in data)
    row = {
        "simplex, mapped 5-NN: model": mapped_accuracy(fitted, label, mapped, truth),
        "simplex, mapped 5-NN: PCA-2": mapped_accuracy(pca.transform(x), label, pca.transform(new), truth),
        "simplex, KL: model": float(model.history_["train_kl"].iloc[-1]),
    }
    return row, model


def measure(seed: int) -> Row:
    """Return the numbers of one seed."""
    row, model = ten_classes(seed)
    tsne = TSNE(perplexity=PERPLEXITY, random_state=seed).fit(simplex(seed, 2200)[0])
    many = anndata.AnnData(simplex(2000 + seed, MANY)[0].astype(np.float32))
    began = time.perf_counter()
    model.embed(many)
    seconds = time.perf_counter() - began
    ratio = row["simplex, KL: model"] / tsne.kl_divergence_
    return row | {
        "simplex, KL: scikit-learn's TSNE": float(tsne.kl_divergence_),
        "simplex, KL: model / scikit-learn's": ratio,
        "seconds to map 100,000 cells": seconds,
    }


CLAIMS = [
    Claim(
        "simplex: median accuracy of the mapped cells at least 0.90 (PCA-2: 0.44)",
        lambda rows: float(np.median(values(rows, "simplex, mapped 5-NN: model"))) >= 0.90,
    ),
    Claim(
        "simplex: median divergence at most 1.25 times that of scikit-learn's TSNE",
        lambda rows: float(np.median(values(rows, "simplex, KL: model / scikit-learn's"))) <= 1.25,
    ),
    Claim(
        "100,000 cells are mapped in 10 seconds",
        lambda rows: float(np.median(values(rows, "seconds to map 100,000 cells"))) <= 10,
    ),
]
