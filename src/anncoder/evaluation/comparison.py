"""Evaluation of a model beside PCA (of the same width, of 50 components) and the gene means.

Four yardsticks, and a fifth for several batches:

- **Held-out molecules** (count data): a tenth of each cell's molecules is set aside by binomial thinning, the rest is
  embedded and denoised, and the expected counts are scored on the molecules set aside by their Poisson negative
  log-likelihood. It compares models of any likelihood (Batson, Royer, Webber 2019, doi 10.1101/786269). Expectations
  include zero inflation. A model of logarithms expects too few molecules (the exponential of a mean logarithm is below
  the mean), differently for each gene, and that alone should not decide: every method's expectations are multiplied by
  one factor a gene, which makes them right on the cells that PCA was fitted to, and scaled to the molecules of a cell.
- **Reconstruction**: mean squared error of log-normalised expression (of the values themselves, for models of
  expression). PCA minimises it, and it rewards copying noise: read it as a check, not as a race. The gene means are
  means of logarithms here; a count model gives the logarithm of a mean, which is larger.
- **Neighbour consistency** (count data, no labels needed): each cell's molecules are split in two, and the share of the
  nearest neighbours in the latent that both parts agree on is counted; of deep cells (a median of 5,000 molecules)
  also the share that a fifth of the molecules gives again (:mod:`anncoder.evaluation.neighbors`).
- **Batches** (with ``batch_key``): how well they are mixed, and the labels kept (:mod:`anncoder.evaluation.mixing`).
- **Clusters** of all cells: Leiden (the best of eleven resolutions, for all rows alike) and k-means against labels, and
  the silhouette of the labels (without labels, of the Leiden clusters).

``scored`` tells the cells of held-out molecules and of reconstruction:

- ``"held-out"``: those that were held out for validation when the model was fitted; PCA and the gene means are fitted
  to the others. No method was fitted to them, but the model chose its last epoch by them.
- ``"new"``: a random half of data without any held-out cell; PCA and the gene means are fitted to the other half, which
  may be more like these cells than the model's were. Beware: fitted cells alone, too, pass for new.
- ``"seen"``: all cells, if fewer than twenty were held out, or they cannot be identified. All methods have seen them,
  and ``heldout_nll`` is left out: it would reward memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.config import TrainingConfig, given
from anncoder.data.adata import (
    batch_column,
    batch_columns,
    batch_label,
    batches_of,
    coordinates_of,
    genes_of,
    obs_column,
)
from anncoder.data.matrix.notes import silent, with_counts
from anncoder.data.sources import Data
from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation.baselines import Cells, GeneMean, Method, Principal, Trained, input_of
from anncoder.evaluation.cells import Sample, some_cells
from anncoder.evaluation.clusters import cluster_scores, comparable
from anncoder.evaluation.correlations import invented
from anncoder.evaluation.heldout import heldout_nll, thin, whole
from anncoder.evaluation.mixing import harmonized, mixing_scores, warn_of_merging
from anncoder.evaluation.neighbors import neighbor_scores, views
from anncoder.evaluation.stability import Stability, root_of, seeds_given, stability_of
from anncoder.models.base import Autoencoder, refuse_no_model

logger = logging.getLogger("anncoder")

FEWEST = 20  # cells of a meaningful score
SCHEMA = 1
LESS_IS_BETTER = ("heldout_nll", "reconstruction_mse", "invented_correlations")
WIDE = 50  # components of the second PCA: scanpy's default

Scored = Literal["held-out", "new", "seen"]
WHICH: dict[Scored, str] = {
    "held-out": "those that the fit held out",
    "new": "half of the new ones; PCA and gene means are of the other half",
    "seen": "fitted to them, so no heldout_nll (it takes twenty cells held out, with names of their own)",
}


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes
    ----------
    table
        A row for the model, one for PCA of the same width, one for PCA of 50 components (where there are more cells and
        genes than that, and the model has another width), one for the gene means. ``heldout_nll``: nats a cell, lower
        is better; NaN without cells that were held out. ``reconstruction_mse``: lower is better.
        ``neighbor_consistency``, ``depth_agreement``: shares, higher is better; NaN for values that are not whole
        counts, the latter also for cells of fewer than 5,000 molecules (median). ``leiden_ari``,
        ``leiden_nmi``, ``kmeans_ari``, ``kmeans_nmi``, ``silhouette``: higher is better; NaN where undefined. With
        several batches also ``mixing``, ``ilisi`` and, with labels, ``clisi``, ``batch_silhouette``,
        ``graph_connectivity`` (:func:`anncoder.evaluation.mixing.mixing_scores`): higher is better. With ``guard`` also
        ``invented_correlations``: lower is better.
    n_obs
        Number of cells.
    n_scored, scored
        Number and kind of the cells of ``heldout_nll`` and ``reconstruction_mse``: ``"held-out"``, ``"new"`` or
        ``"seen"``; see the top of :mod:`anncoder.evaluation.comparison`.
    labels
        The obs column, or None.
    stability
        How much results move with the seed, where ``seeds`` were asked for: another table, of
        :class:`anncoder.evaluation.stability.Stability`; else None.
    """

    table: pd.DataFrame
    n_obs: int
    n_scored: int
    scored: Scored
    labels: str | None
    stability: Stability | None = None

    def __str__(self) -> str:
        table = str(self.table.to_string(float_format=lambda v: f"{v:.4g}", na_rep="-"))
        scored = f"{self.n_scored:,} of {self.n_obs:,} cells scored: {WHICH[self.scored]}"
        return "\n".join([table, scored, *([] if self.stability is None else ["", str(self.stability)])])

    def _repr_html_(self) -> str:
        # the table, for notebooks, with the best of each column in bold
        shown = self.table.dropna(axis=1, how="all").astype(float)
        best = {name: shown[name].min() if name in LESS_IS_BETTER else shown[name].max() for name in shown}

        def cell(name: Any, value: float) -> str:
            text = "" if pd.isna(value) else f"{value:.4g}"
            return f"<b>{text}</b>" if value == best[name] else text

        arrows = {name: f"{name} {'↓' if name in LESS_IS_BETTER else '↑'}" for name in shown}
        rows = {name: [cell(name, value) for value in shown[name]] for name in shown}
        table = pd.DataFrame(rows, index=shown.index).rename(columns=arrows).to_html(escape=False)
        labels = "" if self.labels is None else f"; labels: {escape(self.labels)}"
        more = "" if self.stability is None else self.stability._repr_html_()
        return f"{table}<p>{self.n_scored:,} of {self.n_obs:,} cells scored: {WHICH[self.scored]}{labels}</p>{more}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with stable names, as ``evaluation.json`` has them."""
        rows = {
            str(name): {k: (None if pd.isna(v) else float(v)) for k, v in row.items()}
            for name, row in self.table.to_dict(orient="index").items()
        }
        head = {"schema": SCHEMA, "n_obs": self.n_obs, "n_scored": self.n_scored, "scored": self.scored}
        more = {} if self.stability is None else {"stability": self.stability.to_dict()}
        return head | {"labels": self.labels, "methods": rows} | more


