"""Plots of fates: chances on an embedding or by label and time, genes along each fate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import anndata
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.errors import InputError, listed
from anncoder.pl.groups import UNKNOWN
from anncoder.pl.transport_maps import by_label_and_time, label_colors, name_labels
from anncoder.tl.time_series.time_points import read_times
from anncoder.tl.time_series.transport_record import settings_of
from anncoder.tl.time_series.transport_results import trends as trends_of

Array = np.ndarray[Any, Any]

EMBEDDINGS = ("X_umap", "X_tsne", "X_draw_graph_fa")  # in this order, then any of two columns
MOST_FATES, IN_A_ROW = 8, 4  # panels


class _Fates(NamedTuple):
    """Fates as they were written."""

    chances: Array  # (n_obs, n_fates), the chosen ones
    names: list[str]
    labels: str  # column of obs
    at: float
    time_key: str
    left_out: int  # that are not drawn
    earlier: bool  # whether cells before that time have chances


def fates(
    adata: anndata.AnnData, names: str | Sequence[str] | None = None, *, basis: str | None = None, key: str = "fates"
) -> Array:
    """Draw the chances of each fate, a panel a fate: on an embedding, or by label and time where there is none.

    On an embedding cells of high chances are on top, and cells later than the fates are grey. By label and time dots
    are means of the cells of a label, hollow below ten cells, and bars hold eight cells of ten.

    Parameters
    ----------
    adata
        Cells with fates, see :func:`anncoder.tl.fates`.
    names
        The fates; None for the eight that most cells have.
    basis
        Slot of obsm, of which the first two columns are drawn; None for UMAP, t-SNE, graph layout or another slot
        ``X_...`` of two columns, if there is one.
    key
        Name of the fates.

    Returns
    -------
    numpy.ndarray
        The axes, one a fate.

    Raises
    ------
    ConfigError
        There is no such fate, or no such slot of obsm.
    InputError
        There are no fates, or none of earlier cells, or the slot has a single column.
    """
    found = _fates(adata, names, key)
    if basis is None:
        flat = [slot for slot in adata.obsm if slot.startswith("X_") and np.shape(adata.obsm[slot])[1:] == (2,)]
        basis = next((slot for slot in (*EMBEDDINGS, *flat) if slot in adata.obsm), None)
    points = None if basis is None else _points(adata, basis)
    if points is None and not found.earlier:
        what = f"no cell before time {found.at:g}, which the fates are of, has chances"
        raise InputError("no-results", what, f"obsm[{key!r}]", "ac.tl.fates(adata, labels), or name a basis")
    columns = min(len(found.names), IN_A_ROW)
    rows = -(-len(found.names) // columns)
    size = (3.1 * columns + 0.8, 3.1 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for ax in axes.flat[len(found.names) :]:
        ax.set_axis_off()
    panels = axes.ravel()[: len(found.names)]
    if points is None:
        _by_label(adata, found, panels)
    else:
        _on_embedding(points, found, panels)
    for ax, name in zip(panels, found.names, strict=True):
        ax.set_title(name)
    if found.left_out:
        figure.suptitle(f"{len(found.names)} fates of {len(found.names) + found.left_out}", fontsize="medium")
    return np.asarray(panels)


def _on_embedding(points: Array, found: _Fates, panels: Array) -> None:
    size = float(np.clip(12_000 / len(points), 1, 18))
    known = np.isfinite(found.chances).all(axis=1)
    drawn: Any = None
    for ax, chances in zip(panels, found.chances.T, strict=True):
        ax.scatter(*points[~known].T, s=size, color=UNKNOWN, linewidths=0)
        order = np.flatnonzero(known)[np.argsort(chances[known], kind="stable")]
        x, y = points[order].T
        drawn = ax.scatter(x, y, c=chances[order], s=size, cmap="viridis", vmin=0, vmax=1, linewidths=0)
        ax.set(xticks=[], yticks=[])
        ax.set_box_aspect(1)
        ax.spines[:].set_visible(False)
    bar = panels[0].figure.colorbar(drawn, ax=list(panels), shrink=0.75, label="chance of the fate")
    bar.outline.set_visible(False)


def _points(adata: anndata.AnnData, basis: str) -> Array:
    if basis not in adata.obsm:
        raise unknown_key(basis, [str(name) for name in adata.obsm], where="basis (a slot of obsm)")
    points = np.asarray(adata.obsm[basis])
    if points.ndim != 2 or points.shape[1] < 2:
        what = f"obsm[{basis!r}] has a single column, and a picture has two axes"
        raise InputError("bad-coordinates", what, f"obsm[{basis!r}]", "draw another slot, such as X_umap")
    return points[:, :2]


def _by_label(adata: anndata.AnnData, found: _Fates, panels: Array) -> None:
    times, colors = read_times(adata, found.time_key), label_colors(adata, found.labels)
    column = obs_column(adata, found.labels, what="labels")
    named = column.astype(object).where(column.notna(), "other").astype(str).to_numpy()
    before = (times < found.at) & np.isfinite(found.chances).all(axis=1)
    shown = {name: color for name, color in colors.items() if (named[before] == name).any()}
    for ax, chances in zip(panels, found.chances.T, strict=True):
        by_label_and_time(ax, np.where(before, chances, np.nan), times, named, shown)
        ax.set(ylim=(-0.06, 1.06), xlabel=found.time_key)
    for ax in panels[::IN_A_ROW]:
        ax.set_ylabel("chance of the fate")
    name_labels(panels[0].figure, shown)


def _fates(adata: anndata.AnnData, names: Any, key: str) -> _Fates:
    settings = settings_of(adata, key)
    if settings is None or settings.get("function") != "fates" or key not in adata.obsm:
        what = f"obsm[{key!r}] holds no fates; uns has {listed(adata.uns) or 'nothing'}"
        raise InputError("no-results", what, f"obsm[{key!r}]", "ac.tl.fates(adata, labels)")
    known = [str(name) for name in adata.uns[key]["names"]]
    chances = np.asarray(adata.obsm[key], np.float64)
    if names is None:
        order = np.argsort(-np.nan_to_num(chances).sum(axis=0), kind="stable")[:MOST_FATES]
        wanted = [known[k] for k in np.sort(order)]
    else:
        wanted = [names] if isinstance(names, str) else [str(name) for name in names]
        for name in wanted or [""]:
            if name not in known:
                raise unknown_key(name, known, where="names (a fate)")
    made = settings_of(adata, settings["transport"])
    if made is None:
        what = f"uns[{settings['transport']!r}], the transport of the fates, is not there"
        raise InputError("no-results", what, "uns", "ac.tl.transport(adata, time_key), then ac.tl.fates(adata, labels)")
    chosen = chances[:, [known.index(name) for name in wanted]]
    left_out = len(known) - len(wanted) if names is None else 0
    at, time_key = float(settings["at"]), made["time_key"]
    earlier = bool((np.isfinite(chances[:, 0]) & (read_times(adata, time_key) < at)).any())
    return _Fates(chosen, wanted, settings["labels"], at, time_key, left_out, earlier)


def trends(
    adata: anndata.AnnData,
    genes: str | Sequence[str],
    names: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    key: str = "fates",
) -> Array:
    """Draw genes along time, for the ancestors of each fate: weighted mean, with a band of its standard error.

    The standard error is sd / sqrt(n_eff), with the effective number of cells of :func:`anncoder.tl.trends`.

    Parameters
    ----------
    adata
        Cells with fates, see :func:`anncoder.tl.fates`.
    genes
        One or several of var_names, a panel each.
    names
        The fates; None for the eight that most cells have.
    layer
        Expression, as it is; None for ``X``.
    key
        Name of the fates.

    Returns
    -------
    numpy.ndarray
        The axes, one a gene.

    Raises
    ------
    ConfigError
        There is no such fate, gene or layer.
    InputError
        There are no fates.
    """
    found = _fates(adata, names, key)
    wanted = [genes] if isinstance(genes, str) else list(genes)
    colors = label_colors(adata, found.labels)
    tables = {
        name: trends_of(adata, name, wanted, layer=layer, time_key=found.time_key, fates=key) for name in found.names
    }
    columns = min(len(wanted), IN_A_ROW)
    rows = -(-len(wanted) // columns)
    size = (2.9 * columns + 0.4, 2.7 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True)
    for ax in axes.flat[len(wanted) :]:
        ax.set_axis_off()
    panels = axes.ravel()[: len(wanted)]
    for ax, gene in zip(panels, wanted, strict=True):
        for name, table in tables.items():
            _trend(ax, table[table["gene"] == gene], colors.get(name, UNKNOWN))
        ax.set_title(gene, fontstyle="italic")
        ax.tick_params(labelbottom=True)
    for ax in panels[::IN_A_ROW]:
        ax.set_ylabel("expression" if layer is None else layer)
    for ax in panels[-columns:]:
        ax.set_xlabel(found.time_key)
    name_labels(figure, {name: colors.get(name, UNKNOWN) for name in tables})
    return np.asarray(panels)


def _trend(ax: Axes, rows: Any, color: str) -> None:
    rows = rows[rows["n_eff"] > 0]
    time, mean = rows["time"].to_numpy(), rows["mean"].to_numpy()
    error = rows["sd"].to_numpy() / np.sqrt(rows["n_eff"].to_numpy())
    ax.fill_between(time, mean - error, mean + error, color=color, alpha=0.22, linewidth=0)
    ax.plot(time, mean, "o-", color=color, markersize=4.5, linewidth=1.8)
    ax.set_xticks(time, [f"{t:g}" for t in time])
    ax.spines[["top", "right"]].set_visible(False)
