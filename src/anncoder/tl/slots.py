"""Slots of results in an AnnData: names, the model's record in uns, and their owner.

Where a function takes ``data``, that is an AnnData, or an open file or zarr group.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
from anndata.io import read_elem

from anncoder.data.adata import not_anndata
from anncoder.errors import ConfigError
from anncoder.io.model_folder import SCHEMA, versions
from anncoder.models.base import Autoencoder
from anncoder.training.results import Scale

# of records that do not list them: all that the models of version 0.1.0 could write
BEFORE_0_2 = (
    "obsm/X_{}",
    "layers/{}_denoised",
    *(f"obs/{{}}_{name}" for name in ("cluster", "elbo", "log_likelihood")),
    *(f"{where}/{{}}_{name}" for where in ("var", "varm") for name in ("batch_effects", "loadings", "theta")),
)

# weights that decode, or that batches have of their own: without them a model and those adapted from it are the same
LATENT_ALONE = ("decoder.", "heads.", "output.", "inputs.batches.", "shifts.")


def next_step(key: str, n_obs: int, n_latent: int) -> str:
    """Return the line that says what was written and how scanpy goes on."""
    return f"wrote obsm['X_{key}'] ({n_obs:,} x {n_latent}, float32); next: sc.pp.neighbors(adata, use_rep='X_{key}')"


def sign(adata: anndata.AnnData, model: Autoencoder, key: str, denoised: Mapping[str, str] | None = None) -> None:
    """Write the record of a model into uns, and delete the results of another one under the same key.

    ``denoised`` is what :func:`denoised_as` returns for the layer, if it is written now.
    """
    denoised = found_denoised(adata, model, key) if denoised is None else denoised
    for where, name in of_another(adata, model, key):
        del getattr(adata, where)[name]
    adata.uns[key] = record(model, key, denoised)


def of_another(data: Any, model: Autoencoder, key: str) -> list[tuple[str, str]]:
    """Return the slots, as attribute and name, that another model wrote under this key."""
    found = _signed(data, key)
    if found is None:
        return []
    there, here = _identity(found), _identity(record(model, key, {}))
    known = [name for name in here if name in there or name != "fingerprint"]  # which older versions did not record
    other = any(there.get(name) != here[name] for name in known)
    return _there(data, _slots_in(found, key)) if other else []


DENOISED = ("denoised_scale", "denoised_batch", "denoised_covariates")


def denoised_as(scale: Scale, batch: str | int | None, covariates: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the record of a denoised layer: its scale, and batch and covariates as of which all cells are, if any."""
    given = {} if batch is None else {"denoised_batch": str(batch)}
    if covariates:
        given["denoised_covariates"] = json.dumps({name: str(value) for name, value in covariates.items()})
    return {"denoised_scale": scale} | given


def found_denoised(data: Any, model: Autoencoder, key: str) -> dict[str, str]:
    """Return the record of the denoised layer that this model wrote under this key; empty if there is no such layer."""
    found = _signed(data, key)
    if found is None or f"{key}_denoised" not in _attribute(data, "layers") or of_another(data, model, key):
        return {}
    return {name: str(found[name]) for name in DENOISED if name in found}


def record(model: Autoencoder, key: str, denoised: Mapping[str, str]) -> dict[str, Any]:
    """Return the record of a model for uns: settings, history, slots, and its denoised layer (:func:`denoised_as`)."""
    # plain values only, and no None: every version of anndata can write and read this
    params = {
        "model": model.name,
        "hyperparameters": model.config.model_dump(mode="json"),
        "training": model.training_.model_dump(mode="json"),
        "layer": model.layer_,
        "batches": model.batches_,
        "covariates": model.covariates_._asdict(),
        "library_size": model.library_size_,
        "best_epoch": model.best_epoch_,
        "stopped": model.stopped_,
        "fingerprint": _fingerprint_of_model(model),
        "versions": versions(),
    }
    history = model.history_.copy()
    history.index = history.index.astype(str)
    return {
        "params_json": json.dumps(params),
        "history": history,
        "valid_obs": np.asarray(model.valid_obs_, dtype=str),
        "n_genes": len(model.var_names_),
        "schema": SCHEMA,
        "version": versions()["anncoder"],
        "latent_fingerprint": _fingerprint_of_model(model, LATENT_ALONE),
        "slots": np.array(["/".join(slot) for slot in slots_of(model, key)], dtype=str),
        **denoised,
    }