def evaluate(
    model: Autoencoder,
    data: Data,
    *,
    labels: str | None = None,
    batch_key: str | list[str] | tuple[str, ...] | None = None,
    layer: str | None = None,
    allow_missing: float = 0.0,
    max_cells: int = 20_000,
    guard: bool = False,
    n_neighbors: int | None = None,
    seeds: int | None = None,
    root: str | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare a fitted model with PCA of the same width and of 50 components, and with the gene means.

    The scores and their cells are described at the top of :mod:`anncoder.evaluation.comparison`.

    Parameters
    ----------
    model
        A fitted model.
    data
        AnnData or files; genes are matched by name. Of files only the compared cells are read.
    labels
        obs column with the cell types; None for no labels.
    batch_key
        obs column with the experimental batch, or several: how well batches are mixed, and with labels how well these
        are kept, is scored too (:mod:`anncoder.evaluation.mixing`), also of Harmony, where ``harmonypy`` is installed.
        None for that of the fit, where the cells have it and are of several.
    layer
        Where the counts are; None for the layer of the fit, ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw``.
    allow_missing
        Share of the model's genes that may be missing.
    max_cells
        Largest number of cells; more are sampled.
    guard
        Whether to add ``invented_correlations``, the share of significantly correlated pairs among permuted genes
        (:mod:`anncoder.evaluation.correlations`), which takes another fit.
    n_neighbors
        Nearest neighbours of ``neighbor_consistency``; None for 50, or a tenth of the cells where that is less.
    seeds
        Fit the same settings again, to have so many fits with seeds of their own (2 to 20, the fitted model among
        them), and say how much clusters, neighbours and pseudotime differ between them
        (:mod:`anncoder.evaluation.stability`); None or 0 for no other fit.
    root
        With ``seeds``, name of the cell that pseudotime starts from; None for that of scanpy's ``uns["iroot"]``, where
        there is one.
    seed
        Start of every random stream.

    Returns
    -------
    Evaluation
        Print it, or take its ``table``.

    Raises
    ------
    InputError
        There are too few cells (or none beyond n_neighbors), or the data do not fit the model.
    ConfigError
        There is no such obs column or root, or seeds, seed, max_cells or n_neighbors is out of range.
    """
    refuse_no_model(model)
    n_fits = seeds_given(seeds, root)
    root = root_of(data, root) if n_fits else None
    TrainingConfig.refuse_value("seed", seed)
    max_cells = _enough(max_cells)
    # other fits may need batches, covariates, labels and coordinates that embedding does not
    again = guard or n_fits > 0
    reads = model.config.encodes_batches or again
    keys = batch_columns(model.training_.batch_key) if reads else []
    read = [
        *(model.training_.obs_columns if reads else []),
        *batch_columns(model.training_.label_key if again else None),
    ]
    named = [*batch_columns(batch_key), *read]
    columns = [*([] if labels is None else [labels]), *dict.fromkeys(key for key in named if key != labels)]
    slot = model.config.fits_slot if again else None
    limits: dict[str, Any] = {"max_cells": max_cells, "seed": seed, "allow_missing": allow_missing, "root": root}
    sample = some_cells(model, data, layer, columns, slot=slot, **limits)
    width = model.config.width
    matrix, sample = _with_counts(model, sample, allow_missing)
    adata = sample.adata
    if min(matrix.shape) <= width or matrix.shape[0] < FEWEST:
        of_genes = matrix.shape[1] <= width
        what = f"{matrix.shape[0]} cells x {matrix.shape[1]} genes are too few for {width} components"
        remedy = "compare a model with a narrower latent" if of_genes else "evaluate more cells"
        raise InputError("too-few-cells", what, "evaluate", remedy)
    target = None if slot is None else coordinates_of(adata.obsm, slot)
    cells = Cells(matrix, adata.obs[read] if read else None, target)
    mixed = batches_to_mix(adata, batch_key, keys)
    truth = None if labels is None else adata.obs[labels].to_numpy(dtype=object, na_value=np.nan)
    _warn_of_labels(truth, labels)
    scored, others, which = apart(model, sample, cells, seed)
    methods: dict[str, Method] = {"model": Trained(model), "pca": Principal(model, others, width, seed)}
    if width != WIDE and min(others.matrix.shape) > WIDE:
        methods["pca_50"] = Principal(model, others, WIDE, seed)
    methods["gene_mean"] = GeneMean(model, others)
    molecules = model.reads_counts and whole(cells.matrix)
    parts = thin(scored, seed) if molecules and which != "seen" else None
    seen_twice = views(cells, seed, n_neighbors) if molecules else None
    floor, rows = GeneMean(model, cells).mean, {}
    for name, method in methods.items():
        decodes = name != "model" or model.config.decodes
        nll = heldout_nll(method, *parts, others, floor) if decodes and parts is not None else np.nan
        error = reconstruction_mse(method, scored, model) if decodes else np.nan
        scores = {"heldout_nll": nll, "reconstruction_mse": error} | neighbor_scores(method, seen_twice)
        rows[name] = scores | _of_latent(method.latent(cells), truth, mixed, seed)
    if mixed is not None:
        components = methods["pca"].latent(cells)
        corrected = None if components is None else harmonized(components, mixed, seed)
        rows |= {} if corrected is None else {"harmony": _of_latent(corrected, truth, mixed, seed)}
    table = pd.DataFrame(rows).T
    if mixed is not None:
        warn_of_merging(table, mixed, truth)
    if guard:
        table["invented_correlations"] = pd.Series(invented(model, cells, seed))
    moved = None
    if n_fits:
        asked: dict[str, Any] = {"truth": truth, "seeds": n_fits, "root": root, "seed": seed}
        moved = stability_of(model, sample, cells, methods["pca"], **asked)
    return Evaluation(table, matrix.shape[0], scored.matrix.shape[0], which, labels, moved)


def _warn_of_labels(truth: Any, labels: str | None) -> None:
    if truth is not None and not comparable(truth):
        logger.warning(
            "no clusters are scored: the labels %r are the same for all cells that have one, or for no two", labels
        )


def _of_latent(latent: Any, truth: Any, mixed: Any, seed: int) -> dict[str, float]:
    scores = cluster_scores(latent, truth, seed)
    return scores if mixed is None else scores | mixing_scores(latent, mixed, truth, seed)


def batches_to_mix(adata: anndata.AnnData, batch_key: str | list[str] | tuple[str, ...] | None, keys: list[str]) -> Any:
    """Return the name of the experimental batch of each cell, (n,), to score their mixing; None where there is nothing.

    ``keys`` are the columns of the fit, which may have a single batch here, or missing ones, and then are not scored.

    Raises
    ------
    ConfigError
        The columns of ``batch_key`` have missing values, or a single batch.
    """
    asked = batch_columns(batch_key)
    if not (asked or keys):
        return None
    key = tuple(asked or keys) if len(asked or keys) > 1 else (asked or keys)[0]
    column = batch_column(key, lambda name: obs_column(adata, name, what="batch_key"))
    if not asked and (pd.isna(column).any() or len(set(column)) < 2):
        return None
    codes, names = batches_of(column, batch_label(key), None)
    return np.array(names, dtype=object)[codes]


def _with_counts(model: Autoencoder, sample: Sample, allow_missing: float) -> tuple[csr_matrix, Sample]:
    # the counts that the model reads, and their cells; those without any can be neither compared nor scored
    with silent():
        matrix = model.aligned_matrix(sample.adata, sample.layer, allow_missing)
    if not model.reads_counts:
        return matrix, sample
    sizes, names = library_sizes(matrix), sample.adata.obs_names
    use = with_counts(sizes, names.__getitem__, "evaluate", matrix.shape[1], consequence="left out of the comparison")
    if use.all():
        return matrix, sample
    return matrix[use], sample._replace(adata=sample.adata[use], held_out=sample.held_out[use])


def _enough(max_cells: Any) -> int:
    # 1e4 is as good as 10_000
    if not (isinstance(max_cells, int | float | np.number) and float(max_cells).is_integer() and max_cells >= FEWEST):
        what = f"max_cells = {max_cells!r} is no number of cells that tells anything"
        raise ConfigError("bad-value", what, "max_cells", f"a whole number from {FEWEST} on")
    return int(max_cells)


def heldout_score(model: Autoencoder, data: anndata.AnnData, *, layer: str | None = None, seed: int = 0) -> float:
    """Return ``heldout_nll`` of :func:`evaluate` alone, for the cells held out in the fit; ConfigError if none."""
    sample = some_cells(model, data, layer, [], max_cells=data.n_obs, seed=seed)
    matrix, sample = _with_counts(model, sample, 0.0)
    refuse_not_whole(matrix, reads_counts=model.reads_counts)
    cells = Cells(matrix, _batches_of(model, sample.adata))
    refuse_none_held_out(float((sample.held_out >= 0).sum()))
    scored, others = cells.take(sample.held_out >= 0), cells.take(sample.held_out < 0)
    return heldout_nll(Trained(model), *thin(scored, seed), others, GeneMean(model, cells).mean)


def refuse_not_whole(matrix: csr_matrix, *, reads_counts: bool = True) -> None:
    """Raise a ConfigError for values that are not whole counts: no molecules can be set aside of them."""
    if not reads_counts or not whole(matrix):
        what = "no molecules can be set aside of values that are not whole counts"
        raise ConfigError("no-decoder", what, "search", "search with the raw counts, and leave transform='none' out")


def refuse_none_held_out(held_out: float) -> None:
    """Raise a ConfigError for no held-out cells, by their number or share."""
    if not held_out:
        remedy = "leave it out, or hold out a share of the cells: valid_fraction=0.1"
        raise ConfigError("bad-value", "no cells are held out of the fit to score it on", "valid_fraction", remedy)


def reconstruction_mse(method: Method, cells: Cells, model: Autoencoder) -> float:
    """Return the mean squared error of log-normalised expression, or of expression as it is."""
    x = input_of(model, cells.matrix)
    total, start = 0.0, 0
    for block in method.reconstructed(cells):
        stop = start + len(block)
        total += float(np.square(block - x[start:stop].toarray(), dtype=np.float64).sum())
        start = stop
    return total / float(x.shape[0] * x.shape[1])


def _batches_of(model: Autoencoder, adata: anndata.AnnData) -> Any:
    keys = model.training_.obs_columns if model.config.encodes_batches else []
    for key in keys:
        obs_column(adata, key, what="batch_key, categorical_keys or continuous_keys")
    return adata.obs[keys] if keys else None


def read_cells(model: Autoencoder, sample: Sample, allow_missing: float = 0.0) -> tuple[Cells, Sample]:
    """Return what a model reads of sampled cells, those without counts left out, and the cells themselves."""
    matrix, sample = _with_counts(model, sample, allow_missing)
    return Cells(matrix, _batches_of(model, sample.adata)), sample


def apart(model: Autoencoder, sample: Sample, cells: Cells, seed: int) -> tuple[Cells, Cells, Scored]:
    """Return the cells to score, those to fit the baselines to, and the kind of the first."""
    which: Scored = "new" if sample.new else "held-out"
    chosen = sample.held_out >= 0
    if sample.new:
        chosen = np.random.default_rng([seed, 6]).permutation(len(chosen)) < len(chosen) // 2
    elif not _same_totals(model, sample, cells):
        chosen[:] = False
    enough = chosen.sum() >= FEWEST and (~chosen).sum() > max(FEWEST, model.config.width)
    return (cells.take(chosen), cells.take(~chosen), which) if enough else (cells, cells, "seen")


def _only_numbered(model: Autoencoder) -> bool:
    # whether the names are numbers, which identify no cells
    if not model.valid_obs_.str.isdigit().all():
        return False
    n_fitted = len(model.valid_obs_) / max(given(model.training_.valid_fraction), 1e-9)
    return bool(model.valid_obs_.astype(float).max() <= n_fitted)


def _same_totals(model: Autoencoder, sample: Sample, cells: Cells) -> bool:
    # cells of other data may have the same names, but have other totals
    known = sample.held_out >= 0
    here = genes_of(sample.adata, model.layer_ if sample.layer is None else sample.layer)
    all_genes = model.var_names_.isin(here.astype(str)).all()
    if not (model.reads_counts and len(model.valid_sizes_) and all_genes):
        return not _only_numbered(model)
    sizes = model.valid_sizes_[sample.held_out[known]]
    return bool(np.allclose(library_sizes(cells.matrix)[known], sizes, rtol=1e-3))
