"""kNN-DREMI and DREVI: dependence of a gene on another, whatever the density of the source.

Krishnaswamy et al. 2014, doi 10.1126/science.1250689 (DREMI, DREVI); van Dijk et al. 2018, doi
10.1016/j.cell.2018.05.061 (with densities from nearest neighbours). Both axes are z-scored and divided into equal bins
of their range, with three mesh points within each at 1/4, 2/4 and 3/4. The density at a mesh point is k / (pi d^2), d
the distance to the k-th nearest cell; the sums in the bins, over their total, are the joint distribution p(x, y). DREVI
is p(y | x). With H the entropy in bits and every bin of x of equal weight,

    DREMI = H(mean over x of p(y | x)) - mean over x of H(p(y | x)),

where mutual information would weigh by p(x).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from anncoder.dynamics.genes.mesh_distances import Strips, squared_distances, strips

Array = np.ndarray[Any, Any]

K = 10  # neighbours
BINS = 20
WITHIN = (0.25, 0.5, 0.75)  # mesh points of a bin
TIED = 0.9  # share of the cells with one value, from which on too few are left for a density
LEAST = 1e-24  # squared distance: ten cells on a mesh point would make its density infinite

CONSTANT, TIES, NOT_FINITE = "constant", "more than nine tenths of the cells have one value", "not finite"


class Axis(NamedTuple):
    """A gene along one axis of the plane."""

    values: Array  # (n,) float64, z-scored
    order: Array  # (n,) int64 cells, ascending
    mesh: Array  # (60,) positions of the mesh points


def why_not(values: Array) -> str:
    """Return why (n,) values have no density, in words; empty if they have one."""
    if not np.isfinite(values).all():
        return NOT_FINITE
    if not np.ptp(values) > 1e-12 * np.abs(values).max(initial=0):
        return CONSTANT
    ordered = np.sort(values)
    reach = int(TIED * len(ordered))  # so many further on there is another value, unless more have this one
    return TIES if (ordered[reach:] == ordered[: len(ordered) - reach]).any() else ""


def axis(values: Array) -> Axis:
    """Return (n,) values as an axis; :func:`why_not` must find nothing in them."""
    values = np.asarray(values, dtype=np.float64)
    scored = (values - values.mean()) / values.std()
    return Axis(scored, np.argsort(scored, kind="stable"), mesh_of(scored))


def mesh_of(values: Array) -> Array:
    """Return the positions of the mesh points within the range of (n,) values, (60,)."""
    width = np.ptp(values) / BINS
    return np.asarray(values.min() + width * (np.arange(BINS)[:, None] + np.asarray(WITHIN)).ravel())


def source_axis(values: Array) -> tuple[Strips, Array]:
    """Return (n,) values prepared as the source of any number of targets: their strips, and the mesh points."""
    along = axis(values)
    return strips(along.values), along.mesh


def joint_density(source: tuple[Strips, Array], target: Axis) -> Array:
    """Return the joint distribution in bins, (20 of the source, 20 of the target), of sum 1."""
    along, mesh = source
    squared = squared_distances(along, target.values, target.order, (mesh, target.mesh), min(K, len(target.values)))
    density = 1 / np.maximum(squared, LEAST)  # k and pi are lost in the division
    bins = density.reshape(BINS, len(WITHIN), BINS, len(WITHIN)).sum(axis=(1, 3))
    return np.asarray(bins / bins.sum())


def drevi(joint: Array) -> Array:
    """Return p(y | x), each row of sum 1, of a joint distribution (x, y)."""
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def score(joint: Array) -> float:
    """Return DREMI in bits of a joint distribution (x, y)."""
    conditional = drevi(joint)
    return float(entropy(conditional.mean(axis=0)) - entropy(conditional).mean())


def mutual_information(joint: Array) -> float:
    """Return the mutual information in bits of a joint distribution (x, y)."""
    conditional = drevi(joint)
    return float(entropy(joint.sum(axis=0)) - (joint.sum(axis=1) * entropy(conditional)).sum())


def entropy(p: Array) -> Array:
    """Return the entropy in bits along the last axis."""
    return np.asarray(-(p * np.log2(np.where(p > 0, p, 1))).sum(axis=-1))


def dremi(x: Array, y: Array) -> float:
    """Return kNN-DREMI of y on x, in bits; NaN if one of them is constant, not finite, or mostly of one value.

    Parameters
    ----------
    x, y
        (n,) values of two genes in the same cells, continuous: denoised or smoothed, on any scale.
    """
    if why_not(np.asarray(x)) or why_not(np.asarray(y)):
        return float("nan")
    return score(joint_density(source_axis(x), axis(y)))
