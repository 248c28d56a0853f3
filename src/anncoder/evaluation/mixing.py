"""Mixing of batches and conservation of labels: LISI, silhouettes, graph connectivity.

Without labels of the cells no number tells a batch that was corrected for from cell types that were merged: read mixing
beside conservation, and both beside PCA. Definitions: Korsunsky et al. 2019, doi 10.1038/s41592-019-0619-0 (LISI), and
Luecken et al. 2022, doi 10.1038/s41592-021-01336-8 (the others, and the scale from 0 to 1).
"""

from __future__ import annotations

import logging
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from anncoder.errors import listed
from anncoder.evaluation.graph import nearest
from anncoder.models.base import Array
from anncoder.nn.tsne import affinities

logger = logging.getLogger("anncoder")

MIXED = ("mixing", "ilisi")
KEPT = ("clisi", "batch_silhouette", "graph_connectivity")
NEIGHBORS = 30  # of `mixing`
LISI_NEIGHBORS, PERPLEXITY = 89, 30.0  # ninety with the cell itself, as published
CONNECTED = 15  # neighbours of the graph
LARGEST = 5000  # cells of the silhouettes, which look at every pair
CHANGE = 0.05  # of a score, from which it has risen or fallen


def mixing_scores(latent: Array | None, batches: Any, labels: Any, seed: int) -> dict[str, float]:
    """Return how well batches are mixed in a latent, and labels kept apart.

    Parameters
    ----------
    latent
        (n, k), or None for a method without.
    batches
        (n,) names of experimental batches, two or more.
    labels
        (n,) cell types, None or NaN where unknown; None for no labels.
    seed
        Start of the random stream of the silhouettes' sample.

    Returns
    -------
    dict
        ``mixing``: share of foreign cells among the 30 nearest neighbours, over its expectation if the neighbours were
        drawn at random from all cells, with labels from those of the cell's own; 1 is chance. ``ilisi``: median
        local inverse Simpson index of the batches, 0 for one batch around each cell to 1 for all alike. With labels:
        ``clisi``, the same of labels, 1 for one label around each cell; ``batch_silhouette``, the mean over labels of
        1 minus the absolute silhouette of the batches; ``graph_connectivity``, the mean over labels of the share of its
        cells in the largest connected part of their neighbour graph. NaN where undefined.
    """
    names = MIXED if labels is None else (*MIXED, *KEPT)
    if latent is None or len(latent) < 3:
        return dict.fromkeys(names, np.nan)
    codes = pd.factorize(batches)[0]
    distances, around = nearest(latent, min(LISI_NEIGHBORS, len(latent) - 1))
    found = {"mixing": foreign_share(around[:, :NEIGHBORS], codes, labels)}
    found["ilisi"] = lisi_score(distances, around, codes)
    if labels is not None:
        known = pd.notna(labels)
        of_labels, kept = pd.factorize(labels[known])[0], latent[known]
        if len(kept) > 2:
            within = nearest(kept, min(LISI_NEIGHBORS, len(kept) - 1))
            found["clisi"] = 1 - lisi_score(*within, of_labels)
            found["batch_silhouette"] = batch_silhouette(kept, codes[known], of_labels, seed)
            found["graph_connectivity"] = graph_connectivity(within[1][:, :CONNECTED], of_labels)
    return {name: found.get(name, np.nan) for name in names}


def foreign_share(around: Any, batches: Any, labels: Any = None) -> float:
    """Return the share of neighbours of other batches over chance; see :func:`mixing_scores`.

    Parameters
    ----------
    around
        (n, k) positions of the neighbours of each cell.
    batches
        (n,) codes.
    labels
        (n,) cell types, None or NaN where unknown; chance is then that among the cells of a label.
    """
    groups = np.zeros(len(batches), dtype=int) if labels is None else pd.factorize(labels)[0] + 1
    table = pd.crosstab(groups, batches).to_numpy(dtype=float)
    row = np.unique(groups, return_inverse=True)[1]
    size = table.sum(axis=1)
    own = table[row, np.unique(batches, return_inverse=True)[1]]
    chance = 1 - (own - 1) / np.maximum(size[row] - 1, 1)  # of another cell than itself
    known = (groups > 0) if labels is not None else np.ones(len(groups), dtype=bool)
    foreign = (batches[around] != batches[:, None]).mean(axis=1)
    expected = chance[known].sum()
    return float(foreign[known].sum() / expected) if expected > 0 else float("nan")


