"""AnnData and its slots: opening, count matrix as CSR, obs columns, obsm coordinates."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy.sparse import csr_matrix, issparse

from anncoder.config import BatchKey, unknown_key
from anncoder.data.formats.attributes import encoding_of, is_null
from anncoder.data.formats.checked import open_root
from anncoder.data.formats.failures import damaged, first_line
from anncoder.data.formats.foreign import refuse_foreign_file, refuse_foreign_folder
from anncoder.data.matrix.arrays import OnDisk, canonical
from anncoder.data.matrix.problems import quoted
from anncoder.errors import ConfigError, FileError, InputError, counted, listed

logger = logging.getLogger("anncoder")

UNKNOWN = "unknown"  # batch of the cells without one
JOINED = " · "  # between the names of several columns of batches
CELLS_OF_A_BATCH, FEW = 50, 10  # in the mean, and in any: with fewer a warning
RAW = "raw.X"
"""Stands for the matrix of ``adata.raw`` where a layer is named; it has genes of its own, those of ``raw.var``."""


def open_data(data: anndata.AnnData | str | Path) -> anndata.AnnData:
    """Return an AnnData: the one given, or the one in an ``.h5ad`` or ``.zarr`` file.

    Raises
    ------
    FileError
        The file does not exist, is truncated, is not an AnnData file, or needs something that is not installed.
    """
    if isinstance(data, anndata.AnnData):
        return data.to_memory() if data.isbacked else data
    path = checked_path(data)
    root = open_root(path)
    try:
        gap = _gap_in_x(root, path)
        adata = _read(root, path)
    except Exception as error:
        raise damaged(path, first_line(error)) from error
    finally:
        if isinstance(root, h5py.File):
            root.close()
    if gap:
        raise damaged(path, gap)
    return adata


def _read(root: Any, path: Path) -> anndata.AnnData:
    if isinstance(root, h5py.File) and root.driver == "core":  # read into memory from another format
        adata: anndata.AnnData = read_elem(root["/"])
        return adata
    if encoding_of(root) not in ("", "anndata"):  # other programs call it "AnnData"; anndata reads only its own word
        return anndata.AnnData(**{name: read_elem(root[name]) for name in root if not is_null(root[name])})
    return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)


def _gap_in_x(root: Any, path: Path) -> str:
    # not of layers: chunks of zeros, which zarr leaves out, one may well have (a mask), and nobody may ask for it
    return OnDisk(root["X"]).gap(path) if "X" in root else ""


def not_anndata(data: Any) -> InputError:
    """Return the error for something else than an AnnData or a path, with the way to one."""
    if names := list(map(str, _modalities(data))):
        first = "rna" if "rna" in names else names[0]
        remedy = f"give one of its modalities ({listed(names)}): mdata[{first!r}]; to tl.autoencode: mod={first!r}"
    elif issparse(data) or hasattr(data, "__array__"):
        remedy = "wrap the matrix, cells x genes: anndata.AnnData(matrix)"
    else:
        remedy = "give an AnnData, or the path of an .h5ad file or .zarr folder"
    what = f"expected an AnnData or a path, got {type(data).__module__.partition('.')[0]}.{type(data).__qualname__}"
    return InputError("not-anndata", what.replace("builtins.", ""), "data", remedy)


def modality_of(data: Any, mod: str) -> anndata.AnnData:
    """Return a modality of a MuData, which is known by what it has: mudata need not be installed.

    Raises
    ------
    ConfigError
        It has none of this name.
    InputError
        This is no MuData.
    """
    modalities = _modalities(data)
    if not modalities:
        raise not_anndata(data)
    if mod not in modalities:
        raise unknown_key(mod, list(map(str, modalities)), where="mod (a modality of the MuData)")
    found = modalities[mod]
    if not isinstance(found, anndata.AnnData):  # a MuData within
        raise not_anndata(found)
    return found


def _modalities(data: Any) -> Mapping[str, Any]:
    # a dictionary of AnnData; data frames have a method of the name
    modalities = getattr(data, "mod", None)
    return modalities if isinstance(modalities, Mapping) else {}


def checked_path(data: Any) -> Path:
    """Return the path of an ``.h5ad`` file or a ``.zarr`` folder.

    Raises
    ------
    InputError
        It is no path at all.
    FileError
        It does not exist, or is neither HDF5 nor zarr.
    """
    if not isinstance(data, str | Path):
        raise not_anndata(data)
    path = Path(data).expanduser()
    try:
        there = path.exists()
    except OSError as error:
        raise _unopenable(path, error) from error
    if not there:
        raise FileError("no-file", f"no such file: {str(path)!r}", str(path), "check the path")
    try:
        (refuse_foreign_folder if path.is_dir() else refuse_foreign_file)(path)
    except OSError as error:
        raise _unopenable(path, error) from error
    return path


def read_matrix(adata: anndata.AnnData, layer: str | None) -> csr_matrix:
    """Return a matrix as float32 CSR with sorted, unique indices; ``layer`` as in :func:`matrix_of`.

    The user's is not touched.

    Raises
    ------
    InputError
        There is no such layer, or no ``X``.
    """
    matrix = matrix_of(adata, layer)
    if matrix is None:
        layers = [str(name) for name in adata.layers if name is not None]
        what = f"there is no {slot_label(layer)}"
        raise InputError("missing-layer", what, slot_label(layer), f"layers here: {', '.join(layers) or 'none'}")
    matrix = matrix if issparse(matrix) else np.asarray(matrix)
    if isinstance(matrix, csr_matrix) and matrix.dtype == np.float32:
        # another object: the user's would remember what is found out about it
        view = csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)
        return canonical(view)
    matrix = csr_matrix(matrix, dtype=np.float32, copy=True)
    matrix.sum_duplicates()
    return matrix


def matrix_of(adata: anndata.AnnData, layer: str | None) -> Any:
    """Return ``X`` (None), the matrix of ``raw`` (:data:`RAW`) or a layer as it is; None if there is no such slot."""
    if layer == RAW:
        raw = adata.raw
        matrix: Any = None if raw is None else raw.X
        # of a backed AnnData anndata gives what is on disk
        return matrix.to_memory() if hasattr(matrix, "to_memory") else matrix
    return adata.X if layer is None else adata.layers.get(layer)


def genes_of(adata: anndata.AnnData, layer: str | None) -> pd.Index:
    """Return the names of the genes of a matrix, as they are: those of ``raw`` are its own."""
    return adata.raw.var_names if layer == RAW and adata.raw is not None else adata.var_names


def var_of(adata: anndata.AnnData, layer: str | None) -> pd.DataFrame:
    """Return the table of the genes of a matrix: that of ``raw`` is its own."""
    return adata.raw.var if layer == RAW and adata.raw is not None else adata.var


def has_layer(adata: anndata.AnnData, layer: str) -> bool:
    """Tell whether there is a layer of this name, or, for :data:`RAW`, a raw matrix."""
    return adata.raw is not None if layer == RAW else layer in adata.layers


def slot_label(layer: str | None) -> str:
    """Return the name of a matrix as messages and :func:`anncoder.check` give it."""
    if layer == RAW:
        return RAW
    return "X" if layer is None else f"layers[{quoted(layer, 80)}]"


def resolve_layer(layer: str | None, layers: Collection[str]) -> str | None:
    """Return the layer that a user means: ``"X"`` stands for ``X``, which is None here, ``"raw.X"`` for itself.

    Raises
    ------
    ConfigError
        It is no name.
    InputError
        ``layers``, which the data have, include one that is called "X", or "raw.X", and this is what was asked for.
    """
    if layer is not None and not isinstance(layer, str):
        what = f"layer = {layer!r} is not the name of a layer"
        raise ConfigError("bad-value", what, "layer", "name a single layer, such as layer='counts'; None is X")
    if layer in ("X", RAW) and layer in layers:
        what = f"layer={layer!r} means {layer}, and there is a layer of that name too"
        remedy = f"give the layer another name: adata.layers['counts'] = adata.layers.pop({layer!r})"
        raise InputError("ambiguous-layer", what, f"layers[{layer!r}]", remedy)
    return None if layer == "X" else layer


def obs_column(adata: anndata.AnnData, key: Any, *, what: str) -> Any:
    """Return a column of obs, (n_obs,).

    Raises
    ------
    ConfigError
        There is no such column, or more than one.
    """
    if not isinstance(key, str | int) or key not in adata.obs:
        raise unknown_key(key, [str(c) for c in adata.obs.columns], where=f"{what} (a column of obs)")
    column = adata.obs[key]
    if column.ndim > 1:  # pandas gives them all
        twice = f"obs has {column.shape[1]} columns of the name {key!r}"
        remedy = "keep one: adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]"
        raise ConfigError("bad-value", twice, f"{what} (a column of obs)", remedy)
    return column


def coordinates_of(slots: Mapping[str, Any], key: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return coordinates of the cells from obsm, (n_obs, d).

    Raises
    ------
    ConfigError
        There is no such slot.
    InputError
        It holds no matrix of finite numbers.
    """
    if key not in slots:
        raise unknown_key(key, [str(name) for name in slots], where="target (a slot of obsm)")
    try:
        values = np.asarray(slots[key], dtype=np.float32)
    except (TypeError, ValueError):
        values = np.empty(0, np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        what = f"obsm[{key!r}] is not a matrix of finite numbers"
        remedy = "name a slot with a number for every cell and axis, such as X_tsne"
        raise InputError("bad-coordinates", what, f"obsm[{key!r}]", remedy)
    return values


def codes_of(column: Any, key: str, *, what: str) -> np.ndarray[Any, Any]:
    """Return a column as integer codes, (n_obs,), in the order of its names, of numbers in that of their values.

    Whatever the column is stored as: categories in an order of their own are not known from every file.

    Raises
    ------
    ConfigError
        It has missing values.
    """
    names, positions = category_names(column, key, what)
    unique, codes = np.unique(names, return_inverse=True)
    values = pd.to_numeric(pd.Series(unique), errors="coerce").to_numpy(dtype=float)
    if np.isfinite(values).all():
        codes = np.argsort(np.argsort(values, kind="stable"))[codes]
    found: np.ndarray[Any, Any] = codes[positions]
    return found


def category_names(column: Any, key: str, what: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the names of the values of a column, some of which may be alike, and which of them each cell has."""
    positions, values = pd.factorize(np.asarray(column, dtype=object))
    missing = int((positions < 0).sum())
    if missing:
        raise ConfigError(
            "missing-values", f"obs[{key!r}] has {missing:,} missing values", what, "fill them, or use another column"
        )
    return np.array([batch_name(value) for value in values], dtype=object), positions


def batches_of(
    column: Any, key: str, known: Sequence[str] | None, *, others: bool = False
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return experimental batches as codes, (n_obs,) int64, and their names.

    Parameters
    ----------
    column
        (n_obs,) names of any type.
    key
        Name of the column, for messages.
    known
        The batches of a fitted model, in the order of its codes; None for those of the column.
    others
        Whether cells of no known batch, or without one, get the code behind the last, with a warning.

    Raises
    ------
    ConfigError
        Values are missing, or there is a single batch.
    InputError
        A batch is not among the known ones.
    """
    column = np.asarray(column, dtype=object)
    if others:
        column = np.where(pd.isna(column), UNKNOWN, column)
    of_values, positions = category_names(column, key, "batch_key")
    names = of_values[positions]
    if known is None:
        known = sorted(set(names.tolist()))
        if len(known) == 1:
            remedy = "leave batch_key out, or name a column with at least two batches"
            raise ConfigError("one-batch", f"all cells are of one batch, {known[0]!r}", f"obs[{key!r}]", remedy)
    codes = pd.Index(known).get_indexer(names)
    if (codes < 0).any():  # models of earlier versions call a batch "1.0"
        codes = np.where(codes < 0, pd.Index(known).get_indexer(column.astype(str)), codes)
    if others and (codes < 0).any():
        warn_unknown_batches(key, sorted(set(names[codes < 0].tolist())), int((codes < 0).sum()))
        codes = np.where(codes < 0, len(known), codes)
    if (codes < 0).any():
        what = f"the model does not know the batch {listed(map(repr, sorted(set(names[codes < 0].tolist()))))}"
        remedy = f"give cells of the batches it was fitted on ({listed(known)}), or fit it again with these"
        raise InputError("unknown-batch", what, f"obs[{key!r}]", remedy)
    return codes.astype(np.int64), list(known)


def new_batches_of(column: Any, key: str, known: Sequence[str]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return codes behind those of a fitted model's batches, (n_obs,) int64, and the names of the new ones, sorted.

    Raises
    ------
    ConfigError
        Values are missing.
    InputError
        A batch is among the known ones.
    """
    of_values, positions = category_names(column, key, "batch_key")
    names = of_values[positions]
    new = sorted(set(names.tolist()) - set(known))
    if old := sorted(set(names.tolist()) & set(known)):
        what = f"the model knows the batch {listed(map(repr, old))} already"
        remedy = "embed these cells as they are, and adapt to the others: "
        remedy += f"query[~query.obs[{key!r}].isin(model.batches_)]" if new else "there are none"
        raise InputError("known-batch", what, f"obs[{key!r}]", remedy)
    return len(known) + pd.Index(new).get_indexer(names).astype(np.int64), new


def warn_unknown_batches(key: str, names: Sequence[str], n: int) -> None:
    """Say that n cells are of no batch that the model knows; ``names`` are theirs, none where there is no column."""
    why = f"{counted(n, 'cell')} of a batch unknown to the model: {listed(map(repr, names))} in" if names else "no"
    logger.warning(
        "%s obs[%r]: embedded without a correction for their batch, and decoded as of the average batch; "
        "model.adapt(query), or a fit with these cells, corrects for it",
        why,
        key,
    )


def batch_label(key: BatchKey) -> str:
    """Return the name of one or several columns of batches, for messages."""
    return key if isinstance(key, str) else JOINED.join(key)


def batch_columns(key: BatchKey | list[str] | None) -> list[str]:
    """Return the columns of a key: none, one or several."""
    return [] if key is None else [key] if isinstance(key, str) else list(key)


def batch_column(key: BatchKey, column: Callable[[str], Any]) -> Any:
    """Return the column of the batches, (n_obs,); of several columns their names, joined, where none is missing."""
    if isinstance(key, str):
        return column(key)
    table = pd.DataFrame({name: np.asarray(column(name), dtype=object) for name in key})
    names = table.map(batch_name).agg(JOINED.join, axis=1).to_numpy(dtype=object)
    return np.where(table.isna().any(axis=1), None, names)


def warn_of_small_batches(codes: np.ndarray[Any, Any], names: Sequence[str], key: str) -> None:
    """Say if there are many experimental batches for so many cells, or some of few: hardly a batch can be known."""
    sizes = np.bincount(codes, minlength=len(names))
    if len(names) > max(len(codes) / CELLS_OF_A_BATCH, FEW):
        logger.warning(
            "obs[%r] has %s in %s: fewer than %d cells a batch; is it the batch, not an identifier or a measurement?",
            key,
            counted(len(names), "batch", "batches"),
            counted(len(codes), "cell"),
            CELLS_OF_A_BATCH,
        )
    elif (sizes < FEW).any():
        few = [f"{name!r} ({size})" for name, size in zip(names, sizes, strict=True) if size < FEW]
        logger.warning(
            "few cells of the batches %s in obs[%r]: they are hardly corrected; leave them out, or join them to others",
            listed(few, 5),
            key,
        )


def batch_name(batch: object) -> str:
    """Return the name of a batch, or of another group of cells: a whole number has one, as an integer or as a float."""
    return str(int(batch) if isinstance(batch, float | np.floating) and batch.is_integer() else batch)


def _unopenable(path: Path, error: OSError) -> FileError:
    why = os.strerror(error.errno) if error.errno else first_line(error)
    return FileError("unreadable", f"cannot open {str(path)!r}: {why}", str(path), "check the permissions")
