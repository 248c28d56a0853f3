"""Simulated data with known truth, on which the published systems are held to their numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Splat(NamedTuple):
    """Counts with dropout, and what they come from; n cells, g genes."""

    counts: Array  # (n, g) what is observed
    true_counts: Array  # (n, g) before dropout
    mean: Array  # (n, g) noiseless means
    group: Array  # (n,)


def splat(seed: int, n_vars: int = 200, n_obs: int = 2000, n_groups: int = 2, mid: float = 3.0) -> Splat:
    """Simulate groups of cells by Splatter's published model with its default parameters, and logistic dropout.

    Zappia, Phipson, Oshlack 2017, doi 10.1186/s13059-017-1305-0. All-zero genes are left out.
    """
    r = np.random.default_rng(seed)
    base = r.gamma(0.6, 1 / 0.3, n_vars)
    outlier = r.random(n_vars) < 0.05
    base[outlier] = np.median(base) * np.exp(r.normal(4, 0.5, outlier.sum()))
    size, group = np.exp(r.normal(11, 0.2, n_obs)), r.integers(0, n_groups, n_obs)
    profiles = np.empty((n_groups, n_vars))
    for k in range(n_groups):
        factor, changed = np.ones(n_vars), r.random(n_vars) < 0.1
        values = np.exp(r.normal(0.1, 0.4, changed.sum()))
        values = np.where(values < 1, 1 / values, values)
        down = r.random(changed.sum()) < 0.5
        values[down] = 1 / values[down]
        factor[changed] = values
        profiles[k] = base * factor
    mean = profiles[group]
    mean = mean / mean.sum(1, keepdims=True) * size[:, None]
    bcv = (0.1 + 1 / np.sqrt(mean)) * np.sqrt(60 / r.chisquare(60, n_vars))
    rate = r.gamma(1 / bcv**2, mean * bcv**2)
    true_counts = r.poisson(rate)
    with np.errstate(divide="ignore"):
        dropped = 1 / (1 + np.exp(np.log(rate) - mid))
    counts = true_counts * (r.random(dropped.shape) >= dropped)
    seen = counts.sum(0) > 0
    return Splat(counts[:, seen], true_counts[:, seen], mean[:, seen], group)


def simplex(seed: int, n_obs: int, distance: float = 6.0) -> tuple[Array, Array]:
    """Return ten classes at the corners of a simplex in 50 dimensions with unit noise, (n, 50), and the class, (n,)."""
    r = np.random.default_rng(seed)
    label = r.integers(0, 10, n_obs)
    return distance * np.eye(50)[label] + r.standard_normal((n_obs, 50)), label


def nine_dimensional(seed: int, times: int = 1) -> tuple[Array, Array]:
    """Return the synthetic set on which scvis was published, 2,200 points or so many times them, (n, 9), and labels.

    In the plane: a wide Gaussian (class 0), five small ones (1 to 5) and uniform outliers (-1); the nine columns are
    polynomials of the two coordinates, not scaled here. After the description in Ding, Condon, Shah 2018,
    doi 10.1038/s41467-018-04368-5; the numbers were found by comparison with the published points.
    """
    r = np.random.default_rng(seed)
    wide, at = np.array([[1, 0.5], [0.5, 1]]), np.array([[2, 0], [1.5, 0], [2.5, 0], [2, 0.5], [2, -0.5]])
    groups = [r.multivariate_normal((-3, 0), wide, 1000 * times)]
    groups += [r.normal(centre, 0.1, (200 * times, 2)) for centre in at]
    far = r.uniform((-8, -4), (4, 4), (1000 * times, 2))
    shift = far - (-3, 0)
    alone = (np.einsum("ij,jk,ik->i", shift, np.linalg.inv(wide), shift) > 12) & (np.hypot(*(far - at[0]).T) > 0.67)
    groups.append(far[alone][: 200 * times])
    x, y = np.concatenate(groups).T
    label = np.repeat([0, 1, 2, 3, 4, 5, -1], [len(group) for group in groups])
    return np.stack([x + y, x - y, x * y, x**2, y**2, x**2 * y, x * y**2, x**3, y**3], axis=1), label


class Blobs(NamedTuple):
    """Gaussian groups of cells in two batches."""

    x: Array  # (n, 50) float32
    group: Array  # (n,) of six
    batch: Array  # (n,) 0 or 1


def blobs(seed: int, n_obs: int = 3000, shift: float = 5.0) -> Blobs:
    """Simulate six Gaussian groups in 50 dimensions, in two batches of which one is shifted in ten of them.

    Centres have standard deviation 5 in each dimension, the cells around them 1 (20 % noise).
    """
    r = np.random.default_rng(seed)
    centres, group, batch = r.normal(0, 5, (6, 50)), r.integers(0, 6, n_obs), r.integers(0, 2, n_obs)
    x = centres[group] + r.normal(0, 1, (n_obs, 50))
    x[:, r.choice(50, 10, replace=False)] += shift * batch[:, None]
    return Blobs(x.astype(np.float32), group, batch)


def real(name: str) -> Path:
    """Return the path of a real data set, in the folder that ANNCODER_DATA names, or ``../shared/data``."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    return Path(os.environ.get("ANNCODER_DATA", folder)) / name
