"""Input check before training: everything wrong with a count matrix, as a report.

The whole matrix is read once (:mod:`anncoder.data.matrix.scan`), every problem is collected, and each says what is
wrong, where, and what to do (:mod:`anncoder.data.matrix.problems`). Nothing of the user's is changed. Training runs
:func:`check` first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from anncoder.config import NetworkConfig
from anncoder.data.adata import RAW, genes_of, matrix_of, resolve_layer, slot_label, var_of
from anncoder.data.matrix.arrays import Block
from anncoder.data.matrix.kind import KINDS, Traits, traits
from anncoder.data.matrix.problems import Judged, Location, Problem, judge, quoted, raise_first
from anncoder.data.matrix.sample import SAMPLED_CELLS
from anncoder.data.matrix.zeros import holders
from anncoder.data.opening import open_stores
from anncoder.data.store import Names, Store, missing_layer, slots_of
from anncoder.errors import InputError, counted, listed

FEATURES = ("feature_types", "feature_biotype")  # columns of var: Cell Ranger's and CELLxGENE's
GENES = ("Gene Expression", "gene")  # and their words for genes
NARROW = "latent-too-wide"
FEW_CELLS = 50  # below which a fit is warned about

__all__ = ["Problem", "Report", "check", "check_matrix", "raise_first"]


@dataclass(frozen=True)
class Report:
    """What :func:`check` found; printing it shows everything.

    Attributes
    ----------
    n_obs, n_vars, n_stored
        Shape of the matrix, and how many values were read: the stored ones of a sparse matrix.
    where
        The slot that was checked: ``"X"``, ``"layers['counts']"``.
    table
        By slot, the checked one first: its kind, extremes and share of non-zero values. Those of the other
        slots come from a sample of their cells.
    problems
        All of them, errors first.
    seconds
        How long it took.
    """

    n_obs: int
    n_vars: int
    n_stored: int
    where: str
    table: dict[str, Traits]
    problems: tuple[Problem, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return all(problem.severity != "error" for problem in self.problems)

    @property
    def kind(self) -> str:
        """What the checked matrix is: "counts", "cpm", "log1p", "scaled", "expression" or "unknown"."""
        return self.table[self.where].kind

    @property
    def slots(self) -> dict[str, str]:
        """What each slot is, by its name: ``{"X": "log1p", "layers['counts']": "counts"}``."""
        return {slot: row.kind for slot, row in self.table.items()}

    @property
    def counts_in(self) -> tuple[str, ...]:
        """The slots that hold counts, of whatever molecules."""
        return tuple(slot for slot, row in self.table.items() if row.kind == "counts")

    def raise_if_bad(self) -> None:
        """Raise the first error, if there is one, as an InputError that mentions the others."""
        raise_first(self.problems)

    def to_frame(self) -> pd.DataFrame:
        """Return the problems as a table, one a row."""
        return pd.DataFrame(self.problems, columns=list(Problem._fields))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dictionaries, lists, texts and numbers."""
        return {
            "n_obs": self.n_obs,
            "n_vars": self.n_vars,
            "n_stored": self.n_stored,
            "where": self.where,
            "kind": self.kind,
            "ok": self.ok,
            "counts_in": list(self.counts_in),
            "slots": {slot: row._asdict() for slot, row in self.table.items()},
            "problems": [problem._asdict() for problem in self.problems],
            "seconds": self.seconds,
        }

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def _verdict(self) -> str:
        if not self.ok:
            return "not usable as it is"
        with_others = any(problem.code == NARROW for problem in self.problems)
        return "ready, but not with the default settings" if with_others else "ready"

    def _head(self) -> str:
        return (
            f"{counted(self.n_obs, 'cell')} x {counted(self.n_vars, 'gene')}; {self.where}: {KINDS[self.kind]}; "
            f"{self._verdict()} ({counted(self.n_stored, 'value')} read in {self.seconds:.2g} s)"
        )

    def __str__(self) -> str:
        return "\n".join([self._head(), "", *_table_lines(self.table), *map(_paragraph, self.problems)])

    def _repr_html_(self) -> str:
        # for notebooks: a table of the slots, and one of the problems
        slots = pd.DataFrame([row._asdict() for row in self.table.values()], index=list(self.table))
        with pd.option_context("display.max_colwidth", None):
            below = self.to_frame().to_html(index=False) if self.problems else "<p>no problems</p>"
        return f"<p>{escape(self._head())}</p>{slots.to_html(float_format=lambda value: f'{value:.3g}')}{below}"


