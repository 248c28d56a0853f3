"""``anncoder search`` and ``recommend``: settings or methods tried, the best trained."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from anncoder.cli.run_folder import MODEL, write_json, write_text
from anncoder.cli.settings import parse_assignments, read_yaml
from anncoder.cli.train import TrainRequest, checked_input, make_plan, run_train
from anncoder.config import TrainingConfig, split_settings
from anncoder.data.matrix.notes import said_once
from anncoder.errors import ConfigError
from anncoder.evaluation.selection.recommend import Recommendation, recommend
from anncoder.evaluation.selection.search import Space, checked_space, draw, search
from anncoder.evaluation.selection.trials import Trial
from anncoder.io.atomic import atomic_path, locked, others_in, refuse_occupied, same_file
from anncoder.io.h5ad_write import read_input
from anncoder.io.output_paths import refuse_output
from anncoder.models import find

# what a folder of recommend holds
JOURNAL, TABLE, PICTURE, SCORES, GENES = (
    "methods.jsonl",
    "recommendation.csv",
    "recommendation.png",
    "recommendation.json",
    "genes.txt",
)
RECOMMENDED = (JOURNAL, TABLE, PICTURE, SCORES, GENES, MODEL)

# codes of errors of the settings of one trial: others may be without
ERRORS_OF_A_TRIAL = ("bad-value", "latent-too-wide", "few-cells", "batches-unused", "no-batch-key")


class SearchRequest(NamedTuple):
    """Arguments and options of ``anncoder search``."""

    data: Path
    output: Path
    model: str | None = None
    space: Path | None = None
    n_trials: int = 20
    settings: tuple[str, ...] = ()
    layer: str | None = None
    seed: int | None = None
    labels: str | None = None


def run_search(request: SearchRequest) -> None:
    """Try settings, print their scores, and train the best; a search that was stopped goes on where it was."""
    refuse_output(request.output)
    if same_file(request.data, request.output):
        remedy = "choose another name: a search goes on with the same input, and never replaces it"
        raise ConfigError("output-is-input", "the output is the input", str(request.output), remedy)
    journal = request.output.with_suffix(".search.jsonl")
    with locked(journal):  # of two searches each would take the other's trials for its own
        _search_and_train(request, journal)


@said_once()
def _search_and_train(request: SearchRequest, journal: Path) -> None:
    model, seed, shared = _shared_settings(request)
    space = checked_space(model, None if request.space is None else read_yaml(request.space))
    _refuse_winner(request, model, seed, shared, space)
    adata = read_input(request.data)
    try:
        trials = search(
            adata,
            model,
            space=space,
            n_trials=request.n_trials,
            layer=request.layer,
            seed=seed,
            journal=journal,
            report=_print_trial,
            **shared,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command again goes on after the last whole trial") from None
    best = trials[0]
    if best.heldout_nll is None:
        what = f"none of {len(trials)} trials could be fitted; the last: {trials[-1].problem}"
        raise ConfigError("no-trial", what, "--space", "widen the space, or lower the learning rates in it")
    typer.echo(f"best: trial {best.number + 1}, {json.dumps(best.settings)}")
    run_train(_winner(request, model, seed, shared | best.settings))


def _winner(request: SearchRequest, model: str, seed: Any, settings: dict[str, Any]) -> TrainRequest:
    return TrainRequest(
        data=[request.data],
        output=request.output,
        model=model,
        settings=tuple(f"{name}={json.dumps(value)}" for name, value in settings.items()),
        seed=seed,
        layer=request.layer,
        labels=request.labels,
    )


def _refuse_winner(request: SearchRequest, model: str, seed: Any, shared: dict[str, Any], space: Space) -> None:
    # what the training after the trials would refuse is refused before them: tried with the settings of each trial
    # until one has none of the errors of settings
    first: ConfigError | None = None
    for number in range(request.n_trials):
        winner = _winner(request, model, seed, shared | draw(space, seed, number))
        try:
            checked_input(winner, make_plan(winner))
        except ConfigError as error:
            if error.code not in ERRORS_OF_A_TRIAL:
                raise
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _shared_settings(request: SearchRequest) -> tuple[str, Any, dict[str, Any]]:
    # the model, the seed, and the other settings of all trials; an option beats --set, as in train
    shared = parse_assignments(request.settings)
    if "layer" in shared:
        raise ConfigError("bad-value", "layer is no setting", "--set", "--layer NAME")
    model, seed = shared.pop("model", "count"), shared.pop("seed", 0)
    model, seed = str(request.model or model), seed if request.seed is None else request.seed
    split_settings(shared, find(model).config_class, where="--set")
    TrainingConfig.refuse_value("seed", seed)
    return model, seed, shared


def _print_trial(trial: Trial) -> None:
    score = math.nan if trial.heldout_nll is None else trial.heldout_nll
    how = trial.problem or f"{trial.epochs} epochs, {trial.seconds:.0f} s"
    typer.echo(f"trial {trial.number + 1:>3}: {score:9.3f} nats a cell  {json.dumps(trial.settings)}  ({how})")


class RecommendRequest(NamedTuple):
    """Arguments and options of ``anncoder recommend``."""

    data: list[Path]
    output: Path
    layer: str | None = None
    models: list[str] | None = None
    widths: list[int] | None = None
    n_genes: list[int] | None = None
    seed: int | None = None
    device: str | None = None
    threads: int | None = None
    settings: tuple[str, ...] = ()
    quiet: bool = False

    def of_all(self) -> dict[str, Any]:
        """Return the settings of every fit; an option beats ``--set``."""
        given = {"seed": self.seed, "device": self.device, "threads": self.threads}
        shared = parse_assignments(self.settings) | {name: value for name, value in given.items() if value is not None}
        split_settings(shared, find("count").config_class, where="--set")
        return shared


def run_recommend(request: RecommendRequest) -> None:
    """Score PCA and autoencoders, print what to take, and write table, picture and the winner to a folder."""
    folder = request.output
    refuse_occupied(folder, lambda path: others_in(path, RECOMMENDED))
    chosen = {"models": request.models, "widths": request.widths, "n_genes": request.n_genes}
    among: dict[str, Any] = {name: values for name, values in chosen.items() if values}
    settings = request.of_all()
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            found = recommend(
                list(request.data),
                layer=request.layer,
                journal=folder / JOURNAL,
                progress=False if request.quiet else None,
                **among,
                **settings,
            )
            _write_recommendation(found, folder)
            (folder / JOURNAL).unlink()  # nothing is left to go on with
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command again goes on after the last whole method") from None
    finally:
        if made and not any(folder.iterdir()):  # refused before the first method
            folder.rmdir()
    typer.echo(str(found).rsplit("\n", 1)[0])
    for line in _next_lines(found, request):
        typer.echo(line)


def _write_recommendation(found: Recommendation, folder: Path) -> None:
    from matplotlib import pyplot as plt

    from anncoder import pl

    plt.switch_backend("agg")  # a command needs no window, and may have no display
    figure = pl.recommendation(found)[0].figure
    with atomic_path(folder / PICTURE) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
    with atomic_path(folder / TABLE) as temporary:
        found.table.to_csv(temporary, index_label="method")
    write_text(folder / GENES, "".join(f"{gene}\n" for gene in found.genes))
    write_json(folder / SCORES, found.to_dict())
    if found.model is not None:
        found.model.save(folder / MODEL)


def _next_lines(found: Recommendation, request: RecommendRequest) -> Iterator[str]:
    files, folder = " ".join(shlex.quote(str(path)) for path in request.data), shlex.quote(str(request.output))
    yield f"table, picture and scores: {request.output}"
    if found.model is None:
        yield f"with scanpy: {found.command}"
        return
    yield f"the winner's latent of all cells: anncoder embed {folder}/{MODEL} {files} -o OUT.h5ad"
    words = ["--models", found.model.name, "--widths", found.model.config.width]
    words += [] if request.seed is None else ["--seed", request.seed]
    words += [] if request.layer is None else ["--layer", request.layer]
    words += [word for n in request.n_genes or [] for word in ("--genes", n)]
    words += [word for setting in request.settings for word in ("--set", setting)]
    yield f"the same fit again: anncoder recommend {files} -o FOLDER {shlex.join(map(str, words))}"
