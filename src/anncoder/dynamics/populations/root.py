"""Root cell of a trajectory: medoid, stationary distribution against velocities."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags

from anncoder.errors import InputError

Array = np.ndarray[Any, np.dtype[np.float64]]

REFERENCES = 2000  # cells that distances are summed over; of more, a sample
AT_ONCE = 2048  # cells
SHARPNESS = 10.0  # of the weights expm1(10 cos), as scVelo's own
TELEPORT = 1e-3
SURE = 98  # percentile of the largest cosine of each cell, above which it has no weight of its own
TOLERANCE, MOST_STEPS = 1e-10, 100_000


def medoid(points: Array, *, seed: int = 0) -> int:
    """Return the position of the most typical point: the smallest sum of Euclidean distances to the others.

    The cell nearest to the geometric median, unlike the mean not drawn away by few distant cells. The sum is over all
    points, or over 2,000 of them drawn at random.

    Parameters
    ----------
    points
        (n, d), n > 0.
    seed
        Start of the random stream.
    """
    n = len(points)
    points = points.astype(np.float64) - np.median(points, axis=0)
    chosen = np.arange(n) if n <= REFERENCES else np.random.default_rng(seed).choice(n, REFERENCES, replace=False)
    references = points[np.sort(chosen)]
    sums = [_distance_sums(points[start : start + AT_ONCE], references) for start in range(0, n, AT_ONCE)]
    return int(np.argmin(np.concatenate(sums)))


def _distance_sums(points: Array, references: Array) -> Array:
    # of float64 and around 0, the squares lose nothing that counts
    squares = (points**2).sum(axis=1)[:, None] + (references**2).sum(axis=1) - 2 * (points @ references.T)
    sums: Array = np.sqrt(np.maximum(squares, 0)).sum(axis=1)
    return sums


def _weights_of(graph: csr_matrix) -> csr_matrix:
    # expm1(10 cos) of positive cosines; the own weight of a cell is that of the quantile less its own largest cosine
    cosines = graph.copy()
    cosines.data = np.clip(np.nan_to_num(cosines.data), 0, 1)
    largest = cosines.max(axis=1).toarray().ravel()
    own = np.clip(np.percentile(largest, SURE) - largest, 0, 1)
    weights = csr_matrix(cosines - diags(cosines.diagonal()) + diags(own))
    weights.data = np.expm1(SHARPNESS * weights.data)
    return weights


def origins(graph: Any) -> Array:
    """Return how much of a walk against the velocities ends in each cell, (n,), the largest 1.

    The stationary distribution of the reversed walk: from j to i with the weight expm1(10 cos_ij) of the positive
    cosines, a cell's own weight that of the 98 % quantile of the largest cosines of all cells less its own largest
    one, a new start with probability 0.001 a step. Then the mean over each cell and its neighbours in the graph, for
    a lone cell that no velocity leads to or from keeps the walk, and is no root.

    Parameters
    ----------
    graph
        Cosines of velocities with the ways to neighbours, (n, n), as scVelo's ``velocity_graph``.

    Raises
    ------
    InputError
        The graph has no positive entry.

    References
    ----------
    Bergen et al. 2020, doi:10.1038/s41587-020-0591-3.
    """
    graph = csr_matrix(graph, dtype=np.float64)
    if graph.nnz == 0 or not np.nan_to_num(graph.data).max() > 0:
        remedy = "scv.tl.velocity_graph(adata); or give time_key, or a label"
        raise InputError("no-root", "the velocity graph has no positive entry", "velocity_graph", remedy)
    against = _weights_of(graph).T.tocsr()
    total = np.asarray(against.sum(axis=1)).ravel()
    stuck = total <= 0  # nothing leads here: the reversed walk stays
    step = (diags(1 / np.where(stuck, 1.0, total)) @ against + diags(stuck.astype(float))).T.tocsr()
    share = _stationary(step)
    around = csr_matrix(((graph + graph.T) != 0) + diags(np.ones(len(share))))
    around.data = np.ones_like(around.data, dtype=np.float64)
    mean: Array = (around @ share) / np.asarray(around.sum(axis=1)).ravel()
    found: Array = mean / mean.max()
    return found


def _stationary(step: csr_matrix) -> Array:
    n = step.shape[0]
    share = np.full(n, 1 / n)
    for _ in range(MOST_STEPS):
        following = (1 - TELEPORT) * (step @ share) + TELEPORT / n
        moved = np.abs(following - share).sum()
        share = following
        if moved < TOLERANCE:
            break
    return share
