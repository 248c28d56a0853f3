"""``anncoder embed``, ``denoise`` and ``adapt``: apply a saved model to new files."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from anncoder.cli.settings import parse_assignments
from anncoder.config import unknown_key
from anncoder.device import threads_set
from anncoder.errors import ConfigError, counted, listed
from anncoder.io.atomic import same_file
from anncoder.io.model_folder import refuse_target
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


def run_denoise(request: ApplyRequest, *, scale: Any, batch: str | None, covariates: list[str] | None = None) -> None:
    """Write each input plus ``layers["key_denoised"]``; without a scale, on that of the fitted data."""
    if scale is not None and scale not in SCALES:
        raise unknown_key(scale, SCALES, where="--scale")
    model = load(request.model, device=request.device)
    given = parse_assignments(covariates or (), "--covariate", "--covariate stress=mean")
    scale = scale or natural_scale(model)
    wanted = OutputSpec(request.key, latent=False, scale=scale, batch=batch, covariates=given)
    for path, n_obs, n_vars in _write(request, model, wanted):
        announce(f"{path}: wrote layers['{request.key}_denoised'] ({n_obs:,} x {n_vars:,}, float32)")


class AdaptRequest(NamedTuple):
    """Arguments and options of ``anncoder adapt``."""

    model: Path
    data: list[Path]
    output: Path
    batch_key: list[str] | None
    layer: str | None
    allow_missing: float
    seed: int
    device: str
    threads: int | None


def run_adapt(request: AdaptRequest) -> None:
    """Save a model that knows the experimental batches of new cells too, and say how to go on."""
    if request.output.exists() and same_file(request.model, request.output):
        what = f"{str(request.output)!r} is the model that is adapted, which stays as it is"
        raise ConfigError("output-is-input", what, "--output", "name another folder")
    refuse_target(request.output)
    model = load(request.model, device=request.device)
    key = None if request.batch_key is None else tuple(request.batch_key)
    started = perf_counter()
    with threads_set(request.threads):
        data: Any = request.data if len(request.data) > 1 else request.data[0]
        adapted = model.adapt(
            data,
            batch_key=key,
            layer=request.layer,
            allow_missing=request.allow_missing,
            seed=request.seed,
        )
        seconds = perf_counter() - started
    adapted.save(request.output)
    new = adapted.batches_[len(model.batches_) :]
    learned = f"{counted(len(new), 'new batch', 'new batches')} ({listed(map(repr, new), 5)})"
    genes = counted(len(adapted.var_names_), "gene")
    announce(f"learned {learned} in {seconds:.1f} s: factors of {genes}, a shift of the latent; {request.output}")
    files = " ".join(map(str, request.data))
    output = "adapted.h5ad" if len(request.data) == 1 else "adapted"
    announce(f"next: anncoder embed {request.output} {files} -o {output}")


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
