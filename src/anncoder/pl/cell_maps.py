"""Maps of cells, coloured by groups, numbers or genes; genes as measured and as denoised."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from scipy import sparse

from anncoder.config import unknown_key
from anncoder.data.adata import genes_of, has_layer, matrix_of, obs_column, resolve_layer, slot_label
from anncoder.errors import ConfigError, InputError
from anncoder.pl.autoencoders import gene_columns, refuse_no_values, results_of
from anncoder.pl.groups import UNKNOWN, Groups, groups_of
from anncoder.tl.expression import record_of, to_library_size

LOG_COUNTS = "log(1 + counts at one library size)"
HIGH = 0.99  # quantile of a gene, at which its colours end


def embeddings(
    adata: anndata.AnnData,
    panels: Mapping[str, str] | Sequence[str] | str,
    *,
    color: str | Sequence[str],
    layer: str | None = None,
    key: str = "ae",
) -> np.ndarray[Any, Any]:
    """Draw two-dimensional embeddings side by side, coloured by obs columns or genes: a row a colour.

    Parameters
    ----------
    adata
        Cells with the embeddings in obsm, each (n_obs, >= 2).
    panels
        Title of each panel and its obsm slot; or slots, or one, with their names as titles.
    color
        obs column, of categories or numbers, or gene; or several.
        Whole numbers of few values are categories, as scanpy's clusters are.
    layer
        Of genes; None for that of the fit, whose counts are normalised and logged, or ``X`` without a model of this
        key. Another one, such as ``"ae_denoised"``, is drawn as it is.
    key
        Name of the results of the model.

    Returns
    -------
    numpy.ndarray
        The axes: one a panel, or for a list of colours (n_colors, n_panels).

    Raises
    ------
    ConfigError
        There is no such slot, column, gene or layer, or a column of text has too many values.
    InputError
        A slot has a single column.
    """
    given: Any = color  # also None, for no groups, and numbers, from those who ignore the types
    colors: list[Any] = list(given) if isinstance(given, list | tuple | np.ndarray | pd.Index) else [given]
    shading = [_shading(adata, name, layer, key) for name in colors]
    slots = {panels: panels} if isinstance(panels, str) else panels
    slots = slots if isinstance(slots, Mapping) else {slot: slot for slot in slots}
    shown = {title: plane(adata, slot) for title, slot in slots.items()}
    if not shown:
        raise ConfigError("bad-value", "no slot to draw", "panels", "name slots of obsm: ['X_ae']")
    if not colors:
        raise ConfigError("bad-value", "nothing to colour by", "color", "name a column of obs, or a gene")
    shape = (len(colors), len(shown))
    beside = 0.0 if len(colors) == 1 and isinstance(shading[0], Groups) else 1.2  # inches for colour bars and names
    size = (4.4 * shape[1] + beside, 4.6 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for row, name, values in zip(axes, colors, shading, strict=True):
        for ax, (title, points) in zip(row, shown.items(), strict=True):
            size_of_points = float(np.clip(12_000 / adata.n_obs, 1, 18))
            if isinstance(values, Groups):
                values.scatter(ax, points, size=size_of_points)
            else:
                drawn = _shaded(ax, points, values, size_of_points)
            ax.set(title=title if len(colors) == 1 else f"{title}: {name}", xticks=[], yticks=[])
            ax.set_box_aspect(1)
        if not isinstance(values, Groups):
            of_gene = name not in adata.obs and _is_counts(adata, layer, key)
            figure.colorbar(drawn, ax=list(row), shrink=0.8, label=f"{name}, {LOG_COUNTS}" if of_gene else name)
        elif len(colors) > 1:
            values.legend_of(row[-1])
    if len(colors) == 1 and isinstance(shading[0], Groups):
        shading[0].legend(figure)
    return np.asarray(axes[0]) if given is None or isinstance(given, str) else np.asarray(axes)


def _shading(adata: anndata.AnnData, name: Any, layer: str | None, key: str) -> Any:
    """Return groups, or numbers, (n_obs,), by an obs column or a gene."""
    if isinstance(name, str) and name not in adata.obs and name in _genes(adata, layer, key):
        return _of_gene(adata, name, layer, key)
    if isinstance(name, str) and name in adata.obs:
        values = obs_column(adata, name, what="color")
        if pd.api.types.is_float_dtype(values):
            return values.to_numpy(np.float64)
        if pd.api.types.is_integer_dtype(values) and values.nunique() > MOST_WHOLE:
            return values.to_numpy(np.float64)
    return groups_of(adata, name)


MOST_WHOLE = 100  # different whole numbers that are groups


def _layer(adata: anndata.AnnData, layer: str | None, key: str) -> str | None:
    known = record_of(adata, key)
    layer = known["layer"] if layer is None and known is not None else layer
    return resolve_layer(layer, adata.layers)


def _genes(adata: anndata.AnnData, layer: str | None, key: str) -> Any:
    there = _layer(adata, layer, key)
    return genes_of(adata, there) if there is None or has_layer(adata, there) else adata.var_names


def _is_counts(adata: anndata.AnnData, layer: str | None, key: str) -> bool:
    # the layer that the model read as counts
    known = record_of(adata, key)
    if known is None or known["hyperparameters"]["transform"] == "none":
        return False
    return bool(_layer(adata, layer, key) == known["layer"])


def _of_gene(adata: anndata.AnnData, gene: str, layer: str | None, key: str) -> np.ndarray[Any, Any]:
    there = _layer(adata, layer, key)
    values = gene_columns(adata, [gene], there).ravel().astype(np.float64)
    if not _is_counts(adata, layer, key):
        return values
    return np.log1p(values * to_library_size(adata, matrix_of(adata, there), there, record_of(adata, key)))


def _shaded(ax: Any, points: np.ndarray[Any, Any], values: np.ndarray[Any, Any], size: float) -> Any:
    # cells without a number are grey, and beneath
    known = np.isfinite(values)
    ax.scatter(*points[~known].T, s=size, c=UNKNOWN, lw=0)
    order = np.random.default_rng(0).permutation(np.flatnonzero(known))
    low, high = (float(values[known].min()), float(np.quantile(values[known], HIGH))) if known.any() else (0.0, 1.0)
    span = {"vmin": min(low, 0.0) if low >= 0 else low, "vmax": max(high, low + 1e-12)}
    return ax.scatter(*points[order].T, s=size, c=values[order], cmap="viridis", lw=0, **span)


def expression(
    adata: anndata.AnnData,
    genes: str | Sequence[str],
    *,
    basis: str = "X_umap",
    layer: str | None = None,
    key: str = "ae",
) -> np.ndarray[Any, Any]:
    """Draw genes on an embedding, as counted and as denoised: a row a gene, both in one colour scale.

    Both are ``log(1 + counts at the model's library size)``, as scanpy plots expression. A decoder that is smooth draws
    smooth pictures, of noise too: test on the counts (``sc.tl.rank_genes_groups`` of the measured layer), not on these.

    Parameters
    ----------
    adata
        Cells with the denoised layer ``"{key}_denoised"``, on any scale, of a model of counts.
    genes
        Names of genes.
    basis
        Slot of obsm with the coordinates, (n_obs, >= 2).
    layer
        Where the raw counts are; None for the layer of the fit, ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw``.
    key
        Name of the results.

    Returns
    -------
    numpy.ndarray
        (n_genes, 2) axes: measured, denoised.

    Raises
    ------
    ConfigError
        There is no such gene, layer or slot.
    InputError
        There is no denoised layer of this name, or it is not of counts.
    """
    genes = [genes] if isinstance(genes, str) else list(genes)
    if not genes:
        raise ConfigError("bad-value", "no gene to draw", "genes", "name genes of var_names")
    points = plane(adata, basis)
    measured, denoised = _log_expression(adata, genes, layer, key)
    size = float(np.clip(12_000 / adata.n_obs, 1, 18))
    order = np.random.default_rng(0).permutation(adata.n_obs)
    shape = (len(genes), 2)
    figure, axes = plt.subplots(*shape, figsize=(7.2, 3.3 * len(genes)), layout="constrained", squeeze=False)
    for row, gene, pair in zip(axes, genes, zip(measured.T, denoised.T, strict=True), strict=True):
        highest = max(float(np.quantile(values, 0.99)) for values in pair) or 1.0
        for ax, values, title in zip(row, pair, ("measured", "denoised"), strict=True):
            drawn = ax.scatter(*points[order].T, s=size, c=values[order], cmap="viridis", vmin=0, vmax=highest, lw=0)
            ax.set(title=f"{gene}, {title}", xticks=[], yticks=[])
            ax.set_box_aspect(1)
        figure.colorbar(drawn, ax=row, shrink=0.8, label=LOG_COUNTS)
    return np.asarray(axes)


def _log_expression(
    adata: anndata.AnnData, genes: list[str], layer: str | None, key: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    # measured and denoised, (n_obs, n_genes) each, log(1 + counts at the model's library size)
    if f"{key}_denoised" not in adata.layers:
        what = f"there is no {slot_label(f'{key}_denoised')}"
        raise InputError("not-denoised", what, "layers", "ac.tl.denoise(adata, model)")
    results = results_of(adata, key)
    read = json.loads(results["params_json"])
    if read["hyperparameters"]["transform"] == "none":
        what = "the model reads expression, and its denoised layer has no library sizes"
        raise InputError("not-denoised", what, "layers", f"sc.pl.umap(adata, layer='{key}_denoised', color=...)")
    layer = resolve_layer(read["layer"] if layer is None else layer, adata.layers)
    raw, denoised = (gene_columns(adata, genes, slot) for slot in (layer, f"{key}_denoised"))
    refuse_no_values(denoised, genes)
    to_size = to_library_size(adata, matrix_of(adata, layer), layer, record_of(adata, key))[:, None]
    scale = results.get("denoised_scale")
    if scale != "log1p":
        denoised = np.log1p(denoised * to_size if scale == "counts" else denoised)
    return np.log1p(raw * to_size), denoised


def plane(adata: anndata.AnnData, slot: str) -> np.ndarray[Any, Any]:
    """Return the first two columns of a slot of obsm, (n_obs, 2)."""
    if not isinstance(slot, str):
        what = f"panels are names of slots of obsm, got {type(slot).__name__}"
        raise ConfigError("bad-value", what, "panels", "put the array into obsm, and give its name")
    if slot not in adata.obsm:
        raise unknown_key(slot, list(adata.obsm.keys()), where="panels (slots of obsm)")
    values = adata.obsm[slot]
    values = values.tocsr()[:, :2].toarray() if sparse.issparse(values) else np.asarray(values)[:, :2]
    if values.shape[1] < 2:
        what = f"obsm[{slot!r}] has a single column, and a picture has two axes"
        remedy = "draw another slot, such as X_umap after sc.pp.neighbors(adata, use_rep=...) and sc.tl.umap(adata)"
        raise InputError("bad-coordinates", what, f"obsm[{slot!r}]", remedy)
    return values
