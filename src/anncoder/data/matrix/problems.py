"""Problems of a count matrix, in sentences: what, where and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from anncoder.data.matrix.arrays import Block
from anncoder.data.matrix.kind import KINDS, UNKNOWN, Traits, kind_of
from anncoder.data.matrix.scan import LARGEST_COUNT, LARGEST_VALUE, Flaw, Scan, Structure, scan, structure, unreadable
from anncoder.errors import InputError, listed

SEVERITIES = ("error", "warning", "info")

LONGEST_NAME = 32
"""Names of cells and genes are cut at this many characters, so that a message stays readable."""


class Problem(NamedTuple):
    """One thing that is wrong, or worth knowing, about the input."""

    code: str  # short and stable: "not-finite"
    severity: str  # "error": must not be used; "warning"; "info"
    what: str
    where: str
    remedy: str


@dataclass(frozen=True)
class Location:
    """Where a matrix stands: what a message needs to name a value and to say what to use instead.

    Attributes
    ----------
    where
        How messages call the matrix: ``"layers['counts']"``.
    obs_names, var_names
        Names of its cells, (n_obs,), and genes, (n_vars,); those of cells may be on disk
        (:class:`anncoder.data.store.Names`).
    counts
        Whether it must hold raw counts.
    holders
        Gives the other slots of the same AnnData that do; asked only where a remedy needs them.
    integers
        Whether counts must be integers: corrected and expected counts are not.
    """

    where: str
    obs_names: Any
    var_names: pd.Index
    counts: bool
    holders: Callable[[], tuple[str, ...]] = tuple
    integers: bool = True

    def of(self, flaw: Flaw) -> str:
        """Return the place of the first value of a flaw."""
        cell, gene = quoted(self.obs_names[flaw.obs]), quoted(self.var_names[flaw.var])
        return f"{self.where}, {'first at ' if flaw.n > 1 else ''}cell {cell}, gene {gene}"

    def instead(self, otherwise: str) -> str:
        """Return where the counts are, if it is known and counts are needed."""
        holders = self.holders() if self.counts else ()
        return use(holders[0]) if holders else otherwise


class Judged(NamedTuple):
    """A matrix, read completely."""

    problems: tuple[Problem, ...]  # errors first
    traits: Traits
    n_stored: int  # values read


def judge(
    matrix: Any, location: Location, *, logged: bool = False, each: Callable[[Block], None] | None = None
) -> Judged:
    """Read a whole matrix, (n_obs, n_vars), once and collect everything that is wrong with it.

    Values are looked at only where that is safe: not if the indices of a sparse matrix point outside of it.
    ``logged`` says that ``uns["log1p"]`` is there; ``each`` is called as in :func:`anncoder.data.matrix.scan.scan`.
    """
    problems = [*_name_problems(location)]
    if reason := unreadable(matrix):
        return Judged(_sorted([*problems, _unreadable(*reason, location)]), UNKNOWN, 0)
    n_obs, n_vars = matrix.shape
    problems += _shape_problems(matrix.shape, location)
    if any(problem.code == "shape-mismatch" for problem in problems):
        return Judged(_sorted([*problems, *_structure_problems(structure(matrix), location)]), UNKNOWN, 0)
    rounds = location.counts and location.integers
    values = scan(matrix, LARGEST_COUNT if location.counts else LARGEST_VALUE, each, rounds=rounds)
    problems += _structure_problems(values.structure, location)
    if values.structure.fault:
        return Judged(_sorted(problems), UNKNOWN, 0)
    kind = kind_of(set(values.flaws), values.highest, values.sample, logged=logged)
    problems += [*_value_problems(values, location, kind), *_zero_problems(values, location)]
    share = values.n_nonzero / max(1, n_obs * n_vars)
    return Judged(_sorted(problems), Traits(kind, values.lowest, values.highest, share, n_obs), values.n_stored)


def raise_first(problems: Iterable[Problem]) -> None:
    """Raise the first error among the problems, if there is one; its text mentions the others."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    first, *rest = errors
    more = f" (and {len(rest)} more: {listed(problem.code for problem in rest)})" if rest else ""
    raise InputError(first.code, first.what + more, first.where, first.remedy)


def quoted(name: object, longest: int = LONGEST_NAME) -> str:
    """Return a name in quotes, cut if it is long; control characters are escaped."""
    text = repr(str(name))
    return text if len(text) <= longest + 2 else f"{text[:longest]}…{text[0]}"