def check(
    data: AnnData | str | Path, *, layer: str | None = None, counts: bool = True, integers: bool = True
) -> Report:
    """Read a whole matrix of an AnnData and report everything that is wrong with it.

    The matrix that will be used is read completely; what the other slots are is told from at most 2,000
    evenly spaced cells of each. Nothing is changed. A file, or a backed AnnData, is read a block at a time.

    Parameters
    ----------
    data
        Cells x genes: an AnnData, which may be a view, or the path of an ``.h5ad`` file or ``.zarr`` folder.
    layer
        The layer that will be used; None and ``"X"`` are ``X``, ``"raw.X"`` is the matrix of ``raw``, with its genes.
    counts
        The matrix must hold raw counts, as the count models need. If False, it may hold any finite values.
    integers
        Counts must be integers; corrected and expected counts are not.

    Raises
    ------
    FileError
        The file cannot be read.
    InputError
        There is no such layer, or "X" may be either. Every other problem is collected in the report; see
        :meth:`Report.raise_if_bad`.
    """
    start = time.perf_counter()
    stores = open_stores(data, layer)
    if stores is None:
        assert isinstance(data, AnnData)
        return check_adata(data, layer, counts=counts, integers=integers)
    store = stores[0]
    with store.errors():
        others = _other_slots_of(store)
        judged = judge_store(store, lambda: others, counts=counts, integers=integers)
        warned = with_warnings(judged, fit_warnings(store.matrix.shape, store.var_column))
    return _report(store.matrix.shape, store.slot, warned, others, start)


def check_adata(
    adata: AnnData, layer: str | None, *, counts: bool, integers: bool, each: Callable[[Block], None] | None = None
) -> Report:
    """Return the report on an AnnData; ``each`` is called as in :func:`anncoder.data.matrix.scan.scan`."""
    start = time.perf_counter()
    layer = resolve_layer(layer, adata.layers)
    where = slot_label(layer)
    others = dict(_other_slots(adata, where))
    matrix = matrix_of(adata, layer)
    if matrix is None:
        layers = listed(quoted(name) for name in adata.layers if name is not None)
        holding = holders(_named_slots(adata), where, others)
        raise missing_layer(layer, "AnnData", f"layers: {layers or 'none'}", holding, others=bool(others))

    def holding_counts() -> tuple[str, ...]:
        return holders(_named_slots(adata), where, others)

    location = Location(where, adata.obs_names, genes_of(adata, layer), counts, holding_counts, integers)
    judged = judge(matrix, location, logged="log1p" in adata.uns, each=each)
    shape, var = (adata.n_obs, len(location.var_names)), var_of(adata, layer)
    return _report(shape, where, with_warnings(judged, fit_warnings(shape, var.get)), others, start)


def fit_warnings(shape: tuple[int, ...], column: Callable[[str], Any]) -> tuple[Problem, ...]:
    """Return warnings about what a model would be fitted on: few cells or genes, and other features than genes.

    ``shape`` is (n_obs, n_vars); ``column`` gives a column of var, None if there is no such.
    """
    found, (n_obs, n_vars) = [], shape
    default = NetworkConfig.model_fields["n_latent"].default
    if 2 <= n_vars <= default:
        what = f"{n_vars} genes are no more than the default latent has units, {default}"
        fewer = n_vars // 2
        found.append(Problem(NARROW, "warning", what, "n_vars", f"n_latent={fewer} (--set n_latent={fewer})"))
    if 2 <= n_obs < FEW_CELLS:
        what = f"{n_obs} cells are few for a network: what it finds may be chance"
        remedy = "compare with PCA and with another seed (anncoder.evaluate, --seed), or fit more cells"
        found.append(Problem("few-cells", "warning", what, "n_obs", remedy))
    return (*found, *_other_features(column))


