"""``tl.drivers``: genes that go with a fate, weighted by fate probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.dynamics.genes.drivers import contrast, effective_numbers
from anncoder.dynamics.genes.relations import adjusted
from anncoder.errors import ConfigError, InputError, counted, listed
from anncoder.tl.expression import (
    DENOISED,
    Expression,
    given,
    in_words,
    measured,
    names_given,
    refuse_no_cells,
    refuse_no_name,
    refuse_not_finite,
    refuse_taken,
)
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.relations import times_of

Array = np.ndarray[Any, Any]

KEY, FATES = "drivers", "fates"
FEWEST = 3  # effective cells with the fate, and without


def drivers(
    adata: anndata.AnnData,
    fate: str | pd.Series,
    *,
    at: float | None = None,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    key: str = "ae",
    fates: str = FATES,
    time_key: str | None = None,
) -> pd.DataFrame:
    """Rank the genes that differ between cells of high and of low probability of a fate.

    A cell with probability w counts w with the fate and 1 - w without it. Means are compared by Welch's test with
    effective numbers of cells, (sum w)^2 / sum w^2; with probabilities of 0 and 1 alone that is the usual test. Genes
    that go with a fate need not cause it.

    Parameters
    ----------
    adata
        Cells, (n_obs, n_vars).
    fate
        One of ``uns["fates"]["names"]``, the columns of ``obsm["fates"]``; else an obs column, or a series with the
        cells' names as index, of probabilities 0 to 1 or of True and False. Cells with NaN are left out.
    at
        Time of the cells to compare; None for all cells with a probability.
    genes
        Genes to test, such as transcription factors; None for all. q values are over these.
    layer
        Where the expression is: counts (scaled to the median library size and logged), CPM or logged values, (n_obs,
        n_vars); or a denoised layer. None for the layer of the fit, ``X`` without a model.
    key
        Name of the model's results.
    fates
        Name of the slots with the fates.
    time_key
        obs column of times, numbers; None for that of ``uns["transport"]``.

    Returns
    -------
    pandas.DataFrame
        A row a gene, those that are higher with the fate first: ``t`` and ``df`` of Welch's test, ``p`` (two-sided),
        ``q`` (Benjamini-Hochberg), ``log2_fold_change`` (of mean normalised counts), ``mean`` and ``mean_others`` (of
        log(1 + normalised counts)), ``fraction`` and ``fraction_others`` (share of the cells that express it),
        ``reason`` (why it is not tested; else empty).

    Sets the following field:

    ``adata.uns["drivers"]`` : dict
        ``table`` (the frame) and ``params_json``.

    Raises
    ------
    ConfigError
        An unknown fate, gene, layer or time.
    InputError
        Weights that are no probabilities, too few cells on one side, or values that are not expression.
    """
    refuse_no_cells(adata)
    refuse_no_name(key, "key")
    refuse_taken(adata, KEY)
    name, weights = _weights(adata, fate, fates)
    weights = _at(adata, weights, at, time_key)
    cells = np.flatnonzero(np.isfinite(weights))
    _refuse_one_sided(weights[cells], name)
    table = _table(_expression(adata, layer, key), cells, weights[cells], genes)
    n, others = effective_numbers(weights[cells])
    settings = {"fate": name, "at": at, "layer": layer, "n_effective": n, "n_effective_others": others}
    params = json.dumps(settings, default=float)
    target_of(adata, copy=False).uns[KEY] = {"table": table, "params_json": params}
    return table


def _weights(adata: anndata.AnnData, fate: Any, fates: str) -> tuple[str, Array]:
    # name, and the probability of each cell, NaN where there is none
    if isinstance(fate, pd.Series):
        return str(fate.name or "fate"), _probabilities(_aligned(fate, adata.obs_names), "fate")
    known = adata.uns[fates].get("names", ()) if isinstance(adata.uns.get(fates), Mapping) else ()
    names = [str(name) for name in known] if fates in adata.obsm else []
    if fate in names:
        return fate, _probabilities(np.asarray(adata.obsm[fates])[:, names.index(fate)], f"obsm[{fates!r}]")
    if isinstance(fate, str) and fate in adata.obs:
        column = obs_column(adata, fate, what="fate")
        if not pd.api.types.is_numeric_dtype(column):
            label = str(pd.Series(column).dropna().iloc[0]) if column.notna().any() else "..."
            what = f"obs[{fate!r}] holds labels, and not probabilities"
            remedy = f"name one of them: drivers(adata, (adata.obs[{fate!r}] == {label!r}).astype(float))"
            raise InputError("not-numeric", what, f"obs[{fate!r}]", remedy)
        return fate, _probabilities(column, f"obs[{fate!r}]")
    raise unknown_key(fate, [*names, *adata.obs.columns.astype(str)], where=f"fate (uns[{fates!r}]['names'], or obs)")


def _aligned(fate: pd.Series, cells: pd.Index) -> pd.Series:
    if not fate.index.is_unique or not cells.isin(fate.index).any():
        what = "the series has none of these cells" if fate.index.is_unique else "the series has some cells twice"
        raise InputError("bad-weights", what, "fate", "give it the index adata.obs_names")
    return fate.reindex(cells)


def _probabilities(values: Any, where: str) -> Array:
    weights = pd.to_numeric(pd.Series(np.asarray(values)), errors="coerce").to_numpy(dtype=np.float64)
    bad = np.isinf(weights) | (weights < 0) | (weights > 1)
    if bad.any():
        what = f"{counted(int(bad.sum()), 'cell')} with weights that are no probabilities: {weights[bad][0]:g}"
        raise InputError("bad-weights", what, where, "give numbers from 0 to 1, and NaN to leave a cell out")
    return np.asarray(weights)


def _at(adata: anndata.AnnData, weights: Array, at: Any, time_key: str | None) -> Array:
    if at is None:
        return weights
    when = times_of(adata, time_key)
    if at not in when:
        known = [f"{time:g}" for time in np.unique(when)]
        raise ConfigError("bad-value", f"at = {at!r}: no cell is of this time", "at", f"one of {listed(known, 10)}")
    return np.where(when == at, weights, np.nan)


def _refuse_one_sided(weights: Array, name: str) -> None:
    for n, side in zip(effective_numbers(weights), ("with", "without"), strict=True):
        if n < FEWEST:
            what = f"{n:.3g} effective cells {side} the fate {name!r}, of {counted(len(weights), 'cell')}: too few"
            raise InputError("too-few-cells", what, "fate", "choose another time (at), or another fate")


def _expression(adata: anndata.AnnData, layer: str | None, key: str) -> Expression:
    denoised = isinstance(layer, str) and layer.endswith(DENOISED)
    expression = given(adata, layer, key) if denoised else measured(adata, layer, key)
    if expression.kind in ("scaled", "unknown"):
        what = f"{expression.slot} holds values {in_words(expression.kind)}" * (expression.kind == "unknown")
        what = what or f"{expression.slot} holds {in_words(expression.kind)}"
        raise InputError("not-expression", what, expression.slot, "name counts or logged values: layer='counts'")
    return expression


def _table(expression: Expression, cells: Array, weights: Array, genes: Sequence[str] | None) -> pd.DataFrame:
    chosen = _chosen(expression.genes, genes)
    found = contrast(expression.blocks(cells), weights)
    refuse_not_finite(np.stack([found.mean, found.mean_others]), expression.genes, expression.slot)
    columns = found._asdict()
    columns["log2_fold_change"] = columns.pop("log_fold_change")
    order = ["t", "df", "p", "q", "log2_fold_change", "mean", "mean_others", "fraction", "fraction_others"]
    index = pd.Index(expression.genes.astype(str), name="gene")
    table = pd.DataFrame({name: columns[name] for name in order}, index=index).iloc[chosen]
    table["q"] = adjusted(table["p"].to_numpy())
    table["reason"] = pd.array(np.where(table["t"].isna(), "constant in these cells", ""), dtype=object)
    return table.sort_values("t", ascending=False, kind="stable", na_position="last")


def _chosen(known: pd.Index, genes: Sequence[str] | None) -> Array:
    if genes is None:
        return np.arange(len(known))
    wanted = list(dict.fromkeys(names_given(genes, "genes")))
    places = known.get_indexer(pd.Index(wanted, dtype=object))
    if not wanted or (places < 0).any():
        missing = [gene for gene, place in zip(wanted, places, strict=True) if place < 0]
        what = f"no gene of this name: {listed(missing)}" if wanted else "the list of genes is empty"
        raise ConfigError("unknown-genes", what, "genes", f"names as in var_names, such as {listed(known, 3)}")
    return np.asarray(places)
