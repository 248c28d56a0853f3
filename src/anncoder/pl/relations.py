"""Plots of gene relations: two genes with their densities (DREVI), drivers of a fate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from anncoder.config import unknown_key
from anncoder.dynamics.genes import dremi
from anncoder.dynamics.genes.relations import dremi_with, shuffles_of, significance
from anncoder.errors import ConfigError, InputError
from anncoder.pl.groups import PALETTE
from anncoder.tl.expression import Expression, given, measured, refuse_no_cells
from anncoder.tl.time_series.relations import SMOOTH, refuse_few, source_values

JITTER = 0.03  # in log(1 + counts), of measured values: many cells have the same counts
DECADES = 1000  # from the darkest to the brightest colour of the joint density
LEVELS = (0.05, 0.01)  # q values that are marked by colour


def drevi(
    adata: anndata.AnnData,
    source: str,
    target: str,
    *,
    layer: str | None = None,
    key: str = "ae",
    counts: str | None = None,
    n_shuffles: int = 20,
    seed: int = 0,
) -> np.ndarray[Any, Any]:
    """Draw a gene against another: measured cells, joint density, and density of the target given the source (DREVI).

    The line is the mean of the target at each level of the source. On denoised values the two densities show the
    network as much as the cells (:func:`anncoder.tl.gene_relations`); the first panel shows what was measured.

    Parameters
    ----------
    adata
        Cells, (n_obs, n_vars).
    source, target
        Names of the genes.
    layer
        Layer with smooth values; None for ``layers["{key}_denoised"]``.
    key
        Name of the model's results.
    counts
        Where measured values are, counts or logged; None for the layer of the fit.
    n_shuffles
        Shuffles of the source, for the null of the score.
    seed
        Start of the shuffles.

    Returns
    -------
    numpy.ndarray
        The three axes.

    Raises
    ------
    ConfigError
        There is no such gene or layer.
    InputError
        Raw counts or other tied values, a constant gene, fewer than 50 cells.
    """
    refuse_no_cells(adata)
    refuse_few(adata.n_obs)
    smooth, seen = given(adata, layer, key), measured(adata, counts, key)
    if smooth.kind == "counts":
        raise InputError("tied-values", f"{smooth.slot} holds raw counts: ties have no density", smooth.slot, SMOOTH)
    x, y = (
        source_values(smooth, _known(gene, smooth, where)) for gene, where in ((source, "source"), (target, "target"))
    )
    joint = dremi.joint_density(dremi.source_axis(x), dremi.axis(y))
    figure, axes = plt.subplots(1, 3, figsize=(12.4, 4.2), layout="constrained")
    _scatter(axes[0], *(_measured(seen, gene, seed + i) for i, gene in enumerate((source, target))))
    _image(figure, axes[1], joint, x, y, "share of cells", LogNorm(joint.max() / DECADES, joint.max()))
    conditional = dremi.drevi(joint)
    highest = conditional.max(axis=1, keepdims=True)  # or the narrowest level would be all that is seen
    _image(figure, axes[2], conditional / highest, x, y, f"density given {source}, of its highest")
    at, levels = _centres(x), _centres(y)
    axes[2].plot(at, conditional @ levels, color="white", linewidth=3.2)
    axes[2].plot(at, conditional @ levels, color=PALETTE[3], linewidth=1.8, label=f"mean of {target}")
    axes[2].legend(loc="best", fontsize="small")
    for ax, title in zip(axes, ("measured", "joint density", _in_title(x, y, n_shuffles, seed)), strict=True):
        ax.set(title=title, xlabel=source, ylabel=target)
        ax.set_box_aspect(1)
    return np.asarray(axes)


def _known(gene: str, expression: Expression, where: str) -> str:
    if gene not in expression.genes:
        raise unknown_key(gene, list(expression.genes.astype(str)), where=f"{where} (a gene of var_names)")
    return gene


def _in_title(x: Any, y: Any, n_shuffles: int, seed: int) -> str:
    found = dremi_with(x, shuffles_of(x, n_shuffles, seed))(y[:, None], np.array([0]))
    null = significance(found)
    return f"DREVI, DREMI {found.score[0]:.2f} bits\n(shuffled {null.null_mean[0]:.2f} ± {null.null_sd[0]:.2f})"


def _measured(expression: Expression, gene: str, seed: int) -> Any:
    places = expression.genes.get_indexer([gene])
    if places[0] < 0:
        raise unknown_key(gene, list(expression.genes.astype(str)), where=expression.slot)
    values = expression.columns(places)[:, 0]
    return values + np.random.default_rng(seed).uniform(-JITTER, JITTER, len(values)) * expression.logged


def _scatter(ax: Axes, x: Any, y: Any) -> None:
    ax.scatter(x, y, s=float(np.clip(12_000 / len(x), 1, 14)), color=PALETTE[0], alpha=0.4, linewidths=0)
    ax.spines[["top", "right"]].set_visible(False)


def _image(figure: Any, ax: Axes, density: Any, x: Any, y: Any, unit: str, norm: Any = None) -> None:
    extent = (x.min(), x.max(), y.min(), y.max())
    image = ax.imshow(density.T, origin="lower", extent=extent, aspect="auto", norm=norm, interpolation="nearest")
    image.set_cmap("viridis")
    figure.colorbar(image, ax=ax, label=unit, shrink=0.8)


def _centres(values: Any) -> Any:
    return values.min() + np.ptp(values) * (np.arange(dremi.BINS) + 0.5) / dremi.BINS


def drivers(adata: anndata.AnnData, *, n_genes: int = 20, key: str = "drivers", ax: Axes | None = None) -> Axes:
    """Draw the genes that go most with a fate, and most against it, by Welch's statistic and q value.

    Parameters
    ----------
    adata
        Cells with ``uns["drivers"]``, of :func:`anncoder.tl.drivers`.
    n_genes
        How many genes, half of them with the fate; fewer on one side leave room on the other.
    key
        Name of the results.
    ax
        Axes to draw into; None for new ones.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ConfigError
        ``n_genes`` is no positive whole number.
    InputError
        There are no results of that name.
    """
    given_number: Any = n_genes  # anything, from those who ignore the types
    if not isinstance(given_number, int | np.integer) or isinstance(n_genes, bool) or n_genes < 1:
        raise ConfigError("bad-value", f"n_genes = {n_genes!r}", "n_genes", "a whole number from 1 on")
    table, fate = _drivers_of(adata, key)
    up, down = table[table["t"] > 0], table[table["t"] <= 0]
    n_up = min(len(up), max(n_genes - n_genes // 2, n_genes - len(down)))
    shown = pd.concat([up.iloc[:n_up], down.iloc[len(down) - min(len(down), n_genes - n_up) :]])[::-1]
    if ax is None:
        _, ax = plt.subplots(figsize=(5.6, 1.4 + 0.24 * len(shown)), layout="constrained")
    rows, q = np.arange(len(shown)), shown["q"].to_numpy(float)
    colors = np.select([q < LEVELS[1], q < LEVELS[0]], [PALETTE[0], PALETTE[9]], default="#b8b8b8")
    ax.barh(rows, shown["t"], color=colors)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(yticks=rows, yticklabels=shown.index, xlabel="Welch's t", title=f"with and against the fate {fate}")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (PALETTE[0], PALETTE[9], "#b8b8b8")]
    ax.legend(handles, ["q < 0.01", "q < 0.05", "q ≥ 0.05"], loc="best", fontsize="small", frameon=False)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def _drivers_of(adata: anndata.AnnData, key: str) -> tuple[pd.DataFrame, str]:
    found = adata.uns.get(key)
    if not isinstance(found, Mapping) or "table" not in found or "fate" not in (params := found.get("params_json", "")):
        what = f"uns[{key!r}] holds no drivers of a fate"
        raise InputError("no-results", what, "uns", "ac.tl.drivers(adata, fate) first")
    table = found["table"].dropna(subset=["t"])
    if table.empty:
        remedy = "test other genes, or other cells: ac.tl.drivers(adata, fate, at=...)"
        raise InputError("no-results", f"no gene in uns[{key!r}] could be tested", "uns", remedy)
    return table, str(json.loads(params)["fate"])
