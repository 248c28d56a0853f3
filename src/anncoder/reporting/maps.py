"""Pictures of a report: maps of latent and PCA, and loss curves, as PNG in data URIs.

Names stand in the page, where they are escaped; in a picture matplotlib would read a ``$`` as mathematics.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from matplotlib.colors import is_color_like, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anncoder.pl.groups import PALETTE, SHAPES, Groups, groups_of
from anncoder.pl.layout import tsne

DRAWN = 5000  # cells at most
EMBEDDED = 2000  # by t-SNE, which takes seconds for them
SYMBOLS = dict(zip(SHAPES, "●■▲◆▼✚✖★◀▶", strict=True))
WIDE_RANGE = 100.0  # of losses, from which on their axis is logarithmic
INK = {"light": "#24292f", "dark": "#e6edf3"}


class Map(NamedTuple):
    """A picture of cells and its caption."""

    title: str
    how: str
    picture: str  # data URI


class Entry(NamedTuple):
    """A line of the legend."""

    name: str
    color: str
    symbol: str
    n_cells: int


def checked_groups(adata: anndata.AnnData, labels: str | None) -> Groups:
    """Return the groups of an obs column, with colours that are colours; see :func:`anncoder.pl.groups.groups_of`."""
    groups = groups_of(adata, labels)
    own = [PALETTE[i % len(PALETTE)] for i in range(len(groups.colors))]
    usable = [c if is_color_like(c) else instead for c, instead in zip(groups.colors, own, strict=True)]
    return groups._replace(colors=[to_hex(color) for color in usable])


def legend_of(groups: Groups) -> list[Entry]:
    """Return the legend, a line a group, with the number of its cells."""
    sizes = np.bincount(groups.codes[groups.codes >= 0], minlength=len(groups.names))
    shapes = [SYMBOLS[SHAPES[i // len(PALETTE)]] for i in range(len(groups.names))]
    lines = [Entry(*line) for line in zip(groups.names, groups.colors, shapes, sizes.tolist(), strict=False)]
    without = int((groups.codes < 0).sum())
    return [*lines, Entry("no label", groups.colors[-1], SYMBOLS["o"], without)] if without else lines


def maps_of(adata: anndata.AnnData, key: str, latent: Any, pca: Any, groups: Groups, seed: int) -> list[Map]:
    """Return maps of the latent and of PCA, made in the same way, and of what else the data have.

    Parameters
    ----------
    adata
        n cells; UMAPs in obsm are drawn as they are.
    key
        Name of the results: ``X_umap_{key}`` is the latent's, as is ``X_umap`` after neighbours of ``X_{key}``.
    latent, pca
        (n, k) coordinates of these cells.
    groups
        Their colours.
    seed
        Start of the sampling, and of t-SNE.
    """
    there = stored_maps(adata, key)
    both = {"latent", "PCA"} <= there.keys()
    found = {} if both else _computed(latent, pca, seed)
    shown = {title: (points, np.arange(adata.n_obs), how) for title, (points, how) in there.items()}
    if both:
        shown = {title: shown[title] for title in ("latent", "PCA")}
    else:  # two methods side by side would be compared with each other, not the latent with PCA
        shown = found | {how: panel for panel in shown.values() for how in [panel[2]]}
    return [_drawn(title, *panel, groups, seed) for title, panel in shown.items()]


def stored_maps(adata: anndata.AnnData, key: str) -> dict[str, tuple[Any, str]]:
    """Return the UMAPs in obsm by what they are of, ``"latent"``, ``"PCA"`` or their name: (n, 2), and the slot."""
    neighbors = adata.uns.get("neighbors", {})
    params = neighbors.get("params", {}) if hasattr(neighbors, "get") else {}
    rep = params.get("use_rep", "X_pca") if hasattr(params, "get") and params else ""
    of = {"X_umap": {f"X_{key}": "latent", "X_pca": "PCA"}.get(str(rep), "UMAP of the file")}
    of |= {"X_umap_pca": "PCA", f"X_umap_{key}": "latent"}
    found = {}
    for slot, title in of.items():
        points = np.asarray(adata.obsm[slot])[:, :2] if slot in adata.obsm else np.empty((0, 0))
        if points.shape == (adata.n_obs, 2) and np.issubdtype(points.dtype, np.number):
            found[title] = (points.astype(np.float64), f"obsm[{slot!r}]")
    return found


def _computed(latent: Any, pca: Any, seed: int) -> dict[str, tuple[Any, Any, str]]:
    n = len(latent)
    flat = latent.shape[1] == 2 or n < 8  # t-SNE would be of too few, or of what is a map already
    rows = np.sort(np.random.default_rng([seed, 11]).permutation(n)[: DRAWN if flat else EMBEDDED])
    how = "the first two axes" if flat else f"t-SNE of {len(rows):,} cells"
    return {
        title: (_axes(values[rows]) if flat else tsne(values[rows], seed=seed), rows, how)
        for title, values in (("latent", latent), ("PCA", pca))
    }


def _axes(values: Any) -> Any:
    return values[:, :2] if values.shape[1] > 1 else np.hstack([values, np.zeros_like(values)])


def _drawn(title: str, points: Any, rows: Any, how: str, groups: Groups, seed: int) -> Map:
    if len(rows) > DRAWN:
        chosen = np.sort(np.random.default_rng([seed, 13]).permutation(len(rows))[:DRAWN])
        points, rows = points[chosen], rows[chosen]
    use = np.isfinite(points).all(axis=1)
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    size = float(np.clip(12_000 / max(1, len(rows)), 1, 18))
    groups._replace(codes=groups.codes[rows[use]]).scatter(axes, points[use], size=size)
    return Map(title, how, data_uri(figure))


def data_uri(figure: Figure) -> str:
    """Return a figure as PNG, on a transparent ground, in an address that holds all of it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, transparent=True, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def loss_curves(history: pd.DataFrame, best: int, unit: str) -> dict[str, str]:
    """Return the picture of the losses by epoch, for ``"light"`` and for ``"dark"`` grounds."""
    return {scheme: data_uri(_curves(history, best, unit, ink)) for scheme, ink in INK.items()}


def _curves(history: pd.DataFrame, best: int, unit: str, ink: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(history) + 1)
    marker = "o" if len(history) == 1 else ""
    for (name, loss), color in zip(_losses(history), PALETTE, strict=False):
        axes.plot(epochs, loss, color=color, label=name, marker=marker)
    values = np.concatenate([loss for _, loss in _losses(history)])
    if values.min() > 0 and values.max() > WIDE_RANGE * values.min():
        axes.set_yscale("log")
    axes.axvline(best + 1, color=ink, linewidth=0.8, linestyle=":", label=f"weights: epoch {best + 1}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"loss, {unit}" if unit else "loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, labelcolor=ink)
    axes.spines[["top", "right"]].set_visible(False)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.tick_params(colors=ink, which="both")
    return figure


def _losses(history: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    for column, name in (("train_loss", "fitted cells"), ("valid_loss", "held-out cells")):
        if column in history:
            yield name, history[column].to_numpy(float)
