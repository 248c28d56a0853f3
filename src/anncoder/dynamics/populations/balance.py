"""Population balance analysis: potential from net rates, fates by a walk down the potential.

A snapshot of a population in steady state, in which cells enter here and leave there: the potential whose gradient
carries them from entry to exit, and for each cell the probability of each exit.

The law holds no rotations, no oscillations and no change with time: a cell cycle, or a population that still grows,
is not seen. Cells of every part of the neighbour graph must be able to enter and to leave.

References
----------
Weinreb et al. 2018, doi:10.1073/pnas.1714723115.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, diags, tril
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, bicgstab, cg, splu

from anncoder.errors import ConfigError, InputError, ResourceError, counted

Array = np.ndarray[Any, np.dtype[np.float64]]
ExitScale = Literal["balanced", "published"]

TOLERANCE = 1e-10  # relative residual of the potential
FATES_TOLERANCE, ROWS = 1e-12, 1e-6  # residual of the fates; how far the sum of a row may be from 1
MOST_STEPS = 20_000
STEEPEST = 700.0  # exponent of a hop: exp(709) is the largest number


class Rates(NamedTuple):
    """Cells that enter and leave.

    Attributes
    ----------
    net
        Rate of each cell, entering > 0, leaving < 0, with sum 0 in each part of the graph, (n,).
    exits
        Rate at which each cell leaves by each exit, none negative, (n, k).
    rescaled
        Largest relative change of the exits that made the sum 0.
    """

    net: Array
    exits: Array
    rescaled: float


def symmetric_graph(neighbors: Any) -> csr_matrix:
    """Return a graph of neighbours, (n, n), as symmetric 0/1 without loops."""
    graph = csr_matrix(neighbors, dtype=np.float64, copy=True)
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph = graph.maximum(graph.T).tocsr()
    graph.data = np.ones_like(graph.data)
    return graph


def balanced_rates(graph: csr_matrix, entries: Array, exits: Array) -> Rates:
    """Return rates whose sum is 0 in each part of the graph: the exits of a part are scaled to its entries.

    Parameters
    ----------
    graph
        As :func:`symmetric_graph` gives it.
    entries
        Rate at which cells enter, none negative, (n,), on any scale.
    exits
        Rates at which they leave, none negative, (n, k), on the same scale.

    Raises
    ------
    InputError
        A part of the graph has no entry or no exit.
    """
    n_parts, part = connected_components(graph, directed=False)
    entering = np.bincount(part, entries, n_parts)
    leaving = np.bincount(part, exits.sum(axis=1), n_parts)
    lacking = [("entry", entering), ("exit", leaving)]
    for name, flow in lacking:
        if not (flow > 0).all():
            number = int(np.flatnonzero(flow <= 0)[0])
            cells = np.flatnonzero(part == number)
            whole = "the graph" if n_parts == 1 else f"part {number} of {n_parts} of the graph of neighbours"
            what = f"{whole} ({counted(len(cells), 'cell')}, the first at row {cells[0]}) has no {name}"
            remedy = "name cells of it as entry or exit, leave that part out, or raise n_neighbors until parts meet"
            raise InputError("graph-in-parts" if n_parts > 1 else "bad-rates", what, "rates", remedy)
    factor = entering / leaving
    scaled = exits * factor[part][:, None] / entering.sum()
    return Rates(entries / entering.sum() - scaled.sum(axis=1), scaled, float(np.abs(factor - 1).max()))


def potential(graph: csr_matrix, net: Array) -> Array:
    """Return V, (n,), with mean 0 in each part of the graph: (diag(d) - A) V = diag(d) R, less its mean.

    By conjugate gradients with the diagonal as preconditioner, one cell of each part grounded.

    Parameters
    ----------
    graph
        A, as :func:`symmetric_graph` gives it, of degrees d.
    net
        R, with sum 0 in each part, (n,).

    Raises
    ------
    ResourceError
        The iterations did not come to an end.
    """
    degree = np.asarray(graph.sum(axis=1)).ravel()
    n_parts, part = connected_components(graph, directed=False)
    right = degree * net
    right -= (np.bincount(part, right, n_parts) / np.bincount(part, minlength=n_parts))[part]
    free = np.ones(len(net), dtype=bool)
    free[np.unique(part, return_index=True)[1]] = False
    found = np.zeros(len(net))
    if free.any():
        system = (diags(degree) - graph).tocsr()[free][:, free]
        jacobi = diags(1 / system.diagonal())
        found[free], failed = cg(system, right[free], rtol=TOLERANCE, maxiter=MOST_STEPS, M=jacobi)
        if failed:
            raise _unsolved("the potential")
    means: Array = (np.bincount(part, found, n_parts) / np.bincount(part, minlength=n_parts))[part]
    return found - means


def _unsolved(what: str) -> ResourceError:
    remedy = "raise n_neighbors, or D: paths of single cells through the graph make it hard to solve"
    return ResourceError("not-converged", f"{what} did not converge", "graph of neighbours", remedy)


def drop_of(values: Array, rates: Rates) -> float:
    """Return the fall of the potential from entries to exits, each the mean over the cells that enter and leave."""
    entering, leaving = np.maximum(rates.net, 0), rates.exits.sum(axis=1)
    return float(values @ entering / entering.sum() - values @ leaving / leaving.sum())


def fates(
    graph: csr_matrix, values: Array, rates: Rates, diffusion: float, *, exit_scale: ExitScale = "balanced"
) -> Array:
    """Return the probability that a cell leaves by each exit, (n, k); rows sum to 1.

    A walk goes from i to j with the weight A_ij exp((V_i - V_j) / D), and leaves from i by exit l with a weight S_il;
    weights are divided by their sum in each row. With B(l) the share that ends in l, (diag(total) - W) B = S.

    In the order of V nearly all of the walk goes one way: the triangle of the steps down is the preconditioner of a
    BiCGSTAB, and some ten iterations do.

    Parameters
    ----------
    graph, values
        Neighbours A and their potential V, (n,).
    rates
        Rates R and exits, as :func:`balanced_rates` gives them.
    diffusion
        D in units of the drop of the potential, > 0.
    exit_scale
        "balanced": S_il = 2 d_i |R_il| / D. The net flux of the walk through an edge, at even density, is
        2 (V_i - V_j) / D to first order, and V solves the balance of these fluxes with d_i R_i: cells then leave as
        fast as they arrive, and the scale of the rates does not count. "published": S_il = |R_il|, for rates whose
        entries sum to 1: exits are so slow that for D above 0.05 walks return from one arm of a tree to the other.

    Raises
    ------
    ConfigError
        D is not a positive number.
    InputError
        The potential does not fall from entry to exit.
    ResourceError
        The iterations did not come to an end.
    """
    refuse_diffusion(diffusion)
    drop = drop_of(values, rates)
    if not drop > 0:
        what = f"the potential does not fall from entry to exit (by {drop:g})"
        remedy = "entry and exit are side by side: name cells at the ends of the process"
        raise InputError("bad-rates", what, "rates", remedy)
    scale = diffusion * drop
    edges = graph.tocoo()
    hop = np.exp(np.clip((values[edges.row] - values[edges.col]) / scale, -STEEPEST, STEEPEST))
    walk = csr_matrix((hop, (edges.row, edges.col)), shape=graph.shape)
    degree = np.asarray(graph.sum(axis=1))
    leaving = rates.exits * (2 * degree.reshape(-1, 1) / scale if exit_scale == "balanced" else 1.0)
    total = np.asarray(walk.sum(axis=1)).ravel() + leaving.sum(axis=1)
    order = np.argsort(values, kind="stable")
    system = (diags(np.ones(len(values))) - diags(1 / total) @ walk).tocsr()[order][:, order]
    found = np.empty_like(leaving)
    found[order] = _absorbed(system, (leaving / total[:, None])[order])
    if not np.abs(found.sum(axis=1) - 1).max() <= ROWS:
        raise _unsolved(f"fates at D = {diffusion:g}")
    found = np.clip(found, 0, None)
    shares: Array = found / found.sum(axis=1, keepdims=True)
    return shares


def _absorbed(system: csr_matrix, leaving: Array) -> Array:
    options = {"SymmetricMode": True}  # no pivots: a triangle stays one
    triangle = splu(tril(system).tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0, options=options)
    downwards = LinearOperator(system.shape, triangle.solve)
    columns = []
    for column in leaving.T:
        share, failed = bicgstab(
            system, column, x0=triangle.solve(column), rtol=FATES_TOLERANCE, maxiter=MOST_STEPS, M=downwards
        )
        columns.append(np.full(len(column), np.nan) if failed else share)
    return np.column_stack(columns)


def refuse_diffusion(diffusion: Any) -> None:
    """Raise a ConfigError unless D is a positive number."""
    number = isinstance(diffusion, int | float | np.number) and not isinstance(diffusion, bool)
    if not (number and np.isfinite(diffusion) and diffusion > 0):
        remedy = "a positive number, in units of the drop of the potential, such as 0.05"
        raise ConfigError("bad-value", f"D = {diffusion!r}", "D", remedy)
