"""Log-normalised expression of an AnnData, measured or denoised: blocks of genes, of cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from anncoder.config import unknown_key
from anncoder.data.adata import RAW, genes_of, has_layer, matrix_of, not_anndata, resolve_layer, slot_label
from anncoder.data.matrix.kind import KINDS, traits
from anncoder.data.matrix.sample import SAMPLED_CELLS, evenly
from anncoder.errors import ConfigError, InputError, counted, listed

Array = np.ndarray[Any, Any]

CELLS = 4096  # rows read at a time
DENOISED = "_denoised"  # ending of the layers that tl.denoise writes


class Expression(NamedTuple):
    """A matrix of an AnnData, and the way from its values to log(1 + normalised counts)."""

    matrix: Any  # (n, g) sparse or dense, in memory or on disk
    factor: Array | None  # (n,) that cells are multiplied by; None: by nothing
    logged: bool  # log1p is still to be taken
    kind: str  # of the matrix as it is: one of anncoder.data.matrix.kind.KINDS
    slot: str
    genes: pd.Index

    def columns(self, places: Array) -> Array:
        """Return genes by position, (n, m) float64."""
        order = np.argsort(places, kind="stable")  # HDF5 takes columns in their order only
        block = self.matrix[:, np.asarray(places)[order]]
        values = np.empty((block.shape[0], len(order)))
        values[:, order] = block.toarray() if sparse.issparse(block) else np.asarray(block)
        if self.factor is not None:
            values *= self.factor[:, None]
        return np.log1p(values) if self.logged else values

    def blocks(self, cells: Array) -> Iterator[tuple[Any, Array]]:
        """Yield some cells, given by ascending positions: (b, g) CSR or dense float64, and where among the given."""
        rows = self.matrix.tocsr() if sparse.issparse(self.matrix) else self.matrix
        for start in range(0, len(cells), CELLS):
            own = cells[start : start + CELLS]
            block = rows[own].astype(np.float64)
            if self.factor is not None:
                scale = self.factor[own]
                block = sparse.diags(scale) @ block if sparse.issparse(block) else block * scale[:, None]
            if self.logged:
                block = block.log1p() if sparse.issparse(block) else np.log1p(block)
            yield block, np.arange(start, start + len(own))


def refuse_no_cells(adata: Any) -> None:
    """Raise an InputError unless this is an AnnData whose genes have names of their own."""
    if not isinstance(adata, anndata.AnnData):
        raise not_anndata(adata)
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()].unique()
        what = f"gene names occur twice: {listed(twice)}"
        raise InputError("duplicate-genes", what, "var_names", "adata.var_names_make_unique()")


def refuse_no_name(value: Any, where: str) -> None:
    """Raise a ConfigError for something else than a name."""
    if not isinstance(value, str) or not value:
        raise ConfigError("bad-value", f"{where} = {value!r} is no name", where, "a word like 'ae'")


def names_given(names: Any, where: str) -> list[str]:
    """Return one name or several as a list, or raise a ConfigError."""
    listed_names = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else None
    if listed_names is None or not all(isinstance(name, str) for name in listed_names):
        raise ConfigError("bad-value", f"{where} = {names!r}", where, "names of genes, as in var_names")
    return listed_names


def refuse_taken(adata: anndata.AnnData, key: str) -> None:
    """Raise a ConfigError if uns has something of the user's where a result is to be written."""
    found = adata.uns.get(key, {"params_json": ""})
    if not isinstance(found, Mapping) or "params_json" not in found:
        what = f"uns[{key!r}] exists and was not written by anncoder"
        raise ConfigError("key-taken", what, f"uns[{key!r}]", f"give it another name: adata.uns.pop({key!r})")


def record_of(adata: anndata.AnnData, key: str) -> dict[str, Any] | None:
    """Return the settings of the model of this name, its ``denoised_scale`` and ``n_genes``; None without a model.

    Older records have no number of genes: 0.
    """
    found = adata.uns.get(key)
    if not isinstance(found, Mapping) or "params_json" not in found or "schema" not in found:
        return None
    settings: dict[str, Any] = json.loads(found["params_json"])
    return settings | {"denoised_scale": str(found.get("denoised_scale", "")), "n_genes": int(found.get("n_genes", 0))}


def measured(adata: anndata.AnnData, layer: str | None, key: str) -> Expression:
    """Return measured expression: counts are scaled to one library size and logged, logged values left as they are.

    The library size is that of the model of this name, to which its denoised values are scaled too, and cells have that
    of the genes that it was fitted on; without a model, or all of its genes, it is the median of the cells.

    Parameters
    ----------
    adata
        Cells.
    layer
        None for the layer that the model of this name was fitted on, or ``X`` if there is no model.
    key
        Name of the model's results.

    Raises
    ------
    ConfigError
        There is no such layer.
    InputError
        It is empty.
    """
    known = record_of(adata, key)
    layer = known["layer"] if layer is None and known is not None else layer
    layer = resolve_layer(layer, adata.layers)
    matrix = _matrix(adata, layer)
    kind = _kind(adata, matrix)
    factor = to_library_size(adata, matrix, layer, known) if kind == "counts" else None
    return Expression(matrix, factor, kind in ("counts", "cpm"), kind, slot_label(layer), genes_of(adata, layer))


