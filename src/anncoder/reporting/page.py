"""Report on a fitted model: data, training, scores, maps and genes in one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import anndata
import jinja2
import numpy as np
import pandas as pd

from anncoder.config import TrainingConfig, given
from anncoder.data.adata import genes_of, slot_label
from anncoder.data.matrix.notes import silent
from anncoder.data.opening import open_stores
from anncoder.data.sources import Data
from anncoder.errors import ConfigError, InputError, counted
from anncoder.evaluation.baselines import Cells, Principal, Trained
from anncoder.evaluation.cells import Sample, some_cells
from anncoder.evaluation.comparison import WHICH, Evaluation, apart, evaluate, read_cells
from anncoder.evaluation.stability import seeds_given
from anncoder.io.atomic import atomic_path, same_file
from anncoder.io.model_folder import versions
from anncoder.io.output_paths import refuse_output
from anncoder.models import names
from anncoder.models.base import Autoencoder, refuse_no_model
from anncoder.pl.groups import Groups
from anncoder.reporting.diagnosis import Finding, diagnose
from anncoder.reporting.genes import best_and_worst, explained_genes
from anncoder.reporting.maps import checked_groups, legend_of, loss_curves, maps_of
from anncoder.reporting.repeat import Asked, changed_settings, python_lines, shell_lines
from anncoder.reporting.scores import table_of, verdicts
from anncoder.reporting.stability import section_of
from anncoder.tl.slot_files import open_cells
from anncoder.tl.slots import of_another

CELLS = 5000  # compared, drawn and diagnosed; of more, a sample


@dataclass(frozen=True)
class ModelReport:
    """Result of :func:`report`; a notebook shows it.

    Attributes
    ----------
    fragment
        The report as part of a page, with its own style; scripts and frames it has none.
    title
        Its title.
    findings
        The diagnoses of the training.
    evaluation
        The scores, or None where there were too few cells to compare.
    genes
        Share of each gene explained, of :func:`anncoder.reporting.genes.explained_genes`; empty where the model has no
        decoder, or there were too few cells.
    """

    fragment: str
    title: str
    findings: list[Finding]
    evaluation: Evaluation | None
    genes: pd.DataFrame

    @property
    def html(self) -> str:
        """The whole page."""
        return _rendered("document.html.jinja", title=self.title, fragment=self.fragment)

    def _repr_html_(self) -> str:
        return self.fragment

    def __repr__(self) -> str:
        said = "\n".join(f"- {finding.text}" for finding in self.findings)
        return f"{self.title}\n{said}\nreport.write('report.html') writes the page"

    def write(self, path: str | Path) -> None:
        """Write the page, whole or not at all.

        Raises
        ------
        ConfigError
            The name does not end in ``.html``.
        ResourceError
            Its folder does not exist or cannot be written.
        """
        output = Path(path).expanduser()
        refuse_output(output, suffix=".html")
        with atomic_path(output) as temporary:
            temporary.write_text(self.html, encoding="utf-8")


def report(
    adata: Data,
    model: Autoencoder,
    *,
    output: str | Path | None = None,
    labels: str | None = None,
    key: str = "ae",
    layer: str | None = None,
    guard: bool = False,
    seeds: int | None = None,
    root: str | None = None,
    max_cells: int = CELLS,
    seed: int = 0,
    evaluation: Evaluation | None = None,
) -> ModelReport:
    """Report on a fitted model: what the data are, how training went, scores beside PCA, maps and genes.

    Parameters
    ----------
    adata
        The cells, (n_obs, n_vars): AnnData or files, best those of the fit, of which it held some out. Only read.
    model
        A fitted model.
    output
        The ``.html`` file to write; None for none.
    labels
        obs column with the cell types, which the clusters are compared with and the maps coloured by; None for none.
    key
        Name of the results in the data. Where ``obsm["X_umap"]`` is of neighbours in ``obsm["X_{key}"]``, or
        ``obsm["X_umap_{key}"]`` is there, and one of PCA too, these are the maps; else t-SNE is computed.
    layer
        Where the counts are; None for the layer of the fit, ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw``.
    guard
        Count the correlations that denoising invents, which takes another fit.
    seeds, root
        Fit again with other seeds, to so many fits, and say how much clusters, neighbours and pseudotime (from the cell
        of that name) differ between them, as in :func:`anncoder.evaluate`; None for no other fit.
    max_cells
        Cells to compare, diagnose and draw; more are sampled.
    seed
        Start of every random stream.
    evaluation
        What :func:`anncoder.evaluate` returned for these cells, if it was called before; None for a call here.

    Returns
    -------
    ModelReport
        The page; ``write`` writes it.

    Raises
    ------
    ConfigError
        There is no such obs column, it has more values than a picture has colours, the output does not end in
        ``.html`` or is the input, or the model is not fitted.
    InputError
        The data do not fit the model: other genes, other values.
    ResourceError
        The folder of the output does not exist or cannot be written.

    Examples
    --------
    >>> import anncoder as ac
    >>> adata = ac.datasets.simulate(n_obs=120, n_vars=60, n_groups=3, seed=1)
    >>> model = ac.CountAutoencoder(n_latent=2).fit(adata, max_epochs=4, progress=False)
    >>> page = ac.report(adata, model, labels="group")
    >>> page.write("report.html")  # doctest: +SKIP
    """
    refuse_no_model(model)
    TrainingConfig.refuse_value("seed", seed)
    seeds_given(seeds, root)
    if output is not None:
        refuse_report(Path(output).expanduser(), adata)
    columns = [name for name in (labels, *_batch_columns(model, fits_again=bool(guard or seeds))) if name is not None]
    sample = some_cells(model, adata, layer, columns, max_cells=max_cells, seed=seed)
    sample = sample._replace(adata=_with_slots(sample.adata, adata, key, labels))
    groups = checked_groups(sample.adata, labels)
    cells, sample = read_cells(model, sample)
    if len(groups.codes) != sample.adata.n_obs:  # some have no counts
        groups = checked_groups(sample.adata, labels)
    if evaluation is None:
        again = {"guard": guard, "seeds": seeds, "root": root}
        evaluation = _evaluated(model, adata, labels=labels, layer=layer, max_cells=max_cells, seed=seed, **again)
    moved = None if evaluation is None else evaluation.stability
    fits = (0, None) if moved is None else (len(moved.fits) - 1, moved.root)
    asked = Asked(_path_of(adata), labels, key, layer, guard, *fits, seed)
    found = _made(model, _total(adata, sample), sample, cells, groups, evaluation, asked)
    if output is not None:
        found.write(output)
    return found


def refuse_report(output: Path, data: Any) -> None:
    """Raise an error for an output that cannot be written, or is one of the inputs, before any work is done."""
    for path in data if isinstance(data, list) else [data]:
        if isinstance(path, str | Path) and same_file(Path(path).expanduser(), output):
            raise ConfigError("output-is-input", "the output is the input", str(output), "choose another name (-o)")
    refuse_output(output, suffix=".html")


def _batch_columns(model: Autoencoder, *, fits_again: bool) -> list[str]:
    # other fits may need batches and covariates that embedding does not
    return model.training_.obs_columns if model.config.encodes_batches or fits_again else []


def _evaluated(model: Autoencoder, data: Data, **options: Any) -> Evaluation | None:
    try:
        return evaluate(model, data, **options)
    except InputError as error:
        if error.code != "too-few-cells":
            raise
        return None


def _path_of(data: Any) -> str | None:
    if isinstance(data, anndata.AnnData):
        return str(data.filename) if data.isbacked else None
    return str(data) if isinstance(data, str | Path) else None


def _total(data: Any, sample: Sample) -> int:
    if hasattr(data, "n_obs"):
        return int(data.n_obs or sample.adata.n_obs)
    stores = open_stores(data, None)
    return sample.adata.n_obs if stores is None else sum(store.n_obs for store in stores)


def _with_slots(cells: anndata.AnnData, data: Any, key: str, labels: str | None) -> anndata.AnnData:
    # of a file: its maps and colours, for the sampled cells
    if not isinstance(data, str | Path) or not Path(data).expanduser().exists() or not cells.obs_names.is_unique:
        return cells
    colors = [] if labels is None else [f"{labels}_colors"]
    with open_cells(
        Path(data).expanduser(), obsm=["X_umap", "X_umap_pca", f"X_umap_{key}"], uns=["neighbors", *colors]
    ) as file:
        if file.cells.obs_names.is_unique:
            rows = file.cells.obs_names.get_indexer(cells.obs_names)
            for name, values in file.cells.obsm.items():
                cells.obsm[name] = np.asarray(values)[rows]
        cells.uns.update(file.cells.uns)
    return cells


def _made(
    model: Autoencoder,
    n_obs: int,
    sample: Sample,
    cells: Cells,
    groups: Groups,
    evaluation: Evaluation | None,
    asked: Asked,
) -> ModelReport:
    seed, maps, genes, adata = asked.seed, [], pd.DataFrame(), sample.adata
    latent: Any = Trained(model).latent(cells)
    findings = diagnose(model, latent)
    scored, others, which = apart(model, sample, cells, seed)
    if min(others.matrix.shape) > model.config.width:
        pca = Principal(model, others, model.config.width, seed).latent(cells)
        key = "" if isinstance(adata, anndata.AnnData) and of_another(adata, model, asked.key) else asked.key
        maps = maps_of(adata, key, latent, pca, groups, seed)
        if model.config.decodes:
            with silent():
                genes = explained_genes(model, scored, others, seed)
    title = f"Report: {model.name} autoencoder of {counted(n_obs, 'cell')}"
    fragment = _rendered(
        "report.html.jinja",
        title=title,
        findings=findings,
        data=_data_rows(model, n_obs, cells, adata, asked),
        trained=_model_rows(model),
        settings=_all_settings(model),
        curves=loss_curves(model.history_, model.best_epoch_, model.config.loss_unit),
        epochs=len(model.history_),
        table=None if evaluation is None else table_of(evaluation),
        verdicts=[] if evaluation is None else verdicts(evaluation),
        scored=None if evaluation is None else f"{evaluation.n_scored:,} cells scored: {WHICH[evaluation.scored]}.",
        guard="invented_correlations" in ([] if evaluation is None else evaluation.table),
        stability=None if evaluation is None or evaluation.stability is None else section_of(evaluation.stability),
        maps=maps,
        legend=legend_of(groups),
        labels=asked.labels,
        **_gene_words(model, genes, which),
        shell=shell_lines(model, asked),
        python=python_lines(model, asked),
        versions=versions(),
    )
    return ModelReport(fragment, title, findings, evaluation, genes)


def _gene_words(model: Autoencoder, genes: pd.DataFrame, which: str) -> dict[str, Any]:
    best, worst = best_and_worst(genes) if len(genes) else (genes, genes)
    of = {"held-out": "cells that the fit held out", "new": "new cells", "seen": "cells that the model was fitted to"}
    return {
        # without the sign of a zero
        "best": list((best.round(3) + 0.0).itertuples()),
        "worst": list((worst.round(3) + 0.0).itertuples()),
        "gene_cells": of[which],
        "counts": model.reads_counts,
        "n_genes": len(genes),
        "median": {} if genes.empty else {name: float(genes[name].median()) for name in ("model", "pca")},
    }


def _data_rows(
    model: Autoencoder, n_obs: int, cells: Cells, adata: anndata.AnnData, asked: Asked
) -> list[tuple[str, str]]:
    matrix = cells.matrix
    of = f" (of {counted(matrix.shape[0], 'sampled cell')})" if matrix.shape[0] < n_obs else ""
    layer = model.layer_ if asked.layer is None else asked.layer
    rows = [
        ("data", asked.data or "an AnnData in memory, or several files"),
        ("cells", f"{n_obs:,}"),
        ("genes read by the model", f"{len(model.var_names_):,}, from {slot_label(None if layer == 'X' else layer)}"),
        ("genes in the data", f"{len(genes_of(adata, layer)):,}"),
    ]
    if model.reads_counts:
        sizes, found = np.asarray(matrix.sum(axis=1)).ravel(), np.diff(matrix.indptr)
        low, middle, high = np.quantile(sizes, [0.05, 0.5, 0.95])
        rows += [
            (f"molecules a cell{of}", f"median {middle:,.0f}; nine of ten cells have {low:,.0f} to {high:,.0f}"),
            (f"genes found in a cell{of}", f"median {np.median(found):,.0f}"),
        ]
    zeros = 1 - matrix.count_nonzero() / max(1, matrix.shape[0] * matrix.shape[1])
    rows.append((f"zeros{of}", f"{zeros:.1%}"))
    if asked.labels is not None:
        rows.append(("labels", asked.labels))
    if model.batches_:
        rows.append(("experimental batches", f"{len(model.batches_)}, of {model.training_.batch_key}"))
    if model.covariates_.keys:
        rows.append(("covariates", ", ".join(model.covariates_.keys)))
    return rows


def _model_rows(model: Autoencoder) -> list[tuple[str, str]]:
    network: Any = model.network_
    history, best = model.history_, model.best_epoch_
    watched = "valid_loss" if "valid_loss" in history else "train_loss"
    unit = model.config.loss_unit or "no unit"
    about = (type(model).__doc__ or "").strip().partition("\n")[0]
    return [
        ("model", repr(model).partition("  #")[0]),
        ("what it is", about if model.name in names() else "a model from outside of anncoder"),
        ("latent units", str(model.config.width)),
        ("parameters", f"{sum(parameter.numel() for parameter in network.parameters()):,}"),
        ("held out", counted(len(model.valid_obs_), "cell")),
        ("training", f"{counted(len(history), 'epoch')}, {history['seconds'].sum():.1f} s"),
        (
            f"best {'validation' if watched == 'valid_loss' else 'training'} loss",
            f"{history[watched].iloc[best]:.5g} ({unit}), epoch {best + 1}",
        ),
        ("seed, threads", f"{model.training_.seed}, {given(model.training_.threads)}"),
    ]


def _all_settings(model: Autoencoder) -> list[tuple[str, str, bool]]:
    changed = {**changed_settings(model)[0], **changed_settings(model)[1]}
    every = model.config.model_dump(mode="json") | model.training_.model_dump(mode="json")
    return [(name, "none" if value is None else str(value), name in changed) for name, value in every.items()]


@cache
def _environment() -> jinja2.Environment:
    def source(name: str) -> str:
        return (files("anncoder.reporting") / name).read_text(encoding="utf-8")

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _rendered(template: str, **values: Any) -> str:
    text = _environment().get_template(template).render(**values)
    # names of files need not be UTF-8
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
