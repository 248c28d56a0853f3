"""Plots of models: training curves, scores beside PCA, gene pairs, recommendation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy import sparse

from anncoder.config import unknown_key
from anncoder.data.adata import RAW, genes_of, has_layer, matrix_of, resolve_layer, slot_label
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation.comparison import LESS_IS_BETTER, Evaluation
from anncoder.evaluation.selection.recommend import Recommendation
from anncoder.models import find, names
from anncoder.models.base import Autoencoder, refuse_no_model
from anncoder.pl.groups import PALETTE, groups_of
from anncoder.tl.expression import record_of, to_library_size
from anncoder.tl.slots import overwritten_by_scanpy

JITTER = 0.06  # in log(1 + counts): counts are integers, and equal pairs would hide each other


def history(source: Autoencoder | anndata.AnnData, *, key: str = "ae", ax: Axes | None = None) -> Axes:
    """Draw the training and validation loss of every epoch, and mark the epoch of the model's weights.

    Parameters
    ----------
    source
        A fitted model, or the AnnData it was written to.
    key
        Name of the results in the AnnData.
    ax
        Axes to draw into; None for new ones.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ConfigError
        The source is not a fitted model.
    InputError
        The AnnData has no results of that name.
    """
    losses, name, best = _training_of(source, key)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
    epochs = losses["epoch"].to_numpy() + 1
    ax.plot(epochs, losses["train_loss"], label="training", color=PALETTE[0])
    if "valid_loss" in losses:
        ax.plot(epochs, losses["valid_loss"], label="validation", color=PALETTE[1])
    watched = losses["valid_loss" if "valid_loss" in losses else "train_loss"].to_numpy()
    called = "best epoch" if watched[best] == np.nanmin(watched) else "weights are of epoch"
    ax.plot(epochs[best], watched[best], "o", color="black", label=f"{called}: {epochs[best]:.0f}")
    unit = find(name).config_class.loss_unit if name in names() else ""
    ax.set(xlabel="epoch", ylabel=f"loss, {unit}" if unit else "loss", title="training")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def recommendation(found: Recommendation) -> np.ndarray[Any, Any]:
    """Draw the scores of :func:`anncoder.recommend`, a row a method, the best at the top.

    Parameters
    ----------
    found
        What ``ac.recommend`` returned.

    Returns
    -------
    numpy.ndarray
        The two axes: molecules set aside, neighbour consistency.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if not isinstance(found, Recommendation):
        what = f"found is a {type(found).__name__}, not a recommendation"
        raise ConfigError("bad-value", what, "found", "found = ac.recommend(adata); ac.pl.recommendation(found)")
    table = found.table.iloc[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 1.3 + 0.27 * len(table)), layout="constrained", sharey=True)
    rows = np.arange(len(table))
    colors = np.where(table["model"] == "pca", PALETTE[1], PALETTE[0])
    loss, shares = table["heldout_nll"].to_numpy(float), table["neighbor_consistency"].to_numpy(float)
    axes[0].hlines(rows, loss - table["se"].to_numpy(float), loss + table["se"].to_numpy(float), colors=colors)
    axes[0].scatter(loss, rows, c=colors, zorder=2)
    axes[1].scatter(shares, rows, c=colors)
    axes[0].set(
        yticks=rows, yticklabels=table.index, xlabel="nats a cell, lower is better", title="molecules set aside"
    )
    axes[1].set(xlabel="share, higher is better", title="neighbour consistency")
    chosen = int(rows[table.index == found.denoising.method][0])
    axes[0].scatter(loss[chosen], chosen, s=130, facecolors="none", edgecolors="black", zorder=3)
    for ax in axes:
        ax.grid(axis="y", linewidth=0.4, alpha=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    names = (("autoencoder", PALETTE[0]), ("PCA", PALETTE[1]))
    handles = [Line2D([], [], linestyle="", marker="o", color=color, label=name) for name, color in names]
    handles.append(
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=10,
            markerfacecolor="none",
            color="black",
            label="for denoising",
        )
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return np.asarray(axes)


def evaluation(found: Evaluation) -> np.ndarray[Any, Any]:
    """Draw the table of :func:`anncoder.evaluate`: a panel a score, a row a method, the best of each filled.

    Parameters
    ----------
    found
        What ``ac.evaluate`` returned.

    Returns
    -------
    numpy.ndarray
        The axes, one a score.

    Raises
    ------
    ConfigError
        It is something else.
    """
    if not isinstance(found, Evaluation):
        what = f"found is a {type(found).__name__}, not an evaluation"
        raise ConfigError("bad-value", what, "found", "found = ac.evaluate(model, adata); ac.pl.evaluation(found)")
    table = found.table.dropna(axis=1, how="all").astype(float).iloc[::-1]
    across = min(4, table.shape[1])
    down = -(-table.shape[1] // across)
    size = (1.6 + 2.3 * across, down * (1.0 + 0.3 * len(table)))
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for ax in axes.ravel()[table.shape[1] :]:
        ax.set_axis_off()
    shown = axes.ravel()[: table.shape[1]]
    for ax, (name, values) in zip(shown, table.items(), strict=True):
        less = name in LESS_IS_BETTER
        best = values == (values.min() if less else values.max())
        colors = np.array([PALETTE[0] if method == "model" else PALETTE[1] for method in table.index])
        ax.scatter(
            values, range(len(table)), s=46, c=np.where(best, colors, "white"), edgecolors=colors, linewidths=1.6
        )
        ax.set(yticks=range(len(table)), yticklabels=table.index)
        ax.set_title(f"{str(name).replace('_', ' ')} {'↓' if less else '↑'}", fontsize=10)
        ax.margins(x=0.18, y=0.25)
        ax.locator_params(axis="x", nbins=4)
        ax.grid(axis="y", linewidth=0.4, alpha=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    figure.supxlabel("↓ less is better, ↑ more is better; filled: the best", fontsize=9)
    return np.asarray(shown)


def gene_pair(
    adata: anndata.AnnData,
    gene_x: str,
    gene_y: str,
    *,
    layer: str | None = None,
    key: str = "ae",
    color: str | None = None,
) -> np.ndarray[Any, Any]:
    """Draw two genes against each other, as counted and as denoised, on the same axes.

    Counts are jittered, so that equal pairs do not hide each other. For a layer written with ``scale="normalized"``,
    the measured counts are scaled to the same library size, cell by cell.

    Parameters
    ----------
    adata
        Cells with the denoised layer ``"{key}_denoised"``.
    gene_x, gene_y
        Names of the genes.
    layer
        Where the raw counts are; None for the layer of the fit, ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw``.
    key
        Name of the results.
    color
        obs column of categories, or None.

    Returns
    -------
    numpy.ndarray
        The two axes.

    Raises
    ------
    ConfigError
        There is no such gene, layer or column.
    InputError
        There is no denoised layer of this name.
    """
    if f"{key}_denoised" not in adata.layers:
        what = f"there is no {slot_label(f'{key}_denoised')}"
        raise InputError("not-denoised", what, "layers", "ac.tl.denoise(adata, model)")
    results = results_of(adata, key)
    read = json.loads(results["params_json"])
    counts = read["hyperparameters"]["transform"] != "none"
    layer = resolve_layer(read["layer"] if layer is None else layer, adata.layers)
    groups = groups_of(adata, color)
    raw, denoised = (gene_columns(adata, (gene_x, gene_y), slot) for slot in (layer, f"{key}_denoised"))
    refuse_no_values(denoised, (gene_x, gene_y))
    scale = results.get("denoised_scale")
    normalized = counts and scale in ("normalized", "log1p")
    denoised = np.expm1(denoised) if scale == "log1p" else denoised
    if normalized:
        raw = raw * to_library_size(adata, matrix_of(adata, layer), layer, record_of(adata, key))[:, None]
    if counts:
        moved = np.random.default_rng(0).uniform(-JITTER, JITTER, raw.shape)
        raw, denoised = np.log1p(raw) + moved, np.log1p(denoised)
    of = ("normalized counts" if normalized else "counts") if counts else "expression"
    figure, axes = plt.subplots(1, 2, figsize=(8.8, 4.6), layout="constrained", sharex=True, sharey=True)
    for ax, title, points in zip(axes, ("measured", "denoised"), (raw, denoised), strict=True):
        groups.scatter(ax, points, size=14)
        ax.set(title=f"{title} {of}", xlabel=f"{gene_x}, log(1 + {of})" if counts else gene_x)
        ax.set_box_aspect(1)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"{gene_y}, log(1 + {of})" if counts else gene_y)
    groups.legend(figure)
    return np.asarray(axes)


def _training_of(source: Any, key: str) -> tuple[Any, str, int]:
    # the history of the loss, the name of the model, and the epoch of its weights
    if isinstance(source, anndata.AnnData):
        read = results_of(source, key)
        params = json.loads(read["params_json"])
        return read["history"], params["model"], params["best_epoch"]
    refuse_no_model(source)
    return source.history_, source.name, source.best_epoch_


def gene_columns(adata: anndata.AnnData, genes: Sequence[str], layer: str | None) -> np.ndarray[Any, Any]:
    """Return genes of a layer as they are, (n_obs, n_genes)."""
    if layer is not None and not has_layer(adata, layer):
        raise unknown_key(layer, [str(name) for name in adata.layers if name is not None], where="layer")
    var_names = genes_of(adata, layer)
    for gene in genes:
        if gene not in var_names:
            raise unknown_key(gene, list(var_names.astype(str)), where=f"{'raw.' * (layer == RAW)}var_names")
    matrix = matrix_of(adata, layer)
    # one by one: HDF5 takes columns in their order only, and none twice
    places = (np.flatnonzero(var_names == gene)[:1] for gene in genes)
    columns = [matrix[:, place] for place in places]
    return np.hstack([c.toarray() if sparse.issparse(c) else np.asarray(c) for c in columns])


def refuse_no_values(denoised: np.ndarray[Any, Any], genes: Sequence[str]) -> None:
    """Raise an InputError for denoised genes that the model was fitted without."""
    for gene, values in zip(genes, denoised.T, strict=True):
        if np.isnan(values).all():
            what = f"{gene!r} has no denoised values: the model was fitted without it"
            raise InputError("not-denoised", what, "var_names", "fit all genes: ac.tl.autoencode(adata, mask_var=None)")


def results_of(adata: anndata.AnnData, key: str) -> Any:
    """Return our record in uns; an InputError if there is none."""
    if overwritten_by_scanpy(adata, key):
        remedy = f"write them under another name, key_added; scanpy's own key_added should not be {key!r}"
        raise InputError("no-results", f"uns[{key!r}] holds no results of anncoder: scanpy wrote there", "uns", remedy)
    if not isinstance(adata.uns.get(key), Mapping) or "history" not in adata.uns[key]:
        what = f"uns[{key!r}] holds no results of anncoder"
        raise InputError("no-results", what, "uns", "ac.tl.autoencode(adata) first")
    return adata.uns[key]