def given(adata: anndata.AnnData, layer: str | None, key: str) -> Expression:
    """Return a layer as it is; denoised counts of ours are scaled to the model's library size and logged.

    Parameters
    ----------
    adata
        Cells.
    layer
        None for the denoised layer of this name.
    key
        Name of the model's results.

    Raises
    ------
    ConfigError
        There is no such layer.
    InputError
        There is no denoised layer, or the counts by which it is scaled are gone.
    """
    if layer is None and key + DENOISED not in adata.layers:
        what = f"there is no {slot_label(key + DENOISED)}"
        raise InputError(
            "not-denoised", what, "layers", "ac.tl.denoise(adata, model), or name a layer of smooth values"
        )
    layer = key + DENOISED if layer is None else resolve_layer(layer, adata.layers)
    matrix = _matrix(adata, layer)
    owner = (layer or "").removesuffix(DENOISED)
    known = record_of(adata, owner) if owner + DENOISED == layer else None
    scale = "" if known is None else known["denoised_scale"]
    logged = known is not None and known["hyperparameters"]["transform"] != "none" and scale != "log1p"
    factor = None
    if known is not None and logged and scale != "normalized":
        factor = to_library_size(adata, _counts_of_fit(adata, known), known["layer"], known)
    kind = "expression" if known is not None else _kind(adata, matrix)
    return Expression(matrix, factor, logged, kind, slot_label(layer), genes_of(adata, layer))


def in_words(kind: str) -> str:
    """Return the kind of a matrix as messages say it."""
    return KINDS[kind]


def _kind(adata: anndata.AnnData, matrix: Any) -> str:
    if not sparse.issparse(matrix) and not isinstance(matrix, np.ndarray):  # dense, on disk
        matrix = np.asarray(matrix[evenly(matrix.shape[0], SAMPLED_CELLS)])
    return traits(matrix, logged="log1p" in adata.uns).kind


def _matrix(adata: anndata.AnnData, layer: str | None) -> Any:
    if layer is not None and not has_layer(adata, layer):
        raise unknown_key(layer, [str(name) for name in adata.layers if name is not None], where="layer")
    matrix = matrix_of(adata, layer)
    if matrix is None or 0 in matrix.shape:
        what = f"there is no {slot_label(layer)}" if matrix is None else f"{slot_label(layer)} is empty"
        raise InputError("missing-layer", what, slot_label(layer), "name a layer with values: layer='counts'")
    matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else matrix  # sparse, on disk
    return sparse.csc_matrix(matrix) if sparse.issparse(matrix) else matrix


def _sizes(matrix: Any, genes: Any) -> Array:
    # sums of some genes, (n,); of matrices on disk by blocks
    if sparse.issparse(matrix):
        return np.asarray((matrix if genes is None else matrix[:, genes]).sum(axis=1, dtype=np.float64)).ravel()
    blocks = (matrix[start : start + CELLS] for start in range(0, matrix.shape[0], CELLS))
    sums = ((block if genes is None else block[:, genes]).sum(axis=1, dtype=np.float64) for block in blocks)
    return np.concatenate([np.asarray(found).ravel() for found in sums])


def to_library_size(adata: anndata.AnnData, counts: Any, layer: str | None, known: Mapping[str, Any] | None) -> Array:
    """Return what cells are multiplied by, (n,), to have the library size of a model, or the median one.

    Parameters
    ----------
    adata
        n cells.
    counts, layer
        Their counts, (n, g), in memory or on disk, and the layer that these are.
    known
        Record of the model (:func:`record_of`): its library sizes are sums of the genes that it was fitted on, and are
        taken where the data have as many. None for no model.
    """
    genes = None if known is None else _genes_of_fit(adata, layer, known)
    sizes = _sizes(counts, genes)
    there = sizes > 0  # a cell without counts stays one
    n_genes = counts.shape[1] if genes is None else len(genes)
    if known is not None and known["n_genes"] == n_genes:
        size = known["library_size"]
    else:
        size = np.median(sizes[there]) if there.any() else 1.0
    factors: Array = np.divide(size, sizes, out=np.ones_like(sizes), where=there)
    return factors


def _genes_of_fit(adata: anndata.AnnData, layer: str | None, known: Mapping[str, Any]) -> Any:
    # positions; None for all genes
    var = adata.raw.var if layer == RAW else adata.var
    mask = known["training"].get("mask_var")
    return None if mask is None or mask not in var else np.flatnonzero(var[mask].to_numpy(dtype=bool))


def _counts_of_fit(adata: anndata.AnnData, known: Mapping[str, Any]) -> Any:
    layer = known["layer"]
    if layer is not None and not has_layer(adata, layer):
        what = f"the denoised counts have each cell's depth, and {slot_label(layer)}, which tells it, is gone"
        raise InputError("missing-layer", what, slot_label(layer), "ac.tl.denoise(adata, model, scale='normalized')")
    return _matrix(adata, layer)


def refuse_not_finite(values: Array, names: Any, slot: str) -> None:
    """Raise an InputError if some of (n, m) values are NaN or infinite, naming the genes."""
    bad = ~np.isfinite(values).all(axis=0)
    if bad.any():
        what = f"{counted(int(bad.sum()), 'gene')} with NaN or infinite values: {listed(np.asarray(names)[bad])}"
        raise InputError("not-finite", what, slot, "leave these genes out, or denoise the cells anew")
