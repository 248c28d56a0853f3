"""``anncoder embed`` and ``anncoder denoise``: apply a saved model to new files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from anncoder.config import unknown_key
from anncoder.models.base import Autoencoder, load
from anncoder.tl.files import Output, OutputSpec, natural_scale, write_files
from anncoder.tl.slots import next_step
from anncoder.training.progress import announce

SCALES = ("counts", "normalized")


class ApplyRequest(NamedTuple):
    """What ``embed`` and ``denoise`` are asked for on the command line."""

    model: Path
    data: list[Path]
    output: Path
    layer: str | None = None
    key: str = "ae"
    in_place: bool = False
    drop_empty_cells: bool = False


def run_embed(request: ApplyRequest, *, allow_missing: float) -> None:
    """Write each input plus ``obsm["X_key"]``."""
    model = load(request.model)
    for written in _write(request, model, OutputSpec(request.key), allow_missing):
        announce(f"{written.path}: {next_step(request.key, written.n_obs, model.config.width)}")


def run_denoise(request: ApplyRequest, *, scale: Any, batch: str | None, allow_missing: float) -> None:
    """Write each input plus ``layers["key_denoised"]``; without a scale, on the one the model was fed."""
    if scale is not None and scale not in SCALES:
        raise unknown_key(scale, SCALES, where="--scale")
    model = load(request.model)
    wanted = OutputSpec(request.key, latent=False, scale=scale or natural_scale(model), batch=batch)
    for path, n_obs, n_vars in _write(request, model, wanted, allow_missing):
        announce(f"{path}: wrote layers['{request.key}_denoised'] ({n_obs:,} x {n_vars:,}, float32)")


def _write(request: ApplyRequest, model: Autoencoder, wanted: OutputSpec, allow_missing: float) -> list[Output]:
    return write_files(
        model,
        list(request.data),
        request.output,
        wanted,
        layer=request.layer,
        allow_missing=allow_missing,
        in_place=request.in_place,
        drop_empty=request.drop_empty_cells,
    )
