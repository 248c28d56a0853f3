"""Recommendation of a method without labels: PCA and autoencoders on molecules set aside.

Every method is fitted to the same cells, and scored in two ways: the likelihood of molecules that were set aside in
cells held out (:mod:`anncoder.evaluation.heldout`), and neighbour consistency (:mod:`anncoder.evaluation.neighbors`).
How far these scores can be trusted was measured on data with known truth, and each advice says so: see the section
"Choosing without labels" of docs/benchmarks.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from anncoder.config import TrainingConfig, split_settings
from anncoder.data.matrix.notes import said_once, silent
from anncoder.data.sources import Data, open_source
from anncoder.data.split import split_cells
from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation.baselines import Cells, Method, Normalized, Principal, Trained
from anncoder.evaluation.cells import READ
from anncoder.evaluation.comparison import FEWEST, refuse_none_held_out, refuse_not_whole
from anncoder.evaluation.heldout import nll_of_cells, thin
from anncoder.evaluation.neighbors import Views, neighbor_scores, views
from anncoder.evaluation.selection.trials import (
    Settings,
    Trial,
    attempt,
    digest_of,
    rank,
    refuse_interrupted,
    run_trials,
)
from anncoder.models import find
from anncoder.models.base import Autoencoder
from anncoder.training.progress import bar

PURPOSES = ("denoising", "trajectories", "clusters")
MAX_CELLS = 10_000
N_GENES = (1000, 2000)
SURE = 2.0  # standard errors by which a model must be better than PCA
PCA_LINES = "sc.pp.normalize_total(adata); sc.pp.log1p(adata); sc.pp.pca(adata)"


class Candidate(NamedTuple):
    """A method with its settings: the name of a model, or ``"pca"``."""

    model: str
    n_latent: int
    n_genes: int
    unit_variance: bool = False  # of the genes, for PCA

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.model}-{self.n_latent}{'-scaled' * self.unit_variance}, {self.n_genes:,} genes"

    @property
    def cost(self) -> float:
        """About how long it takes, for the progress bar: a count autoencoder of 2,000 genes is 1."""
        each = {"pca": 0.15, "denoising": 2.0, "variational": 8.0}.get(self.model, 1.0)
        return each * self.n_genes / 2000


class Advice(NamedTuple):
    """What to take for a purpose, and why."""

    method: str  # a row of the table
    why: str


@dataclass(frozen=True)
class Recommendation:
    """Result of :func:`recommend`; print it, or draw it with :func:`anncoder.pl.recommendation`.

    Attributes
    ----------
    table
        A row a method, sorted by ``heldout_nll`` (nats a cell, lower is better), with ``se``, the standard error of its
        difference to the best PCA, ``neighbor_consistency``, ``depth_agreement`` (shares, higher is better; the latter
        for deep cells only), ``seconds``, ``model``, ``n_latent``, ``n_genes``.
    denoising, trajectories, clusters
        :class:`Advice` for each purpose; "no advice" where the scores do not tell.
    n_obs, n_held_out
        Number of cells, and of those scored on molecules set aside.
    genes
        Genes of the winner.
    model
        The winner by molecules set aside, fitted; None if PCA is enough.
    command
        The line of Python that fits the winner again (to all cells), or scanpy's for PCA.
    """

    table: pd.DataFrame
    denoising: Advice
    trajectories: Advice
    clusters: Advice
    n_obs: int
    n_held_out: int
    genes: pd.Index
    model: Autoencoder | None
    command: str

    def __str__(self) -> str:
        shown = self.table.drop(columns=["model", "n_latent", "n_genes"]).dropna(axis=1, how="all")
        table = str(shown.to_string(float_format=lambda value: f"{value:.4g}", na_rep="-"))
        advice = [f"{name}: {(of := getattr(self, name)).method}. {of.why}" for name in PURPOSES]
        head = f"{self.n_obs:,} cells, {self.n_held_out:,} of them scored on molecules set aside"
        return "\n".join([head, table, *advice, self.command])

    def _repr_html_(self) -> str:
        # the table and the advice, for notebooks
        shown = self.table.drop(columns=["model", "n_latent", "n_genes"]).dropna(axis=1, how="all")
        advice = {name: f"{(of := getattr(self, name)).method}. {of.why}" for name in PURPOSES}
        with pd.option_context("display.max_colwidth", None):
            below = pd.Series(advice).to_frame().to_html(header=False)
        table = shown.to_html(float_format=lambda value: f"{value:.4g}", na_rep="")
        return f"{table}{below}<p><code>{escape(self.command)}</code></p>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with stable names, as ``recommendation.json`` has them."""
        rows = {
            str(name): {key: None if pd.isna(value) else value for key, value in row.items()}
            for name, row in self.table.astype(object).to_dict(orient="index").items()
        }
        advice = {name: getattr(self, name)._asdict() for name in PURPOSES}
        return {"schema": 1, "n_obs": self.n_obs, "n_held_out": self.n_held_out, "methods": rows} | advice


