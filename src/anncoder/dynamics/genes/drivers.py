"""Drivers of a fate: genes that differ between cells of high and of low fate probability.

A cell with fate probability w counts w in one group and 1 - w in the other. Means and variances are weighted, and the
number of cells of a group is its effective one, (sum w)^2 / sum w^2 (Kish 1965): all cells would be far too many.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse
from scipy.special import stdtr

from anncoder.dynamics.genes.relations import adjusted

Array = np.ndarray[Any, Any]

PSEUDO = 1e-9  # added to means of normalised counts before their ratio is taken, as scanpy does


class Contrast(NamedTuple):
    """Expression of g genes in the cells of a fate and in the others."""

    log_fold_change: Array  # (g,) log2 of the ratio of mean normalised counts
    mean: Array  # (g,) of log(1 + normalised counts), with the fate
    mean_others: Array
    fraction: Array  # (g,) share of the cells that express the gene, with the fate
    fraction_others: Array
    t: Array  # (g,) Welch's statistic; NaN for a gene without variance
    df: Array
    p: Array  # two-sided
    q: Array  # Benjamini-Hochberg, over the g genes


class _Sums(NamedTuple):
    # (2, g) weighted sums over the cells: with the fate, and the others
    x: Array
    squares: Array
    linear: Array
    expressed: Array


def effective_numbers(weights: Array) -> Array:
    """Return the effective numbers of cells with a fate and of the others, (2,), for (n,) fate probabilities."""
    both = np.stack([weights, 1 - weights])
    squares = np.square(both).sum(axis=1)
    return np.asarray(np.divide(both.sum(axis=1) ** 2, squares, out=np.zeros(2), where=squares > 0))


def contrast(blocks: Iterable[tuple[Any, Array]], weights: Array) -> Contrast:
    """Compare every gene between the cells of a fate and the others by Welch's test.

    Parameters
    ----------
    blocks
        (b, g) log(1 + normalised counts) of some cells, sparse or dense, and their positions among the weights; each
        cell once.
    weights
        (n,) fate probabilities, 0 to 1. With 0 and 1 alone this is ``scipy.stats.ttest_ind(equal_var=False)``.
    """
    both = np.stack([weights, 1 - weights]).astype(np.float64)
    sums = _summed(blocks, both)
    total, n = both.sum(axis=1)[:, None], effective_numbers(weights)[:, None]
    mean, linear = sums.x / total, sums.linear / total
    variance = np.maximum(sums.squares / total - mean**2, 0)
    variance[variance < 1e-12 * np.maximum(sums.squares / total, 1e-300)] = 0  # a constant gene, but for rounding
    of_mean = variance / (n - 1)  # that of a group is n / (n - 1) of it, over n
    error = of_mean.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, (mean[0] - mean[1]) / np.sqrt(error), np.nan)
        df = error**2 / (of_mean**2 / (n - 1)).sum(axis=0)
    p = 2 * stdtr(df, -np.abs(t))
    change = np.log2((linear[0] + PSEUDO) / (linear[1] + PSEUDO))
    fraction = sums.expressed / total
    return Contrast(change, mean[0], mean[1], fraction[0], fraction[1], t, df, p, adjusted(p))


def _summed(blocks: Iterable[tuple[Any, Array]], both: Array) -> _Sums:
    sums: list[Any] = [0.0, 0.0, 0.0, 0.0]
    for values, cells in blocks:
        weights = both[:, cells]
        for i, power in enumerate((_as_is, np.square, np.expm1, np.sign)):
            changed = _entries(values, power)
            sums[i] = sums[i] + np.asarray((changed.T @ weights.T).T)  # sparse stands first in a product
    return _Sums(*sums)


def _as_is(values: Array) -> Array:
    return values


def _entries(values: Any, function: Any) -> Any:
    # all four leave a zero as it is
    if not issparse(values):
        return function(np.asarray(values, dtype=np.float64))
    changed = values.astype(np.float64)  # a copy
    changed.data = function(changed.data)
    return changed
