"""``anncoder train``: h5ad in, h5ad plus latent out, and a run folder beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import yaml

from anncoder import tl
from anncoder.autoencoder import Autoencoder
from anncoder.checkpoint import versions
from anncoder.checks import check
from anncoder.commands.inspect import print_evaluation, write_json
from anncoder.commands.outcome import Stopped, terminations
from anncoder.commands.output import read_input, refuse_output, write_output
from anncoder.config import TrainingConfig, parse_assignments, read_yaml, split_settings, unknown_key
from anncoder.errors import DivergenceError, FileError, InputError
from anncoder.estimators import ESTIMATORS
from anncoder.evaluation import Evaluation, evaluate
from anncoder.files import atomic_path, writable_folder
from anncoder.models import MODELS
from anncoder.progress import announce

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
    progress: bool | None = None


class Plan(NamedTuple):
    """What will be done: the model, unfitted, and the settings of its fit."""

    model: Autoencoder
    training: TrainingConfig

    def resolved(self) -> dict[str, Any]:
        """Return every setting, as a configuration file that gives this run again."""
        settings = self.model.config.model_dump(mode="json") | self.training.model_dump(mode="json")
        return {"model": self.model.name, **settings}


def run_train(request: TrainRequest) -> None:
    """Check, train, embed, write; see the package's README for what stands where."""
    plan = make_plan(request)
    refuse_output(request.data, request.output, in_place=request.in_place)
    if request.save is not None:
        writable_folder(request.save.parent)
    adata = read_input(request.data, layer=request.layer, drop_empty_cells=request.drop_empty_cells)
    _check_input(adata, plan, request)
    folder = run_folder(request.output)
    with logged(folder / "run.log"):
        _write_text(folder / "resolved.yaml", yaml.safe_dump(plan.resolved(), sort_keys=False))
        began = time.perf_counter()
        model = _fit(adata, plan, request, folder)
        wrote = _write_slots(adata, model, request)
        write_output(adata, request.output, wrote=wrote)
        found = _evaluate(adata, model, request)
        metrics = _metrics(adata, model, found, time.perf_counter() - began)
        write_json(folder / "metrics.json", metrics)
        announce(f"{request.output}: {tl.next_step(adata, request.key)}")
        announce(f"model, history, metrics and log: {folder}")
    if model.stopped_ == "interrupted":
        raise Stopped(terminated=bool(terminations))


def make_plan(request: TrainRequest) -> Plan:
    """Put the configuration together: file, then ``--set``, then flags; each beats the one before.

    Raises
    ------
    ConfigError
        An unknown key or model (the nearest known one is named), or a value out of range.
    """
    values = {} if request.config is None else read_yaml(request.config)
    named = values.pop("model", None)
    values |= parse_assignments(request.settings) | request.flags
    name = request.model or values.pop("model", None) or named or "count"
    if name not in ESTIMATORS:
        raise unknown_key(str(name), sorted(ESTIMATORS), where="model")
    hyper, training = split_settings(values, MODELS[name].config)
    return Plan(ESTIMATORS[name](**hyper), TrainingConfig(**training))


def run_folder(output: Path) -> Path:
    """Return the run folder of an output, made if need be: ``out.h5ad`` has ``out.anncoder``.

    Raises
    ------
    FileError
        Something else has that name.
    """
    folder = output.with_suffix(".anncoder")
    if folder.exists() and not folder.is_dir():
        raise FileError(
            f"{str(folder)!r} is in the way of the run folder",
            code="not-ours",
            where=str(folder),
            remedy="move it away, or choose another output",
        )
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write the run's messages to a plain file as well; a new run starts it anew."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("anncoder")
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        handler.emit(logger.makeRecord(logger.name, logging.ERROR, "", 0, str(error), (), None))
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


def _check_input(adata: anndata.AnnData, plan: Plan, request: TrainRequest) -> None:
    # before the run folder is made and hours are spent: the data, the labels, and whether our slots are free
    report = check(adata, layer=request.layer, counts=plan.model.reads_counts)
    report.raise_if_bad()
    plan.model.refuse_width(adata.n_vars)
    if request.labels is not None and request.labels not in adata.obs:
        raise unknown_key(request.labels, [str(c) for c in adata.obs.columns], where="--labels (a column of obs)")
    tl.refuse_foreign(adata, request.key)


def _fit(adata: anndata.AnnData, plan: Plan, request: TrainRequest, folder: Path) -> Autoencoder:
    model, training = plan.model, plan.training.model_dump()
    try:
        model.fit(adata, layer=request.layer, progress=request.progress, **training)
    except DivergenceError:
        if len(model.history_):  # the last good weights are worth keeping
            model.save(folder / "model")
        raise
    if not len(model.history_):
        raise KeyboardInterrupt  # interrupted before the first epoch was over: there is nothing to save
    for target in filter(None, (folder / "model", request.save)):
        model.save(target)
    with atomic_path(folder / "history.csv") as temporary:
        model.history_.to_csv(temporary, index=False)
    return model


def _write_slots(adata: anndata.AnnData, model: Autoencoder, request: TrainRequest) -> list[str]:
    tl.embed(adata, model, key_added=request.key)
    wrote = [f"obsm/X_{request.key}"]
    if request.denoise:
        scale = "counts" if model.reads_counts else "normalized"
        tl.denoise(adata, model, scale=scale, key_added=request.key)  # type: ignore[arg-type]
        wrote.append(f"layers/{request.key}_denoised")
    return wrote


def _evaluate(adata: anndata.AnnData, model: Autoencoder, request: TrainRequest) -> Evaluation | None:
    if not request.evaluation:
        return None
    try:
        found = evaluate(model, adata, labels=request.labels, max_cells=EVALUATED, seed=model.training_.seed)
    except InputError as error:  # too few cells to compare: the results stand without it
        logging.getLogger("anncoder").warning("not compared with PCA: %s", error.what)
        return None
    print_evaluation(found)
    return found


def _metrics(adata: anndata.AnnData, model: Autoencoder, found: Evaluation | None, seconds: float) -> dict[str, Any]:
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
        "evaluation": None if found is None else found.to_dict(),
        "versions": versions(),
    }


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
