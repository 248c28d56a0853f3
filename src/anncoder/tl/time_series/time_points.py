"""The user's time column, coordinates of cells and growth rates: read and checked.

Times come as numbers, or as text that is nothing but numbers. What cannot be one axis of time is refused, with the line
that repairs it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import anndata
import numpy as np
import pandas as pd

from anncoder.config import unknown_key
from anncoder.data.adata import obs_column
from anncoder.errors import ConfigError, InputError, counted, listed

logger = logging.getLogger("anncoder")

Array = np.ndarray[Any, Any]

FEW_CELLS = 10
LARGEST_TIME = 1e8  # beyond it: seconds since 1970
LARGEST_RATE = 20.0  # factor a unit of time


def read_times(adata: anndata.AnnData, time_key: Any, *, fewest: int = 2) -> Array:
    """Return the time of each cell, (n_obs,) float64; of ``fewest`` time points or more.

    Raises
    ------
    ConfigError
        There is no such column.
    InputError
        It has missing values, text, dates, too few times, two spellings of one time, or an order of categories that
        is not that of its numbers.
    """
    column = obs_column(adata, time_key, what="time_key")
    where, ours = f"obs[{time_key!r}]", f"adata.obs[{time_key!r}]"
    values = column.cat.categories.to_series() if isinstance(column.dtype, pd.CategoricalDtype) else column
    _refuse_dates(values, where, ours)
    if column.isna().any():
        what = f"{where} has no time for {counted(int(column.isna().sum()), 'cell')}"
        raise InputError("bad-times", what, where, f"adata = adata[{ours}.notna()].copy()")
    times = _numbers(column, where, ours)
    if not np.isfinite(times).all():
        raise InputError(
            "bad-times", f"{where} has infinite times", where, f"adata = adata[np.isfinite({ours})].copy()"
        )
    if np.abs(times).max(initial=0) > LARGEST_TIME:
        what = f"the times of {where} reach {np.abs(times).max():.4g}: dates, in seconds or finer?"
        remedy = f"count days from the first: {ours} = ({ours} - {ours}.min()) / 86400"
        raise InputError("bad-times", what, where, remedy)
    return _checked(column, times, where, ours, fewest)


def _refuse_dates(values: Any, where: str, ours: str) -> None:
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        first = "" if pd.api.types.is_timedelta64_dtype(values) else f" - {ours}.min()"
        remedy = f"count days: {ours} = ({ours}{first}).dt.total_seconds() / 86400"
        raise InputError("bad-times", f"{where} has dates", where, remedy)
    if pd.api.types.is_bool_dtype(values):
        remedy = f"give the times in days or hours: {ours} = {ours}.map({{False: 0.0, True: 2.0}})"
        raise InputError("bad-times", f"{where} has True and False, which are no times", where, remedy)


def _numbers(column: pd.Series, where: str, ours: str) -> Array:
    try:
        numbers = pd.to_numeric(column.astype(str) if _is_text(column) else column)
        return np.asarray(numbers, np.float64)
    except (ValueError, TypeError):
        found = pd.unique(column.astype(str))
        what = f"{where} is text, not times: {listed(map(repr, found), 3)}"
        if all(re.search(r"\d", name) for name in found):
            remedy = f'{ours} = pd.to_numeric({ours}.astype(str).str.extract(r"(\\d+\\.?\\d*)")[0])'
        else:
            remedy = f"give each its time, in one unit: {ours} = {ours}.astype(str).map({{{found[0]!r}: 0.0}})"
        raise InputError("bad-times", what, where, remedy) from None


def _is_text(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(column)


def _checked(column: pd.Series, times: Array, where: str, ours: str, fewest: int) -> Array:
    unique = np.unique(times)
    if len(unique) < fewest:
        found = f" ({unique[0]:g})" if len(unique) else ""
        remedy = "name the column of the time points, of an AnnData that holds all of them"
        raise InputError("bad-times", f"{where} has {counted(len(unique), 'time point')}{found}", where, remedy)
    if _is_text(column):
        spelled = pd.Series(column.astype(str).to_numpy()).groupby(times).unique()
        twice = spelled[spelled.map(len) > 1]
        if len(twice):
            what = f"{where} spells one time in several ways: {listed(map(repr, twice.iloc[0]))}"
            raise InputError("bad-times", what, where, f"{ours} = {ours}.astype(str).astype(float)")
        _refuse_order(column, where, ours)
    return times


def warn_of_few(times: Array, where: str) -> None:
    """Warn of time points with fewer than ten cells."""
    for time, n in zip(*np.unique(times, return_counts=True), strict=True):
        if n < FEW_CELLS:
            logger.warning("%s: time %g has %s: few for a transport plan", where, time, counted(n, "cell"))


def _refuse_order(column: pd.Series, where: str, ours: str) -> None:
    if not isinstance(column.dtype, pd.CategoricalDtype) or not column.cat.ordered:
        return
    names = column.cat.remove_unused_categories().cat.categories
    if not pd.to_numeric(names.astype(str)).is_monotonic_increasing:
        what = f"the order of the categories of {where} is not that of their numbers: {listed(names)}"
        raise InputError("bad-times", what, where, f"{ours} = {ours}.astype(str).astype(float)")


def read_coordinates(adata: anndata.AnnData, key: str, use_rep: str | None) -> tuple[Array, str]:
    """Return coordinates of all cells, (n_obs, d), and their slot of obsm: ``use_rep``, or ``X_{key}``.

    Raises
    ------
    ConfigError
        There is no such slot.
    InputError
        It holds no finite numbers, or the same for all cells.
    """
    slot = f"X_{key}" if use_rep is None else use_rep
    if slot not in adata.obsm:
        error = unknown_key(slot, [str(name) for name in adata.obsm], where="use_rep (a slot of obsm)")
        remedy = f"{error.remedy}; or make it: ac.tl.autoencode(adata, key_added={key!r})"
        raise ConfigError(error.code, error.what, error.where, error.remedy if use_rep else remedy)
    where = f"obsm[{slot!r}]"
    try:
        values = np.asarray(adata.obsm[slot])
        finite = np.isfinite(values.astype(np.float64))
    except (TypeError, ValueError):
        values = finite = np.empty(0)
    if values.ndim != 2 or not values.shape[1]:
        remedy = "name a slot with a number for every cell and axis, such as X_pca"
        raise InputError("bad-coordinates", f"{where} is no matrix of numbers", where, remedy)
    if not finite.all():
        what = f"the coordinates of {counted(int((~finite.all(axis=1)).sum()), 'cell')} in {where} are not finite"
        remedy = f"leave them out: adata = adata[np.isfinite(adata.obsm[{slot!r}]).all(axis=1)].copy()"
        raise InputError("bad-coordinates", what, where, remedy)
    if len(values) and (values == values[0]).all():
        what = f"all cells have the same coordinates in {where}"
        raise InputError("bad-coordinates", what, where, "fit the model again, or name another slot with use_rep")
    return values, slot


def read_rates(adata: anndata.AnnData, given: Any, what: str) -> Array:
    """Return positive numbers, one a cell, (n_obs,) float64: a column of obs, an array or a single number.

    Raises
    ------
    ConfigError
        There is no such column, or the numbers are not one a cell.
    InputError
        Some are missing, infinite, zero or negative.
    """
    named = isinstance(given, str)
    where = f"obs[{given!r}]" if named else what
    found = obs_column(adata, given, what=what) if named else given
    try:
        values = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("bad-growth", f"{where} is not of numbers", where, "give a factor a unit of time") from None
    if values.ndim == 0:
        values = np.full(adata.n_obs, float(values))
    if values.shape != (adata.n_obs,):
        shape = f"{where} has the shape {values.shape}, and there are {counted(adata.n_obs, 'cell')}"
        raise ConfigError("bad-value", shape, what, "give one number a cell, or a column of obs")
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        example = values[wrong][0]
        problem = f"{where} has {counted(int(wrong.sum()), 'value')} that cannot be, such as {example:g}"
        remedy = "a factor a unit of time is a positive number: 1 for cells that neither divide nor die"
        raise InputError("bad-growth", problem, where, remedy)
    return values


def warn_of_large(factors: Array, where: str) -> None:
    """Warn of cells that are to multiply more than 20 times in a unit of time."""
    if (n := int((factors > LARGEST_RATE).sum())) > 0:
        logger.warning(
            "%s: %s multiply more than %g times in a unit of time (up to %.3g): is the rate of another unit than the "
            "times? A rate per hour is one of per day to the power 1/24",
            where,
            counted(n, "cell"),
            LARGEST_RATE,
            factors.max(),
        )


def whole_number(value: Any, name: str, least: int, remedy: str) -> int:
    """Return a whole number from ``least`` on; a ConfigError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError("bad-value", f"{name} = {value!r}", name, remedy)
    return int(value)
