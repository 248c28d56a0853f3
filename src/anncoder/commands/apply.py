"""``anncoder embed`` and ``anncoder denoise``: a saved model on new cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import anndata

from anncoder import tl
from anncoder.autoencoder import Autoencoder
from anncoder.commands.output import read_input, refuse_input_as_output, refuse_output, write_output
from anncoder.config import unknown_key
from anncoder.estimators import load
from anncoder.progress import announce
from anncoder.slots import latent_slots, next_step, refuse_foreign

SCALES = ("counts", "normalized")


class ApplyRequest(NamedTuple):
    """What ``embed`` and ``denoise`` are asked for on the command line."""

    model: Path
    data: Path
    output: Path
    layer: str | None = None
    key: str = "ae"
    in_place: bool = False
    drop_empty_cells: bool = False


def run_embed(request: ApplyRequest, *, allow_missing: float) -> None:
    """Write the input plus ``obsm["X_key"]`` to the output."""
    model, adata = _open(request)
    tl.embed(adata, model, layer=request.layer, key_added=request.key, allow_missing=allow_missing)
    write_output(adata, request.output, wrote=latent_slots(adata, model, request.key))
    announce(f"{request.output}: {next_step(adata, request.key)}")


def run_denoise(request: ApplyRequest, *, scale: Any) -> None:
    """Write the input plus ``layers["key_denoised"]`` to the output; without a scale, on the one the model was fed."""
    if scale is not None and scale not in SCALES:
        raise unknown_key(scale, SCALES, where="--scale")
    model, adata = _open(request)
    tl.denoise(adata, model, scale=scale, layer=request.layer, key_added=request.key)
    layer = f"{request.key}_denoised"
    write_output(adata, request.output, wrote=(f"layers/{layer}",))
    announce(f"{request.output}: wrote layers[{layer!r}] ({adata.n_obs:,} x {adata.n_vars:,}, float32)")


def _open(request: ApplyRequest) -> tuple[Autoencoder, anndata.AnnData]:
    refuse_output(request.output)
    refuse_input_as_output(request.data, request.output, in_place=request.in_place)
    model = load(request.model)
    layer = request.layer or model.layer_
    adata = read_input(
        request.data,
        layer=None if layer == "X" else layer,
        drop_empty_cells=request.drop_empty_cells,
        genes=list(model.var_names_),
    )
    refuse_foreign(adata, request.key)
    return model, adata