def _other_features(column: Callable[[str], Any]) -> Iterator[Problem]:
    for name, genes in zip(FEATURES, GENES, strict=True):
        values = column(name)
        kinds = {} if values is None else pd.Series(list(values)).astype(str).value_counts().to_dict()
        others = [f"{n:,} of {kind!r}" for kind, n in kinds.items() if kind != genes]
        if genes in kinds and others:
            what = f"beside genes the matrix has other features: {listed(others)}; their counts are of another scale"
            remedy = f'fit the genes alone: adata[:, adata.var["{name}"] == "{genes}"].copy()'
            yield Problem("other-features", "warning", what, f'var["{name}"]', remedy)


def with_warnings(judged: Judged, warnings: tuple[Problem, ...]) -> Judged:
    """Return the judgement with warnings before its own, unless there are errors to be mended first."""
    if any(problem.severity == "error" for problem in judged.problems):
        return judged
    return judged._replace(problems=(*warnings, *judged.problems))


def judge_store(
    store: Store,
    others: Callable[[], dict[str, Traits]],
    *,
    counts: bool,
    integers: bool,
    each: Callable[[Block], None] | None = None,
) -> Judged:
    """Read the matrix of a file once; ``others`` gives the traits of its other slots, where a remedy needs them."""
    with store.errors():
        names = Names(store)
        location = Location(store.slot, names, store.var_names, counts, lambda: store.holders(others()), integers)
        judged = judge(store.matrix, location, logged=store.logged, each=each)
    store.rounded = rounded(judged.problems)
    return judged


def rounded(problems: Iterable[Problem]) -> str:
    """Return what is said of counts that are whole but for rounding, and where; empty if there are none."""
    return next((f"{problem.where}: {problem.what}" for problem in problems if problem.code == "rounded"), "")


def that_matter(problems: Iterable[Problem], n_obs: int, to_fit: bool) -> Iterator[Problem]:
    """Yield the problems that matter: a single cell is too few to fit, not to embed."""
    return (p for p in problems if to_fit or n_obs == 0 or p.code != "too-few-cells")


def refuse_bad(
    stores: list[Store],
    *,
    counts: bool,
    to_fit: bool,
    integers: bool = True,
    each: Callable[[Store, Block], None] | None = None,
) -> tuple[Problem, ...]:
    """Raise the first error in files that will be used together; return the warnings.

    That all cells of one of several files are empty is no error.

    ``each`` is called with every block of every file, as in :func:`anncoder.data.matrix.scan.scan`.
    """
    n_obs, warnings, all_zero = sum(store.n_obs for store in stores), [], 0
    for store in stores:
        others, of_store = partial(_other_slots_of, store), None if each is None else partial(each, store)
        judged = judge_store(store, others, counts=counts, integers=integers, each=of_store)
        # cells that were left out do not matter any more
        problems = (p for p in judged.problems if store.rows is None or p.code != "empty-cells")
        # one file of several may have a single cell
        matter = that_matter(problems, n_obs, to_fit and n_obs < 2)
        found = [problem._replace(where=f"{store.path.name}: {problem.where}") for problem in matter]
        of_zeros = [problem for problem in found if problem.code == "all-zero"]
        all_zero += len(of_zeros)
        raise_first(problem for problem in found if all_zero == len(stores) or problem not in of_zeros)
        warnings += [problem for problem in found if problem.severity == "warning"]
    if n_obs < (2 if to_fit else 1):
        what = f"a model needs at least 2 cells, this has {n_obs}"
        remedy = "check the filters that ran before"
        raise InputError("too-few-cells", what, ", ".join(store.path.name for store in stores[:3]), remedy)
    return tuple(warnings)


