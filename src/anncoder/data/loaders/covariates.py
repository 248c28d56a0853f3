"""Covariates of the cells: categories in one-hot code, standardised numbers.

Each category of a column has a column of its own, 1 or 0 less its share of the fitted cells, and a number has one, less
their mean and over their standard deviation. So 0 everywhere is the average of the fitted cells, which cells stand for
whose value is missing or unknown to a fitted model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from anncoder.config import unknown_key
from anncoder.data.adata import batch_name, category_names
from anncoder.errors import ConfigError, InputError, counted, listed

Array = np.ndarray[Any, Any]
Column = Callable[[str, str], Any]  # of obs, (n_obs,), by its name and by who asks for it

FARTHEST = 10.0  # standard deviations from the mean: what is beyond counts as there
MOST_CATEGORIES = 500  # of a column: an identifier has more
CELLS_OF_A_CATEGORY, FEW = 50, 10

logger = logging.getLogger("anncoder")


class Covariates(NamedTuple):
    """The covariates of a fitted model, in the order of their columns."""

    categorical: dict[str, dict[str, float]]  # by key the categories, sorted, and their shares of the fitted cells
    continuous: dict[str, tuple[float, float]]  # by key mean and standard deviation of the fitted cells

    @property
    def keys(self) -> list[str]:
        """Columns of obs."""
        return [*self.categorical, *self.continuous]

    @property
    def n_columns(self) -> int:
        """Columns of the matrix, c."""
        return sum(map(len, self.categorical.values())) + len(self.continuous)

    def at(self, wanted: Mapping[str, object]) -> dict[int, float]:
        """Return columns of the matrix and the values that they have where covariates have the wanted ones.

        ``"mean"`` is the average of the fitted cells. A ConfigError where there is no such covariate, or value.
        """
        if not isinstance(wanted, Mapping):
            what = f"covariates = {wanted!r} is no mapping from columns to values"
            raise ConfigError("bad-value", what, "covariates", "such as covariates={'stress': 'mean'}")
        widths = [*map(len, self.categorical.values()), *[1] * len(self.continuous)]
        starts = dict(zip(self.keys, np.cumsum([0, *widths])[:-1], strict=True))
        found: dict[int, float] = {}
        for key, value in wanted.items():
            if key not in starts:
                raise unknown_key(key, self.keys, where="covariates")
            row = self._row(key, value)
            found |= {int(starts[key]) + i: float(x) for i, x in enumerate(row)}
        return found

    def _row(self, key: str, value: object) -> Array:
        # the columns of one covariate of this value
        shares = self.categorical.get(key, {})
        if value == "mean" and "mean" not in shares:
            return np.zeros(len(shares) or 1)
        if shares:
            name = batch_name(value)
            if name not in shares:
                raise unknown_key(name, list(shares), where=f"covariates[{key!r}]")
            return np.array([(other == name) - share for other, share in shares.items()])
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            remedy = "give a number, or 'mean' for that of the fitted cells"
            raise ConfigError(
                "bad-value", f"{value!r} is no value of the number {key!r}", f"covariates[{key!r}]", remedy
            )
        return standardized(np.array([number]), *self.continuous[key])


NONE = Covariates({}, {})


def fitted_covariates(
    column: Column, categorical: list[str], continuous: list[str], fitted: Array
) -> tuple[Array | None, Covariates]:
    """Return the covariates of cells to fit on, (n_obs, c) float32, and what a model keeps of them; None without any.

    Parameters
    ----------
    column
        Returns a column of obs.
    categorical, continuous
        Their names.
    fitted
        (n_obs,) bool, the cells that shares, means and deviations are of.

    Raises
    ------
    ConfigError
        There is no such column, values are missing, or it is of another kind.
    """
    shares = {key: _shares(column(key, "categorical_keys"), key, fitted) for key in categorical}
    moments = {key: _moments(column(key, "continuous_keys"), key, fitted) for key in continuous}
    found = Covariates(shares, moments)
    return coded(column, found, len(fitted)), found


def coded(column: Column, known: Covariates, n_obs: int) -> Array | None:
    """Return the covariates of cells as of a fitted model, (n_obs, c) float32; None of a model without.

    Cells whose value is missing, or a category that the model does not know, have zeros, with a warning.

    Raises
    ------
    InputError
        A number is infinite, or no number.
    """
    if not known.keys:
        return None
    parts = [np.zeros((n_obs, len(names)), dtype=np.float32) for names in known.categorical.values()]
    for part, (key, shares) in zip(parts, known.categorical.items(), strict=True):
        values = _column_or_none(column, key, "categorical_keys")
        if values is not None:
            _put_categories(part, np.asarray(values, dtype=object), key, shares)
    for key, (mean, deviation) in known.continuous.items():
        values = _column_or_none(column, key, "continuous_keys")
        numbers = np.full(n_obs, mean) if values is None else _numbers(values, key)
        missing = np.isnan(numbers)
        if missing.any():
            _warn_of_average(f"{counted(int(missing.sum()), 'cell')} without a value in", key)
        parts.append(standardized(np.where(missing, mean, numbers), mean, deviation)[:, None])
    return np.concatenate(parts, axis=1, dtype=np.float32)


def standardized(numbers: Array, mean: float, deviation: float) -> Array:
    """Return numbers less a mean and over a deviation, within ten deviations."""
    return np.clip((numbers - mean) / deviation, -FARTHEST, FARTHEST)


def _column_or_none(column: Column, key: str, what: str) -> Any:
    try:
        return column(key, what)
    except ConfigError as error:
        if error.code != "unknown-key":
            raise
        _warn_of_average("no", key)
        return None


def _warn_of_average(why: str, key: str) -> None:
    logger.warning("%s obs[%r]: taken as the average of the fitted cells, embedded and decoded", why, key)


def _put_categories(part: Array, values: Array, key: str, shares: dict[str, float]) -> None:
    there = ~pd.isna(values)
    names = np.array([batch_name(value) if known else "" for value, known in zip(values, there, strict=True)], object)
    codes = pd.Index(list(shares)).get_indexer(names)
    codes[~there] = -1
    unknown = sorted(set(names[there & (codes < 0)].tolist()))
    if (codes < 0).any():
        which = f" ({listed(map(repr, unknown))})" if unknown else ""
        _warn_of_average(
            f"{counted(int((codes < 0).sum()), 'cell')} of no category that the model knows{which} in", key
        )
    rows = np.flatnonzero(codes >= 0)
    part[rows] = -np.fromiter(shares.values(), np.float32, len(shares))
    part[rows, codes[rows]] += 1


def _shares(column: Any, key: str, fitted: Array) -> dict[str, float]:
    # of the categories of a column, sorted, among the fitted cells
    values = np.asarray(column, dtype=object)
    if any(isinstance(value, float | np.floating) and not pd.isna(value) and value % 1 for value in values):
        raise _bad(key, "categorical_keys", "has numbers with a fraction, which are no categories", "continuous_keys")
    of_values, positions = category_names(values, key, "categorical_keys")
    names, codes = np.unique(of_values, return_inverse=True)
    if len(names) > MOST_CATEGORIES:
        what = f"has {len(names):,} categories, more than {MOST_CATEGORIES}: is it an identifier, or a measurement?"
        raise _bad(key, "categorical_keys", what, "continuous_keys")
    found = np.bincount(codes[positions][fitted], minlength=len(names))
    if np.count_nonzero(found) < 2:
        raise _constant(key, "categorical_keys")
    if len(names) > max(len(values) / CELLS_OF_A_CATEGORY, FEW) or found.min() < FEW:
        logger.warning(
            "obs[%r] has %s in %s, the smallest of %s: their effects are hardly known",
            key,
            counted(len(names), "category", "categories"),
            counted(len(values), "cell"),
            counted(int(found.min()), "fitted cell"),
        )
    return dict(zip(names.tolist(), (found / found.sum()).tolist(), strict=True))


def _moments(column: Any, key: str, fitted: Array) -> tuple[float, float]:
    numbers = _numbers(column, key)
    missing = int(np.isnan(numbers).sum())
    if missing:
        what = f"obs[{key!r}] has {missing:,} missing values"
        raise ConfigError("missing-values", what, "continuous_keys", "fill them, or use another column")
    mean, deviation = float(numbers[fitted].mean()), float(numbers[fitted].std())
    if not deviation > 1e-9 * max(abs(mean), 1e-30):
        raise _constant(key, "continuous_keys")
    return mean, deviation


def _numbers(column: Any, key: str) -> Array:
    # (n,) float64, NaN where missing
    values = np.asarray(column, dtype=object)
    missing = pd.isna(values)
    try:
        if any(isinstance(value, str | bytes) for value in values):  # float("12") would be one
            raise TypeError
        numbers = np.array([math.nan if gone else float(v) for v, gone in zip(values, missing, strict=True)])
    except (TypeError, ValueError, OverflowError):
        other = next(value for value, gone in zip(values, missing, strict=True) if not gone and not _is_number(value))
        what = f"has values that are no numbers, such as {other!r}"
        raise _bad(key, "continuous_keys", what, "categorical_keys") from None
    if np.isinf(numbers).any():
        what = f"obs[{key!r}] has {counted(int(np.isinf(numbers).sum()), 'infinite value')}"
        raise InputError("bad-covariate", what, "continuous_keys", "replace them, or use another column")
    return numbers


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _bad(key: str, where: str, what: str, instead: str) -> InputError:
    return InputError("bad-covariate", f"obs[{key!r}] {what}", where, f"name it in {instead}, or use another column")


def _constant(key: str, where: str) -> InputError:
    what = f"all fitted cells have one value of obs[{key!r}]"
    return InputError("bad-covariate", what, where, "leave it out, or name a column that differs between cells")