# what the scores were worth on data with known truth: docs/benchmarks.md, "Choosing without labels"
TRAJECTORIES = Advice(
    "no advice",
    "On mixtures of known order no score without labels orders methods by their pseudotime (rank correlations 0.1); "
    "count autoencoders had 0.87 to 0.91 there, PCA 0.34 to 0.89, more if wider. Compare the orders of both.",
)
CLUSTERS = Advice(
    "no advice",
    "On labelled cells no score without labels orders methods by their clusters (rank correlations from -0.3 to 0.8): "
    "cluster the latent and PCA, and trust what both find. Denoising autoencoders had the best mean of three sets.",
)


class Scene(NamedTuple):
    """The cells and what methods are scored on; the same for all of them."""

    adata: anndata.AnnData  # raw counts in X
    order: Any  # (g,) columns of the genes, by falling variability
    fitted: Any  # (n,) bool
    kept: Cells  # of the cells held out: nine tenths of their molecules
    aside: csr_matrix  # and the others
    twice: Views
    n_scored: int  # genes that all methods read: the first so many

    def genes(self, candidate: Candidate) -> Any:
        """Return the columns that a method reads, ascending."""
        return np.sort(self.order[: candidate.n_genes])


@said_once()
def recommend(
    data: Data,
    *,
    layer: str | None = None,
    models: Sequence[str] = ("count", "denoising", "variational"),
    widths: Sequence[int] = (10, 32),
    n_genes: Sequence[int] = N_GENES,
    max_cells: int = MAX_CELLS,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Recommendation:
    """Fit PCA and autoencoders of some widths, score them without labels, and say what to take for what.

    Parameters
    ----------
    data
        Raw counts, (n_obs, n_vars): AnnData or files.
    layer
        Where the counts are; None and ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw``.
    models
        Names of models of counts. PCA of these widths and of 50 components, with and without unit variance of the
        genes, is always among the methods.
    widths
        Numbers of latent units; ``"variational"``, which takes longest, has the first alone.
    n_genes
        Numbers of most variable genes (scanpy's flavor "cell_ranger"); more than there are stands for all. Slower
        models have the largest alone. All methods are scored on the genes that all of them read.
    max_cells
        More cells are sampled.
    seed
        Start of every random stream.
    journal
        File to which each method's scores are appended; a run that was stopped goes on with it.
    progress
        True for a progress bar, False for silence, None for a bar in a terminal or a notebook.
    **settings
        Settings of every fit (``max_epochs``, ``threads``, ``device``...).

    Returns
    -------
    Recommendation
        Table, advice, and the winner.

    Raises
    ------
    ConfigError
        A model without expected counts, widths or numbers of genes that are no positive whole numbers, an unknown
        setting.
    InputError
        The data are not raw counts, or too few.

    Examples
    --------
    >>> import anncoder as ac
    >>> adata = ac.datasets.simulate(n_obs=300, n_vars=100, n_groups=3, seed=1)
    >>> found = ac.recommend(adata, models=["count"], widths=[5], max_epochs=2, progress=False)
    >>> "pca-5, 100 genes" in found.table.index
    True
    """
    of_fit = _checked_settings(models, settings, seed)
    scene = scene_of(data, layer, _whole(n_genes, "n_genes"), max_cells, of_fit)
    among = candidates(models, _whole(widths, "widths"), n_genes, (int(scene.fitted.sum()), scene.adata.n_vars))
    fits: dict[int, Autoencoder] = {}
    shown = None if progress is False else bar(100, "%", always=progress is True)
    share = 100 / sum(candidate.cost for candidate in among)

    def report(trial: Trial) -> None:
        if shown is not None:
            shown.set_postfix_str(among[trial.number].name)
            shown.update(round(share * sum(one.cost for one in among[: trial.number + 1])) - shown.n)

    def run(number: int) -> Trial:
        candidate = among[number]
        return attempt(number, candidate._asdict(), lambda: _fit_and_score(candidate, scene, of_fit, number, fits))

    about = {"recommend": [candidate._asdict() for candidate in among], "settings": settings, "seed": seed}
    about["data"] = digest_of(scene.adata, None)
    try:
        trials = run_trials(len(among), run, about, None if journal is None else Path(journal).expanduser(), report)
    finally:
        if shown is not None:
            shown.close()
    return _concluded(among, trials, scene, of_fit, fits)


def candidates(
    models: Sequence[str], widths: Sequence[int], n_genes: Sequence[int], shape: tuple[int, int]
) -> list[Candidate]:
    """Return the methods to compare on (fitted cells, genes), those left out that are wider than the data.

    Raises
    ------
    InputError
        None is left, of the models or at all.
    """
    numbers = sorted({min(n, shape[1]) for n in n_genes})
    found = [
        Candidate("pca", width, n, scaled)
        for n in numbers
        for width in sorted({*widths, 50})
        for scaled in (False, True)
    ]
    for model in models:
        found += [
            Candidate(model, width, n)
            for n in (numbers if model in ("count", "undercomplete") else numbers[-1:])
            for width in (widths[:1] if model == "variational" else widths)
        ]
    fitting = [one for one in found if one.n_latent < min(one.n_genes, shape[0])]
    if not fitting or (models and all(one.model == "pca" for one in fitting)):
        what = f"{shape[0]} cells to fit to x {shape[1]} genes are too few for latents of {min(widths)} units"
        raise InputError("latent-too-wide", what, "widths", "ask for fewer units, or give more cells and genes")
    return fitting


def _checked_settings(models: Sequence[str], settings: Settings, seed: int) -> TrainingConfig:
    for model in [models] if isinstance(models, str) else models:
        config = find(model, where="models").config_class
        if not config.decodes or not config().reads_counts:
            what = f"{model!r} gives no expected counts: it cannot be scored on molecules"
            raise ConfigError("no-decoder", what, "models", "name models of raw counts")
    if isinstance(models, str):
        raise ConfigError("bad-value", f"models = {models!r} is one name", "models", f"models=[{models!r}]")
    hyper, training = split_settings(settings, find("count").config_class)
    if hyper:
        what = f"{next(iter(hyper))!r} is a setting of single models"
        raise ConfigError("bad-value", what, "settings", "ac.search tries the settings of one model")
    config = TrainingConfig(**{"seed": seed, "valid_fraction": 0.1} | training)
    refuse_none_held_out(config.valid_fraction or 0)
    return config


def _whole(values: Any, name: str) -> list[int]:
    values = [values] if isinstance(values, int) else list(values)
    if not values or any(not isinstance(value, int | np.integer) or value < 1 for value in values):
        raise ConfigError("bad-value", f"{name} = {values!r}", name, "positive whole numbers, one or several")
    return [int(value) for value in values]


def scene_of(data: Data, layer: str | None, n_genes: Sequence[int], max_cells: int, training: TrainingConfig) -> Scene:
    """Read cells, order their genes, and set molecules aside: what all candidates are fitted to and scored on.

    Raises
    ------
    InputError
        The data are not raw counts, or too few.
    """
    counts = _counts(data, layer, max_cells, training.seed)
    order = _by_variability(counts) if counts.n_vars > min(n_genes) else np.arange(counts.n_vars)
    n_scored = min(*n_genes, counts.n_vars)
    alive = library_sizes(counts.X[:, order[:n_scored]]) > 0
    if alive.sum() < 2 * FEWEST:
        what = f"{int(alive.sum())} cells with counts are too few to compare methods on"
        raise InputError("too-few-cells", what, "recommend", f"{2 * FEWEST} at least")
    counts = counts[alive].copy()
    with silent():
        source = open_source(counts, None, counts=True)
        split = split_cells(source, training)
    fitted = np.zeros(counts.n_obs, dtype=bool)
    fitted[split.train] = True
    kept, aside = thin(Cells(counts.X[~fitted]), training.seed)
    with_some = library_sizes(kept.matrix[:, order[:n_scored]]) > 0
    twice = views(Cells(counts.X), training.seed)
    twice = twice.with_counts_in(order[:n_scored])
    return Scene(counts, order, fitted, kept.take(with_some), aside[with_some], twice, n_scored)


def _counts(data: Data, layer: str | None, max_cells: int, seed: int) -> anndata.AnnData:
    # read by the reader of the fits: rounded, checked; a sample of many cells
    source = open_source(data, layer, counts=True)
    chosen = np.ones(source.n_obs, dtype=bool)
    if source.n_obs > max_cells:
        chosen[np.random.default_rng([seed, 9]).permutation(source.n_obs)[max_cells:]] = False
    blocks = [(matrix, rows) for matrix, rows in source.blocks(chosen, READ)]
    rows = np.concatenate([rows for _, rows in blocks])
    in_order = np.argsort(rows)
    matrix = vstack([matrix for matrix, _ in blocks], format="csr")[in_order]
    refuse_not_whole(matrix)
    names = pd.Index(source.names(rows[in_order]), dtype=object)
    if not names.is_unique:  # plates of one experiment
        names = pd.Index([f"{name}-{i}" for i, name in enumerate(names)], dtype=object)
    return anndata.AnnData(
        matrix, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=pd.Index(source.var_names, dtype=object))
    )


