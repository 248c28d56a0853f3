"""Latent units, drawn: their values in cells, their loadings on genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from anncoder.config import unknown_key
from anncoder.errors import ConfigError, InputError
from anncoder.models.base import Autoencoder, refuse_no_model
from anncoder.pl.groups import Groups, groups_of

MOST_CELLS = 3000  # rows of the picture
HIGH = 0.99  # quantile at which colours end
ACROSS = 4  # panels in a row


def latent(adata: anndata.AnnData, *, key: str = "ae", groupby: str | None = None) -> Axes:
    """Draw the latent itself: a row a cell, a column a unit, the cells ordered by group.

    Units are drawn around their mean, in one colour scale: those that hardly differ between cells are pale. Within a
    group the cells are ordered by the unit that differs most. Of more than 3,000 cells a random part is drawn.

    Parameters
    ----------
    adata
        Cells with the latent in ``obsm["X_{key}"]``, (n_obs, n_latent).
    key
        Name of the results, or the slot itself.
    groupby
        obs column of categories; None for no groups.

    Returns
    -------
    matplotlib.axes.Axes
        The axes of the picture.

    Raises
    ------
    ConfigError
        There is no such slot or column.
    """
    slot = key if key in adata.obsm else f"X_{key}"
    if slot not in adata.obsm:
        raise unknown_key(slot, [str(name) for name in adata.obsm], where="key (slots of obsm)")
    groups = groups_of(adata, groupby)
    values = np.asarray(adata.obsm[slot], dtype=np.float64)
    values = values - values.mean(axis=0)
    rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:MOST_CELLS])
    codes = np.where(groups.codes < 0, len(groups.names), groups.codes)[rows]  # cells without a group come last
    rows = rows[np.lexsort((values[rows, values.std(axis=0).argmax()], codes))]
    high = float(np.quantile(np.abs(values), HIGH)) or 1.0
    ax: Axes
    figure, ax = plt.subplots(figsize=(2.6 + 0.22 * values.shape[1], 5), layout="constrained")
    span: dict[str, Any] = {"vmin": -high, "vmax": high, "aspect": "auto", "interpolation": "nearest"}
    picture = ax.imshow(values[rows], cmap="RdBu_r", **span)
    step = max(1, values.shape[1] // 16)
    drawn = f", {len(rows):,} of {adata.n_obs:,} cells" if len(rows) < adata.n_obs else ""
    ax.set(xticks=range(0, values.shape[1], step), yticks=[], xlabel="latent unit", title=f"obsm[{slot!r}]{drawn}")
    if groups.names:
        _strip(ax, groups, np.sort(codes))
    else:
        ax.set_ylabel("cells")
    figure.colorbar(picture, ax=ax, shrink=0.6, label="difference from the unit's mean")
    return ax


def _strip(ax: Axes, groups: Groups, codes: np.ndarray[Any, Any]) -> None:
    """Draw the colours of the groups to the left of the cells, their names in the middle, and lines between them."""
    strip = ax.inset_axes((-0.07, 0, 0.05, 1))
    colors = np.array([to_rgb(color) for color in groups.colors])
    strip.imshow(colors[np.minimum(codes, len(groups.names))][:, None], aspect="auto", interpolation="nearest")
    names = [*groups.names, "no label"]
    there = np.unique(codes)
    middles = [float(np.flatnonzero(codes == code).mean()) for code in there]
    strip.set_yticks(_spread(middles, len(codes)), [names[code] for code in there], fontsize=9)
    strip.set_xticks([])
    strip.tick_params(length=0)
    for border in np.flatnonzero(np.diff(codes)):
        ax.axhline(border + 0.5, color="black", linewidth=0.6)


def _spread(middles: list[float], n: int) -> list[float]:
    # names of small groups would be written over each other
    least, places = n / 28, list(middles)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + least)
    excess = max(0.0, places[-1] - (n - 1))
    return [max(0.0, place - excess * (place / places[-1] if places[-1] else 0)) for place in places]


def loadings(
    source: Autoencoder | anndata.AnnData,
    *,
    key: str = "ae",
    units: int | Sequence[int] | None = None,
    n_genes: int = 10,
) -> np.ndarray[Any, Any]:
    """Draw the genes with the largest loadings of each latent unit, of a model with a linear decoder.

    A loading is the change of a gene's log expression by a unit of the latent. Units have no sign of their own: which
    genes stand on which side is arbitrary, that they stand apart is not.

    Parameters
    ----------
    source
        A fitted model, or the AnnData it was written to.
    key
        Name of the results in the AnnData.
    units
        Latent units to draw, from 0, or one; None for the first eight.
    n_genes
        Genes a unit.

    Returns
    -------
    numpy.ndarray
        The axes, one a unit.

    Raises
    ------
    ConfigError
        The decoder is not linear, there is no such unit, ``n_genes`` is not positive, or the model is not fitted.
    InputError
        The AnnData has no loadings of this name.
    """
    weights = loadings_of(source, key)
    asked: Any = n_genes
    if isinstance(asked, bool) or not isinstance(asked, int | np.integer) or asked < 1:
        raise ConfigError("bad-value", f"n_genes = {n_genes!r}", "n_genes", "a whole number from 1 on")
    n_units = weights.shape[1]
    chosen: list[Any] = list(range(min(8, n_units))) if units is None else np.atleast_1d(units).tolist()
    if not chosen or not all(isinstance(u, int) and 0 <= u < n_units for u in chosen):
        what = f"units = {units!r}, and there are {n_units} latent units"
        raise ConfigError("bad-value", what, "units", f"whole numbers from 0 to {n_units - 1}")
    across = min(ACROSS, len(chosen))
    down = -(-len(chosen) // across)
    size = (2.6 * across, down * (0.7 + 0.2 * min(n_genes, len(weights))))
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for ax in axes.ravel()[len(chosen) :]:
        ax.set_axis_off()
    shown = axes.ravel()[: len(chosen)]
    for ax, unit in zip(shown, chosen, strict=True):
        values = weights.iloc[:, unit].dropna()
        largest = values.loc[values.abs().sort_values(ascending=False, kind="stable").index[:n_genes]].sort_values()
        ax.barh(range(len(largest)), largest, color=np.where(largest > 0, "#b2182b", "#2166ac"), height=0.7)
        # names of genes are no mathematics
        names = [str(name).replace("$", r"\$") for name in largest.index]
        ax.set_yticks(range(len(largest)), names, fontsize=8)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_title(f"unit {unit}", fontsize=10)
        ax.locator_params(axis="x", nbins=2)
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
    figure.supxlabel("loading: change of log expression by a unit of the latent", fontsize=9)
    return np.asarray(shown)


def loadings_of(source: Any, key: str) -> pd.DataFrame:
    """Return the loadings of a model, or of an AnnData: a row a gene, a column a unit; see :func:`loadings`."""
    if isinstance(source, anndata.AnnData):
        slot = f"{key}_loadings"
        if slot not in source.varm:
            what = f"there is no varm[{slot!r}]"
            remedy = "fit a linear decoder: ac.tl.autoencode(adata, 'count', linear_decoder=True)"
            raise InputError("no-results", what, "varm", remedy)
        return pd.DataFrame(np.asarray(source.varm[slot]), index=source.var_names)
    refuse_no_model(source)
    found = source.of_genes().get("loadings")
    if found is None:
        what = "a decoder with hidden layers has no loadings"
        remedy = "fit with linear_decoder=True (count, variational, undercomplete, denoising)"
        raise ConfigError("no-loadings", what, "source", remedy)
    return pd.DataFrame(found, index=source.var_names_)
