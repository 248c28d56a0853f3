"""Notes on data taken with a change (cells without counts, rounded values), each said once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
import pandas as pd

from anncoder.errors import InputError, listed

Array = np.ndarray[Any, Any]

logger = logging.getLogger("anncoder")

ROUNDED = "taken rounded, as the whole numbers that they are in the digits of float32"
Strict = Literal["", "fit", "model"]

_said: ContextVar[set[str] | None] = ContextVar("said", default=None)


class _Everything(set[str]):
    def __contains__(self, fact: object) -> bool:
        return True


@contextmanager
def said_once() -> Iterator[None]:
    """Say the same about the same data once in a block of calls, each of which would say it."""
    with _having_said(set() if (said := _said.get()) is None else said):
        yield


@contextmanager
def silent() -> Iterator[None]:
    """Say nothing in a block of calls: it has been said, or will be."""
    with _having_said(_Everything()):
        yield


@contextmanager
def _having_said(said: set[str]) -> Iterator[None]:
    token = _said.set(said)
    try:
        yield
    finally:
        _said.reset(token)


def say(fact: str, consequence: str) -> None:
    """Warn of what the data are, and of what follows."""
    said = _said.get()
    if said is not None and fact in said:
        return
    if said is not None:
        said.add(fact)
    logger.warning("%s: %s", fact, consequence)


def with_counts(
    sizes: Array, names: Callable[[Array], pd.Index], where: str, n_vars: int, *, consequence: str, strict: Strict = ""
) -> Array:
    """Return which cells have a count, (n_obs,) bool, and say how many have not, if any.

    Parameters
    ----------
    sizes
        (n_obs,) total counts in the genes of the model.
    names
        Gives the names of some cells.
    where
        How messages call the matrix.
    n_vars
        Number of genes.
    consequence
        What happens to those without.
    strict
        Whether there must be none: ``"fit"`` if in a fit, ``"model"`` if in the genes of a fitted model.

    Raises
    ------
    InputError
        No cell has a count, or, where it is strict, one has not.
    """
    found: Array = sizes > 0
    empty = np.flatnonzero(~found)
    if not len(empty):
        return found
    n_obs, has = len(sizes), "has" if len(empty) == 1 else "have"
    first = f"{listed(names(empty[:5]))}{f' and {len(empty) - 5:,} more' * (len(empty) > 5)}"
    fact = f"{len(empty):,} of {n_obs:,} cells {has} no count in any of the {n_vars:,} genes ({first})"
    if len(empty) == n_obs:
        remedy = "look at how genes were matched and cells were chosen: of nothing there is nothing to tell"
        raise InputError("empty-cells", fact, where, remedy)
    if strict:
        raise InputError("empty-cells", fact, where, _without(where, strict == "model"))
    say(fact, consequence)
    return found


def _without(where: str, of_model: bool) -> str:
    slot = where.rsplit(": ", 1)[-1]  # of a file
    owner, _, name = f"adata.{slot}".rpartition(".")
    # a filter of all genes would keep a cell whose counts are in genes that the model does not know
    known = f"[:, {owner}.var_names.isin(model.var_names_)]" * of_model
    drop = f"adata = adata[np.ravel({owner}{known}.{name}.sum(axis=1)) > 0].copy(), or --drop-empty-cells"
    return f"remove them: {drop}; or fit with empty_cells='leave-out' (--set empty_cells=leave-out)"