def _by_variability(counts: anndata.AnnData) -> Any:
    """Return the columns by falling normalised dispersion, (g,), those without any counts last."""
    import scanpy as sc

    logs = counts.copy()
    sc.pp.normalize_total(logs)
    sc.pp.log1p(logs)
    # of the result the dispersions are used, which do not depend on the number asked for
    sc.pp.highly_variable_genes(logs, n_top_genes=1, flavor="cell_ranger")
    dispersion = logs.var["dispersions_norm"].to_numpy(dtype=np.float64, na_value=np.nan)
    return np.argsort(-np.nan_to_num(dispersion, nan=-np.inf), kind="stable")


def _fit_and_score(
    candidate: Candidate, scene: Scene, training: TrainingConfig, number: int, fits: dict[int, Autoencoder]
) -> tuple[int, Settings]:
    method, epochs = method_of(candidate, scene, training), 0
    if isinstance(method, Trained):
        fits[number], epochs = method.model, len(method.model.history_)
        refuse_interrupted(method.model, number)
    return epochs, scores_of(method, candidate, scene)


def scores_of(method: Method, candidate: Candidate, scene: Scene) -> Settings:
    """Return the scores of a fitted method that need no labels, and the nats of each cell held out."""
    columns = scene.genes(candidate)
    cells, aside = scene.kept._replace(matrix=scene.kept.matrix[:, columns]), scene.aside[:, columns]
    scored = np.flatnonzero(np.isin(columns, scene.order[: scene.n_scored]))
    floor = np.asarray(scene.adata.X[:, columns].sum(axis=0, dtype=np.float64)).ravel()
    each = nll_of_cells(method, cells, aside, Cells(scene.adata.X[scene.fitted][:, columns]), floor, scored)
    agreement = neighbor_scores(method, scene.twice.of_genes(columns))
    scores = {name: None if math.isnan(value) else value for name, value in agreement.items()}
    return {"heldout_nll": float(each.mean()), "nll_of_cells": each.round(5).tolist(), **scores}


