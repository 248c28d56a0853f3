"""Perplexity-calibrated Gaussian affinities (t-SNE) and kNN graphs.

van der Maaten & Hinton 2008, JMLR 9:2579. The perplexity of a cell is ``exp(H)``, H the entropy of its affinities in
nats: how many neighbours it has, in effect.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

ITERATIONS = 100  # at most; 5 to 12 are needed
LONGEST = 2.0  # Newton step, at most
WIDEST = 50.0  # bounds of the log precision, in units of the mean distance
EXACT = 65_536  # cells up to which every pair is compared to find the nearest

Array = np.ndarray[Any, Any]


def squared_distances(x: Tensor) -> Tensor:
    """Return the squared Euclidean distances of the rows of (n, d), (n, n); differentiable."""
    x = x - x.detach().mean(dim=0)  # small numbers: less is lost in the difference of the squares
    square = x.square().sum(dim=1)
    return torch.addmm(square.unsqueeze(1) + square, x, x.T, alpha=-2).clamp(min=0)


def without_self(distances: Tensor) -> Tensor:
    """Return (n, n) distances with an infinite diagonal: no cell is its own neighbour."""
    return distances.detach().clone().fill_diagonal_(float("inf"))


@torch.no_grad()
def affinities(distances: Tensor, perplexity: float) -> Tensor:
    """Return the affinities of the rows to the columns, ``p_ij ~ exp(-beta_i d_ij)``, (n, m); rows sum to 1.

    The precision beta_i gives each row the perplexity asked for. All rows at once take Newton steps on its logarithm,
    and bisect the known interval where a step would leave it. Of the squared distances, (n, m), those of no neighbour
    are infinite; the perplexity is below the number of neighbours of every row.
    """
    there = torch.isfinite(distances).to(distances.dtype)
    nearest = distances.amin(dim=1, keepdim=True)
    distances = (distances - nearest).nan_to_num(0, 0, 0)
    scale = distances.sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)
    distances = distances / scale.clamp(min=torch.finfo(distances.dtype).tiny)
    target, tolerance = math.log(perplexity), 1e-5 if distances.dtype == torch.float32 else 1e-12
    log_beta = torch.zeros_like(scale)
    lower, upper = log_beta - WIDEST, log_beta + WIDEST
    p, excess, slope = _at(log_beta, distances, there, target)
    for _ in range(ITERATIONS):
        open_rows = excess.abs() >= tolerance
        if not bool(open_rows.any()):
            break
        lower, upper = torch.where(excess > 0, log_beta, lower), torch.where(excess > 0, upper, log_beta)
        newton = log_beta + (excess / slope).clamp(-LONGEST, LONGEST)
        moved = torch.where((newton > lower) & (newton < upper), newton, (lower + upper) / 2)
        log_beta = torch.where(open_rows, moved, log_beta)
        p, excess, slope = _at(log_beta, distances, there, target)
    return p


def _at(log_beta: Tensor, distances: Tensor, there: Tensor, target: float) -> tuple[Tensor, Tensor, Tensor]:
    # the affinities, how far their entropy is above the target, and minus its derivative by log beta
    beta = log_beta.exp()
    weights = (-beta * distances).clamp(min=-80).exp() * there  # smaller numbers would be denormal, and slow
    total = weights.sum(dim=1, keepdim=True)
    p = weights / total
    mean = (p * distances).sum(dim=1, keepdim=True)
    variance = (p * (distances - mean).square()).sum(dim=1, keepdim=True)
    return p, total.log() + beta * mean - target, beta.square() * variance


def joint_affinities(x: Array, perplexity: float) -> csr_array:
    """Return t-SNE's joint probabilities of pairs of cells, (n, n), symmetric and 1 in sum, zero beyond the nearest.

    Each cell, a row of (n, d), has affinities with its ``3 perplexity`` nearest neighbours (van der Maaten 2014, JMLR
    15:3221); the perplexity is below n - 1.
    """
    n = len(x)
    indices, distances = nearest(x, min(int(3 * perplexity), n - 1))
    p = affinities(torch.from_numpy(distances), perplexity).numpy()
    rows = np.arange(0, indices.size + 1, indices.shape[1])
    one_sided = csr_array((p.ravel(), indices.ravel(), rows), shape=(n, n))
    joint = csr_array(one_sided + one_sided.T)
    return joint / joint.sum()


def nearest(x: Array, k: int) -> tuple[Array, Array]:
    """Return the k nearest other cells of each, and their squared distances, (n, k) each.

    Up to 65,536 cells exactly, beyond by nearest neighbour descent (Dong, Moses, Li 2011,
    doi 10.1145/1963405.1963487); the same cells give the same neighbours.
    """
    if len(x) <= EXACT:
        from sklearn.neighbors import NearestNeighbors

        distances, indices = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
        return indices, distances**2
    from pynndescent import NNDescent

    indices, distances = others(*NNDescent(x, n_neighbors=k + 1, random_state=0).neighbor_graph)
    return indices, distances**2


def others(indices: Array, distances: Array) -> tuple[Array, Array]:
    """Return neighbours without the cells themselves, (n, k) of (n, k + 1); or without the last, if missing."""
    own = indices == np.arange(len(indices))[:, None]
    own[~own.any(axis=1), -1] = True  # among many duplicates a cell may not find itself
    return indices[~own].reshape(len(indices), -1), distances[~own].reshape(len(indices), -1)
