"""Is it any good? The model beside PCA of the same width and beside the mean of each gene, always.

Three yardsticks:

- **Held-out molecules** (count data): a tenth of each cell's molecules is set aside by binomial thinning, the rest is
  embedded and denoised, and the expected counts are scored on the molecules set aside by their Poisson negative
  log-likelihood. It compares models whatever their own likelihood is (Batson, Royer, Webber 2019, doi 10.1101/786269).
- **Reconstruction**: mean squared error of log-normalised expression (of the values themselves, for models of
  expression).
- **Clusters**: Leiden (the best of eleven resolutions, for all rows alike) and k-means against labels, and the
  silhouette of the labels (of the Leiden clusters, where there are no labels).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.special import gammaln

from anncoder.autoencoder import Array, Autoencoder, Data
from anncoder.baselines import GeneMean, Method, Principal, Trained, input_of
from anncoder.config import unknown_key
from anncoder.data.adata import open_data
from anncoder.data.summary import library_sizes
from anncoder.errors import InputError

RESOLUTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
HELD_OUT = 0.1  # share of molecules set aside
FLOOR = 0.01  # share of the gene mean mixed into every expectation, so that none is zero where a molecule is found
LARGEST_SILHOUETTE = 5000  # cells: it looks at every pair
SCHEMA = 1


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes
    ----------
    table
        A row for the model, one for PCA of the same width, one for the gene means. ``heldout_nll``: nats a cell, lower
        is better. ``reconstruction_mse``: lower is better. ``leiden_ari``, ``leiden_nmi``, ``kmeans_ari``,
        ``kmeans_nmi``, ``silhouette``: higher is better; NaN where they have no meaning.
    n_obs
        Cells that were looked at.
    labels
        The obs column, or None.
    """

    table: pd.DataFrame
    n_obs: int
    labels: str | None

    def __str__(self) -> str:
        return self.table.to_string(float_format=lambda v: f"{v:.4g}", na_rep="-")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with stable names, as ``metrics.json`` has them."""
        rows = {
            str(name): {k: (None if pd.isna(v) else float(v)) for k, v in row.items()}
            for name, row in self.table.to_dict(orient="index").items()
        }
        return {"schema": SCHEMA, "n_obs": self.n_obs, "labels": self.labels, "methods": rows}


def evaluate(
    model: Autoencoder,
    data: Data,
    *,
    labels: str | None = None,
    layer: str | None = None,
    allow_missing: float = 0.0,
    max_cells: int = 20_000,
    seed: int = 0,
) -> Evaluation:
    """Compare a fitted model with PCA of the same width and with the gene means.

    All three have seen the same cells whole, and encode the same thinned ones.

    Parameters
    ----------
    model
        A fitted model.
    data
        AnnData or path; genes are matched by name.
    labels
        obs column with the cell types; None for no labels.
    layer
        Where the counts are; None for where they were in ``fit``.
    allow_missing
        Share of the model's genes that may be missing.
    max_cells
        At most so many cells, taken at random.
    seed
        Start of every random stream.

    Returns
    -------
    Evaluation
        Print it, or take its ``table``.

    Raises
    ------
    InputError
        There are too few cells, or the data are not what the model was fitted on.
    ConfigError
        There is no such obs column.
    """
    adata = open_data(data)
    if labels is not None and labels not in adata.obs:
        raise unknown_key(labels, [str(c) for c in adata.obs.columns], where="labels (a column of obs)")
    adata = _some_cells(adata, max_cells, seed)
    matrix = model.aligned_matrix(adata, layer, allow_missing)
    if min(matrix.shape) <= model.config.n_latent or matrix.shape[0] < 20:
        raise InputError(
            f"{matrix.shape[0]} cells x {matrix.shape[1]} genes are too few for {model.config.n_latent} components",
            code="too-few-cells",
            where="evaluate",
            remedy="evaluate more cells",
        )
    mean = GeneMean(model, matrix)
    methods: dict[str, Method] = {
        "model": Trained(model),
        "pca": Principal(model, matrix, seed),
        "gene_mean": mean,
    }
    truth = None if labels is None else adata.obs[labels].astype(str).to_numpy()
    rows = {}
    for name, method in methods.items():
        scores = {"heldout_nll": heldout_nll(method, matrix, mean, seed) if model.reads_counts else np.nan}
        scores["reconstruction_mse"] = reconstruction_mse(method, matrix, model)
        rows[name] = scores | cluster_scores(method.latent(matrix), truth, seed)
    return Evaluation(pd.DataFrame(rows).T, matrix.shape[0], labels)


def heldout_nll(method: Method, matrix: csr_matrix, mean: GeneMean, seed: int) -> float:
    """Return the Poisson negative log-likelihood of molecules set aside, in nats a cell.

    Parameters
    ----------
    method
        What gives the expected expression.
    matrix
        (n, g) counts.
    mean
        The gene means, of which every expectation has a hundredth mixed in.
    seed
        Start of the thinning.
    """
    kept, aside = thin(matrix, seed)
    sizes = library_sizes(kept) / method.library_size
    total, start = 0.0, 0
    for block in method.expected(kept):
        stop = start + len(block)
        rate = ((1 - FLOOR) * block + FLOOR * mean.mean) * (sizes[start:stop, None] * HELD_OUT / (1 - HELD_OUT))
        found = aside[start:stop].tocoo()
        at_found = rate[found.row, found.col]
        total += float(
            rate.sum(dtype=np.float64) - (found.data * np.log(at_found)).sum() + gammaln(found.data + 1).sum()
        )
        start = stop
    return total / float(kept.shape[0])


def reconstruction_mse(method: Method, matrix: csr_matrix, model: Autoencoder) -> float:
    """Return the mean squared error of what the model reads: log-normalised expression, or expression as it is."""
    x = input_of(model, matrix)
    total, start = 0.0, 0
    for block in method.expected(matrix):
        stop = start + len(block)
        expected = np.log1p(block) if model.reads_counts else block
        total += float(np.square(expected - x[start:stop].toarray(), dtype=np.float64).sum())
        start = stop
    return total / float(matrix.shape[0] * matrix.shape[1])


def thin(matrix: csr_matrix, seed: int) -> tuple[csr_matrix, csr_matrix]:
    """Split counts at random into molecules kept and molecules set aside; cells left with none are dropped."""
    generator = np.random.default_rng([seed, 2])
    aside = generator.binomial(matrix.data.astype(np.int64), HELD_OUT).astype(np.float32)
    parts = [csr_matrix((v, matrix.indices, matrix.indptr), shape=matrix.shape) for v in (matrix.data - aside, aside)]
    alive = library_sizes(parts[0]) > 0
    for part in parts:
        part.eliminate_zeros()
    return parts[0][alive], parts[1][alive]


def cluster_scores(latent: Array | None, truth: Any, seed: int) -> dict[str, float]:
    """Return how well clusters of a latent agree with labels; of no latent (one cluster) that is nothing."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    names = ("leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi")
    if latent is None:
        return dict.fromkeys(names, np.nan if truth is None else 0.0) | {"silhouette": np.nan}
    clusterings = leiden(latent, RESOLUTIONS if truth is not None else (1.0,), seed)
    subset = {"sample_size": LARGEST_SILHOUETTE} if len(latent) > LARGEST_SILHOUETTE else {}
    if truth is None:
        one = len(np.unique(clusterings[0])) < 2
        silhouette = np.nan if one else silhouette_score(latent, clusterings[0], random_state=seed, **subset)
        return dict.fromkeys(names, np.nan) | {"silhouette": float(silhouette)}
    kmeans = KMeans(len(np.unique(truth)), n_init=10, random_state=seed).fit_predict(latent)
    values = (
        max(adjusted_rand_score(truth, clusters) for clusters in clusterings),
        max(normalized_mutual_info_score(truth, clusters) for clusters in clusterings),
        adjusted_rand_score(truth, kmeans),
        normalized_mutual_info_score(truth, kmeans),
    )
    one = len(np.unique(truth)) < 2
    silhouette = np.nan if one else silhouette_score(latent, truth, random_state=seed, **subset)
    return dict(zip(names, map(float, values), strict=True)) | {"silhouette": float(silhouette)}


def leiden(latent: Array, resolutions: tuple[float, ...], seed: int) -> list[Any]:
    """Return scanpy's Leiden clusters of a latent, one array of labels a resolution."""
    import scanpy as sc

    cells = anndata.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(latent))]), obsm={"latent": latent})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of umap, about its own random state
        sc.pp.neighbors(cells, use_rep="latent", n_neighbors=min(15, len(latent) - 1), random_state=seed)
        for resolution in resolutions:
            sc.tl.leiden(
                cells,
                resolution,
                key_added=f"leiden_{resolution}",
                flavor="igraph",
                n_iterations=2,
                directed=False,
                random_state=seed,
            )
    return [cells.obs[f"leiden_{resolution}"].to_numpy() for resolution in resolutions]


def _some_cells(adata: anndata.AnnData, max_cells: int, seed: int) -> anndata.AnnData:
    if adata.n_obs <= max_cells:
        return adata
    return adata[np.sort(np.random.default_rng([seed, 3]).choice(adata.n_obs, max_cells, replace=False))].copy()