def method_of(candidate: Candidate, scene: Scene, training: TrainingConfig) -> Method:
    """Return a candidate, fitted to the cells that are not held out."""
    if candidate.model != "pca":
        return Trained(_fit(candidate, scene, training))
    fitted = Cells(scene.adata.X[scene.fitted][:, scene.genes(candidate)])
    scale = Normalized(float(np.median(library_sizes(fitted.matrix))))
    return Principal(scale, fitted, candidate.n_latent, training.seed, unit_variance=candidate.unit_variance)


def _fit(candidate: Candidate, scene: Scene, training: TrainingConfig) -> Autoencoder:
    adata, settings = scene.adata[:, scene.genes(candidate)].copy(), training.model_dump() | {"mask_var": None}
    with silent():
        model: Autoencoder = find(candidate.model)(n_latent=candidate.n_latent)
        return model.fit(adata, progress=False, **settings)


def _concluded(
    among: list[Candidate], trials: list[Trial], scene: Scene, training: TrainingConfig, fits: dict[int, Autoencoder]
) -> Recommendation:
    good = [trial for trial in trials if trial.heldout_nll is not None]
    best_pca = min((trial for trial in good if among[trial.number].model == "pca"), key=rank)
    table = pd.DataFrame({among[trial.number].name: _row(among[trial.number], trial, best_pca) for trial in good}).T
    table = table.infer_objects().sort_values("heldout_nll", kind="stable")
    denoising, winner = _for_denoising(among, min(good, key=rank), best_pca)
    chosen, model, line = among[winner.number], None, PCA_LINES
    genes = scene.adata.var_names[scene.genes(chosen)]
    if chosen.model != "pca":  # of a journal the fits are not there
        model = fits.get(winner.number) or _fit(chosen, scene, training)
        cells = "adata" if len(genes) == scene.adata.n_vars else "adata[:, found.genes].copy()"
        line = f"ac.tl.autoencode({cells}, {chosen.model!r}, n_latent={chosen.n_latent}, seed={training.seed})"
    n_held_out = len(winner.nll_of_cells or [])
    return Recommendation(table, denoising, TRAJECTORIES, CLUSTERS, scene.adata.n_obs, n_held_out, genes, model, line)


