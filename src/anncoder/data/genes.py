"""Gene matching: new data brought into the gene order of a model, by name."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.data.matrix.notes import say
from anncoder.errors import ConfigError, InputError, listed

logger = logging.getLogger("anncoder")

ENSEMBL = re.compile(r"^ENS[A-Z]{0,5}G\d{11}(\.\d+)?$")
AUTO, HIGHLY_VARIABLE = "auto", "highly_variable"  # scanpy's column
MANY = 0.25  # share of a model's genes without which its results say little


class Alignment(NamedTuple):
    """Where the model's genes stand in the data."""

    columns: np.ndarray[Any, Any]  # (g,) column of the data for each gene of the model, -1 where it is missing
    missing: list[str]  # names of the genes that the data do not have
    n_extra: int  # genes of the data that the model does not know

    def apply(self, matrix: csr_matrix) -> csr_matrix:
        """Return the matrix in the model's gene order, missing genes zero; CSR (n, g)."""
        if not self.missing and self.n_extra == 0 and bool((np.diff(self.columns) == 1).all()):
            return matrix
        target = np.full(matrix.shape[1], -1, dtype=np.int64)
        present = self.columns >= 0
        target[self.columns[present]] = np.flatnonzero(present)
        moved = target[matrix.indices]
        keep = moved >= 0
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        aligned = csr_matrix(
            (matrix.data[keep], moved[keep].astype(np.int32), kept_before[matrix.indptr]),
            shape=(matrix.shape[0], len(self.columns)),
        )
        aligned.sort_indices()
        return aligned


def align(model_genes: Sequence[str], data_genes: Sequence[str], *, allow_missing: float = 0.0) -> Alignment:
    """Match genes by name.

    Parameters
    ----------
    model_genes
        Names the model was fitted on, g of them, in its order.
    data_genes
        Names of the new data, in any order.
    allow_missing
        Share of the model's genes that may be missing; they are taken as zero counts.

    Returns
    -------
    Alignment
        The order of the data does not matter, and genes the model does not know are left out.

    Raises
    ------
    InputError
        More genes are missing than allowed (they are listed, and a mix-up of gene symbols with Ensembl identifiers is
        recognised), or a name of the data occurs twice.
    """
    _refuse_no_share(allow_missing)
    index = pd.Index(data_genes)
    if not index.is_unique:
        what = f"gene names occur twice: {listed(index[index.duplicated()].unique())}"
        raise InputError("duplicate-genes", what, "var_names", "adata.var_names_make_unique()")
    columns = np.asarray(index.get_indexer(pd.Index(model_genes)))
    missing = [name for name, column in zip(model_genes, columns, strict=True) if column < 0]
    if len(missing) > allow_missing * len(model_genes):
        raise _mismatch(model_genes, data_genes, missing)
    if missing:
        n, of = len(missing), len(model_genes)
        logger.warning("%d of the model's %d genes are missing and taken as zero: %s", n, of, listed(missing))
    return Alignment(columns, missing, len(index) - len(model_genes) + len(missing))


def _refuse_no_share(allow_missing: object) -> None:
    if not isinstance(allow_missing, int | float | np.number) or not 0 <= allow_missing <= 1:
        raise ConfigError(
            "bad-value", f"allow_missing = {allow_missing!r} is not a share", "allow_missing", "a number from 0 to 1"
        )


class Mask(NamedTuple):
    """The genes to fit on."""

    key: str  # the column of var that chooses them
    flags: np.ndarray[Any, Any]  # (n_vars,) bool


