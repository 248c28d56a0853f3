"""Gene relations: one source gene against many, now or in the descendants; shuffles as null.

The null of a target is its score against shuffles of the source. Twenty of them give a mean and a standard deviation,
but no small p value: so every shuffle is standardised by the mean and standard deviation of the others of its gene, and
p is the share of the shuffles of all genes that reach the standardised score of one, as if the standardised null were
the same for every gene. A bank of shuffles is prepared once, and each gene draws its own from it by its number: its
score and null depend neither on the other genes asked for nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from anncoder.device import usable_cpus
from anncoder.dynamics.genes.dremi import axis, joint_density, score, source_axis, why_not

Array = np.ndarray[Any, Any]

BANK = 5  # shuffles prepared for each one that a gene is given
LEVEL = 0.01  # of the null, which a directed relation must be above


class Shuffles(NamedTuple):
    """Shuffles of the source, and how the genes draw from them."""

    values: Array  # (n, b) float64, a shuffle a column
    n: int  # for each gene
    seed: int

    def drawn(self, gene: int) -> Array:
        """Return which shuffles a gene is scored against, (n,)."""
        return np.random.default_rng([self.seed, 12, gene]).choice(self.values.shape[1], self.n, replace=False)


class Scores(NamedTuple):
    """Scores of m targets in the order given, each with its null."""

    score: Array  # (m,) NaN where there is a reason
    null: Array  # (m, n_shuffles)
    reason: list[str]  # why there is no score; empty where there is one


class Measure(Protocol):
    """A score of one source, and of its shuffles, with any number of targets; see :func:`dremi_with`."""

    def __call__(self, targets: Array, genes: Array) -> Scores:
        """Score (n, m) targets that have these numbers, (m,), among all genes."""


class Significance(NamedTuple):
    """Scores of m targets against their nulls."""

    null_mean: Array
    null_sd: Array
    z: Array  # standard deviations above the mean of the null
    p: Array
    q: Array  # Benjamini-Hochberg, over the m targets


class Pair(NamedTuple):
    """Cells of two times, with a transport between them."""

    sources: Array  # (n0,) positions of the earlier cells
    targets: Array  # (n1,) positions of the later ones
    pull_back: Callable[[Array], Array]  # (n1, m) -> (n0, m): means over the descendants, NaN for cells without any


def shuffles_of(x: Array, n_shuffles: int, seed: int, strata: Array | None = None) -> Shuffles:
    """Permute (n,) values between the cells of a stratum (all cells, without strata), many times over."""
    x = np.asarray(x, dtype=np.float64)
    generator = np.random.default_rng([seed, 11])
    codes = np.zeros(len(x), dtype=np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    in_order = np.argsort(codes, kind="stable")
    bank = np.empty((len(x), BANK * n_shuffles))
    for column in bank.T:
        column[in_order] = x[np.lexsort((generator.random(len(x)), codes))]
    return Shuffles(bank, n_shuffles, seed)


def dremi_with(x: Array, shuffles: Shuffles, threads: int | None = None) -> Measure:
    """Return kNN-DREMI with one source, in bits: the score and its null, for any targets.

    Parameters
    ----------
    x
        (n,) values of the source, for which :func:`anncoder.dynamics.genes.dremi.why_not` finds nothing.
    shuffles
        Of :func:`shuffles_of`, or others of the same cells.
    threads
        At most so many genes at a time; None for one a CPU.
    """
    source = source_axis(x)
    bank = [None if why_not(column) else source_axis(column) for column in shuffles.values.T]

    def one(values: Array, gene: int) -> tuple[float, Array, str]:
        null = np.full(shuffles.n, np.nan)
        if reason := why_not(values):
            return float("nan"), null, reason
        target = axis(values)
        for i, drawn in enumerate(shuffles.drawn(gene)):
            shuffled = bank[drawn]
            null[i] = np.nan if shuffled is None else score(joint_density(shuffled, target))
        return score(joint_density(source, target)), null, ""

    def measure(targets: Array, genes: Array) -> Scores:
        with ThreadPoolExecutor(threads or usable_cpus()) as pool:
            found = list(pool.map(one, np.ascontiguousarray(targets.T, dtype=np.float64), genes.tolist()))
        scores, nulls, reasons = zip(*found, strict=True)
        return Scores(np.asarray(scores), np.asarray(nulls), list(reasons))

    return measure


def correlation_with(x: Array, shuffles: Shuffles) -> Callable[[Array, Array, Array | None], Scores]:
    """Return the rank correlation with one source, partial if present values are given: absolute values, and null.

    Of the returned function the arguments are (n, m) targets, the numbers of these genes among all, (m,), and (n, m)
    present values of the targets, or None. The partial correlation of x and y given u is, of rank correlations r,
    ``(r_xy - r_xu r_uy) / sqrt((1 - r_xu^2) (1 - r_uy^2))``.
    """
    of_source = _standard_ranks(np.column_stack([x, shuffles.values]))

    def measure(targets: Array, genes: Array, present: Array | None) -> Scores:
        reasons = [why if (why := why_not(column)) in ("constant", "not finite") else "" for column in targets.T]
        usable = np.array([not why for why in reasons])
        ranks = _standard_ranks(np.where(usable, targets, 0))
        found = of_source.T @ ranks  # (1 + b, m)
        if present is not None:
            given = _standard_ranks(present)
            with_source, with_target = of_source.T @ given, (given * ranks).sum(axis=0)
            left = np.maximum((1 - with_source**2) * (1 - with_target**2), 1e-12)
            found = (found - with_source * with_target) / np.sqrt(left)
        null = np.array([np.abs(found[1 + shuffles.drawn(gene), i]) for i, gene in enumerate(genes)])
        null = np.where(usable[:, None], null.reshape(len(genes), shuffles.n), np.nan)
        return Scores(np.where(usable, np.abs(found[0]), np.nan), null, reasons)

    return measure


def rank_correlation(x: Array, targets: Array) -> Array:
    """Return Spearman's correlation of (n,) values with each column of (n, m) others, (m,); 0 with a constant one."""
    return np.asarray(_standard_ranks(np.asarray(x)[:, None])[:, 0] @ _standard_ranks(targets))


