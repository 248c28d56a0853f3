"""Stability in words: sentences and tables on fits that differ in their seed alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from anncoder.evaluation.clusters import N_NEIGHBORS
from anncoder.evaluation.stability import AGAIN, BETWEEN, OF_PCA, Stability

# agreement below that of the same fit, clustered again, from which on clusters depend on the seed
A_LITTLE, MUCH = 0.05, 0.2
SAME_ORDER = 0.9  # rank correlation of pseudotimes, from which on the order of the cells holds
TITLES = {
    "leiden_ari": "Leiden clusters, ARI",
    "kmeans_ari": "k-means clusters, ARI",
    "neighbors": "neighbours in common",
    "pseudotime": "pseudotime, rank correlation",
}
FITS = {
    "epochs": "epochs",
    "clusters": "Leiden clusters",
    "labels_ari": "their ARI with the labels",
    "parts": "parts of the graph",
    "unreached": "cells without pseudotime",
}


class Section(NamedTuple):
    """The section of a page: one line on the fits, sentences, and two tables."""

    head: str
    sentences: list[str]
    comparisons: list[str]
    scores: list[tuple[str, list[str]]]  # title, and mean (lowest) of each comparison
    facts: list[str]
    fits: list[tuple[str, list[str]]]  # seed or PCA, and its facts


def section_of(found: Stability) -> Section:
    """Return the section, in the words of the page."""
    shown = found.shown()
    scores = [(TITLES[str(name)], [str(value) or "–" for value in shown[name]]) for name in shown]  # noqa: RUF001
    columns = [name for name in FITS if name in found.fits]
    names = ["PCA" if name == "pca" else f"seed {name}" for name in found.fits.index]
    rows = [[_number(value) for value in row] for row in found.fits[columns].itertuples(index=False)]
    return Section(
        head=f"{found.head}.",
        sentences=sentences(found),
        comparisons=list(map(str, shown.index)),
        scores=scores,
        facts=[FITS[name] for name in columns],
        fits=list(zip(names, rows, strict=True)),
    )


def _number(value: Any) -> str:
    if pd.isna(value):
        return "–"  # noqa: RUF001 - no value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}"


def sentences(found: Stability) -> list[str]:
    """Return what moved with the seed, in sentences, the most important first."""
    said = [_of_clusters(found), _of_labels(found), _of_order(found), _of_neighbors(found)]
    return [*(sentence for sentence in said if sentence), *(f"{note[0].upper()}{note[1:]}." for note in found.notes)]


def _of_clusters(found: Stability) -> str:
    mean, low = found.table["leiden_ari"], found.lowest["leiden_ari"]
    agree = (
        f"Leiden clusters of two fits agree by {mean[BETWEEN]:.2f} (ARI; lowest {low[BETWEEN]:.2f}), those of one fit, "
        f"clustered again, by {mean[AGAIN]:.2f}, and PCA's by {mean[OF_PCA]:.2f}"
    )
    gap = mean[AGAIN] - mean[BETWEEN]
    if gap < A_LITTLE:
        return f"The clusters do not depend on the seed. {agree}."
    if gap < MUCH:
        return f"Some cells change their cluster with the seed. {agree}: look at borders of clusters in several fits."
    return f"The clusters depend on the seed. {agree}: trust only those that come back in several fits."


def _of_labels(found: Stability) -> str:
    if "labels_ari" not in found.fits:
        return ""
    values = found.fits["labels_ari"].astype(float)
    fits = values.drop("pca").dropna()
    where = "above" if values["pca"] < fits.min() else "below" if values["pca"] > fits.max() else "within"
    beside = {
        "above": "all of the fits are above PCA",
        "below": "all of the fits are below PCA",
        "within": "PCA is within that range, so the seed decides which of the two looks better",
    }[where]
    span = f"{fits.min():.2f} to {fits.max():.2f}, for PCA {values['pca']:.2f}"
    return f"Their agreement with the labels (ARI) is {span}: {beside}."


def _of_order(found: Stability) -> str:
    mean, low = found.table["pseudotime"][BETWEEN], found.lowest["pseudotime"][BETWEEN]
    if pd.isna(mean):
        return ""
    order = "holds" if low >= SAME_ORDER else "depends on the seed"
    return (
        f"The order of the cells in pseudotime from {found.root} {order}: the rank correlation of two fits is "
        f"{mean:.2f} (lowest {low:.2f})."
    )


def _of_neighbors(found: Stability) -> str:
    share = found.table["neighbors"][BETWEEN]
    return f"Of the {N_NEIGHBORS - 1} nearest neighbours of a cell two fits have {share:.0%} in common."