def mask_of(column: Callable[[str], Any], asked: str | None) -> Mask | None:
    """Return the genes that a column of var chooses; None where that are all of them.

    Parameters
    ----------
    column
        Gives a column of var, (n_vars,), or None where there is no such.
    asked
        Its name; ``"auto"`` for :data:`HIGHLY_VARIABLE`, if it is there and of use (scanpy's rule); None for all genes.

    Raises
    ------
    ConfigError
        There is no such column.
    InputError
        The column is not one of booleans, or chooses no gene.
    """
    if asked is None:
        return None
    auto, key = asked == AUTO, HIGHLY_VARIABLE if asked == AUTO else asked
    values = column(key)
    if values is None and not auto:
        remedy = "sc.pp.highly_variable_genes(adata) writes 'highly_variable'; mask_var=None (--set mask_var=null): all"
        raise ConfigError("unknown-key", f"var has no column {key!r}", "mask_var", remedy)
    flags = np.asarray(values)
    if flags.dtype != bool or not flags.any():
        if auto:
            return None
        what = f"var[{key!r}] chooses no gene" if flags.dtype == bool else f"var[{key!r}] is not True or False, a gene"
        raise InputError("bad-mask", what, "mask_var", f"adata.var[{key!r}] = adata.var[{key!r}].fillna(False) == True")
    if flags.all():
        return None
    what = f"fitted on the {int(flags.sum()):,} of {len(flags):,} genes that var[{key!r}] chooses"
    say(what, "mask_var=None (--set mask_var=null) takes all")
    return Mask(key, flags)


def refuse_no_var(asked: str | None) -> None:
    """Raise a ConfigError where genes are asked for by a column, and the reader has none."""
    if asked not in (None, AUTO):
        remedy = "give blocks of the genes to fit on, and their names"
        raise ConfigError("unknown-key", f"this reader has no var, and so no column {asked!r}", "mask_var", remedy)


def columns_of(var_names: pd.Index, genes: Sequence[str] | None) -> Any:
    """Return where genes stand among a model's; everything for None.

    Raises
    ------
    InputError
        The model does not know some of them.
    """
    if genes is None:
        return slice(None)
    known = var_names.get_indexer(pd.Index(genes))
    unknown = [gene for gene, at in zip(genes, known, strict=True) if at < 0]
    if unknown:
        raise InputError(
            "unknown-genes", f"the model does not know the genes {listed(unknown)}", "genes", "see model.var_names_"
        )
    return known


def naming(genes: Sequence[str]) -> str:
    """Say how genes are named: ``"Ensembl identifiers"`` or ``"gene symbols"``."""
    sample = list(genes[:: max(1, len(genes) // 1000)])
    share = sum(bool(ENSEMBL.match(str(name))) for name in sample) / max(1, len(sample))
    return "Ensembl identifiers" if share > 0.5 else "gene symbols"


# differences between two spellings of one name, each with the function that takes it away
SPELLINGS: dict[str, Callable[[str], str]] = {
    "in the version suffix (.1, .2): remove it": lambda name: re.sub(r"[.]\d+$", "", name),
    "in the suffix of a repeated name (-1, .1), which make.unique adds: remove it": lambda name: re.sub(
        r"[-.]\d+$", "", name
    ),
    "in capitals (as mouse and human symbols do): change one side": str.upper,
    "in '_', '-' and '.': change one side": lambda name: re.sub(r"[-_.]", "-", name),
    "in spaces around them: strip them": str.strip,
}
ALIKE = 0.5  # share of the missing genes that another spelling must find, to be named


def _mismatch(model_genes: Sequence[str], data_genes: Sequence[str], missing: list[str]) -> InputError:
    theirs, ours = naming(data_genes), naming(model_genes)
    if theirs != ours:
        remedy = f"the model knows {ours}, the data have {theirs}: put the model's kind of name into var_names"
    elif difference := _spelling(missing, data_genes):
        remedy = f"the names differ {difference} in adata.var_names"
    elif (share := math.ceil(100 * len(missing) / len(model_genes)) / 100) > MANY:
        remedy = "too many to be taken as zero: give data with the model's genes, or fit a model on the genes of both"
    else:
        allowed = f"allow_missing={share:g} (--allow-missing {share:g})"
        remedy = f"give data with the same genes, or {allowed} to take these as zero"
    n, of = len(missing), len(model_genes)
    what = f"{n:,} of the model's {of:,} genes {'is' if n == 1 else 'are'} missing: {listed(missing, 10)}"
    return InputError("missing-genes", what, "var_names", remedy)


def _spelling(missing: Sequence[str], data_genes: Sequence[str]) -> str:
    # the difference that explains most of the missing names; empty if none does
    there = [str(name) for name in data_genes]
    best, share = "", ALIKE
    for difference, plain in SPELLINGS.items():
        known = {plain(name) for name in there}
        found = sum(plain(str(name)) in known for name in missing) / len(missing)
        if found > share:
            best, share = difference, found
    return best
