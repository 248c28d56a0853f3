"""Plots of a transport: flow between labels, growth, held-out times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from anncoder.data.adata import obs_column
from anncoder.errors import InputError, listed
from anncoder.pl.groups import PALETTE, UNKNOWN, groups_of
from anncoder.tl.time_series.time_points import read_rates, read_times
from anncoder.tl.time_series.transport_record import labels_at, read_transport, settings_of
from anncoder.tl.time_series.transport_results import flows

COLUMN = 0.045  # width of a column of labels, in mean intervals between times
GAP = 0.05  # between labels of a column, all gaps together, in heights of the first
VERDICTS = {"win": PALETTE[2], "tie": "#555555", "loss": PALETTE[3]}
GUESSES = {
    "I": "transport (I)",
    "R": "random pairs (R)",
    "Rg": "random, growth (Rg)",
    "F": "first time (F)",
    "L": "last time (L)",
    "P": "same time (P)",
}
DARKER = 0.55  # from ten labels to the next ten
QUANTILES = (0.1, 0.9)
SPREAD = 0.6  # of the labels of a time, in the interval between times
FEW = 10  # cells, of which a mean is drawn hollow

Heights = dict[float, dict[str, float]]  # of labels, at each time


def flow(adata: anndata.AnnData, labels: str, *, transport: str = "transport", ax: Axes | None = None) -> Axes:
    """Draw the mass that a transport moves between labels, from time to time.

    A column is a time, its height the expected size of the population: that of the first is 1 (and of any other time
    to which no pair leads). A band leaves a label
    as wide as the share of its descendants that are of the other label, and arrives as wide as their mass: a band that
    widens is of cells that multiply.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`anncoder.tl.transport`.
    labels
        Column of obs; cells without a label are "other".
    transport
        Name of the transport.
    ax
        Axes to draw into; None for new ones.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ConfigError
        There is no transport, or no such column.
    InputError
        No cell of a time has a label, or the coordinates are not those of the transport.
    """
    colors = label_colors(adata, labels)
    record, table = read_transport(adata, transport), flows(adata, labels, transport=transport)
    heights = _heights(adata, labels, record, table)
    times = sorted(heights)
    if ax is None:
        _, ax = plt.subplots(figsize=(2.2 + 1.5 * len(times), 4.2), layout="constrained")
    order = [name for name in colors if any(name in column for column in heights.values())]
    width = COLUMN * float(np.diff(times).mean())
    tops = {time: _tops(column, order) for time, column in heights.items()}
    for (t0, t1), moved in table.groupby(["time0", "time1"]):
        _bands(ax, moved, (t0 + width / 2, t1 - width / 2), (heights[t0], tops[t0]), (heights[t1], tops[t1]), colors)
    for time, column in heights.items():
        for name, height in column.items():
            corner = time - width / 2, tops[time][name] - height
            ax.add_patch(Rectangle(corner, width, height, facecolor=colors[name], linewidth=0, gid=f"{time:g}: {name}"))
        ax.annotate(
            f"\u00d7{sum(column.values()):.2f}",
            (time, max(tops[time].values())),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize="small",
            color="#333333",
        )
    starts = sorted(set(table["time0"]) - set(table["time1"]))  # several, if pairs do not all follow each other
    _frame_flow(ax, times, width, tops, starts)
    ax.set(xlabel=str(record.settings["time_key"]))
    handles = [Patch(facecolor=colors[name], label=name) for name in order]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, ncols=-(-len(order) // 16))
    return ax


def label_colors(adata: anndata.AnnData, labels: str) -> dict[str, str]:
    """Return the colour of each label of an obs column, in their order; ``other`` for cells without one."""
    obs_column(adata, labels, what="labels")
    groups = groups_of(adata, labels)
    known, used = {}, dict.fromkeys(groups.colors, 0)
    for name, color in zip(groups.names, groups.colors[:-1], strict=True):
        known[name] = to_hex(
            np.asarray(to_rgb(color)) * DARKER ** used[color]
        )  # a colour that is there again is darker
        used[color] += 1
    return known | ({} if "other" in known else {"other": UNKNOWN})


def _heights(adata: anndata.AnnData, labels: str, record: Any, table: pd.DataFrame) -> Heights:
    """Return the mass of each label at each time; all of a first time together are 1."""
    heights: Heights = {}
    for (t0, t1), moved in table.groupby(["time0", "time1"]):  # in the order of times
        if t0 not in heights:
            codes, names = labels_at(adata, labels, record.cells(t0), record.times)
            shares = np.bincount(codes, minlength=len(names)) / len(codes)
            heights[t0] = dict(zip(names, shares.tolist(), strict=True))
        before = sum(heights[t0].values())
        heights[t1] = (moved.groupby("label1")["mass"].sum() * before).to_dict()
    return heights


def _tops(column: Mapping[str, float], order: list[str]) -> dict[str, float]:
    # upper edges, the whole column centred at zero
    names = [name for name in order if name in column]
    gap = GAP / max(len(order) - 1, 1)
    edge = (sum(column.values()) + gap * (len(names) - 1)) / 2
    tops = {}
    for name in names:
        tops[name] = edge
        edge -= column[name] + gap
    return tops


def _bands(
    ax: Axes,
    moved: pd.DataFrame,
    x: tuple[float, float],
    source: tuple[Mapping[str, float], Mapping[str, float]],
    target: tuple[Mapping[str, float], Mapping[str, float]],
    colors: Mapping[str, str],
) -> None:
    before, (_, tops) = sum(source[0].values()), target
    totals = moved.groupby("label0")["mass"].sum()
    rank = {name: k for k, name in enumerate(colors)}
    left, right = dict(source[1]), dict(tops)
    ordered = moved.assign(a=moved["label0"].map(rank), b=moved["label1"].map(rank)).sort_values(["a", "b"])
    for name0, name1, mass in zip(ordered["label0"], ordered["label1"], ordered["mass"], strict=True):
        if not mass > 0:
            continue
        leaves, arrives = source[0][name0] * mass / totals[name0], mass * before
        edges = (left[name0], left[name0] - leaves), (right[name1], right[name1] - arrives)
        ax.add_patch(_band(x, *edges, color=colors[name0], name=f"{name0} to {name1}"))
        left[name0], right[name1] = edges[0][1], edges[1][1]


def _band(
    x: tuple[float, float], left: tuple[float, float], right: tuple[float, float], *, color: str, name: str
) -> PathPatch:
    middle = (x[0] + x[1]) / 2
    upper = [(x[0], left[0]), (middle, left[0]), (middle, right[0]), (x[1], right[0])]
    lower = [(x[1], right[1]), (middle, right[1]), (middle, left[1]), (x[0], left[1])]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    path = Path([*upper, *lower, upper[0]], codes)
    return PathPatch(path, facecolor=color, alpha=0.45, linewidth=0, gid=name)


def _frame_flow(
    ax: Axes, times: list[float], width: float, tops: Mapping[float, Mapping[str, float]], starts: list[float]
) -> None:
    highest = max(max(column.values()) for column in tops.values())
    ax.set(xlim=(times[0] - width, times[-1] + width), ylim=(-1.04 * highest, 1.14 * highest), yticks=[])
    ax.set_xticks(times, [f"{time:g}" for time in times])
    ax.spines[:].set_visible(False)
    ax.tick_params(axis="x", length=0)
    ax.set_title(f"population, relative to time {' or '.join(f'{time:g}' for time in starts)}")


def growth(adata: anndata.AnnData, labels: str, *, transport: str = "transport") -> np.ndarray[Any, Any]:
    """Draw by what factor the cells of each label multiply in a unit of time: prior, and as the transport learned it.

    Dots are means of the cells of a label and time, hollow below ten cells; bars hold eight cells of ten. The learned
    growth of labels may be right where that of single cells is noise.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`anncoder.tl.transport`.
    labels
        Column of obs; cells without a label are left out.
    transport
        Name of the transport.

    Returns
    -------
    numpy.ndarray
        The axes, (1,) or (2,): the prior, if there was one, and the growth learned.

    Raises
    ------
    ConfigError
        There is no transport, or no such column.
    InputError
        The coordinates or times are not those of the transport, or the prior cannot be read.
    """
    colors = label_colors(adata, labels)
    settings = read_transport(adata, transport).settings
    times = read_times(adata, settings["time_key"])
    panels = {"learned": adata.obs[f"{transport}_growth"].to_numpy(np.float64)}
    if settings["growth_key"] is not None:
        panels = {"prior": read_rates(adata, settings["growth_key"], "growth_key"), **panels}
    size = (1.6 + 3.6 * len(panels), 3.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
    column = obs_column(adata, labels, what="labels")
    named = column.astype(object).where(column.notna(), "").astype(str).to_numpy()
    names = [name for name in colors if (named == name).any()]
    for ax, (title, factors) in zip(axes[0], panels.items(), strict=True):
        shown = {name: colors[name] for name in names}
        by_label_and_time(ax, factors, times, named, shown)
        ax.axhline(1, color="0.6", linewidth=0.8, zorder=0)
        ax.set(title=f"growth, {title}", xlabel=settings["time_key"])
    axes[0, 0].set_ylabel(f"factor per unit of {settings['time_key']}")
    _log_factors(axes[0, 0])
    name_labels(figure, {name: colors[name] for name in names})
    return np.asarray(axes[0])


def by_label_and_time(ax: Axes, values: Any, times: Any, named: Any, colors: Mapping[str, str]) -> None:
    """Draw means of the cells of each label at each time, hollow of few cells; bars hold eight cells of ten."""
    known = np.unique(times[np.isfinite(values)])
    step = float(np.diff(known).min()) if len(known) > 1 else 1.0
    seen = np.isfinite(values)
    groups = {(name, t): values[(named == name) & (times == t) & seen] for name in colors for t in known}
    places = {t: [name for name in colors if len(groups[name, t])] for t in known}
    for name, color in colors.items():
        rows = []
        for time in known:
            here, beside = groups[name, time], places[time]
            if len(here):
                apart = min(SPREAD / len(beside), 0.07) * step
                x = time + apart * (beside.index(name) - (len(beside) - 1) / 2)
                rows.append((x, here.mean(), *np.quantile(here, QUANTILES), len(here)))
        if rows:
            x, mean, low, high, n = np.array(rows).T
            ax.vlines(x, low, high, color=color, linewidth=2.2, alpha=0.4)
            ax.plot(x, mean, color=color, linewidth=1.0, alpha=0.7, label=name)
            ax.scatter(x, mean, s=36, facecolors=np.where(n < FEW, "white", color), edgecolors=color, zorder=3)
    ax.set_xticks(known, [f"{time:g}" for time in known])
    ax.set_xlim(known[0] - 0.4 * step, known[-1] + 0.4 * step)
    ax.spines[["top", "right"]].set_visible(False)


def _log_factors(ax: Axes) -> None:
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    low, high = min(low, 0.8), max(high, 1.25)
    ticks = np.array([0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 20, 50])
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator(ticks[(ticks >= low) & (ticks <= high)].tolist()))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def name_labels(figure: Any, colors: Mapping[str, str]) -> None:
    """Name labels and their colours to the right of the panels, in a wider figure."""
    handles = [Patch(facecolor=color, label=name) for name, color in colors.items()]
    columns = -(-len(handles) // 16)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + columns * (0.5 + 0.085 * max(map(len, colors))), height)
    figure.legend(handles=handles, loc="outside right center", frameon=False, ncols=columns)


def validation(adata: anndata.AnnData, *, key: str = "transport_validation") -> np.ndarray[Any, Any]:
    """Draw how near each guess of a time held out comes to its cells, in two distances.

    I is the transport, R and Rg are random pairs without and with growth, F and L the first and last time, P other
    cells of the middle time, which is as near as one can hope to come. Bars are standard deviations over seeds. See
    :func:`anncoder.tl.validate_transport`.

    Parameters
    ----------
    adata
        Cells with the table of :func:`anncoder.tl.validate_transport`.
    key
        Name of the table in uns.

    Returns
    -------
    numpy.ndarray
        The axes, (2, n): W2 above, energy distance below, a column a triplet of times.

    Raises
    ------
    InputError
        There is no such table.
    """
    if (settings_of(adata, key) or {}).get("function") != "validate_transport":
        what = f"there is no table in uns[{key!r}]; uns has {listed(adata.uns) or 'nothing'}"
        raise InputError("no-results", what, "uns", "ac.tl.validate_transport(adata)")
    table = pd.DataFrame(adata.uns[key]["table"])
    names = list(dict.fromkeys(table["triplet"]))
    size = (2.0 + 2.5 * len(names), 5.0)
    _, axes = plt.subplots(2, len(names), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for column, name in zip(axes.T, names, strict=True):
        rows = table[table["triplet"] == name]
        for ax, measure, title in zip(column, ("W2", "E"), ("W2", "energy distance"), strict=True):
            _distances(ax, rows, measure)
            ax.set_xlabel(title)
        found = str(rows["verdict"].iloc[0])
        column[0].set_title(f"times {name}: {found}", color=VERDICTS[found], fontweight="bold", fontsize="medium")
    return np.asarray(axes)


def _distances(ax: Axes, rows: pd.DataFrame, measure: str) -> None:
    values, spread = rows[measure].to_numpy(float), rows[f"{measure}_sd"].to_numpy(float)
    for k, guess in enumerate(rows["guess"]):
        color = {"I": PALETTE[0], "P": "#949494"}.get(guess, "black")
        filled = "white" if guess == "P" else color
        style: dict[str, Any] = {"color": color, "markerfacecolor": filled, "markersize": 8, "capsize": 4}
        ax.errorbar(values[k], k, xerr=spread[k], fmt="o", **style)
    ax.axvline(values[0], color=PALETTE[0], linewidth=0.9, linestyle=":", zorder=0)
    ax.set_yticks(range(len(rows)), [GUESSES[guess] for guess in rows["guess"]])
    margin = 0.07 * values.max()
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(min(0.0, *(values - spread)) - margin, (values + spread).max() + margin))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
