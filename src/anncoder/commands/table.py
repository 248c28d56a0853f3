"""Tables of counts in text files, with the names that stand there."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.errors import FileError, InputError, some

logger = logging.getLogger("anncoder")

LAYOUT = "names in the first row and column; commas in .csv, tabs in .tsv and .txt"


def read_table(path: Path, separator: str, *, by_cell: bool) -> anndata.AnnData:
    """Return the counts of a text table with names in its first row and column.

    Parameters
    ----------
    path
        The file, which may be compressed.
    separator
        Between the values.
    by_cell
        A row is a cell, not a gene.

    Raises
    ------
    FileError
        The file cannot be read.
    InputError
        It holds something else than numbers, has no names in its first row, or has one twice.
    """
    try:
        columns, frame = _read(path, separator)
    except FileNotFoundError:
        raise FileError(f"no such file: {str(path)!r}", code="no-file", where=str(path), remedy="check it") from None
    except (OSError, ValueError) as error:
        raise FileError(
            f"cannot read {str(path)!r} as a table: {str(error).splitlines()[0]}",
            code="unreadable",
            where=str(path),
            remedy=f"give a table with {LAYOUT}",
        ) from error
    texts = [columns[n] for n, dtype in enumerate(frame.dtypes) if dtype.kind not in "iufb"]
    if texts or not frame.shape[1]:
        raise InputError(
            f"{len(texts):,} of {frame.shape[1]:,} columns hold something else than numbers: {some(texts)}",
            code="not-numeric",
            where=str(path),
            remedy=f"leave only counts, with {LAYOUT}",
        )
    _refuse_no_header(path, columns)
    rows = list(frame.index)
    _refuse_twice(path, columns, "column")
    _refuse_twice(path, rows, "row")
    values = frame.to_numpy(np.float64)
    obs, var = (
        pd.DataFrame(index=pd.Index(n, dtype=object)) for n in ((rows, columns) if by_cell else (columns, rows))
    )
    return anndata.AnnData(csr_matrix(values if by_cell else values.T), obs, var)


def _read(path: Path, separator: str) -> tuple[list[str], pd.DataFrame]:
    # pandas makes numbers of names (007), nothing of NA, and x.1 of a second x: it is given none to read
    top = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
    header = [str(name) for name in top.iloc[0]]
    by_row = pd.read_csv(path, sep=separator, nrows=1).index  # one that counts, unless rows are longer than the first
    longer = 0 if isinstance(by_row, pd.RangeIndex) else by_row.nlevels
    if longer > 1 or (longer and not header[0]):
        raise ValueError(f"the first row has {len(header):,} values and the second {len(header) + longer:,}")
    columns = header if longer else header[1:]  # R names no corner
    frame = pd.read_csv(path, sep=separator, header=0, names=range(len(columns) + 1), converters={0: str})
    return columns, frame.set_index(0)


def _refuse_no_header(path: Path, columns: list[str]) -> None:
    if not all(_is_number(name) for name in columns):
        return
    if len(set(columns)) < len(columns):  # no names: the counts of the first gene, or cell
        raise InputError(
            f"the first row holds numbers, some of them twice, and no names: {some(columns)}",
            code="no-header",
            where=str(path),
            remedy=f"give a table with {LAYOUT}",
        )
    logger.warning("warning: the first row of %s holds numbers, which are taken as names: %s", path, some(columns))


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _refuse_twice(path: Path, names: list[str], what: str) -> None:
    index = pd.Index(names, dtype=object)
    if twice := list(index[index.duplicated()].unique()):
        raise InputError(
            f"{len(twice):,} names stand for more than one {what}: {some(twice)}",
            code="duplicate-names",
            where=str(path),
            remedy=f"give each {what} a name of its own",
        )