def lisi_score(distances: Any, around: Any, codes: Any) -> float:
    """Return the median local inverse Simpson index, from 0 (one category around each cell) to 1 (all alike).

    Parameters
    ----------
    distances, around
        (n, k) Euclidean distances and positions of the nearest neighbours of each cell, itself left out.
    codes
        (n,) categories from 0 on; NaN for a single one.
    """
    n = int(codes.max()) + 1
    if n < 2:
        return float("nan")
    return float((np.median(lisi(distances, around, codes)) - 1) / (n - 1))


def lisi(distances: Any, around: Any, codes: Any) -> Any:
    """Return the inverse Simpson index of the categories around each cell, (n,): how many there are, in effect.

    The neighbours have weights of perplexity 30, or a third of their number where that is less, in their distance (not
    its square, as published).
    """
    perplexity = min(PERPLEXITY, max((around.shape[1] + 1) // 3, 1))
    weights = affinities(torch.from_numpy(np.asarray(distances, dtype=np.float64)), perplexity).numpy()
    total = np.zeros(len(codes))
    for code in range(int(codes.max()) + 1):
        total += np.square((weights * (codes[around] == code)).sum(axis=1))
    return 1 / total


def batch_silhouette(latent: Array, batches: Any, labels: Any, seed: int) -> float:
    """Return the mean over labels of the mean of 1 - abs(s), s the silhouette of a cell in its batch.

    Labels in a single batch, or with as many batches as cells, are left out; NaN if none are left. At most 5,000 cells
    are taken at random.
    """
    from sklearn.metrics import silhouette_samples

    if len(latent) > LARGEST:
        chosen = np.random.default_rng([seed, 9]).choice(len(latent), LARGEST, replace=False)
        latent, batches, labels = latent[chosen], batches[chosen], labels[chosen]
    means = []
    for label in np.unique(labels):
        here = labels == label
        if 1 < len(np.unique(batches[here])) < here.sum():
            means.append(1 - np.abs(silhouette_samples(latent[here], batches[here])).mean())
    return float(np.mean(means)) if means else float("nan")


def graph_connectivity(around: Any, labels: Any) -> float:
    """Return the mean over labels of the share of its cells in the largest connected part of their own graph.

    Two cells are neighbours if either is among the (n, k) nearest ones of the other.
    """
    n, k = around.shape
    graph = csr_matrix((np.ones(n * k), around.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    shares = []
    for label in np.unique(labels):
        here = np.flatnonzero(labels == label)
        _, parts = connected_components(graph[here][:, here], directed=False)
        shares.append(np.bincount(parts).max() / len(here))
    return float(np.mean(shares))


def harmonized(components: Array, batches: Any, seed: int) -> Array | None:
    """Return principal components, (n, k), corrected by Harmony; None, with a note, where it is not installed."""
    try:
        import harmonypy
    except ImportError:
        logger.info("no row of Harmony: pip install 'anncoder[harmony]'")
        return None
    cells = pd.DataFrame({"batch": np.asarray(batches).astype(str)})
    found = np.asarray(harmonypy.run_harmony(components, cells, ["batch"], random_state=seed, verbose=False).Z_corr)
    corrected: Array = found if found.shape == components.shape else found.T  # older versions: a column a cell
    return corrected.astype(np.float32)


def warn_of_merging(table: pd.DataFrame, batches: Any, labels: Any) -> None:
    """Say if labels and batches cannot be told apart, or cell types were merged to mix the batches.

    Merged: in the table of :func:`evaluate` mixing is above that of PCA, and the agreement with labels, (n,), below.
    """
    if labels is None:
        return
    warn_of_confounding(batches, labels)
    change = table.loc["model"] - table.loc["pca"]
    fallen = [name for name in ("leiden_ari", "clisi") if change[name] < -CHANGE]
    if change["mixing"] > CHANGE and fallen:
        logger.warning(
            "cell types were merged: mixing is %.2f above that of PCA, but %s below; compare a model fitted without "
            "batch_key",
            change["mixing"],
            " and ".join(f"{name} is {-change[name]:.2f}" for name in fallen),
        )


def warn_of_confounding(batches: Any, labels: Any) -> None:
    """Say which experimental batches share no label: their difference cannot be told from that of the labels."""
    known = pd.notna(labels)
    table = pd.crosstab(batches[known].astype(str), labels[known].astype(str))
    there, names = table.to_numpy() > 0, table.index
    pairs = combinations(range(len(names)), 2)
    apart = [f"{names[i]!r} and {names[j]!r}" for i, j in pairs if not (there[i] & there[j]).any()]
    if there.sum(axis=0).max(initial=0) < 2:
        logger.warning(
            "every label is in one batch only: no correction can tell batches from labels, and mixing would be merging"
        )
    elif apart:
        logger.warning("no label is shared by the batches %s: read their mixing with care", listed(apart, 3))
