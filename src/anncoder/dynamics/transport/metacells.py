"""Metacells: k-means of a time point, transport between centroids, potentials of all cells.

A metacell stands for all the cells next to it: its share of the mass is theirs, its growth their mean. The potentials
of all cells follow from those of the centroids by one more half-iteration of Sinkhorn's (formulae in ``sinkhorn``).
"""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from anncoder.dynamics.transport.cost import BLOCK, Cost, Precision, full_precision, in_order
from anncoder.dynamics.transport.sinkhorn import Report, Solution, solve

Array = np.ndarray[Any, Any]

ROUNDS = 8  # of Lloyd's


class Metacells(NamedTuple):
    """Centroids of cells."""

    centroids: Array  # (k, d) float64
    members: Array  # (n,) the metacell of each cell
    share: Array  # (k,) of the cells


def metacells(x: Array, max_cells: int, seed: int = 0) -> Metacells:
    """Return at most ``max_cells`` centroids of cells, (n, d), by k-means from cells drawn at random."""
    points = torch.from_numpy(np.asarray(x, np.float64))
    rng = np.random.default_rng([seed, 42])
    centroids = points[np.sort(rng.choice(len(points), min(max_cells, len(points)), replace=False))]
    for _ in range(ROUNDS):
        members = _nearest(points, centroids)
        counts = torch.bincount(members, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, members, points)
        centroids = sums[counts > 0] / counts[counts > 0, None]
    members = _nearest(points, centroids)
    used, codes = np.unique(members.numpy(), return_inverse=True)
    return Metacells(centroids.numpy()[used], codes, np.bincount(codes) / len(points))


def _nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    half, columns = centroids.square().sum(dim=1) / 2, centroids.T.contiguous()
    n = max(1, BLOCK // len(centroids))
    buffers = threading.local()  # fresh products, with small results between them, would leave the heap in pieces

    def nearest(at: slice) -> torch.Tensor:
        if not hasattr(buffers, "block"):
            buffers.block = torch.empty((n, len(centroids)), dtype=points.dtype)
        rows = points[at]
        return torch.addmm(half, rows, columns, alpha=-1, out=buffers.block[: len(rows)]).argmin(dim=1)

    slices = (slice(start, start + n) for start in range(0, len(points), n))
    return torch.cat(list(in_order(nearest, slices, torch.get_num_threads())))


def solve_with_metacells(
    x: Array,
    y: Array,
    scale: float,
    epsilon: float,
    growth: Array | None = None,
    *,
    max_cells: int,
    seed: int = 0,
    lambda1: float = 1.0,
    lambda2: float = 50.0,
    growth_iters: int = 1,
    tolerance: float = 1e-6,
    max_iter: int = 2000,
    precision: Precision = "auto",
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> Solution:
    """Return the potentials of all cells, found between at most ``max_cells`` metacells of each time.

    Arguments are those of :class:`~anncoder.dynamics.transport.cost.Cost` and
    :func:`~anncoder.dynamics.transport.sinkhorn.solve`; the error of the solution is that between the metacells. The
    last step is a sweep over the pairs of all cells, after
    which the masses of the target are those asked for.
    """
    began = time.perf_counter()
    expected = np.ones(len(x)) if growth is None else np.asarray(growth, np.float64)
    few_x, few_y = metacells(x, max_cells, seed), metacells(y, max_cells, seed)
    means = np.bincount(few_x.members, expected) / np.bincount(few_x.members)
    place: dict[str, Any] = {"precision": precision, "device": device}
    options: dict[str, Any] = {"lambda1": lambda1, "lambda2": lambda2, "tolerance": tolerance}
    between = Cost(few_x.centroids, few_y.centroids, scale, epsilon, x_share=few_x.share, y_share=few_y.share, **place)
    found = solve(between, means, growth_iters=growth_iters, max_iter=max_iter, report=report, **options)
    if growth_iters > 1:  # what the last but one iteration found was asked for in the last
        asked = solve(between, means, growth_iters=growth_iters - 1, max_iter=max_iter, **options)
        expected = expected * (asked.growth / means)[few_x.members]
    start = _extended(Cost(few_x.centroids, y, scale, epsilon, x_share=few_x.share, **place), found.f, lambda2)
    start += epsilon * np.log(expected.mean()) / (1 + epsilon / lambda2)
    last = solve(Cost(x, y, scale, epsilon, **place), expected, max_iter=1, start=start, **options)
    seconds = time.perf_counter() - began
    return Solution(last.f, last.g, last.growth, found.iterations, found.error, found.converged, seconds)


def _extended(cost: Cost, f: Array, lambda2: float) -> Array:
    """Return g of all target cells for the f of metacells, but for the mass."""
    u = torch.from_numpy(f / cost.epsilon).to(cost.device)
    with full_precision():
        sums = cost.swapped().log_sums(u).cpu().numpy()
    return np.asarray(-cost.epsilon * sums / (1 + cost.epsilon / lambda2))
