"""Fates, ancestors, descendants and flows along chained transport plans; trends of genes.

Along a chain each plan goes from one time to the next of the chain; masses are pulled back, ``nu_i = sum_j T_ij nu_j``,
or pushed forward, ``mu_j = sum_i T_ij mu_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from anncoder.dynamics.transport.plans import Plan

Array = np.ndarray[Any, Any]


def pulled_back(plans: Sequence[Plan], values: Array) -> list[Array]:
    """Return values of the cells of the last time, (n, k) or (n,), pulled back to every time of the chain.

    The list begins with the first time and ends with ``values``; each cell has the sum over its descendants.
    """
    found = [np.asarray(values, np.float64)]
    for plan in reversed(plans):
        found.insert(0, plan.pull_back(found[0]))
    return found


def pushed_forward(plans: Sequence[Plan], values: Array) -> list[Array]:
    """Return masses of the cells of the first time, (n, k) or (n,), pushed forward to every time of the chain."""
    found = [np.asarray(values, np.float64)]
    for plan in plans:
        found.append(plan.push_forward(found[-1]))
    return found


def fates(plans: Sequence[Plan], indicator: Array) -> list[Array]:
    """Return the share of each cell's descendants at the last time that are of each label, a matrix a time.

    Parameters
    ----------
    plans
        From the first to the last time.
    indicator
        Labels of the cells of the last time, (n, k), 1 in the column of the label.
    """
    return [shares(masses) for masses in pulled_back(plans, indicator)]


def shares(masses: Array) -> Array:
    """Return masses, (n, k), divided by the sums of their rows; NaN in rows of zeros."""
    total = masses.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(masses, total, out=np.full_like(masses, np.nan), where=total > 0))


def indicator(codes: Array, n_labels: int) -> Array:
    """Return a matrix, (n, n_labels) float64, with 1 in the column of each cell's code."""
    return np.asarray(np.eye(n_labels)[np.asarray(codes, np.int64)])


def flow(plan: Plan, labels0: Array, labels1: Array) -> pd.DataFrame:
    """Return the mass that a plan moves between labels: columns ``label0``, ``label1``, ``mass``.

    The masses of a plan sum to the mean growth: a cell that neither divides nor dies moves 1 / I.
    """
    (names0, codes0), (names1, codes1) = (
        np.unique(np.asarray(x, str), return_inverse=True) for x in (labels0, labels1)
    )
    per_cell = plan.pull_back(indicator(codes1, len(names1)))
    mass = indicator(codes0, len(names0)).T @ per_cell / plan.shape[0]
    rows = {"label0": np.repeat(names0, len(names1)), "label1": np.tile(names1, len(names0)), "mass": mass.ravel()}
    return pd.DataFrame(rows)


class Trend(NamedTuple):
    """Weighted statistics of genes, and how many cells they rest on."""

    mean: Array  # (g,)
    sd: Array  # (g,)
    n_eff: float


def trend(values: Any, weights: Array) -> Trend:
    """Return weighted mean and standard deviation of genes, and the effective number of cells.

    Parameters
    ----------
    values
        Expression, (n, g), dense or sparse.
    weights
        Of the cells, (n,), not negative. The effective number is ``(sum w)^2 / sum w^2``.
    """
    total = weights.sum()
    if not total > 0:
        nothing = np.full(values.shape[1], np.nan)
        return Trend(nothing, nothing, 0.0)
    w = weights / total
    dense = values.toarray() if issparse(values) else np.asarray(values)
    mean = w @ dense.astype(np.float64)
    variance = w @ (dense - mean) ** 2
    return Trend(mean, np.sqrt(variance), float(1 / np.square(w).sum()))