def _fingerprint_of_model(model: Autoencoder, left_out: tuple[str, ...] = ()) -> str:
    # of genes and weights: settings, and what is counted, may be the same for other data
    digest = hashlib.sha256("\n".join(map(str, model.var_names_)).encode())
    for name, value in model._network().state_dict().items():
        if name.startswith(left_out):
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()[:16]


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    # an older torch does not make it another model
    return {name: value for name, value in json.loads(record["params_json"]).items() if name != "versions"}


def slots_of(model: Autoencoder, key: str) -> list[tuple[str, str]]:
    """Return the slots that a model can write under a key, but for uns, as attribute and name."""
    slots = [("obsm", f"X_{key}"), ("layers", f"{key}_denoised")]
    slots += [("obs", f"{key}_{name}") for name in model.cell_results]
    return slots + [(where, f"{key}_{name}") for where in ("var", "varm") for name in model.gene_results]


def _slots_in(record: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """Return the slots that a record lists; those of version 0.1.0 do not list them."""
    named = record["slots"] if "slots" in record else [slot.format(key) for slot in BEFORE_0_2]
    return [(where, name) for where, _, name in (str(slot).partition("/") for slot in named)]


def _there(data: Any, slots: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(where, name) for where, name in slots if name in _attribute(data, where)]


def _attribute(data: Any, where: str) -> Any:
    return getattr(data, where) if isinstance(data, anndata.AnnData) else data.get(where, {})


def overwritten_by_scanpy(data: Any, key: str) -> bool:
    """Tell whether uns has under this key what scanpy's functions write there, with ``key_added``."""
    found = _attribute(data, "uns").get(key)
    names = set(found) if hasattr(found, "keys") else set()
    return "params" in names and "params_json" not in names


def _signed(data: Any, key: str) -> Mapping[str, Any] | None:
    """Return the record that one of our models wrote into uns under this key; None if there is no such record."""
    found = _attribute(data, "uns").get(key)
    if found is not None and not isinstance(data, anndata.AnnData):
        found = read_elem(found)
    return found if isinstance(found, Mapping) and "params_json" in found else None


def refuse_foreign(data: Any, key: Any, model: Autoencoder) -> None:
    """Raise a ConfigError if slots that a model would write under a key exist and are the user's."""
    if not isinstance(key, str) or not key or "/" in key:
        raise ConfigError("bad-key", f"key_added = {key!r} is no name for a slot", "key_added", "a word like 'ae'")
    recorded = key in _attribute(data, "uns")
    found = _there(data, slots_of(model, key))
    if not (found or recorded) or _signed(data, key) is not None:
        return
    record, another = f"uns[{key!r}]", "choose another key_added (--key)"
    names = ", ".join(f"{where}[{name!r}]" for where, name in found)
    if not recorded:
        ours = ", ".join("adata.{}[{!r}]".format(*slot) for slot in found)
        what = (
            f"{names} exists, and nothing says that anncoder wrote it: {record} is missing "
            "(as after ad.concat without uns_merge)"
        )
        remedy = f"if it is of no use, delete it: del {ours}; or {another}"
    elif found and overwritten_by_scanpy(data, key):
        what = f"{names} is not anncoder's: {record} is scanpy's"
        remedy = f"{another}; or, if it was anncoder's, scanpy's own key_added should have been another than {key!r}"
    else:
        what, remedy = f"{', '.join([names] * bool(found) + [record])} exists and was not written by anncoder", another
    raise ConfigError("key-taken", what, "key_added", remedy)


def target_of(adata: anndata.AnnData, *, copy: bool) -> anndata.AnnData:
    """Return the AnnData to write into: a copy, or the one given.

    As scanpy does: results on a view turn it into an object of its own; the parent is not touched.

    Raises
    ------
    InputError
        Something else was given.
    """
    if not isinstance(adata, anndata.AnnData):
        raise not_anndata(adata)
    if copy:
        return adata.to_memory(copy=True) if adata.isbacked else adata.copy()
    if adata.is_view:
        adata._init_as_actual(adata.to_memory() if adata.isbacked else adata.copy())
    return adata
