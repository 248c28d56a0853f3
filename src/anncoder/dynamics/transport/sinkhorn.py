"""Unbalanced optimal transport: log-domain Sinkhorn with Anderson acceleration.

Problem, of I cells x_i with growth G_i and J cells y_j (Schiebinger et al. 2019, doi 10.1016/j.cell.2019.01.006):

    minimise over P >= 0:  sum C P + epsilon KL(P | p q) + lambda1 KL(P 1 | p G) + lambda2 KL(P^T 1 | q mean(G))

with KL(x|y) = sum x log(x/y) - x + y and shares p, q of the cells: 1/I and 1/J, so that the reference is uniform.
Scaling iterations (Chizat et al. 2018, doi 10.1090/mcom/3303) in logarithms: u = f / epsilon, v = g / epsilon,

    u_i = lambda1 / (lambda1 + epsilon) (log G_i     - log sum_j q_j exp(v_j - C_ij / epsilon))
    v_j = lambda2 / (lambda2 + epsilon) (log mean(G) - log sum_i p_i exp(u_i - C_ij / epsilon))

A sweep is one pass over the pairs: the exponentials of the first line are used for the second. Alone, sweeps gain a
factor lambda1 / (lambda1 + epsilon) each, at best; here every sweep is followed by the closed-form shift of the total
mass (Sejourne et al. 2022, arXiv 2201.00730) and by Anderson's extrapolation (Walker, Ni 2011, doi 10.1137/10078356X).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anncoder.device import threads_set
from anncoder.dynamics.transport.cost import SMALLEST, Cost, add_to, full_precision

Array = np.ndarray[Any, Any]
Report = Callable[[int, float], object]

DEPTH = 10  # sweeps that an extrapolation uses
WORSE = 3.0  # times the smallest error so far, from which on the extrapolation starts anew
RIDGE = 1e-14  # of its least squares, relative
ROUNDING = 5e-7  # of sums over float32 blocks, times the exponents


class Solution(NamedTuple):
    """Dual potentials of a pair of time points, and how they were found."""

    f: Array  # (I,) float64, in units of the scaled cost
    g: Array  # (J,) float64
    growth: Array  # (I,) descendants of each cell, T = P / p summed over the target
    iterations: int
    error: float  # largest change of v in the last sweep, beyond rounding
    converged: bool
    seconds: float


def solve(
    cost: Cost,
    growth: Array | None = None,
    *,
    lambda1: float = 1.0,
    lambda2: float = 50.0,
    growth_iters: int = 1,
    tolerance: float = 1e-6,
    max_iter: int = 2000,
    start: Array | None = None,
    report: Report | None = None,
) -> Solution:
    """Return the dual potentials of unbalanced entropic transport.

    Parameters
    ----------
    cost
        Cost of every pair, with epsilon.
    growth
        Expected number of descendants of each cell at the second time, (I,), positive; None for 1.
    lambda1, lambda2
        Penalties on the masses of the source and the target, in units of the scaled cost.
    growth_iters
        Times to solve; after each but the last, ``growth`` is replaced by the row sums of T.
    tolerance
        Largest change of g / epsilon in a sweep at which to stop. With float32 blocks, what they round does not count:
        some 1e-5 at epsilon = 0.05, more with a smaller epsilon and for cells far out.
    max_iter
        Sweeps of each solve.
    start
        g to start from, (J,); None for 0.
    report
        Called with the number of the sweep and its error.
    """
    began = time.perf_counter()
    descendants = np.ones(cost.shape[0]) if growth is None else np.asarray(growth, np.float64)
    v = torch.zeros(cost.shape[1], dtype=torch.float64, device=cost.device)
    if start is not None:
        v += torch.from_numpy(np.asarray(start, np.float64)).to(v) / cost.epsilon
    total = 0
    with full_precision(), threads_set(1):  # between the blocks there is nothing to share, and threads would spin
        for _ in range(growth_iters):
            problem = _Problem(cost, descendants, lambda1, lambda2)
            u, v, iterations, error = _fixed_point(problem, v, tolerance, max_iter, report)
            descendants = torch.exp(u + cost.log_sums(v)).cpu().numpy()
            total += iterations
    f, g = (cost.epsilon * potential.cpu().numpy() for potential in (u, v))
    seconds = time.perf_counter() - began
    return Solution(f, g, descendants, total, error, error <= tolerance, seconds)


class _Problem:
    """Masses asked for, and the sweep that brings potentials nearer to them."""

    def __init__(self, cost: Cost, growth: Array, lambda1: float, lambda2: float) -> None:
        self.cost = cost
        self.log_growth = torch.from_numpy(np.log(growth)).to(cost.device)
        self.log_mean = torch.logsumexp(self.log_growth + cost.log_p, dim=0)
        self.ratio1, self.ratio2 = cost.epsilon / lambda1, cost.epsilon / lambda2
        self.phi1, self.phi2 = 1 / (1 + self.ratio1), 1 / (1 + self.ratio2)
        exponents = cost.half_y + cost.half_x.median()
        self.rounding = (0 if cost.dtype is torch.float64 else ROUNDING) * exponents  # of v, (J,)

    def sweep(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return u for v, and the next v for that u; one pass over all pairs."""
        cost = self.cost
        u, columns = torch.empty_like(cost.log_p), torch.zeros_like(v)

        def both_sides(at: slice, block: Tensor) -> tuple[Tensor, Tensor]:
            top = block.amax(dim=1)
            sums = block.sub_(top[:, None]).exp_().sum(dim=1)
            offset = top.double() - cost.half_x[at]
            found = self.phi1 * (self.log_growth[at] - (sums.double().log() + offset))
            return found, (torch.exp(found + cost.log_p[at] + offset).to(block.dtype) @ block).double()

        for at, (found, masses) in cost.blocks(v, both_sides):
            u[at] = found
            add_to(columns, masses)
        log_sums = torch.log(columns) - v - cost.log_q
        lost = torch.nonzero(columns < SMALLEST[cost.dtype])[:, 0]  # far from every cell of the source
        if len(lost):
            log_sums[lost] = cost.swapped().log_sums(u, lost)
        return u, self.phi2 * (self.log_mean - log_sums)

    def shift(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the constant that, taken from v and added to u, makes the dual largest: masses of both sides agree.

        At the optimum the masses are p G exp(-f / lambda1) and q mean(G) exp(-g / lambda2); P does not change.
        """
        source = torch.logsumexp(self.log_growth + self.cost.log_p - self.ratio1 * u, dim=0)
        target = self.log_mean + torch.logsumexp(self.cost.log_q - self.ratio2 * v, dim=0)
        return (source - target) / (self.ratio1 + self.ratio2)


def _fixed_point(
    problem: _Problem, v: Tensor, tolerance: float, max_iter: int, report: Report | None
) -> tuple[Tensor, Tensor, int, float]:
    """Return u, v, the number of sweeps and the last error."""
    history: list[tuple[Tensor, Tensor]] = []  # what a sweep made of v, and by how much it differed
    smallest = np.inf
    for iteration in range(1, max_iter + 1):
        u, swept = problem.sweep(v)
        constant = problem.shift(u, swept)
        u, swept = u + constant, swept - constant
        change = swept - v
        error = float((change.abs() - problem.rounding).max().clamp(min=0))
        if report is not None:
            report(iteration, error)
        if error <= tolerance or iteration == max_iter:
            break
        if not error <= WORSE * smallest:
            history = []
        smallest = min(smallest, error)
        history = [*history[-DEPTH:], (swept, change)]
        v = _extrapolated(history)
    return u, swept, iteration, error


def _extrapolated(history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the combination of the sweeps at which, were they linear, nothing would change any more."""
    swept, change = history[-1]
    if len(history) < 2:
        return swept
    pairs = list(pairwise(history))
    steps = torch.stack([later[0] - earlier[0] for earlier, later in pairs], dim=1)
    changes = torch.stack([later[1] - earlier[1] for earlier, later in pairs], dim=1)
    gram = changes.T @ changes
    gram += RIDGE * gram.trace() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights, failed = torch.linalg.solve_ex(gram, changes.T @ change)
    proposed = swept - steps @ weights
    return swept if failed or not bool(torch.isfinite(proposed).all()) else proposed
