"""``anncoder embed`` and ``anncoder denoise``: apply a saved model to new files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from anncoder.config import unknown_key
from anncoder.device import threads_set
from anncoder.models.base import Autoencoder
from anncoder.models.loading import load
from anncoder.tl.files import Output, OutputSpec, natural_scale, write_files
from anncoder.tl.slots import next_step
from anncoder.training.progress import announce

SCALES = ("counts", "normalized", "log1p")


class ApplyRequest(NamedTuple):
    """Arguments and options that ``anncoder embed`` and ``anncoder denoise`` share."""

    model: Path
    data: list[Path]
    output: Path
    layer: str | None
    key: str
    allow_missing: float
    in_place: bool
    drop_empty: bool
    device: str
    threads: int | None


def run_embed(request: ApplyRequest) -> None:
    """Write each input plus ``obsm["X_key"]``."""
    model = load(request.model, device=request.device)
    for path, n_obs, _ in _write(request, model, OutputSpec(request.key)):
        announce(f"{path}: {next_step(request.key, n_obs, model.config.width)}")


def run_denoise(request: ApplyRequest, *, scale: Any, batch: str | None) -> None:
    """Write each input plus ``layers["key_denoised"]``; without a scale, on that of the fitted data."""
    if scale is not None and scale not in SCALES:
        raise unknown_key(scale, SCALES, where="--scale")
    model = load(request.model, device=request.device)
    wanted = OutputSpec(request.key, latent=False, scale=scale or natural_scale(model), batch=batch)
    for path, n_obs, n_vars in _write(request, model, wanted):
        announce(f"{path}: wrote layers['{request.key}_denoised'] ({n_obs:,} x {n_vars:,}, float32)")


def _write(request: ApplyRequest, model: Autoencoder, wanted: OutputSpec) -> list[Output]:
    with threads_set(request.threads):
        return write_files(
            model,
            request.data,
            request.output,
            wanted,
            layer=request.layer,
            allow_missing=request.allow_missing,
            in_place=request.in_place,
            drop_empty=request.drop_empty,
        )
