"""``anncoder train``: h5ad in, h5ad plus latent out, and a run folder beside it."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import yaml

from anncoder import tl
from anncoder.autoencoder import Autoencoder
from anncoder.checkpoint import refuse_target, versions
from anncoder.checks import check
from anncoder.commands.inspect import print_evaluation
from anncoder.commands.outcome import signals
from anncoder.commands.output import (
    read_input,
    refuse_input_as_output,
    refuse_output,
    refuse_unwritable,
    write_output,
)
from anncoder.commands.run import (
    HISTORY,
    LOG,
    METRICS,
    MODEL,
    SETTINGS,
    forget_previous,
    logged,
    new_run_folder,
    refuse_run_folder,
    run_folder,
    write_json,
    write_text,
)
from anncoder.config import TrainingConfig, given, split_settings, unknown_key
from anncoder.data.adata import batches_of, coordinates_of, obs_column
from anncoder.device import choose_device, refuse_size
from anncoder.distributed import processes
from anncoder.errors import ConfigError, DivergenceError, InputError
from anncoder.estimators import ESTIMATORS
from anncoder.evaluation import evaluate
from anncoder.files import atomic_path
from anncoder.models import MODELS
from anncoder.preparation import split_cells
from anncoder.progress import announce
from anncoder.refusals import refuse_few_cells, refuse_no_decoder, refuse_width
from anncoder.resume import NAME as CHECKPOINT
from anncoder.resume import Checkpoint, forget
from anncoder.settings import parse_assignments, read_yaml
from anncoder.slots import latent_slots, next_step, refuse_foreign

logger = logging.getLogger("anncoder")

SCHEMA = 1
EVALUATED = 5000  # cells at most: enough for the comparison with PCA, and over in seconds


class TrainRequest(NamedTuple):
    """What was asked for on the command line."""

    data: Path
    output: Path
    model: str | None = None
    config: Path | None = None
    settings: tuple[str, ...] = ()
    flags: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never changed
    layer: str | None = None
    key: str = "ae"
    denoise: bool = False
    save: Path | None = None
    labels: str | None = None
    evaluation: bool = True
    in_place: bool = False
    drop_empty_cells: bool = False
    resume: bool | None = None
    progress: bool | None = None
    quiet: bool = False

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the state of training is kept; processes that torchrun starts again always go on."""
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        resume = None if restarted and not self.resume else self.resume
        return Checkpoint(run_folder(self.output), resume, remove=False)


class Plan(NamedTuple):
    """What will be done: the model, unfitted, and the settings of its fit."""

    model: Autoencoder
    training: TrainingConfig

    def resolved(self) -> dict[str, Any]:
        """Return every setting, as a configuration file that gives this run again."""
        settings = self.model.config.model_dump(mode="json") | self.training.model_dump(mode="json")
        return {"model": self.model.name, **settings}


def run_train(request: TrainRequest) -> None:
    """Check, train, embed, write, compare; the run folder has what a later reader of the result may ask for.

    Of several processes (``torchrun``) all train, and the first does the rest.
    """
    plan = make_plan(request)
    with processes() as share:
        if share.rank == 0:
            _train_and_write(request, plan)
        else:
            adata = read_input(request.data, layer=request.layer, drop_empty_cells=request.drop_empty_cells)
            settings = plan.training.model_dump()
            plan.model.fit(adata, layer=request.layer, progress=False, checkpoint=request.checkpoint, **settings)


def _train_and_write(request: TrainRequest, plan: Plan) -> None:
    adata = _checked_input(request, plan)
    folder = new_run_folder(request.output)
    with logged(folder / LOG):
        write_text(folder / SETTINGS, yaml.safe_dump(plan.resolved(), sort_keys=False))
        began = time.perf_counter()
        model = _fit(adata, plan, request, folder)
        unfinished = model.stopped_ == "interrupted"
        with signals.held(_how_to_go_on(folder) if unfinished else ""):
            _save(model, folder)
            if request.save is not None:
                model.save(request.save)
            write_output(adata, request.output, wrote=_write_slots(adata, model, request))
            metrics = _metrics(adata, model, time.perf_counter() - began)
            write_json(folder / METRICS, metrics)
            forget_previous(folder)
            if not unfinished:
                forget(folder)
        write_json(folder / METRICS, {**metrics, "evaluation": _evaluate(adata, model, request)})
        announce(f"{request.output}: {next_step(adata, request.key)}")
        announce(f"model, history, metrics and log: {folder}")


