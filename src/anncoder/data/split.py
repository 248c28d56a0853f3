"""Validation split: cells held out at random, stratified, by groups, or the last ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from anncoder.config import TrainingConfig, given
from anncoder.data.adata import codes_of
from anncoder.data.loaders.order import Rows
from anncoder.data.matrix.notes import Strict, with_counts
from anncoder.data.sources import Source
from anncoder.errors import InputError


class Split(NamedTuple):
    """Rows to fit on and rows to hold out, each sorted."""

    train: Rows
    valid: Rows


def split_rows(
    n_obs: int,
    fraction: float,
    seed: int,
    *,
    stratify: Rows | None = None,
    groups: Rows | None = None,
    tail: bool = False,
) -> Split:
    """Split cells into training and validation, at random unless the tail is asked for.

    Parameters
    ----------
    n_obs
        Number of cells.
    fraction
        Share held out; 0 for none. With few cells at least one is held out and at least two are kept.
    seed
        Start of the random stream.
    stratify
        (n_obs,) codes of a column whose proportions both sides keep.
    groups
        (n_obs,) codes of a column whose groups go to one side as a whole (donors, plates).
    tail
        Hold out the last cells, as Keras does: they may all be of one sample.

    Raises
    ------
    InputError
        Two of the last three are given, or there are fewer than two groups.
    """
    if fraction == 0:
        return Split(np.arange(n_obs), np.empty(0, dtype=np.int64))
    generator = np.random.default_rng([seed, 0])
    if (stratify is not None) + (groups is not None) + tail > 1:
        what = "a split cannot be stratified, grouped or of the tail at once"
        raise InputError("bad-split", what, "valid_stratify, valid_groups, valid_split", "give one of them")
    if tail:
        n_train = max(int(n_obs * (1 - fraction)), min(2, n_obs))
        return Split(np.arange(n_train), np.arange(n_train, n_obs))
    if groups is not None:
        held_out = _whole_groups(groups, fraction, generator)
    else:
        strata = np.zeros(n_obs, dtype=np.int64) if stratify is None else stratify
        held_out = _stratified(strata, fraction, generator)
    mask = np.zeros(n_obs, dtype=bool)
    mask[held_out] = True
    return Split(np.flatnonzero(~mask), np.flatnonzero(mask))


def _stratified(strata: Rows, fraction: float, generator: np.random.Generator) -> Rows:
    # sorted by stratum, in random order within each, every 1/fraction-th cell is held out: proportions are kept
    n_obs = len(strata)
    n_valid = min(max(round(fraction * n_obs), 1), max(n_obs - 2, 0))
    order = np.lexsort((generator.random(n_obs), strata))
    picks = (np.arange(n_valid) + generator.random()) * (n_obs / max(n_valid, 1))
    return order[picks.astype(np.int64)]


def _whole_groups(groups: Rows, fraction: float, generator: np.random.Generator) -> Rows:
    names, sizes = np.unique(groups, return_counts=True)
    if len(names) < 2:
        what = "a grouped split needs at least two groups"
        raise InputError("bad-split", what, "valid_groups", "use a column with more groups, or valid_stratify")
    order = generator.permutation(len(names))
    filled = np.cumsum(sizes[order])
    n_groups = int(np.argmin(np.abs(filled[:-1] - fraction * len(groups)))) + 1
    return np.flatnonzero(np.isin(groups, names[order[:n_groups]]))


def split_cells(source: Source, training: TrainingConfig) -> Split:
    """Return the cells to fit on and those held out; cells without counts are neither, and it is said how many.

    Raises
    ------
    ConfigError
        As :func:`split_of`.
    InputError
        As :func:`split_of`; or cells have no count, and that is an error, or leaves too few to fit on.
    """
    found = split_of(source.n_obs, source.column, training)
    strict: Strict = "fit" if training.empty_cells == "error" else ""
    consequence = "left out of the fit, and embedded (empty_cells='error' refuses them, --set empty_cells=error)"
    n_vars = len(source.var_names)
    use = with_counts(source.sizes, source.names, source.where, n_vars, strict=strict, consequence=consequence)
    train, valid = found.train[use[found.train]], found.valid[use[found.valid]]
    if len(train) < 2 <= len(found.train):
        what = f"of {source.n_obs:,} cells {len(train)} is left to fit on: the others have no count, or are held out"
        raise InputError("too-few-cells", what, source.where, "check the filters that ran before")
    return Split(train, valid)


def split_of(n_obs: int, column: Callable[..., Any], training: TrainingConfig) -> Split:
    """Return the cells to fit on and those held out; ``column`` gives a column of obs by its name.

    Raises
    ------
    ConfigError
        A column of obs does not exist, or has missing values.
    InputError
        The groups cannot be split.
    """

    def codes(what: str) -> Any:
        key = getattr(training, what)
        return None if key is None else codes_of(column(key, what=what), key, what=what)

    return split_rows(
        n_obs,
        given(training.valid_fraction),
        training.seed,
        stratify=codes("valid_stratify"),
        groups=codes("valid_groups"),
        tail=training.valid_split == "tail",
    )
