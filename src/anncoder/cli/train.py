"""``anncoder train``: h5ad in, h5ad plus latent out, and a run folder beside it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from anncoder.cli.exit import signals
from anncoder.cli.inspect import print_evaluation
from anncoder.cli.run_folder import (
    HISTORY,
    LOG,
    METRICS,
    MODEL,
    REPORT,
    SETTINGS,
    UNFINISHED,
    logged,
    output_name,
    refuse_run_folder,
    results_replaced,
    run_folder,
    start_run,
    write_json,
    write_text,
)
from anncoder.cli.settings import one_or_several, parse_assignments, read_yaml, set_in
from anncoder.config import TrainingConfig, given, refuse_unused_batches, refuse_unused_labels, split_settings
from anncoder.data.loaders.labels import labels_of
from anncoder.data.matrix.notes import said_once, silent
from anncoder.data.opening import open_stores
from anncoder.data.sources import DiskSource, open_source
from anncoder.data.split import split_cells
from anncoder.device import choose_device, threads_set
from anncoder.errors import AnncoderError, ConfigError, DivergenceError, InputError, listed
from anncoder.evaluation.comparison import Evaluation, evaluate
from anncoder.io.atomic import atomic_path, locked
from anncoder.io.model_folder import refuse_target, versions
from anncoder.models import find
from anncoder.models.base import Autoencoder
from anncoder.tl.files import Files, OutputSpec, leave_out_empty, natural_scale, open_files_for, write_results
from anncoder.tl.slots import next_step
from anncoder.training.checkpoint import Checkpoint, forget, kept_until
from anncoder.training.compiling import compile_ahead
from anncoder.training.distributed import processes
from anncoder.training.prepare import batches_in, covariates_to_fit, refuse_few_cells, refuse_width
from anncoder.training.progress import announce

logger = logging.getLogger("anncoder")

SCHEMA = 1
LONG = 20_000  # cells from which on reading and writing takes seconds
EVALUATED = 5000  # cells at most: enough for the comparison with PCA, and over in seconds


class TrainRequest(NamedTuple):
    """Arguments and options of ``anncoder train``."""

    data: list[Path]
    output: Path
    model: str | None = None
    config: Path | None = None
    settings: Sequence[str] | None = None
    batch_key: Sequence[str] | None = None
    categorical_key: Sequence[str] | None = None
    continuous_key: Sequence[str] | None = None
    layer: str | None = None
    key: str = "ae"
    denoise: bool = False
    save: Path | None = None
    mask_var: str | None = None
    labels: str | None = None
    evaluation: bool = True
    report: bool = False
    seed: int | None = None
    device: str | None = None
    threads: int | None = None
    in_place: bool = False
    drop_empty_cells: bool = False
    resume: bool | None = None
    progress: bool | None = None
    quiet: bool = False

    @property
    def checkpoint(self) -> Checkpoint:
        """Where the state of training is kept; processes that torchrun starts again always go on."""
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        resume = self.resume or None if restarted else self.resume
        return Checkpoint(run_folder(self.output) / UNFINISHED, resume, remove=False)


class TrainPlan(NamedTuple):
    """Model, unfitted, and the settings of its fit."""

    model: Autoencoder
    training: TrainingConfig

    def resolved(self) -> dict[str, Any]:
        """Return every setting, as a configuration file that gives this run again."""
        settings = self.model.config.model_dump(mode="json") | self.training.model_dump(mode="json")
        return {"model": self.model.name, **settings}


def run_train(request: TrainRequest) -> None:
    """Check, train, embed, write, compare; of several processes (``torchrun``) all train, the first does the rest."""
    plan = make_plan(request)
    with processes(plan.training.device) as process:
        if process.rank == 0:
            _train_and_write(request, plan)
        else:
            stores = open_stores(request.data, request.layer)
            assert stores is not None
            if request.drop_empty_cells:
                leave_out_empty(stores)
            settings = plan.training.model_dump()
            with silent():
                plan.model.fit(stores, layer=request.layer, progress=False, checkpoint=request.checkpoint, **settings)


@said_once()
def _train_and_write(request: TrainRequest, plan: TrainPlan) -> None:
    compile_ahead(plan.model.config, plan.training, shown=not request.quiet)
    files, source = checked_input(request, plan)
    folder, began = run_folder(request.output), time.perf_counter()
    with locked(folder), threads_set(plan.training.threads):
        part = start_run(folder)
        with logged(part / LOG):
            write_text(part / SETTINGS, yaml.safe_dump(plan.resolved(), sort_keys=False))
            model = _fit(source, plan, request, part)
        with signals.saving():
            with results_replaced(folder, files.outputs), logged(part / LOG):
                if source.n_obs > LONG and not request.quiet:
                    announce(f"writing {listed(map(str, files.outputs), 3)}")
                _save(model, part)
                write_json(part / METRICS, _metrics(source, model, request, began))
                write_results(model, source, files.outputs, _wanted(request, model), together=True)
            if request.save is not None:  # last: if it fails, outputs and their model stand
                model.save(request.save)
        with logged(folder / LOG):
            metrics = _metrics(source, model, request, began)
            found = _evaluate(source, model, request)
            write_json(folder / METRICS, {**metrics, "evaluation": None if found is None else found.to_dict()})
            if request.report:
                _report(source, model, request, found, folder / REPORT)
            for store, path in zip(*files, strict=True):
                announce(f"{path}: {next_step(request.key, store.n_obs, model.config.width)}")
            announce(f"model, history, metrics and log: {folder}")


def make_plan(request: TrainRequest) -> TrainPlan:
    """Put the configuration together: file, then ``--set``, then flags; each beats the one before.

    Raises
    ------
    ConfigError
        An unknown key or model (the nearest known one is named), or a value out of range.
    """
    options = {"seed": request.seed, "device": request.device, "threads": request.threads}
    options["batch_key"] = one_or_several(request.batch_key)
    options["categorical_keys"] = one_or_several(request.categorical_key)
    options["continuous_keys"] = one_or_several(request.continuous_key)
    sources = {
        str(request.config): {} if request.config is None else read_yaml(request.config),
        "--set": parse_assignments(request.settings or ()),
        "options": {name: value for name, value in options.items() if value is not None},
    }
    if request.mask_var is not None:
        sources["options"]["mask_var"] = None if request.mask_var == "none" else request.mask_var
    named = [values.pop("model", None) for values in sources.values()]
    model_class = find(str(request.model or named[1] or named[0] or "count"))
    hyper: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for where, values in sources.items():
        of_model, of_fit = split_settings(values, model_class.config_class, where=where)
        hyper |= of_model
        training |= of_fit
    with set_in(sources):
        model = model_class(**hyper)
        return TrainPlan(model, TrainingConfig(**training).with_defaults_of(model.config))


def checked_input(request: TrainRequest, plan: TrainPlan) -> tuple[Files, DiskSource]:
    """Open the input; all that can be refused is refused here, before the run folder is made and hours are spent."""
    refuse_run_folder(request.output)
    _refuse_save(request)
    choose_device(plan.training.device)
    model = plan.model
    files = open_files_for(
        model,
        request.data,
        request.output,
        _wanted(request, model),
        request.layer,
        in_place=request.in_place,
        drop_empty=request.drop_empty_cells,
    )
    n_cells = sum(store.n_obs for store in files.stores)
    if n_cells > LONG and not request.quiet:
        announce(f"reading and checking {n_cells:,} cells")
    source = open_source(
        files.stores,
        request.layer,
        counts=model.reads_counts,
        integers=model.config.integers,
        mask_var=plan.training.mask_var,
    )
    assert isinstance(source, DiskSource)
    for problem in source.warnings:
        if problem.code != "empty-cells":  # which the fit says
            logger.warning("warning: %s [%s]", problem.what, problem.code)
    refuse_width(model.config, len(source.var_names))
    with silent():
        split = split_cells(source, plan.training)
    refuse_few_cells(model.config, given(plan.training.batch_size), len(split.train))
    if request.labels is not None:
        for store in files.stores:
            store.refuse_no_column(request.labels, what="--labels")
    batches_in(source, plan.training.batch_key)
    with silent():
        covariates_to_fit(source, plan.training, np.isin(np.arange(source.n_obs), split.train))
    refuse_unused_batches(model.config, plan.training)
    if plan.training.label_key is not None:
        labels_of(source.column(plan.training.label_key, what="label_key"), plan.training.label_key)
        refuse_unused_labels(model.config, plan.training)
    if model.config.fits_slot is not None:
        source.coordinates(model.config.fits_slot)
    return files, source


def _wanted(request: TrainRequest, model: Autoencoder) -> OutputSpec:
    return OutputSpec(request.key, scale=natural_scale(model) if request.denoise else None)


def _refuse_save(request: TrainRequest) -> None:
    if request.save is None:
        return
    # not Path.resolve, which does not take a link that leads back to itself
    others = {os.path.realpath(path) for path in (request.output, run_folder(request.output))}
    if os.path.realpath(request.save) in others:
        what = f"the model cannot be saved as {str(request.save)!r}: other results stand there"
        remedy = "choose another name, or none: the run folder has the model in any case"
        raise ConfigError("bad-output", what, "--save", remedy)
    refuse_target(request.save)


def _fit(source: DiskSource, plan: TrainPlan, request: TrainRequest, part: Path) -> Autoencoder:
    # part: the folder of what is unfinished. Under the name of the output it would be taken for a result
    model, training = plan.model, plan.training.model_dump()
    progress = False if request.quiet else request.progress
    try:
        with signals.polled() as stops:
            checkpoint = request.checkpoint._replace(stops=stops)
            model.fit(source, layer=request.layer, progress=progress, checkpoint=checkpoint, **training)
    except DivergenceError:
        forget(part)  # it would diverge again
        if len(model.history_):  # the last good weights are worth keeping
            _save(model, part)
        raise
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop}{_how_to_go_on(part)}") from None
    if model.stopped_ == "interrupted":
        with signals.saving(f"the model until then is in {part}, no output was written{_how_to_go_on(part)}"):
            _save(model, part)
        raise KeyboardInterrupt(signals.message)
    return model


def _how_to_go_on(part: Path) -> str:
    place = kept_until(part)
    return f"; the same command again goes on after {place}" if place else ""


def _save(model: Autoencoder, folder: Path) -> None:
    model.save(folder / MODEL)
    with atomic_path(folder / HISTORY) as temporary:
        model.history_.to_csv(temporary, index=False)


def _report(
    source: DiskSource, model: Autoencoder, request: TrainRequest, found: Evaluation | None, output: Path
) -> None:
    from anncoder.reporting.page import report

    # a file has maps and colours, too; its cells are those of the fit if none was left out
    data = request.data[0] if len(request.data) == 1 and not request.drop_empty_cells else source
    options: Any = {"labels": request.labels, "key": request.key, "seed": model.training_.seed, "evaluation": found}
    try:
        with silent():
            report(data, model, output=output, **options)
    except AnncoderError as error:  # the results stand without it
        logger.warning("no report: %s", error)
        return
    announce(f"report: {output}")


def _evaluate(source: DiskSource, model: Autoencoder, request: TrainRequest) -> Evaluation | None:
    if not request.evaluation:
        return None
    if not request.quiet:
        announce("comparing with PCA and the gene means")
    try:
        with silent():
            found = evaluate(model, source, labels=request.labels, max_cells=EVALUATED, seed=model.training_.seed)
    except InputError as error:  # too few cells to compare: the results stand without it
        logger.warning("not compared with PCA: %s", error.what)
        return None
    if not request.quiet:
        print_evaluation(found)
    return found


def _metrics(source: DiskSource, model: Autoencoder, request: TrainRequest, began: float) -> dict[str, Any]:
    best = model.history_.iloc[model.best_epoch_]
    return {
        "output": output_name(request.output),
        "schema": SCHEMA,
        "model": model.name,
        "n_obs": source.n_obs,
        "n_vars": len(source.var_names),
        "epochs": len(model.history_),
        "best_epoch": model.best_epoch_ + 1,
        "stopped": model.stopped_,
        "seconds": round(time.perf_counter() - began, 2),
        "losses": {name: float(value) for name, value in best.items() if str(name).startswith(("train_", "valid_"))},
        "evaluation": None,
        "versions": versions(),
    }