def use(slot: str) -> str:
    """Say how to use the counts of another slot."""
    if slot == "X":
        return "leave out layer (--layer): X holds counts"
    if slot == "raw.X":
        return "pass layer='raw.X' (--layer raw.X), which holds counts, of the genes of raw.var"
    name = slot.removeprefix("layers[").removesuffix("]")
    return f"pass layer={name} (--layer {name}), which holds counts"


def _sorted(problems: list[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity)))


def _unreadable(code: str, reason: str, location: Location) -> Problem:
    remedy = {
        "not-numeric": "convert the values to numbers first, for instance with .astype('float32')",
        "dask": "read it into memory: adata = adata.to_memory() (or .compute()), or give the path of the file",
        "not-a-matrix": "make it a scipy CSR or numpy matrix of cells x genes first (masked values: .filled(0))",
    }
    lazy = "dask" if "dask" in reason.lower() else code
    return Problem(code, "error", reason, location.where, location.instead(remedy[lazy]))


def _shape_problems(shape: tuple[int, int], location: Location) -> Iterator[Problem]:
    n_obs, n_vars = shape
    names = (len(location.obs_names), len(location.var_names))
    if shape != names:
        what = f"the matrix is {n_obs:,} x {n_vars:,}, but there are names for {names[0]:,} x {names[1]:,}"
        yield Problem("shape-mismatch", "error", what, location.where, "give one name for each cell and each gene")
    if n_obs < 2:
        what = f"a model needs at least 2 cells, this has {n_obs}" if n_obs else "there are no cells"
        yield Problem("too-few-cells", "error", what, location.where, "check the filters that ran before")
    if n_vars < 2:
        what = f"a model needs at least 2 genes, this has {n_vars}"
        code = "too-few-genes" if n_vars else "no-genes"
        yield Problem(code, "error", what, location.where, "check the filters that ran before")


def _name_problems(location: Location) -> Iterator[Problem]:
    for slot, names in (("obs_names", location.obs_names), ("var_names", location.var_names)):
        if isinstance(names, pd.MultiIndex):
            remedy = f"make one of its levels: adata.{slot} = adata.{slot}.map('_'.join)"
            yield Problem("bad-name", "error", f"{slot} have {names.nlevels} levels", slot, remedy)
    if (genes := _repeated(location.var_names)).size:
        what = f"{_several(len(genes), 'gene name occurs', 'gene names occur')} more than once"
        where = f"var_names {listed(map(quoted, genes))}"
        remedy = "adata.var_names_make_unique()"
        if location.where == "raw.X":  # whose names cannot be set where they are
            remedy = "raw = adata.raw.to_adata(); raw.var_names_make_unique(); adata.raw = raw"
        yield Problem("duplicate-genes", "error", what, where, remedy)
    if (cells := _repeated(location.obs_names)).size:
        what = f"{_several(len(cells), 'cell name occurs', 'cell names occur')} more than once"
        where = f"obs_names {listed(map(quoted, cells))}"
        yield Problem("duplicate-cells", "warning", what, where, "adata.obs_names_make_unique()")


def _repeated(names: Any) -> pd.Index:
    found: pd.Index = names[names.duplicated()].unique() if isinstance(names, pd.Index) else names.repeated()
    return found


