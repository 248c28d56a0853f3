"""Commands that look and print: ``check``, ``evaluate``, ``info``, ``config``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import typer
import yaml

from anncoder.checkpoint import read_stored
from anncoder.checks import check
from anncoder.config import TrainingConfig, parse_assignments, split_settings, unknown_key
from anncoder.data.adata import open_data
from anncoder.estimators import load
from anncoder.evaluation import Evaluation, evaluate
from anncoder.files import atomic_path, writable_folder
from anncoder.models import MODELS


def run_check(data: Path, *, layer: str | None, counts: bool, as_json: bool) -> None:
    """Print what a file holds; raise its first problem if a model cannot be trained on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says what matters
        adata = open_data(data)
    report = check(adata, layer=layer, counts=counts)
    typer.echo(report.to_json() if as_json else str(report))
    report.raise_if_bad()


def run_evaluate(
    model: Path,
    data: Path,
    *,
    labels: str | None,
    layer: str | None,
    output: Path,
    allow_missing: float,
    seed: int,
) -> None:
    """Print the table and write it to a JSON file."""
    writable_folder(output.parent)
    found = evaluate(load(model), data, labels=labels, layer=layer, allow_missing=allow_missing, seed=seed)
    print_evaluation(found)
    write_json(output, found.to_dict())


def print_evaluation(found: Evaluation) -> None:
    """Print a table with its legend."""
    typer.echo(f"{found.n_obs:,} cells" + (f", labels: {found.labels}" if found.labels else ""))
    typer.echo(str(found))
    typer.echo("lower is better: heldout_nll (nats a cell), reconstruction_mse; higher is better: the others")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def run_info(model: Path, *, as_json: bool) -> None:
    """Print what a saved model is."""
    stored = read_stored(model)
    config = stored.config
    known = {
        "model": config["model"],
        "n_genes": len(stored.genes),
        "genes": stored.genes[:5],
        "hyperparameters": config["hyperparameters"],
        "training": config["training"],
        "layer": config["layer"],
        "library_size": config["library_size"],
        "epochs": len(config["history"].get("epoch", [])),
        "best_epoch": config["best_epoch"] + 1,
        "stopped": config["stopped"],
        "versions": stored.manifest["versions"],
        "files": stored.manifest["files"],
    }
    typer.echo(
        json.dumps(known, indent=2) if as_json else yaml.safe_dump(known, sort_keys=False, allow_unicode=True).strip()
    )


def run_config(model: str, assignments: tuple[str, ...]) -> None:
    """Print every setting of a model as YAML, with what it means."""
    if model not in MODELS:
        raise unknown_key(model, sorted(MODELS), where="--model")
    hyper, training = split_settings(parse_assignments(assignments), MODELS[model].config)
    sections = (
        ("hyper-parameters", MODELS[model].config(**hyper)),
        ("training", TrainingConfig(**training)),
    )
    typer.echo(f"model: {model}")
    for title, settings in sections:
        typer.echo(f"\n# {title}")
        for name, value in settings.model_dump(mode="json").items():
            text = yaml.safe_dump({name: value}, default_flow_style=None, width=1000).strip()
            typer.echo(f"{text}  # {type(settings).model_fields[name].description}")
