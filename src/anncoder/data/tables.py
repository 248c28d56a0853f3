"""Matrices and data frames of counts as AnnData, cells x genes: names taken, or made.

What scikit-learn hands to an estimator: numpy arrays, scipy matrices, data frames, lists of rows. A frame whose columns
are texts has the names of its genes; all others get those of scikit-learn, ``x0``, ``x1`` and so on, and are matched to
the genes of a fitted model by position.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse

from anncoder.errors import InputError, counted

Table: TypeAlias = "np.ndarray[Any, Any] | pd.DataFrame | csr_matrix"


def is_table(data: Any) -> bool:
    """Tell whether data are a matrix, a data frame or rows of numbers, and no AnnData, path, or list of paths."""
    if isinstance(data, list | tuple):
        return bool(data) and (isinstance(data[0], list | tuple) or hasattr(data[0], "__array__")) and not _adata(data)
    others = isinstance(data, anndata.AnnData | str) or isinstance(getattr(data, "mod", None), Mapping)  # MuData
    return not others and (issparse(data) or hasattr(data, "__array__") or _is_frame(data))


def made_names(n: int) -> list[str]:
    """Return the names of n genes that have none."""
    return [f"x{number}" for number in range(n)]


def adata_of_table(data: Any, genes: Sequence[str] | None = None) -> anndata.AnnData:
    """Return cells as AnnData; the values are not copied where they need not be.

    Parameters
    ----------
    data
        (n_obs, n_vars), :func:`is_table`.
    genes
        Those of a fitted model: the names of columns that have none; None to make some.

    Raises
    ------
    InputError
        It is no matrix of numbers, or has another number of columns than the model has genes, and no names.
    """
    if _is_frame(data):
        names = list(data.columns)
        obs_names = data.index if isinstance(data, pd.DataFrame) else None
        matrix = _values_of(data)
    else:
        names, obs_names, matrix = [], None, _matrix(data)
    if genes is None:
        _refuse_few(*matrix.shape)
    named = bool(names) and all(isinstance(name, str) for name in names)
    if not named:
        n = matrix.shape[1]
        if genes is not None and n != len(genes):
            # in the words of scikit-learn
            what = f"X has {n} features, but Autoencoder is expecting {len(genes)} features as input"
            remedy = "give the columns of the fit, or an AnnData or data frame with names of genes"
            raise InputError("shape-mismatch", what, f"columns of a {type(data).__name__}", remedy)
        names = made_names(n) if genes is None else list(genes)
    obs = pd.DataFrame(index=pd.RangeIndex(matrix.shape[0]).astype(str))
    if obs_names is not None:
        obs.index = obs_names.astype(str)
    with warnings.catch_warnings(action="ignore"):  # names that are not unique are refused by the check
        return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))


def _adata(items: Sequence[Any]) -> bool:
    return any(isinstance(item, anndata.AnnData) for item in items)


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "to_numpy")


def _values_of(frame: Any) -> Any:
    if isinstance(frame, pd.DataFrame) and all(isinstance(kind, pd.SparseDtype) for kind in frame.dtypes):
        return _matrix(frame.sparse.to_coo())
    return _matrix(frame.to_numpy())


def _matrix(data: Any) -> Any:
    if issparse(data):
        matrix = data if data.format in ("csr", "csc") else data.tocsr()
    else:
        try:
            matrix = np.asarray(data)
        except ValueError as error:  # rows of several lengths
            raise InputError("not-a-matrix", f"these rows are no matrix: {error}", "X", "(n_cells, n_genes)") from None
        if matrix.dtype == object:
            matrix = _numbers(matrix)
    if matrix.ndim != 2:
        what = f"expected a 2D array of cells x genes, got {matrix.ndim}D. Reshape your data"
        remedy = "one cell: X.reshape(1, -1); one gene: X.reshape(-1, 1)"
        raise InputError("not-a-matrix", what, "X", remedy)
    if matrix.dtype.kind == "c":
        raise InputError("not-numeric", "Complex data not supported", "X", "give real numbers")
    n_obs, n_vars = matrix.shape
    if n_vars == 0:
        what = f"0 feature(s) (shape=({n_obs}, 0)) while a minimum of 2 is required."
        raise InputError("no-genes", what, "X", "check the filters that ran before")
    if matrix.dtype.kind not in "biuf":
        what = f"X holds {matrix.dtype}, not numbers: {counted(n_obs, 'cell')} x {counted(n_vars, 'gene')}"
        raise InputError("not-numeric", what, "X", "give a matrix of numbers")
    return matrix


def _numbers(matrix: Any) -> Any:
    try:
        return matrix.astype(np.float64)
    except (TypeError, ValueError) as error:
        what = f"X holds other things than numbers: {error}"
        raise InputError("not-numeric", what, "X", "give a matrix of numbers") from None


def _refuse_few(n_obs: int, n_vars: int) -> None:
    # in the words of scikit-learn, beside ours
    remedy = "check the filters that ran before"
    if n_obs < 2:
        raise InputError("too-few-cells", f"a fit needs two cells or more, and n_samples = {n_obs}", "X", remedy)
    if n_vars < 2:
        raise InputError("too-few-genes", f"a fit needs two genes or more, and n_features = {n_vars}", "X", remedy)
