"""``anncoder check``, ``evaluate``, ``info`` and ``config``: commands that look and print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import typer
import yaml

from anncoder.cli.run_folder import write_json
from anncoder.cli.settings import one_or_several, parse_assignments, set_in
from anncoder.config import Settings, TrainingConfig, split_settings
from anncoder.data.check import check
from anncoder.data.opening import paths_of
from anncoder.device import threads_set
from anncoder.errors import InputError, listed
from anncoder.evaluation.comparison import Evaluation, evaluate
from anncoder.io.model_folder import read_stored
from anncoder.io.output_paths import refuse_output
from anncoder.models import find
from anncoder.models.loading import load


def run_check(data: list[Path], *, layer: str | None, counts: bool, as_json: bool) -> None:
    """Print a report of each file; raise the first error in one of them."""
    paths = paths_of(data)
    reports = [check(path, layer=layer, counts=counts) for path in paths]
    if as_json:
        found: Any = [{"file": str(path)} | report.to_dict() for path, report in zip(paths, reports, strict=True)]
        typer.echo(json.dumps(found if len(paths) > 1 else found[0], indent=2, allow_nan=False))
    else:
        heads = [f"{path}: " if len(paths) > 1 else "" for path in paths]
        typer.echo("\n\n".join(f"{head}{report}" for head, report in zip(heads, reports, strict=True)))
    for path, report in zip(paths, reports, strict=True):
        errors = [problem.code for problem in report.problems if problem.severity == "error"]
        if errors and as_json:
            report.raise_if_bad()
        if errors:  # they were printed in full
            raise InputError(errors[0], f"{path} cannot be used as it is: {listed(errors)}, see above")


class EvaluateRequest(NamedTuple):
    """Arguments and options of ``anncoder evaluate``."""

    model: Path
    data: list[Path]
    labels: str | None
    batch_key: list[str] | None
    layer: str | None
    output: Path
    allow_missing: float
    guard: bool
    seed: int
    device: str
    threads: int | None


def run_evaluate(request: EvaluateRequest) -> None:
    """Print the table and write it to a JSON file."""
    refuse_output(request.output, suffix=".json")
    fitted = load(request.model, device=request.device)
    with threads_set(request.threads):
        found = evaluate(
            fitted,
            list(request.data),
            labels=request.labels,
            batch_key=one_or_several(request.batch_key),
            layer=request.layer,
            allow_missing=request.allow_missing,
            guard=request.guard,
            seed=request.seed,
        )
    print_evaluation(found)
    write_json(request.output, found.to_dict())


def print_evaluation(found: Evaluation) -> None:
    """Print a table with its legend."""
    typer.echo(f"{found.n_obs:,} cells" + (f", labels: {found.labels}" if found.labels else ""))
    typer.echo(str(found))
    typer.echo("lower is better: heldout_nll (nats a cell), reconstruction_mse, invented_correlations")
    typer.echo("higher is better: the others")


def run_info(model: Path, *, as_json: bool) -> None:
    """Print model, settings, genes and history of a saved model, in short."""
    fitted, stored = load(model), read_stored(model)
    assert fitted.network_ is not None
    described = {
        "model": fitted.name,
        "n_genes": len(stored.genes),
        "genes": stored.genes[:5],
        "n_parameters": sum(parameter.numel() for parameter in fitted.network_.parameters()),
        "hyperparameters": stored.config.hyperparameters,
        "training": stored.config.training,
        "layer": fitted.layer_,
        "batches": fitted.batches_,
        "library_size": fitted.library_size_,
        "epochs": len(fitted.history_),
        "best_epoch": fitted.best_epoch_ + 1,
        "stopped": fitted.stopped_,
        "versions": stored.manifest["versions"],
        "files": stored.manifest["files"],
    }
    as_yaml = yaml.safe_dump(described, sort_keys=False, allow_unicode=True).strip()
    typer.echo(json.dumps(described, indent=2) if as_json else as_yaml)


def run_config(model: str, assignments: tuple[str, ...]) -> None:
    """Print every setting of a model as YAML, with what it means."""
    config_class = find(model, where="--model").config_class
    values = parse_assignments(assignments)
    hyper, training = split_settings(values, config_class, where="--set")
    with set_in({"--set": values}):
        of_model = config_class(**hyper)
        of_fit = TrainingConfig(**training).with_defaults_of(of_model)
    typer.echo(f"model: {model}")
    print_settings("hyper-parameters", of_model)
    print_settings("training", of_fit)


def print_settings(title: str, settings: Settings) -> None:
    """Print settings as YAML, each with its description."""
    typer.echo(f"\n# {title}")
    for name, value in settings.model_dump(mode="json").items():
        text = yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]
        typer.echo(f"{name}: {text}  # {type(settings).model_fields[name].description}")