def neighbor_average(latent: Array, n_neighbors: int) -> csr_matrix:
    """Return the weights of the mean over the nearest cells, (n, n) of row sum 1, exact, Euclidean.

    Parameters
    ----------
    latent
        (n, d) finite coordinates.
    n_neighbors
        Cells that a mean is over, the cell itself included; at most n.
    """
    from sklearn.neighbors import NearestNeighbors

    n = len(latent)
    with threadpool_limits(1, "openmp"):  # of scikit-learn's own OpenMP, which spins where other programs run
        nearest = NearestNeighbors(n_neighbors=n_neighbors).fit(latent).kneighbors(latent, return_distance=False)
    weights = np.full(nearest.size, 1 / n_neighbors)
    return csr_matrix((weights, nearest.ravel(), np.arange(0, nearest.size + 1, n_neighbors)), shape=(n, n))


def _standard_ranks(values: Array) -> Array:
    # columns of mean 0 and length 1; zeros where all ranks are equal
    from scipy.stats import rankdata  # half of torch's import time

    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    length = np.sqrt(np.square(ranks).sum(axis=0))
    return np.asarray(np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 1e-9))


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of several blocks of genes as one."""
    reasons = [reason for part in parts for reason in part.reason]
    return Scores(
        np.concatenate([part.score for part in parts]), np.concatenate([part.null for part in parts]), reasons
    )


def significance(found: Scores) -> Significance:
    """Compare scores with their nulls.

    p is at least 1 / (1 + shuffles of all genes): of a single gene with 20 shuffles 1/21.
    """
    mean, sd = found.null.mean(axis=1), found.null.std(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (found.score - mean) / sd
    pool = np.sort(_without_itself(found.null[np.isfinite(z)]).ravel())
    p = np.full(len(z), np.nan)
    there = np.isfinite(z)
    p[there] = (1 + len(pool) - np.searchsorted(pool, z[there])) / (1 + len(pool))
    return Significance(mean, sd, z, p, adjusted(p))


def _without_itself(null: Array) -> Array:
    # each shuffle in standard deviations of the others of its gene: a score is compared with shuffles that it is not of
    n = null.shape[1]
    total, squares = null.sum(axis=1, keepdims=True), np.square(null).sum(axis=1, keepdims=True)
    mean = (total - null) / (n - 1)
    variance = (squares - np.square(null) - (n - 1) * np.square(mean)) / (n - 2)
    return np.asarray((null - mean) / np.sqrt(np.maximum(variance, 1e-30)))


def adjusted(p: Array) -> Array:
    """Return the q values of (m,) p values by Benjamini and Hochberg 1995; NaN, which is no test, stays NaN."""
    from scipy.stats import false_discovery_control  # half of torch's import time

    q, there = np.full(len(p), np.nan), np.isfinite(p)
    q[there] = false_discovery_control(p[there]) if there.any() else np.nan
    return q


def descendants_of(pairs: Sequence[Pair], values: Array) -> Array:
    """Return the expected values of the descendants of the earlier cells, pair after pair, (sum of n0, m).

    Parameters
    ----------
    pairs
        Pairs of times.
    values
        (n, m) values of all cells that the pairs index.
    """
    return np.concatenate([pair.pull_back(values[pair.targets]) for pair in pairs])


def directed(lagged: Scores, by_chance: Significance, now: Scores, now_by_chance: Significance) -> Array:
    """Tell which lagged relations are directed, (m,) bool.

    They must be stronger than the relation within one time, in bits (or correlation) and in standard deviations of the
    null, and above 99 % of the null.
    """
    stronger = np.nan_to_num(lagged.score, nan=-np.inf) > np.nan_to_num(now.score, nan=0.0)
    clearer = np.nan_to_num(by_chance.z, nan=-np.inf) > np.nan_to_num(now_by_chance.z, nan=0.0)
    return np.asarray(stronger & clearer & (np.nan_to_num(by_chance.p, nan=1.0) < LEVEL))
