"""``anncoder check``, ``evaluate``, ``report``, ``info``, ``config``: commands that look."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import typer
import yaml
from anndata import AnnData

from anncoder.cli.run_folder import MODEL, run_folder, write_json
from anncoder.cli.settings import one_or_several, parse_assignments, set_in
from anncoder.config import Settings, TrainingConfig, given, split_settings
from anncoder.data.check import FEW_CELLS, check
from anncoder.data.genes import HIGHLY_VARIABLE
from anncoder.data.loaders.disk import POOL_BYTES
from anncoder.data.matrix.notes import said_once, silent
from anncoder.data.opening import open_stores, paths_of
from anncoder.data.store import Store, stacked
from anncoder.data.stores import Stores
from anncoder.device import choose_device, threads_set
from anncoder.errors import AnncoderError, FileError, InputError, counted, listed
from anncoder.evaluation.comparison import Evaluation, evaluate
from anncoder.io.model_folder import read_stored
from anncoder.io.output_paths import refuse_output
from anncoder.models import find
from anncoder.models.base import Autoencoder
from anncoder.models.loading import load
from anncoder.tl.slot_files import open_cells
from anncoder.tl.slots import of_another
from anncoder.training.progress import announce


def run_check(data: list[Path], *, layer: str | None, counts: bool, as_json: bool, estimate: bool) -> None:
    """Print a report of each file, and how long a fit will take; raise the first error in one of them."""
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
    if estimate and not as_json and sum(report.n_obs for report in reports) >= FEW_CELLS:
        try:
            line = estimated(paths, layer, counts=counts)
        except AnncoderError as error:  # of the defaults: the cells passed the check
            line = f"how long a fit will take was not tried: {error.what}"
        typer.echo(f"\n{line}")


TRIAL = 1920  # cells of a trial fit: thirty minibatches of 64
# epochs of a default fit, and minibatches beside them: of nine data sets of 340 to 30,000 cells, docs/benchmarks.md
FEWEST_EPOCHS, STEPS = 5, 170
OF_PROCESS = 720 * 2**20  # bytes of Python, torch and anndata


@said_once()
def estimated(paths: list[Path], layer: str | None, *, counts: bool) -> str:
    """Return how long the default fit of these cells will take here, by a trial of three epochs of some of them.

    An AnncoderError if the fit refuses them, as of fewer genes than latent units.
    """
    from anncoder.models.count import CountAutoencoder

    stores = open_stores(list(map(str, paths)), layer)
    assert stores is not None
    n_obs, some = sum(store.n_obs for store in stores), some_of(stores, TRIAL)
    settings: dict[str, Any] = {} if counts else {"transform": "none", "likelihood": "gaussian"}
    with silent():
        began = time.perf_counter()
        model = CountAutoencoder(**settings).fit(some, max_epochs=3, early_stopping=False, progress=False)
        seconds = time.perf_counter() - began
    of_epochs = model.history_["seconds"].to_numpy()
    epoch = float(of_epochs[1:].mean()) * n_obs / some.n_obs  # the first one may compile
    batch_size = given(model.training_.batch_size)
    epochs = round(FEWEST_EPOCHS + STEPS * batch_size / (n_obs * (1 - given(model.training_.valid_fraction))))
    before = max(0.0, seconds - float(of_epochs.sum()))  # components and moments
    row_bytes = 8 * some.X.nnz / some.n_obs
    memory = OF_PROCESS + 3 * min(row_bytes * n_obs, POOL_BYTES) + 100 * n_obs
    threads = counted(given(model.training_.threads), "thread")
    where = f"{choose_device(model.training_.device).type} ({threads})"
    return (
        f"a fit of the count model with its defaults: about {_duration(before + epochs * epoch)} on {where}, "
        f"some {epochs} epochs of {_duration(epoch)}; {counted(len(model.var_names_), 'gene')}, "
        f"{memory / 2**30:.1f} GiB of memory"
    )


def some_of(stores: list[Store], n_cells: int) -> AnnData:
    """Return some cells of files, in evenly spaced blocks, with the genes of the first and their flags."""
    n_obs = sum(store.n_obs for store in stores)
    parts, n_blocks = [], max(1, n_cells // 64)
    for store in stores:
        share = max(1, round(n_blocks * store.n_obs / n_obs))
        starts = np.unique(np.linspace(0, max(0, store.n_obs - 64), share).astype(int))
        starts = starts[np.diff(starts, prepend=-64) >= 64]
        together = Stores([store], stores[0].var_names)
        parts.append(together.read([(int(start), min(int(start) + 64, store.n_obs)) for start in starts]))
    var = pd.DataFrame(index=stores[0].var_names)
    if (flags := stores[0].var_column(HIGHLY_VARIABLE)) is not None:
        var[HIGHLY_VARIABLE] = np.asarray(flags)
    return AnnData(stacked(parts), var=var)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
    seeds: int
    root: str | None
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
            seeds=request.seeds,
            root=request.root,
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


class ReportRequest(NamedTuple):
    """Arguments and options of ``anncoder report``."""

    data: Path
    output: Path
    model: Path | None
    labels: str | None
    key: str
    layer: str | None
    guard: bool
    seeds: int
    root: str | None
    seed: int
    device: str
    threads: int | None


def run_report(request: ReportRequest) -> None:
    """Write the page on a file and its model."""
    from anncoder.reporting.page import refuse_report, report

    output = request.output.expanduser()
    refuse_report(output, request.data)
    fitted = _model_of(request)
    with threads_set(request.threads):
        page = report(
            request.data,
            fitted,
            labels=request.labels,
            key=request.key,
            layer=request.layer,
            guard=request.guard,
            seeds=request.seeds,
            root=request.root,
            seed=request.seed,
        )
    page.write(output)
    for finding in page.findings:
        typer.echo(f"{finding.severity}: {finding.text} {finding.remedy}".rstrip())
    announce(f"report: {output}")


def _model_of(request: ReportRequest) -> Autoencoder:
    """Return the model named, or the one beside a file of results, which wrote them."""
    if request.model is not None:
        return load(request.model, device=request.device)
    key, folder = request.key, run_folder(request.data) / MODEL
    with open_cells(request.data, obsm=[f"X_{key}"], uns=[key]) as file:
        cells = file.cells
    if key not in cells.uns or f"X_{key}" not in cells.obsm:
        what = f"{str(request.data)!r} has no results of the name {key!r}: no obsm['X_{key}'] with a record in uns"
        remedy = "give the output of anncoder train, or name a model: --model FOLDER"
        raise InputError("no-results", what, str(request.data), remedy)
    if not folder.is_dir():
        what = f"the model of {str(request.data)!r} is not beside it: no such folder {str(folder)!r}"
        raise FileError("no-file", what, str(folder), "name the model: --model FOLDER")
    fitted = load(folder, device=request.device)
    if of_another(cells, fitted, key):
        what = f"uns[{key!r}] is of another model than the one in {str(folder)!r}"
        raise InputError("other-model", what, str(request.data), "name the model that wrote it: --model FOLDER")
    return fitted


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
        "labels": fitted.labels_,
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