def _several(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _structure_problems(found: Structure, location: Location) -> Iterator[Problem]:
    if found.fault:
        what = f"the sparse matrix is damaged: {found.fault}"
        remedy = location.instead("read the file again or make the matrix anew; its values cannot be trusted")
        yield Problem("sparse-indices", "error", what, location.where, remedy)
    if found.n_duplicates:
        what = f"{_several(found.n_duplicates, 'entry stands', 'entries stand')} at a place that has one already"
        remedy = "they will be added up in a copy; if that is not meant, look at how the matrix was made"
        yield Problem("duplicate-entries", "warning", what, location.where, remedy)
    if found.n_unsorted:
        what = f"{_several(found.n_unsorted, 'row or column has', 'rows or columns have')} indices out of order"
        remedy = "nothing to do: a copy will be sorted; .sort_indices() saves the time"
        yield Problem("unsorted-indices", "info", what, location.where, remedy)


def _value_problems(values: Scan, location: Location, kind: str) -> Iterator[Problem]:
    """Yield what is wrong with single values; below zero or between integers is wrong for counts only."""
    flaws = values.flaws
    if flaw := flaws.get("not-finite"):
        what = f"{_share(flaw, values)} not finite ({flaw.value})"
        remedy = "set them to 0 or drop those cells or genes; NaN often comes from dividing by an empty cell"
        yield Problem("not-finite", "error", what, location.of(flaw), location.instead(remedy))
    if flaw := flaws.get("too-large"):
        yield _too_large(flaw, values, location)
    if not location.counts:
        return
    looks = f": these look like {KINDS[kind]}" if kind not in ("counts", "unknown") else ""
    if location.integers and (flaw := flaws.get("not-integer")):
        noun = "an integer" if flaw.n == 1 else "integers"
        what = f"{_share(flaw, values)} not {noun} ({flaw.value:.6g}; maximum {values.highest:.6g}){looks}"
        yield Problem("not-integer", "error", what, location.of(flaw), _give_counts(location, kind))
    elif location.integers and (flaw := flaws.get("rounded")):
        what = f"{_share(flaw, values)} whole but for the noise of rounding ({flaw.value!r})"
        yield Problem("rounded", "info", what, location.of(flaw), "nothing to do: whole numbers are read")
    if flaw := flaws.get("negative"):
        what = f"{_share(flaw, values)} negative ({flaw.value:.6g}; minimum {values.lowest:.6g}){looks}"
        yield Problem("negative", "error", what, location.of(flaw), _give_counts(location, kind))


def _share(flaw: Flaw, values: Scan) -> str:
    percent = 100 * flaw.n / values.n_stored
    return f"{flaw.n:,} of {values.n_stored:,} values ({percent:.3g} %) {'is' if flaw.n == 1 else 'are'}"


def _too_large(flaw: Flaw, values: Scan, location: Location) -> Problem:
    if location.counts:
        limit = "2**24 = 16,777,216, where float32 skips integers"
        remedy = location.instead("this is damage or no count: look at the value, drop its cell or gene")
    else:
        limit = f"{LARGEST_VALUE:.3g}, which is infinite in float32"
        remedy = "look at how these values were made; log-transform or rescale them"
    what = f"{_share(flaw, values)} beyond {limit} ({flaw.value:.10g})"
    return Problem("too-large", "error", what, location.of(flaw), remedy)


def _give_counts(location: Location, kind: str) -> str:
    remedy = (
        "give the raw counts, from before any normalisation, or fit the values as they are: "
        "model='undercomplete', transform='none' (anncoder train --model undercomplete --set transform=none)"
    )
    if kind in ("expression", "cpm"):  # SoupX, CellBender and DCA leave fractions, and still counts
        remedy += "; corrected counts: round them, or DCA(check_counts=False) (anncoder dca --nocheckcounts)"
    return location.instead(remedy)


def _zero_problems(values: Scan, location: Location) -> Iterator[Problem]:
    n_obs, n_vars = len(location.obs_names), len(location.var_names)
    cells, genes = values.empty_obs, values.empty_vars
    if len(cells) == n_obs and n_obs and n_vars:
        what, remedy = "the whole matrix is zero", "look at how it was made"
        yield Problem("all-zero", "error", what, location.where, location.instead(remedy))
        return
    if len(cells) and n_vars:
        what = f"{len(cells):,} of {n_obs:,} cells {'is' if len(cells) == 1 else 'are'} zero in every gene"
        where = f"{location.where}, {_listed('cell', cells, location.obs_names)}"
        remedy = _drop_empty(location.where)
        if location.counts:
            remedy = f"nothing to do, a fit leaves them out; or {remedy}"
        yield Problem("empty-cells", "warning", what, where, remedy)
    if len(genes) and n_obs:
        what = f"{len(genes):,} of {n_vars:,} genes {'is' if len(genes) == 1 else 'are'} zero in every cell"
        where = f"{location.where}, {_listed('gene', genes, location.var_names)}"
        remedy = "nothing to do; sc.pp.filter_genes(adata, min_cells=1) makes the model smaller"
        yield Problem("empty-genes", "info", what, where, remedy)


def _listed(noun: str, positions: Any, names: pd.Index) -> str:
    # the names of the first few only: there may be a million
    head = ", ".join(quoted(name) for name in names[positions[:5]])
    more = f" and {len(positions) - 5:,} more" if len(positions) > 5 else ""
    return f"{noun}{'s' if len(positions) > 1 else ''} {head}{more}"


def _drop_empty(where: str) -> str:
    if where.startswith("layers[") or where == "raw.X":
        # scanpy's filter looks at X, which may be something else
        drop = f"adata = adata[adata.{where}.sum(axis=1) > 0].copy()"
    else:
        drop = "sc.pp.filter_cells(adata, min_counts=1)"
    return f"{drop}, or --drop-empty-cells"