def check_matrix(
    matrix: Any,
    *,
    obs_names: Iterable[object],
    var_names: Iterable[object],
    where: str = "X",
    counts: bool = True,
    integers: bool = True,
) -> tuple[tuple[Problem, ...], str]:
    """Read a whole matrix; return its problems, errors first, and what kind it is.

    Parameters
    ----------
    matrix
        CSR, CSC or dense, (n_obs, n_vars). Not changed.
    obs_names, var_names
        Names of the cells, (n_obs,), and of the genes, (n_vars,).
    where
        How messages call the matrix.
    counts
        It must hold raw counts; if False, any finite values.
    integers
        Counts must be integers.
    """
    judged = judge(matrix, Location(where, pd.Index(obs_names), pd.Index(var_names), counts, integers=integers))
    return judged.problems, judged.traits.kind


def _report(shape: tuple[int, ...], where: str, judged: Judged, others: dict[str, Traits], start: float) -> Report:
    table, seconds = {where: judged.traits, **others}, time.perf_counter() - start
    return Report(shape[0], shape[1], judged.n_stored, where, table, judged.problems, seconds)


def _other_slots_of(store: Store) -> dict[str, Traits]:
    logged = store.logged
    return {slot: traits(matrix, logged=logged) for slot, matrix in store.slots() if slot != store.slot}


def _other_slots(adata: AnnData, checked: str) -> Iterator[tuple[str, Traits]]:
    """Yield name and traits of every slot of the shape of a count matrix but the checked one."""
    adata = _some(adata)
    logged = "log1p" in adata.uns
    for slot, matrix in _slots(adata, checked):
        yield slot, traits(matrix, logged=logged)


def _some(adata: AnnData) -> AnnData:
    # each slot of a view is a copy when it is touched: copy only cells that are looked at (a view of a backed AnnData
    # has no views of its own). By a step, not by positions: scipy takes none beside genes that are in reverse
    own = adata.isbacked or not adata.is_view
    return adata if own else adata[:: -(-adata.n_obs // SAMPLED_CELLS) or 1]


def _named_slots(adata: AnnData) -> dict[str, tuple[Any, pd.Index]]:
    """Return matrix and genes of every slot; of a view, of some cells."""
    adata = _some(adata)
    return {slot: (matrix, genes_of(adata, slot)) for slot, matrix in _slots(adata, "")}


def _slots(adata: AnnData, checked: str) -> Iterator[tuple[str, Any]]:
    on_disk = adata.isbacked and not adata.is_view
    held = dict(slots_of(adata.file)) if on_disk else {}
    if checked != "X" and ("X" in held if on_disk else adata.X is not None):
        yield "X", held["X"] if on_disk else adata.X
    for layer in adata.layers:
        # anndata 0.13 lists X among the layers, under the name None
        if layer is not None and (slot := slot_label(layer)) != checked:
            yield slot, adata.layers[layer]
    if checked != RAW and (RAW in held if on_disk else adata.raw is not None):
        yield RAW, held[RAW] if on_disk else matrix_of(adata, RAW)


def _table_lines(table: dict[str, Traits]) -> list[str]:
    rows = [("slot", "is", "min", "max", "non-zero", "cells read")]
    rows += [
        (slot, row.kind, _number(row.lowest), _number(row.highest), f"{row.nonzero_share:.1%}", f"{row.n_cells:,}")
        for slot, row in table.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _paragraph(problem: Problem) -> str:
    return (
        f"\n{problem.severity}: {problem.what} [{problem.code}]\n  where:  {problem.where}\n  remedy: {problem.remedy}"
    )
