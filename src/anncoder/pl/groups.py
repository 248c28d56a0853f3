"""Groups of cells in a plot: categories of an obs column, their colours, shapes and legend."""

from __future__ import annotations

from typing import Any, NamedTuple

import anndata
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from anncoder.data.adata import obs_column
from anncoder.errors import ConfigError, InputError

# Petroff 2021, arXiv 2107.02270: chosen for people without one kind of cone; tests/pl/test_palette.py measures it
PALETTE = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadb")
SHAPES = "os^DvPX*<>"
UNKNOWN = "#e5e5e5"  # cells without a group
MOST_GROUPS = len(PALETTE) * len(SHAPES)


class Groups(NamedTuple):
    """Categories of an obs column, with colours."""

    names: list[str]
    codes: np.ndarray[Any, Any]  # (n_obs,) position among the names; -1: without a group
    colors: list[str]  # one a name, and one for the cells without a group

    def scatter(self, ax: Axes, points: np.ndarray[Any, Any], *, size: float) -> None:
        """Draw (n_obs, 2) points in random order, so that no group hides the others."""
        order = np.random.default_rng(0).permutation(len(points))
        shapes = np.maximum(self.codes, 0) // len(PALETTE)
        for shape in np.unique(shapes):
            chosen = order[shapes[order] == shape]
            colors = np.asarray(self.colors)[self.codes[chosen]]
            x, y = points[chosen].T
            ax.scatter(x, y, s=size, c=colors, marker=SHAPES[shape], linewidths=0, alpha=0.8)

    def legend(self, figure: Any) -> None:
        """Name the groups to the right of the panels, in a wider figure."""
        if not self.names:
            return
        names, handles = self._entries()
        columns = -(-len(names) // 20)
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + columns * (0.5 + 0.085 * max(map(len, names))), height)
        figure.legend(handles=handles, loc="outside right center", frameon=False, ncols=columns)

    def legend_of(self, ax: Axes) -> None:
        """Name the groups to the right of one panel."""
        if self.names:
            names, handles = self._entries()
            beside = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "ncols": -(-len(names) // 12)}
            ax.legend(handles=handles, frameon=False, fontsize=9, **beside)

    def _entries(self) -> tuple[list[str], list[Line2D]]:
        names = [*self.names, "no label"] if (self.codes < 0).any() else self.names
        shapes = [SHAPES[i // len(PALETTE)] for i in range(len(self.names))] + ["o"]
        handles = [
            Line2D([], [], linestyle="", color=color, marker=shape, markersize=7, markeredgewidth=0, label=name)
            for name, color, shape in zip(names, self.colors, shapes, strict=False)
        ]
        return names, handles


def groups_of(adata: anndata.AnnData, color: str | None) -> Groups:
    """Return the categories of an obs column, with scanpy's colours if there are any; None for one group."""
    if not adata.n_obs:
        raise InputError("too-few-cells", "there are no cells to draw", "adata", "check the filters that ran before")
    if color is None:
        return Groups([], np.zeros(adata.n_obs, dtype=int), [PALETTE[0]])
    given: Any = color  # also a list, from those who ignore the types
    if isinstance(given, str) and given not in adata.obs and given in adata.var_names:
        what = f"color = {color!r} is a gene, and this picture shows groups of cells"
        raise ConfigError("bad-value", what, "color", f"sc.pl.umap(adata, color={color!r})")
    values = obs_column(adata, color, what="color").astype("category").cat
    names = [str(name) for name in values.categories]
    if len(names) > MOST_GROUPS:
        what = f"obs[{color!r}] has {len(names):,} different values; {MOST_GROUPS} groups can be told apart"
        remedy = "draw numbers with scanpy: sc.pl.embedding(adata, 'X_ae', color=...)"
        raise ConfigError("too-many-groups", what, "color", remedy)
    known = [str(value) for value in adata.uns.get(f"{color}_colors", ())]
    own = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    return Groups(names, values.codes.to_numpy(), [*(known if len(known) == len(names) else own), UNKNOWN])
