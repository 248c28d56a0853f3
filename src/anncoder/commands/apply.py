"""``anncoder embed`` and ``anncoder denoise``: a saved model on new cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anncoder import tl
from anncoder.commands.output import read_input, refuse_output, write_output
from anncoder.config import unknown_key
from anncoder.estimators import load
from anncoder.progress import announce


def run_embed(
    model: Path,
    data: Path,
    output: Path,
    *,
    layer: str | None,
    key: str,
    allow_missing: float,
    in_place: bool,
    drop_empty_cells: bool,
) -> None:
    """Write the input plus ``obsm["X_key"]`` to the output."""
    refuse_output(data, output, in_place=in_place)
    fitted = load(model)
    adata = read_input(data, layer=layer or fitted.layer_, drop_empty_cells=drop_empty_cells)
    tl.embed(adata, fitted, layer=layer, key_added=key, allow_missing=allow_missing)
    write_output(adata, output, wrote=[f"obsm/X_{key}"])
    announce(f"{output}: {tl.next_step(adata, key)}")


def run_denoise(
    model: Path,
    data: Path,
    output: Path,
    *,
    layer: str | None,
    key: str,
    scale: Any,
    in_place: bool,
    drop_empty_cells: bool,
) -> None:
    """Write the input plus ``layers["key_denoised"]`` to the output."""
    refuse_output(data, output, in_place=in_place)
    if scale not in ("counts", "normalized"):
        raise unknown_key(scale, ["counts", "normalized"], where="--scale")
    fitted = load(model)
    adata = read_input(data, layer=layer or fitted.layer_, drop_empty_cells=drop_empty_cells)
    tl.denoise(adata, fitted, scale=scale, layer=layer, key_added=key)
    write_output(adata, output, wrote=[f"layers/{key}_denoised"])
    announce(f"{output}: wrote layers['{key}_denoised'] ({adata.n_obs:,} x {adata.n_vars:,}, float32)")
