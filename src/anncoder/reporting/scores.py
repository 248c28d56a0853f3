"""Scores of a report: the table with a sentence on each column, and verdicts in words."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from anncoder.evaluation.comparison import LESS_IS_BETTER, WIDE, Evaluation

ABOUT = {
    "heldout_nll": (
        "held-out molecules",
        "A tenth of each cell's molecules is set aside and predicted from the rest: negative log-likelihood, nats a "
        "cell. It rewards neither copying noise nor memory; differences of a few tenths are nothing.",
    ),
    "reconstruction_mse": (
        "reconstruction error",
        "Mean squared error of log-normalised expression, or of the values themselves. PCA minimises it, and it "
        "rewards copying noise: a check, not a race.",
    ),
    "neighbor_consistency": (
        "neighbour consistency",
        "Each cell's molecules are split in two: the share of the nearest neighbours that both parts agree on. "
        "It needs no labels; compare rows, not data sets.",
    ),
    "depth_agreement": (
        "depth agreement",
        "The share of the nearest neighbours that a fifth of the molecules gives again, of deep cells.",
    ),
    "leiden_ari": ("Leiden ARI", "Agreement of Leiden clusters with the labels; 0 is chance, 1 is identity."),
    "leiden_nmi": ("Leiden NMI", "Information that Leiden clusters share with the labels, from 0 to 1."),
    "kmeans_ari": ("k-means ARI", "Agreement of k-means clusters, as many as there are labels, with the labels."),
    "kmeans_nmi": ("k-means NMI", "Information that k-means clusters share with the labels, from 0 to 1."),
    "silhouette": (
        "silhouette",
        "How much nearer cells are to their own group than to the next, from -1 to 1. The groups are the labels; "
        "without labels each method's own Leiden clusters, and then it says nothing about their truth.",
    ),
    "invented_correlations": (
        "invented correlations",
        "Genes are permuted between cells, the model is fitted again, and pairs of permuted genes are tested: the "
        "share that is correlated after denoising, where no pair is.",
    ),
}
LEVEL = {"heldout_nll": 0.3, "neighbor_consistency": 0.01}  # differences that are nothing
ROWS = {
    "model": "this model",
    "pca": "PCA of its width",
    "pca_50": f"PCA of {WIDE} components",
    "gene_mean": "gene means",
}
HEADS = {"model": "this model", "pca": "PCA", "pca_50": f"PCA-{WIDE}", "gene_mean": "gene means"}  # narrow


class Score(NamedTuple):
    """A score: its name, direction, a sentence on it, and the values of the methods."""

    name: str
    title: str
    arrow: str
    about: str
    values: list[tuple[str, bool]]  # as text, and whether it is the best


class Table(NamedTuple):
    """The scores of all methods."""

    methods: list[str]
    scores: list[Score]


def table_of(found: Evaluation) -> Table:
    """Return the table in the words of the page; scores without any value are left out."""
    shown = found.table.dropna(axis=1, how="all").astype(float)
    return Table([HEADS.get(str(row), str(row)) for row in shown.index], [_score(str(n), shown[n]) for n in shown])


def _score(name: str, values: pd.Series) -> Score:
    less = name in LESS_IS_BETTER
    best = values.min() if less else values.max()
    title, about = ABOUT.get(name, (name, ""))
    cells = [("–" if pd.isna(v) else f"{v:.4g}", bool(v == best)) for v in values]  # noqa: RUF001 - no value
    return Score(name, title, "↓" if less else "↑", about, cells)


def verdicts(found: Evaluation) -> list[str]:
    """Return sentences that compare the model with PCA, the better one, and with the gene means."""
    said = [
        _against_pca(found.table, "heldout_nll", "predicts unseen molecules", "{:.2f} nats a cell"),
        _against_pca(found.table, "neighbor_consistency", "keeps neighbours", "{:.3f} in neighbour consistency"),
        _against_means(found.table),
        _invented(found.table),
    ]
    return [sentence for sentence in said if sentence]


def _against_pca(table: pd.DataFrame, name: str, verb: str, amount: str) -> str:
    values = table[name].astype(float) if name in table else pd.Series(dtype=float)
    pca = values.reindex(["pca", "pca_50"]).dropna()
    model = float(values.get("model", float("nan")))
    if pd.isna(model) or pca.empty:
        return ""
    less = name in LESS_IS_BETTER
    row, best = (pca.idxmin(), pca.min()) if less else (pca.idxmax(), pca.max())
    gain = float(best - model if less else model - best)
    if abs(gain) < LEVEL[name]:
        return f"The model {verb} as well as {ROWS[str(row)]}: a difference of {amount.format(abs(gain))} is nothing."
    word = "better" if gain > 0 else "worse"
    return f"The model {verb} {word} than {ROWS[str(row)]}, by {amount.format(abs(gain))}."


def _against_means(table: pd.DataFrame) -> str:
    losses = table["heldout_nll"].astype(float) if "heldout_nll" in table else pd.Series(dtype=float)
    gain: Any = losses.get("gene_mean", float("nan")) - losses.get("model", float("nan"))
    if pd.isna(gain) or gain > LEVEL["heldout_nll"]:
        return ""
    return "It predicts unseen molecules no better than the average cell does: it has learned nothing, or copies noise."


def _invented(table: pd.DataFrame) -> str:
    if "invented_correlations" not in table:
        return ""
    shares = table["invented_correlations"].astype(float)
    return (
        f"Of pairs of permuted genes, which are independent, {shares['model']:.0%} are correlated after denoising by "
        f"the model, {shares['pca']:.0%} by PCA: test correlations and differential expression on the counts, not on "
        "denoised values."
    )
