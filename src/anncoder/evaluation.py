"""Is it any good? The model beside PCA of the same width and beside the mean of each gene, always.

Three yardsticks:

- **Held-out molecules** (count data): a tenth of each cell's molecules is set aside by binomial thinning, the rest is
  embedded and denoised, and the expected counts are scored on the molecules set aside by their Poisson negative
  log-likelihood. It compares models whatever their own likelihood is (Batson, Royer, Webber 2019, doi 10.1101/786269).
  Every expectation is first scaled to the cell's number of molecules: a model of logarithms expects too few of them
  (the exponential of a mean logarithm is below the mean), and that alone should not decide.
- **Reconstruction**: mean squared error of log-normalised expression (of the values themselves, for models of
  expression). It is what PCA minimises, and rewards copying noise: read it as a check, not as a race.
- **Clusters**: Leiden (the best of eleven resolutions, for all rows alike) and k-means against labels, and the
  silhouette of the labels (of the Leiden clusters, where there are no labels).

The first two are of cells that none of the three has seen: those that were held out for validation when the model was
fitted; PCA and the gene means are fitted to the others. Where the data have fewer than twenty of them, all cells are
scored, PCA and the gene means have seen them, and ``n_scored`` is ``n_obs``. Clusters are of all cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from scipy.special import gammaln

from anncoder.autoencoder import Array, Autoencoder
from anncoder.baselines import Cells, GeneMean, Method, Principal, Trained, input_of
from anncoder.data.adata import obs_column
from anncoder.data.summary import library_sizes
from anncoder.device import threads_set
from anncoder.errors import InputError
from anncoder.sampling import some_cells
from anncoder.sources import Data

RESOLUTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)
HELD_OUT = 0.1  # share of molecules set aside
FLOOR = 0.01  # share of the gene mean mixed into every expectation: none may be zero where a molecule is found
LARGEST_SILHOUETTE = 5000  # cells: it looks at every pair
FEWEST = 20  # cells that tell anything
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
    n_scored
        Cells that ``heldout_nll`` and ``reconstruction_mse`` are of: the validation cells of the fit that are among
        the data, or all cells, where those are fewer than twenty.
    labels
        The obs column, or None.
    """

    table: pd.DataFrame
    n_obs: int
    n_scored: int
    labels: str | None

    def __str__(self) -> str:
        return str(self.table.to_string(float_format=lambda v: f"{v:.4g}", na_rep="-"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with stable names, as ``metrics.json`` has them."""
        rows = {
            str(name): {k: (None if pd.isna(v) else float(v)) for k, v in row.items()}
            for name, row in self.table.to_dict(orient="index").items()
        }
        head = {"schema": SCHEMA, "n_obs": self.n_obs, "n_scored": self.n_scored, "labels": self.labels}
        return head | {"methods": rows}


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

    What is compared, and on which cells, stands at the top of :mod:`anncoder.evaluation`.

    Parameters
    ----------
    model
        A fitted model.
    data
        AnnData or files; genes are matched by name. Of files only the cells that are compared are read.
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
    key = model.training_.batch_key if model.config.encodes_batches else None
    columns = [column for column in (labels, key) if column is not None]
    adata = some_cells(model, data, layer, columns, max_cells=max_cells, seed=seed, allow_missing=allow_missing)
    in_memory = isinstance(data, anndata.AnnData) and (data.is_view or not data.isbacked)
    matrix = model.aligned_matrix(adata, layer if in_memory else "X", allow_missing)
    if min(matrix.shape) <= model.config.n_latent or matrix.shape[0] < FEWEST:
        raise InputError(
            f"{matrix.shape[0]} cells x {matrix.shape[1]} genes are too few for {model.config.n_latent} components",
            code="too-few-cells",
            where="evaluate",
            remedy="evaluate more cells",
        )
    cells = Cells(matrix, _batches_of(model, adata))
    truth = None if labels is None else adata.obs[labels].to_numpy(dtype=object, na_value=np.nan)
    scored, others = _held_out(adata, model, cells)
    methods: dict[str, Method] = {
        "model": Trained(model),
        "pca": Principal(model, others, seed),
        "gene_mean": GeneMean(model, others),
    }
    parts, floor = thin(scored, seed) if model.reads_counts else None, GeneMean(model, cells).mean
    rows = {}
    for name, method in methods.items():
        decodes = name != "model" or model.config.decodes
        nll = heldout_nll(method, *parts, floor) if decodes and parts is not None else np.nan
        error = reconstruction_mse(method, scored, model) if decodes else np.nan
        scores = {"heldout_nll": nll, "reconstruction_mse": error}
        rows[name] = scores | cluster_scores(method.latent(cells), truth, seed)
    return Evaluation(pd.DataFrame(rows).T, matrix.shape[0], scored.matrix.shape[0], labels)


def heldout_nll(method: Method, kept: Cells, aside: csr_matrix, floor: Any) -> float:
    """Return the Poisson negative log-likelihood of molecules set aside, in nats a cell.

    Parameters
    ----------
    method
        What gives the expected expression.
    kept, aside
        Counts of n cells, as :func:`thin` splits them; the method reads the first and is scored on the second, (n, g).
    floor
        (g,) expression of which every expectation has a hundredth mixed in, above zero wherever a molecule is found.
    """
    expected_aside = library_sizes(kept.matrix) * HELD_OUT / (1 - HELD_OUT)
    total, start = 0.0, 0
    for block in method.expected(kept):
        stop = start + len(block)
        share = (1 - FLOOR) * block + FLOOR * floor
        rate = share * (expected_aside[start:stop] / share.sum(axis=1, dtype=np.float64))[:, None]
        found = aside[start:stop].tocoo()
        logs = found.data * np.log(rate[found.row, found.col]) - gammaln(found.data + 1)
        total += float(rate.sum(dtype=np.float64) - logs.sum(dtype=np.float64))
        start = stop
    return total / float(kept.matrix.shape[0])


def heldout_score(model: Autoencoder, data: anndata.AnnData, *, layer: str | None = None, seed: int = 0) -> float:
    """Return the held-out molecules' negative log-likelihood alone, nats a cell, of the cells that the fit held out.

    Parameters
    ----------
    model, data, layer, seed
        As in :func:`evaluate`.
    """
    matrix = model.aligned_matrix(data, layer)
    cells = Cells(matrix, _batches_of(model, data))
    scored, _ = _held_out(data, model, cells)
    return heldout_nll(Trained(model), *thin(scored, seed), GeneMean(model, cells).mean)


def reconstruction_mse(method: Method, cells: Cells, model: Autoencoder) -> float:
    """Return the mean squared error of log-normalised expression, or of expression as it is."""
    x = input_of(model, cells.matrix)
    total, start = 0.0, 0
    for block in method.expected(cells):
        stop = start + len(block)
        expected = np.log1p(block) if model.reads_counts else block
        total += float(np.square(expected - x[start:stop].toarray(), dtype=np.float64).sum())
        start = stop
    return total / float(x.shape[0] * x.shape[1])


def thin(cells: Cells, seed: int) -> tuple[Cells, csr_matrix]:
    """Split counts at random into molecules kept and molecules set aside, a tenth; cells left with none are dropped.

    Parameters
    ----------
    cells
        Those whose counts are split; left as they are.
    seed
        Start of the thinning.

    Returns
    -------
    kept, aside
        The same cells with the rest of their counts, and the counts set aside, (n, g): together they are the counts.

    References
    ----------
    Batson, Royer, Webber 2019, doi 10.1101/786269.
    """
    generator, matrix = np.random.default_rng([seed, 2]), cells.matrix
    aside = generator.binomial(matrix.data.astype(np.int64), HELD_OUT).astype(np.float32)
    parts = [
        # copies: zeros are removed in place, and the indices may be those of the user's own matrix
        csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        for values in (matrix.data - aside, aside)
    ]
    alive = library_sizes(parts[0]) > 0
    for part in parts:
        part.eliminate_zeros()
    return cells._replace(matrix=parts[0]).take(alive), parts[1][alive]


def cluster_scores(latent: Array | None, truth: Any, seed: int) -> dict[str, float]:
    """Return how well clusters of a latent agree with labels.

    Parameters
    ----------
    latent
        (n, k), or None for a method without one: all its cells are one cluster, which agrees with nothing.
    truth
        (n,) labels, None or NaN where a cell has none; such cells are clustered, but not scored. None for no labels.
    seed
        Start of the clusterings.

    Returns
    -------
    dict
        ``leiden_ari``, ``leiden_nmi``, ``kmeans_ari``, ``kmeans_nmi``, ``silhouette``.
    """
    names = ("leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi")
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

    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(latent)


def leiden(latent: Array, resolutions: tuple[float, ...], seed: int) -> list[Any]:
    """Return scanpy's Leiden clusters of a latent, one array of labels a resolution."""
    import scanpy as sc

    cells = anndata.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(latent))]), obsm={"latent": latent})
    # numba's first parallel loop gives the OpenMP that it shares with torch as many threads as there are cores
    with threads_set(torch.get_num_threads()):
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


