"""Plots of population dynamics (velocity, growth, sizes, CDFs) and balance (fates)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.errors import InputError, listed
from anncoder.pl.groups import PALETTE

INK, BAND = PALETTE[0], 0.22
MOST_FATES = 5  # panels


def dynamics(adata: anndata.AnnData, *, key: str = "dynamics") -> np.ndarray[Any, Any]:
    """Draw fitted population dynamics: distributions, velocity, growth with bands of 95 %, sizes.

    Parameters
    ----------
    adata
        The AnnData that :func:`anncoder.tl.dynamics` wrote to.
    key
        Name of the results.

    Returns
    -------
    numpy.ndarray
        The four axes, (2, 2): CDFs measured and fitted, sizes; velocity, growth.

    Raises
    ------
    InputError
        There are no such results.
    """
    found = _results(adata, key, "ac.tl.dynamics(adata, time_key, coordinate, sizes=sizes)", "cdf_fitted")
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 6.6), layout="constrained")
    settings = json.loads(found["params_json"])
    name, unit = settings["coordinate"], settings["time_key"]
    _distributions(axes[0, 0], found, name, unit)
    _sizes(axes[0, 1], found, unit)
    s, inside = found["s"], _measured(found)
    for ax, curve, label in ((axes[1, 0], "v", "velocity"), (axes[1, 1], "g", "net growth")):
        ax.fill_between(s, found[f"{curve}_low"], found[f"{curve}_high"], color=INK, alpha=BAND, linewidth=0)
        ax.plot(s, found[curve], color=INK, linewidth=2)
        shown = np.concatenate([found[f"{curve}_{end}"][inside] for end in ("low", "high")])
        margin = 0.08 * max(np.ptp(shown), 1e-12)
        bottom = 0.0 if curve == "v" else min(0.0, shown.min()) - margin
        ax.set(xlim=(0, 1), ylim=(bottom, max(0.0, shown.max()) + margin))
        ax.set(xlabel=name, ylabel=f"{label} per unit of {unit}", title=f"{label}, 95 %")
    axes[1, 1].axhline(0, color="0.5", linewidth=0.8, zorder=0)
    axes[1, 0].set_title(f"velocity, 95 %{_diffusion(found)}")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return np.asarray(axes)


def _measured(found: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    # where cells are: elsewhere the bands say nothing, and would set the scale
    cdfs = np.asarray(found["cdf_measured"])
    low, high = (cdfs > 0.005).any(axis=0), (cdfs < 0.995).any(axis=0)
    inside = np.interp(found["s"], found["faces"], (low & high).astype(float)) > 0.5
    return inside if inside.any() else np.ones(len(found["s"]), dtype=bool)


def _distributions(ax: Axes, found: Mapping[str, Any], name: str, unit: str) -> None:
    times = np.asarray(found["sizes"]["time"])
    shades = colormaps["viridis"](np.linspace(0, 0.88, len(times)))
    for time, shade, measured, fitted in zip(times, shades, found["cdf_measured"], found["cdf_fitted"], strict=True):
        ax.plot(found["faces"], measured, color=shade, linewidth=4, alpha=0.35)
        ax.plot(found["faces"], fitted, color=shade, linewidth=1.6, label=f"{time:g}")
    ax.set(xlim=(0, 1), ylim=(0, 1), xlabel=name, ylabel="share of cells below", title="cells: measured (wide), fitted")
    ax.legend(title=unit, frameon=False, loc="lower right", fontsize="small", title_fontsize="small")


def _sizes(ax: Axes, found: Mapping[str, Any], unit: str) -> None:
    sizes = found["sizes"]
    size, error = (np.asarray(sizes[column], dtype=float) for column in ("size", "log_sd"))
    bars = [size * (1 - np.exp(-1.96 * error)), size * (np.exp(1.96 * error) - 1)]
    ax.plot(found["curve_times"], found["curve_sizes"], color=INK, linewidth=2, label="fitted", zorder=1)
    ax.errorbar(sizes["time"], size, bars, fmt="o", color="black", capsize=3, markersize=5, label="measured, 95 %")
    ax.set(yscale="log", xlabel=unit, ylabel="size of the population", title="sizes")
    if size.max() < 30 * size.min():  # less than two decades have no ticks of their own
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value:.0e}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        low, high = min(size.min(), min(sizes["fitted"])), max(size.max(), max(sizes["fitted"]))
        steps = (
            np.array([1, 2, 5]) * 10.0 ** np.arange(np.floor(np.log10(low)) - 1, np.ceil(np.log10(high)) + 1)[:, None]
        )
        ax.set_yticks([tick for tick in steps.ravel() if low / 1.6 <= tick <= high * 1.6])
    ax.legend(frameon=False)


def _diffusion(found: Mapping[str, Any]) -> str:
    low, high = found["profile"]["interval"]
    one = len(np.unique(found["D"])) == 1
    return f"; D = {found['D'][0]:.2g} ({low:.2g} to {high:.2g})" if one else ""


def balance(adata: anndata.AnnData, *, basis: str = "X_umap", key: str = "balance") -> np.ndarray[Any, Any]:
    """Draw the potential of a population balance and the fates on an embedding, cells of high values on top.

    Parameters
    ----------
    adata
        The AnnData that :func:`anncoder.tl.balance` wrote to.
    basis
        Slot of obsm, of which the first two columns are drawn.
    key
        Name of the results.

    Returns
    -------
    numpy.ndarray
        The axes: the potential, and one for each of the first five fates.

    Raises
    ------
    ConfigError
        There is no such slot of obsm.
    InputError
        There are no such results, or the slot has a single column.
    """
    found = _results(adata, key, "ac.tl.balance(adata, labels=..., entry=..., exits=...)", "names")
    if basis not in adata.obsm:
        raise unknown_key(basis, [str(name) for name in adata.obsm], where="basis (a slot of obsm)")
    points = np.asarray(adata.obsm[basis])
    if points.ndim != 2 or points.shape[1] < 2:
        what = f"obsm[{basis!r}] has a single column, and a picture has two axes"
        raise InputError("bad-coordinates", what, f"obsm[{basis!r}]", "draw another slot, such as X_umap")
    fates, names = np.asarray(adata.obsm[f"{key}_fates"]), list(found["names"])[:MOST_FATES]
    values = np.asarray(obs_column(adata, f"{key}_V", what="key"))
    panels = [("potential", values, "cividis", (values.min(), values.max()))]
    panels += [(f"fate: {name}", fates[:, k], "viridis", (0.0, 1.0)) for k, name in enumerate(names)]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.4), layout="constrained", squeeze=False)
    for ax, (title, numbers, colors, (low, high)) in zip(axes[0], panels, strict=True):
        order = np.argsort(numbers, kind="stable")
        x, y = points[order, :2].T
        size = float(np.clip(12_000 / adata.n_obs, 1, 18))
        drawn = ax.scatter(x, y, c=numbers[order], s=size, cmap=colors, vmin=low, vmax=high, linewidths=0)
        ax.set(title=title, xticks=[], yticks=[])
        ax.set_box_aspect(1)
        ax.spines[:].set_visible(False)
        bar = figure.colorbar(drawn, ax=ax, shrink=0.75)
        bar.outline.set_visible(False)
    return np.asarray(axes[0])


def _results(adata: anndata.AnnData, key: str, remedy: str, needed: str) -> Mapping[str, Any]:
    found = adata.uns.get(key)
    if not isinstance(found, Mapping) or needed not in found:
        what = f"there are no results in uns[{key!r}]; uns has {listed(adata.uns) or 'nothing'}"
        raise InputError("no-results", what, "uns", remedy)
    return found
