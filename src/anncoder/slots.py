"""Names of what is written into an AnnData, and whose they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np

from anncoder.autoencoder import Autoencoder
from anncoder.checkpoint import SCHEMA, versions
from anncoder.errors import ConfigError, InputError
from anncoder.estimators import ESTIMATORS


def next_step(adata: anndata.AnnData, key: str) -> str:
    """Return the line that says what was written and how scanpy goes on."""
    n_obs, n_latent = adata.obsm[f"X_{key}"].shape
    return f"wrote obsm['X_{key}'] ({n_obs:,} x {n_latent}, float32); next: sc.pp.neighbors(adata, use_rep='X_{key}')"


def latent_slots(adata: anndata.AnnData, model: Autoencoder, key: str) -> tuple[str, ...]:
    """Return the slots that a latent and what belongs to it are written to, as paths in a file.

    A model that gives a result of cells with some settings only may not have written it. Results of genes may be in
    ``var`` or ``varm``, or not be there: see :meth:`Autoencoder.of_genes`.
    """
    return (f"obsm/X_{key}", *(f"obs/{key}_{name}" for name in model.cell_results if f"{key}_{name}" in adata.obs))


def sign(adata: anndata.AnnData, model: Autoencoder, key: str) -> None:
    """Say in uns which model wrote under this key; what another one wrote there goes, or would be taken for its own."""
    record = _record(model)
    if key in adata.uns and _identity(adata.uns[key]) != _identity(record):
        for where, name in _ours(adata, key):
            del getattr(adata, where)[name]
    adata.uns[key] = record


def _record(model: Autoencoder) -> dict[str, Any]:
    # plain values only, and no None: every version of anndata can write and read this
    params = {
        "model": model.name,
        "hyperparameters": model.config.model_dump(mode="json"),
        "training": model.training_.model_dump(mode="json"),
        "layer": model.layer_,
        "batches": model.batches_,
        "library_size": model.library_size_,
        "best_epoch": model.best_epoch_,
        "stopped": model.stopped_,
        "versions": versions(),
    }
    history = model.history_.copy()
    history.index = history.index.astype(str)
    return {
        "params_json": json.dumps(params),
        "history": history,
        "valid_obs": np.asarray(model.valid_obs_, dtype=str),
        "schema": SCHEMA,
        "version": versions()["anncoder"],
    }


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    # an older torch does not make it another model
    return {name: value for name, value in json.loads(record["params_json"]).items() if name != "versions"}


def _ours(adata: anndata.AnnData, key: str) -> list[tuple[str, str]]:
    """Return the slots of this key that are there and that some model would write, but for uns: attribute and name."""
    of_cells = sorted({name for model in ESTIMATORS.values() for name in model.cell_results})
    of_genes = sorted({name for model in ESTIMATORS.values() for name in model.gene_results})
    slots = [("obsm", f"X_{key}"), ("layers", f"{key}_denoised"), *(("obs", f"{key}_{name}") for name in of_cells)]
    slots += [(where, f"{key}_{name}") for where in ("var", "varm") for name in of_genes]
    return [(where, name) for where, name in slots if name in getattr(adata, where)]


def refuse_foreign(adata: anndata.AnnData, key: str) -> None:
    """Raise a ConfigError if slots of this key exist that we did not write: they belong to the user."""
    if not key or "/" in key:
        raise ConfigError(
            f"key_added = {key!r} is no name for a slot", code="bad-key", where="key_added", remedy="a word like 'ae'"
        )
    ours = isinstance(adata.uns.get(key), Mapping) and "params_json" in adata.uns[key]
    taken = [f"{where}[{name!r}]" for where, name in _ours(adata, key)] + [f"uns[{key!r}]"] * (key in adata.uns)
    if taken and not ours:
        raise ConfigError(
            f"{', '.join(taken)} exists and was not written by anncoder",
            code="key-taken",
            where="key_added",
            remedy="choose another key_added (--key)",
        )


def target_of(adata: anndata.AnnData, *, copy: bool) -> anndata.AnnData:
    """Return the AnnData to write into: a copy, or the one given.

    As scanpy does: results on a view turn it into an object of its own; the parent is not touched.

    Raises
    ------
    InputError
        It is no AnnData.
    """
    if not isinstance(adata, anndata.AnnData):
        raise InputError(
            f"expected an AnnData, got {type(adata).__name__}",
            code="not-anndata",
            remedy="read it first: sc.read_h5ad(path)",
        )
    if copy:
        return adata.to_memory(copy=True) if adata.isbacked else adata.copy()
    if adata.is_view:
        adata._init_as_actual(adata.to_memory() if adata.isbacked else adata.copy())
    return adata
