"""``tl.fates``, ``ancestors``, ``descendants``, ``trends``, ``couple``, ``flows``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags

from anncoder.data.adata import genes_of, matrix_of, obs_column, resolve_layer, slot_label
from anncoder.dynamics.transport.fates import fates as fates_of
from anncoder.dynamics.transport.fates import flow, indicator, pulled_back, pushed_forward, trend
from anncoder.errors import ConfigError, InputError, counted, listed
from anncoder.tl.slots import target_of
from anncoder.tl.time_series.time_points import read_times, whole_number
from anncoder.tl.time_series.transport_record import (
    Transport,
    as_record,
    labels_at,
    read_transport,
    refuse_taken,
    settings_of,
    unknown_gene,
)

Array = np.ndarray[Any, Any]


def fates(
    adata: anndata.AnnData,
    labels: str,
    *,
    at: float | None = None,
    transport: str = "transport",
    key_added: str = "fates",
    copy: bool = False,
) -> anndata.AnnData | None:
    """Write the chances of each cell that its descendants at a later time are of each label.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`transport`.
    labels
        Column of obs; cells without a label are counted as "other".
    at
        The time whose labels are meant; None for the last.
    transport
        Name of the transport.
    key_added
        Slot of obsm to write.
    copy
        Return a copy with the result and leave ``adata`` alone.

    Returns
    -------
    AnnData or None
        With ``copy=True`` the copy.

    Sets ``adata.obsm[key_added]``, (n_obs, n_labels) float64: rows sum to 1, those at ``at`` have a single 1, later
    ones are NaN; ``adata.uns[key_added]``: ``names`` of the columns and ``settings_json``.

    Raises
    ------
    ConfigError
        There is no transport, no such column, or no chain of pairs.
    InputError
        No cell of that time has a label, or the coordinates are not those of the transport.
    """
    target = target_of(adata, copy=copy)
    refuse_taken(target, key_added, [("obsm", key_added)], "fates")
    record = read_transport(target, transport)
    last = _time_or_last(record, at)
    cells = record.cells(last)
    codes, names = labels_at(target, labels, cells, record.times)
    times = record.before(last)
    found = fates_of(record.plans(times[0], last), indicator(codes, len(names)))
    values = np.full((target.n_obs, len(names)), np.nan)
    for time, chances in zip(times, found, strict=True):
        values[record.cells(time)] = chances
    settings = {"function": "fates", "labels": labels, "at": last, "transport": transport}
    target.obsm[key_added] = values
    target.uns[key_added] = as_record(settings, names=np.array(names, dtype=str))
    return target if copy else None


def _time_or_last(record: Transport, at: float | None) -> float:
    return float(record.pairs["t1"].max()) if at is None else record.time(at, "at")


def ancestors(
    adata: anndata.AnnData,
    cells_or_label: Any,
    at: float,
    to: float | None = None,
    *,
    labels: str | None = None,
    transport: str = "transport",
) -> pd.Series:
    """Return which cells of earlier times become the chosen cells.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`transport`.
    cells_or_label
        Names of cells, a mask of all cells, or a label of the column ``labels``.
    at
        The time of the chosen cells; others are left out.
    to
        The earlier time; None for all times from which pairs lead to ``at``.
    labels
        Column of obs of the label; None for the one that :func:`fates` was asked about.
    transport
        Name of the transport.

    Returns
    -------
    Series
        Weights of all cells, (n_obs,) float64: at every time asked for they sum to 1, else they are NaN.

    Raises
    ------
    ConfigError
        There is no transport, no such time, cell or column.
    InputError
        No cell of the time has that label, or the coordinates are not those of the transport.
    """
    record = read_transport(adata, transport)
    last = record.time(at, "at")
    times = record.before(last)
    first = times[0] if to is None else record.time(to, "to")
    chain = record.chain(first, last)
    chosen = _chosen(adata, cells_or_label, labels, record, last)
    weights = pulled_back(record.plans(first, last), chosen)
    return _series(adata, record, chain, weights, only=None if to is None else first)


def descendants(
    adata: anndata.AnnData,
    cells_or_label: Any,
    at: float,
    to: float | None = None,
    *,
    labels: str | None = None,
    transport: str = "transport",
) -> pd.Series:
    """Return which cells of later times the chosen cells become.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`transport`.
    cells_or_label
        Names of cells, a mask of all cells, or a label of the column ``labels``.
    at
        The time of the chosen cells; others are left out.
    to
        The later time; None for all times to which pairs lead from ``at``.
    labels
        Column of obs of the label; None for the one that :func:`fates` was asked about.
    transport
        Name of the transport.

    Returns
    -------
    Series
        Weights of all cells, (n_obs,) float64: at every time asked for they sum to 1, else they are NaN.

    Raises
    ------
    ConfigError, InputError
        As :func:`ancestors`.
    """
    record = read_transport(adata, transport)
    first = record.time(at, "at")
    last = record.time(to, "to") if to is not None else _end(record, first)
    chain = record.chain(first, last)
    chosen = _chosen(adata, cells_or_label, labels, record, first)
    weights = pushed_forward(record.plans(first, last), chosen)
    return _series(adata, record, chain, weights, only=None if to is None else last)


def _end(record: Transport, time: float) -> float:
    later = dict(zip(record.pairs["t0"], record.pairs["t1"], strict=True))
    while time in later:
        time = float(later[time])
    return time


def _series(
    adata: anndata.AnnData, record: Transport, chain: list[float], weights: list[Array], only: float | None
) -> pd.Series:
    values = np.full(adata.n_obs, np.nan)
    for time, found in zip(chain, weights, strict=True):
        if only in (None, time):
            values[record.cells(time)] = found / found.sum()
    return pd.Series(values, index=adata.obs_names, name="weight")


def _chosen(adata: anndata.AnnData, given: Any, labels: str | None, record: Transport, time: float) -> Array:
    """Return 1 for the chosen cells of a time, else 0, (n,)."""
    cells = record.cells(time)
    mask = _mask(adata, given, labels)[cells]
    if not mask.any():
        times = np.unique(record.times[_mask(adata, given, labels)])
        there = f"; they are at {listed((f'{t:g}' for t in times), 20)}" if len(times) else ""
        what = f"none of the cells of time {time:g} is chosen{there}"
        raise InputError("no-labels", what, "cells_or_label", "choose cells of the time at=")
    return mask.astype(np.float64)


def _mask(adata: anndata.AnnData, given: Any, labels: str | None) -> Array:
    if isinstance(given, str):
        name = labels if labels is not None else (settings_of(adata, "fates") or {}).get("labels")
        if name is None:
            problem = f"{given!r} is a label, and nothing says of which column"
            raise ConfigError("bad-value", problem, "labels", "name the column of obs: labels='cell_type'")
        return np.asarray(obs_column(adata, name, what="labels").astype(str) == given)
    values = np.asarray(given)
    if values.dtype == bool:
        if values.shape != (adata.n_obs,):
            problem = f"a mask of {counted(len(values), 'cell')}, and there are {adata.n_obs:,}"
            raise ConfigError("bad-value", problem, "cells_or_label", "a mask has one value a cell of adata")
        return np.asarray(values)
    known = adata.obs_names.isin(values.astype(str))
    if known.sum() < len(set(values.astype(str).tolist())):
        missing = [name for name in values.astype(str).tolist() if name not in adata.obs_names]
        what = f"{counted(len(missing), 'cell')} not in adata: {listed(missing)}"
        raise ConfigError("bad-value", what, "cells_or_label", "names of obs_names, a mask, or a label")
    return np.asarray(known)


def trends(
    adata: anndata.AnnData,
    weights_or_fate: Any,
    genes: str | Sequence[str],
    *,
    layer: str | None = None,
    time_key: str | None = None,
    fates: str = "fates",
) -> pd.DataFrame:
    """Return the course of genes along a fate: weighted mean and standard deviation at each time.

    Parameters
    ----------
    adata
        Cells of several times.
    weights_or_fate
        A fate that :func:`fates` wrote, or weights of all cells, (n_obs,), as :func:`ancestors` returns; cells with
        NaN are left out.
    genes
        One or several of var_names.
    layer
        Expression, as it is; None for ``X``.
    time_key
        Column of obs with the times; None for that of the transport.
    fates
        Where :func:`fates` wrote.

    Returns
    -------
    DataFrame
        A row a time and gene: ``time``, ``gene``, ``mean``, ``sd``, ``n_eff``. The last, (sum w)^2 / sum w^2, is how
        many cells of equal weight tell as much; tests that take the number of all cells are far too sure.

    Raises
    ------
    ConfigError
        There is no such fate, gene, layer or time column.
    InputError
        The weights cannot be used.
    """
    names = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    layer = resolve_layer(layer, list(adata.layers))
    known = genes_of(adata, layer)
    missing = [gene for gene in names if gene not in known]
    if missing or not names:
        raise unknown_gene(missing or [""], [str(name) for name in known])
    weights = _weights(adata, weights_or_fate, fates)
    times = read_times(adata, time_key or _time_key(adata, fates))
    matrix = matrix_of(adata, layer)
    if matrix is None:
        raise InputError("missing-layer", f"there is no {slot_label(layer)}", slot_label(layer), "name a layer")
    columns, frames = known.get_indexer(names), []
    for time in np.unique(times[np.isfinite(weights)]):
        cells = np.flatnonzero((times == time) & np.isfinite(weights))
        found = trend(matrix[cells][:, columns], weights[cells])
        values = {"mean": found.mean, "sd": found.sd, "n_eff": found.n_eff}
        frames.append(pd.DataFrame({"time": time, "gene": names, **values}))
    return pd.concat(frames, ignore_index=True)


def _time_key(adata: anndata.AnnData, fates: str) -> str:
    name = (settings_of(adata, fates) or {}).get("transport", "transport")
    settings = settings_of(adata, name)
    if settings is None:
        raise ConfigError("no-transport", f"uns[{name!r}] holds no transport", "time_key", "name the column: time_key=")
    return str(settings["time_key"])


def _weights(adata: anndata.AnnData, given: Any, fates: str) -> Array:
    if isinstance(given, str):
        if settings_of(adata, fates) is None or fates not in adata.obsm:
            problem = f"obsm[{fates!r}] holds no fates"
            raise ConfigError("no-transport", problem, "fates", "run ac.tl.fates(adata, labels) first")
        names = [str(name) for name in adata.uns[fates]["names"]]
        if given not in names:
            raise ConfigError("unknown-key", f"no fate {given!r}", "weights_or_fate", f"fates: {listed(names, 20)}")
        return np.asarray(adata.obsm[fates])[:, names.index(given)].astype(np.float64)
    if isinstance(given, pd.Series) and given.index.is_unique:
        given = given.reindex(adata.obs_names)
    values = np.asarray(given, np.float64)
    if values.shape != (adata.n_obs,) or not np.nansum(values) > 0 or np.nanmin(values) < 0 or np.isinf(values).any():
        what = "weights are not numbers from 0 on, one a cell, some above 0"
        raise InputError("bad-value", what, "weights_or_fate", "as ac.tl.ancestors returns them, or the name of a fate")
    return values


def couple(
    adata: anndata.AnnData,
    t0: float,
    t1: float,
    rows: Sequence[str] | Array | None = None,
    top: int | None = None,
    *,
    transport: str = "transport",
    square: bool = False,
) -> csr_matrix:
    """Return the plan between two times as a sparse matrix whose rows sum to 1.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`transport`.
    t0, t1
        Times of a pair that was solved.
    rows
        Cells of t0, by name or as a mask of all cells; None for all of t0.
    top
        Of each row the largest entries alone, this many; None for all: 8 bytes x cells of t0 x cells of t1.
    transport
        Name of the transport.
    square
        Return all cells x all cells, with 1 on the diagonal of every cell without an entry: the transition matrix that
        CellRank's ``PrecomputedKernel`` takes.

    Returns
    -------
    csr_matrix
        Chances that descendants of a cell are like another, float64: cells of t0 (or ``rows``) x cells of t1, both in
        the order of ``adata``; with ``square``, (n_obs, n_obs).

    Raises
    ------
    ConfigError
        There is no such transport, pair or cell.
    InputError
        The coordinates are not those of the transport.
    """
    record = read_transport(adata, transport)
    first, last = record.time(t0, "t0"), record.time(t1, "t1")
    if record.chain(first, last) != [first, last]:
        problem = f"{first:g} to {last:g} is no pair of the transport, but a chain"
        raise ConfigError("no-transport", problem, "t1", "ask for its pairs one by one, and multiply them")
    if top is not None:
        top = whole_number(top, "top", 1, "a whole number from 1 on, or None for all entries")
    cells = record.cells(first)
    positions = None if rows is None else np.flatnonzero(_chosen(adata, rows, None, record, first))
    block = record.plan(first, last).rows(positions, top=top)
    block = diags(1 / np.asarray(block.sum(axis=1)).ravel()) @ block
    if not square:
        return csr_matrix(block)
    return _squared(
        csr_matrix(block), cells if positions is None else cells[positions], record.cells(last), adata.n_obs
    )


def _squared(block: csr_matrix, sources: Array, targets: Array, n: int) -> csr_matrix:
    rest = np.setdiff1d(np.arange(n), sources)
    entries = block.tocoo()
    data = np.concatenate([entries.data, np.ones(len(rest))])
    i, j = np.concatenate([sources[entries.row], rest]), np.concatenate([targets[entries.col], rest])
    return csr_matrix((data, (i, j)), shape=(n, n))


def flows(adata: anndata.AnnData, labels: str, *, transport: str = "transport") -> pd.DataFrame:
    """Return the mass that each pair of a transport moves between labels, for a picture of the flow.

    Parameters
    ----------
    adata
        Cells with a transport, see :func:`transport`.
    labels
        Column of obs; cells without a label are counted as "other".
    transport
        Name of the transport.

    Returns
    -------
    DataFrame
        ``time0``, ``label0``, ``time1``, ``label1``, ``mass``: of each pair the masses sum to the mean number of
        descendants of a cell.

    Raises
    ------
    ConfigError
        There is no transport, or no such column.
    InputError
        No cell of a time has a label, or the coordinates are not those of the transport.
    """
    record, frames = read_transport(adata, transport), []
    for t0, t1 in zip(record.pairs["t0"], record.pairs["t1"], strict=True):
        named = []
        for time in (t0, t1):
            codes, names = labels_at(adata, labels, record.cells(time), record.times)
            named.append(np.array(names)[codes])
        frame = flow(record.plan(t0, t1), *named)
        frames.append(frame.assign(time0=t0, time1=t1))
    return pd.concat(frames, ignore_index=True)[["time0", "label0", "time1", "label1", "mass"]]
