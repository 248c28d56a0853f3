"""Errors with fault, place and remedy; one class an exit code of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AnncoderError(ValueError):
    """A mistake or a limit that the user can do something about.

    A ValueError, for scikit-learn, and others that call estimators, expect one for data and settings that do not fit.

    Parameters
    ----------
    code
        Short stable name of the problem (``"negative"``); ``docs/errors.md`` lists them all.
    what
        What is wrong, in one sentence, with the offending value.
    where
        The place: file, slot, cells, genes, configuration key.
    remedy
        What to do next.
    """

    exit_code = 1

    def __init__(self, code: str, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.code, self.what, self.where, self.remedy = code, what, where, remedy

    def __str__(self) -> str:
        lines = [f"{self.what} [{self.code}]"]
        if self.where:
            lines.append(f"  where:  {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)


class ConfigError(AnncoderError):
    """A wrong option, hyper-parameter or configuration key (exit code 2)."""

    exit_code = 2


class FileError(AnncoderError):
    """A file or folder that cannot be read, or is of the wrong kind (exit code 3)."""

    exit_code = 3


class InputError(AnncoderError):
    """Data that can be read but must not be trained on or embedded (exit code 4)."""

    exit_code = 4


class DivergenceError(AnncoderError):
    """A loss or gradient stopped being finite (exit code 5).

    ``rows`` are the positions of the offending cells in the data, ``columns`` those of the genes in the model,
    both possibly empty; ``term`` is the name of the loss term.
    """

    exit_code = 5

    def __init__(
        self,
        what: str,
        where: str = "",
        remedy: str = "",
        *,
        term: str = "",
        rows: tuple[int, ...] = (),
        columns: tuple[int, ...] = (),
    ) -> None:
        super().__init__("diverged", what, where, remedy)
        self.term, self.rows, self.columns = term, rows, columns
        self.history: Any = None  # of the training until then, set by the loop

    def named(self, obs_names: Sequence[str], var_names: Sequence[str]) -> DivergenceError:
        """Return the error with names: of the cells ``rows``, and of all genes."""
        cells = listed(obs_names) if self.rows else "no single cell"
        genes = listed([var_names[column] for column in self.columns]) if self.columns else "no single gene"
        places = f"; cells: {cells}; genes: {genes}" if self.rows or self.columns else ""
        where = f"{self.where}{places}"
        named = DivergenceError(self.what, where, self.remedy, term=self.term, rows=self.rows, columns=self.columns)
        named.history = self.history
        return named


class ResourceError(AnncoderError):
    """Not enough memory or disk, or no permission to write (exit code 6)."""

    exit_code = 6


def listed(names: object, limit: int = 5) -> str:
    """Return the first few of an iterable as text: ``"a, b, c and 7 more"``."""
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    head = ", ".join(listed[:limit])
    return head if len(listed) <= limit else f"{head} and {len(listed) - limit:,} more"


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: ``"1 cell"``, ``"2,000 cells"``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out; torch has no type for it, only words."""
    message = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in message or "out of memory" in message)
    )