def make_plan(request: TrainRequest) -> Plan:
    """Put the configuration together: file, then ``--set``, then flags; each beats the one before.

    Raises
    ------
    ConfigError
        An unknown key or model (the nearest known one is named), or a value out of range.
    """
    sources = {
        str(request.config): {} if request.config is None else read_yaml(request.config),
        "--set": parse_assignments(request.settings),
        "options": request.flags,
    }
    named = [values.pop("model", None) for values in sources.values()]
    name = str(request.model or named[1] or named[0] or "count")
    if name not in ESTIMATORS:
        raise unknown_key(name, sorted(ESTIMATORS), where="model")
    hyper: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for where, values in sources.items():
        ours, rest = split_settings(values, MODELS[name].config, where=where)
        hyper |= ours
        training |= rest
    model = ESTIMATORS[name](**hyper)
    return Plan(model, TrainingConfig(**training).suited_to(model.config))


def _checked_input(request: TrainRequest, plan: Plan) -> anndata.AnnData:
    # everything that can be refused is refused here, before the run folder is made and hours are spent
    refuse_output(request.output)
    refuse_input_as_output(request.data, request.output, in_place=request.in_place)
    refuse_run_folder(request.output)
    _refuse_save(request)
    choose_device(plan.training.device)
    adata = read_input(request.data, layer=request.layer, drop_empty_cells=request.drop_empty_cells)
    report = check(adata, layer=request.layer, counts=plan.model.reads_counts, integers=plan.model.config.integers)
    report.raise_if_bad()
    for problem in report.problems:
        if problem.severity == "warning":
            logger.warning("warning: %s [%s]", problem.what, problem.code)
    refuse_width(plan.model.config, adata.n_vars)
    split = split_cells(adata.n_obs, partial(obs_column, adata), plan.training)
    refuse_few_cells(plan.model.config, given(plan.training.batch_size), len(split.train))
    if request.labels is not None and request.labels not in adata.obs:
        raise unknown_key(request.labels, [str(c) for c in adata.obs.columns], where="--labels (a column of obs)")
    if plan.training.batch_key is not None:
        batches_of(obs_column(adata, plan.training.batch_key, what="batch_key"), plan.training.batch_key, None)
    if plan.model.config.fits_slot is not None:
        coordinates_of(adata.obsm, plan.model.config.fits_slot)
    if request.denoise:
        refuse_no_decoder(plan.model.config)
        refuse_size(adata.n_obs * adata.n_vars * 4)
    refuse_foreign(adata, request.key)
    refuse_unwritable(adata)
    return adata


def _refuse_save(request: TrainRequest) -> None:
    if request.save is None:
        return
    if request.save.resolve() in (request.output.resolve(), run_folder(request.output).resolve()):
        raise ConfigError(
            f"the model cannot be saved as {str(request.save)!r}: other results stand there",
            code="bad-output",
            where="--save",
            remedy="choose another name, or none: the run folder has the model in any case",
        )
    refuse_target(request.save)


def _fit(adata: anndata.AnnData, plan: Plan, request: TrainRequest, folder: Path) -> Autoencoder:
    model, training = plan.model, plan.training.model_dump()
    try:
        model.fit(adata, layer=request.layer, progress=request.progress, checkpoint=request.checkpoint, **training)
    except DivergenceError:
        forget(folder)  # it would diverge again
        if len(model.history_):  # the last good weights are worth keeping
            _save(model, folder)
        raise
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop}{_how_to_go_on(folder)}") from None
    return model


def _how_to_go_on(folder: Path) -> str:
    return "; the same command again goes on from there" if (folder / CHECKPOINT).exists() else ""


def _save(model: Autoencoder, folder: Path) -> None:
    model.save(folder / MODEL)
    with atomic_path(folder / HISTORY) as temporary:
        model.history_.to_csv(temporary, index=False)


def _write_slots(adata: anndata.AnnData, model: Autoencoder, request: TrainRequest) -> tuple[str, ...]:
    tl.embed(adata, model, key_added=request.key)
    wrote = latent_slots(adata, model, request.key)
    if not request.denoise:
        return wrote
    tl.denoise(adata, model, key_added=request.key)
    return *wrote, f"layers/{request.key}_denoised"


def _evaluate(adata: anndata.AnnData, model: Autoencoder, request: TrainRequest) -> dict[str, Any] | None:
    if not request.evaluation:
        return None
    try:
        found = evaluate(model, adata, labels=request.labels, max_cells=EVALUATED, seed=model.training_.seed)
    except InputError as error:  # too few cells to compare: the results stand without it
        logger.warning("not compared with PCA: %s", error.what)
        return None
    if not request.quiet:
        print_evaluation(found)
    return found.to_dict()


def _metrics(adata: anndata.AnnData, model: Autoencoder, seconds: float) -> dict[str, Any]:
    best = model.history_.iloc[model.best_epoch_]
    return {
        "schema": SCHEMA,
        "model": model.name,
        "n_obs": adata.n_obs,
        "n_vars": adata.n_vars,
        "epochs": len(model.history_),
        "best_epoch": model.best_epoch_ + 1,
        "stopped": model.stopped_,
        "seconds": round(seconds, 2),
        "losses": {name: float(value) for name, value in best.items() if str(name).startswith(("train_", "valid_"))},
        "evaluation": None,
        "versions": versions(),
    }