def _batches_of(model: Autoencoder, adata: anndata.AnnData) -> Any:
    key = model.training_.batch_key if model.config.encodes_batches else None
    return None if key is None else obs_column(adata, key, what="batch_key").to_numpy()


def _held_out(adata: anndata.AnnData, model: Autoencoder, cells: Cells) -> tuple[Cells, Cells]:
    # the cells to score, and those to fit the baselines to
    unseen = adata.obs_names.astype(str).isin(model.valid_obs_)
    enough = unseen.sum() >= FEWEST and (~unseen).sum() > max(FEWEST, model.config.n_latent)
    return (cells.take(unseen), cells.take(~unseen)) if enough else (cells, cells)


def _agreement(labels: Any, clusters: Any) -> tuple[float, float]:
    # adjusted Rand index and normalised mutual information
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return float(adjusted_rand_score(labels, clusters)), float(normalized_mutual_info_score(labels, clusters))


def _silhouette(latent: Array, labels: Any, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    if len(latent) > LARGEST_SILHOUETTE:
        some = np.random.default_rng([seed, 5]).choice(len(latent), LARGEST_SILHOUETTE, replace=False)
        latent, labels = latent[some], labels[some]
    if not 1 < len(set(labels)) < len(labels):  # it compares clusters
        return float("nan")
    return float(silhouette_score(latent, labels))