def _row(candidate: Candidate, trial: Trial, reference: Trial) -> dict[str, Any]:
    _, error = _difference(trial, reference)
    return {
        "heldout_nll": trial.heldout_nll,
        "se": error,
        "neighbor_consistency": trial.neighbor_consistency,
        "depth_agreement": trial.depth_agreement,
        "seconds": trial.seconds,
        "model": candidate.model,
        "n_latent": candidate.n_latent,
        "n_genes": candidate.n_genes,
    }


def _difference(trial: Trial, reference: Trial) -> tuple[float, float]:
    """Return how much lower the loss of the same cells is than a reference's, nats a cell, and its standard error."""
    each = np.asarray(reference.nll_of_cells) - np.asarray(trial.nll_of_cells)
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def _for_denoising(among: list[Candidate], best: Trial, best_pca: Trial) -> tuple[Advice, Trial]:
    gain, error = _difference(best, best_pca)
    if best is best_pca or gain < SURE * error:
        nearest = "no autoencoder predicts" if best is best_pca else f"{among[best.number].name} does not predict"
        why = f"PCA is enough: {nearest} molecules set aside any better"
        why += "." if best is best_pca else f" ({gain:.2f} nats a cell, standard error {error:.2f})."
        return Advice(among[best_pca.number].name, why), best_pca
    by = f"by {gain:.2f} nats a cell (standard error {error:.2f})"
    why = f"It predicts molecules set aside better than the best PCA, {by}."
    return Advice(among[best.number].name, why), best
