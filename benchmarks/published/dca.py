"""DCA on simulated dropout (the setting of its Figure 2), the noisy counts, the true counts and PCA beside it.

What is scored: the silhouette of the true groups on two principal components, and the correlation of each gene,
centred, with its noiseless log mean. A tenth of the molecules is set aside for the third claim.
"""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
from benchmarks.data import splat
from benchmarks.published import Claim, Row, values
from scipy.sparse import csr_matrix
from scipy.special import gammaln
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from anncoder import DCA

Array = np.ndarray[Any, Any]


def measure(seed: int) -> Row:
    """Return the scores of the default DCA, of its types for dropout, and of what stands beside them."""
    data = splat(seed)
    noisy, truth = logged(data.counts), logged(data.mean)
    row = {
        "silhouette: noisy counts": silhouette(noisy, data.group),
        "silhouette: true counts": silhouette(logged(data.true_counts), data.group),
        "correlation: noisy counts": correlation(noisy, truth),
        **{f"correlation: PCA-{k}": correlation(projected(noisy, k), truth) for k in (1, 2, 5)},
    }
    for name, settings in VARIANTS.items():
        model = fitted(data.counts, seed, **settings)
        denoised = logged(model.denoise(cells(data.counts)))
        row[f"silhouette: {name}"] = silhouette(denoised, data.group)
        row[f"correlation: {name}"] = correlation(denoised, truth)
        row[f"loss of held-out cells: {name}"] = float(model.history_["valid_loss"].min())
    return row | held_out(data.counts, seed)


def fitted(counts: Array, seed: int, *, max_epochs: int | None = None, **settings: Any) -> DCA:
    """Return a fitted model, with the default settings but for these."""
    model = DCA(**settings)
    return model.fit(cells(counts), seed=seed, max_epochs=max_epochs, threads=1, progress=False)


def cells(counts: Array) -> anndata.AnnData:
    """Return counts as an AnnData."""
    return anndata.AnnData(csr_matrix(counts.astype(np.float32)))


def logged(counts: Array) -> Array:
    """Return counts normalised to the median library size and logged."""
    sizes = counts.sum(1, keepdims=True, dtype=np.float64)
    return np.log1p(counts / sizes * np.median(sizes))


def silhouette(logs: Array, group: Array) -> float:
    """Return the silhouette of the groups on two principal components."""
    return float(silhouette_score(PCA(2, random_state=0).fit_transform(logs), group))


def correlation(logs: Array, truth: Array) -> float:
    """Return the Pearson correlation of all entries, each gene centred."""
    return float(np.corrcoef((logs - logs.mean(0)).ravel(), (truth - truth.mean(0)).ravel())[0, 1])


def projected(logs: Array, n_components: int) -> Array:
    """Return what so many principal components say."""
    pca = PCA(n_components, random_state=0)
    return pca.inverse_transform(pca.fit_transform(logs))


def held_out(counts: Array, seed: int, max_epochs: int | None = None) -> Row:
    """Return the Poisson loss of a tenth of the molecules, nats an entry, of DCA and of size factor x gene mean.

    Both see the other molecules only.
    """
    aside = np.random.default_rng([seed, 1]).binomial(counts.astype(np.int64), 0.1)
    kept = counts - aside
    alive = (kept.sum(1) > 0)[:, None] & (kept.sum(0) > 0)[None]
    rows, columns = alive.any(1), alive.any(0)
    kept, aside = kept[np.ix_(rows, columns)], aside[np.ix_(rows, columns)]
    sizes = kept.sum(1, keepdims=True)
    baseline = sizes * (kept.sum(0) / kept.sum())
    model = fitted(kept, seed, max_epochs=max_epochs)
    expected = {"DCA": model.denoise(cells(kept)), "size factor x gene mean": baseline}
    return {f"held-out molecules: {name}": poisson(aside, mean / 9) for name, mean in expected.items()}


def poisson(counts: Array, mean: Array) -> float:
    """Return the Poisson negative log-likelihood, nats an entry."""
    mean = mean.astype(np.float64)
    return float((mean - counts * np.log(mean) + gammaln(counts + 1)).mean())


def medians(rows: list[Row], name: str) -> float:
    """Return the median of one number."""
    return float(np.median(values(rows, name)))


def _below(rows: list[Row], name: str, other: str) -> bool:
    return all(row[name] < row[other] for row in rows)


VARIANTS: dict[str, dict[str, Any]] = {
    "DCA": {},
    "DCA, zinb-conddisp": {"ae_type": "zinb-conddisp"},
    "DCA, zinb-conddisp, input_dropout=0.2": {"ae_type": "zinb-conddisp", "input_dropout": 0.2},
}
CLAIMS = (
    *(
        Claim(
            f"{name}: the median silhouette is at least .43 (noisy + .20)",
            lambda rows, name=name: medians(rows, f"silhouette: {name}") >= 0.43,
        )
        for name in VARIANTS
    ),
    *(
        Claim(
            f"{name}: the median correlation with the noiseless means is at least that of PCA-2",
            lambda rows, name=name: medians(rows, f"correlation: {name}") >= medians(rows, "correlation: PCA-2"),
        )
        for name in VARIANTS
    ),
    Claim(
        "held-out molecules: below size factor x gene mean on every seed",
        lambda rows: _below(rows, "held-out molecules: DCA", "held-out molecules: size factor x gene mean"),
    ),
    Claim(
        "the loss of held-out cells says that these counts want zinb-conddisp, on every seed",
        lambda rows: _below(rows, "loss of held-out cells: DCA, zinb-conddisp", "loss of held-out cells: DCA"),
    ),
)
