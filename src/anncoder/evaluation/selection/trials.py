"""Trials of settings: fitted, scored, kept in a journal that a stopped run goes on with.

Validation losses are not comparable between likelihoods, held-out molecules are (Batson, Royer, Webber 2019, doi
10.1101/786269): every trial is fitted with the same cells held out, reads nine tenths of their molecules, and is scored
on the rest. :mod:`~anncoder.evaluation.selection.search` draws the settings,
:mod:`~anncoder.evaluation.selection.recommend` has a list.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np

from anncoder.data.adata import genes_of, matrix_of, resolve_layer
from anncoder.errors import ConfigError, DivergenceError, FileError, InputError
from anncoder.io.atomic import atomic_path
from anncoder.models.base import Autoencoder

Settings = dict[str, Any]


class Trial(NamedTuple):
    """One set of settings and its scores."""

    number: int
    settings: Settings
    heldout_nll: float | None  # nats a cell, lower is better; None where it could not be fitted
    seconds: float
    epochs: int
    problem: str = ""
    # of recommendations alone
    neighbor_consistency: float | None = None  # share of neighbours, higher is better
    depth_agreement: float | None = None
    nll_of_cells: list[float] | None = None  # of each held-out cell, for standard errors of differences


def rank(trial: Trial) -> float:
    """Return what trials are sorted by, the best first; those without a score come last."""
    nll = math.inf if trial.heldout_nll is None else trial.heldout_nll
    return math.inf if math.isnan(nll) else nll  # NaN has no order


def digest_of(adata: anndata.AnnData, layer: str | None) -> str:
    """Return a hash of the data of trials: genes, and the molecules of every cell."""
    where = resolve_layer(layer, adata.layers)
    digest = hashlib.sha256("\n".join(map(str, genes_of(adata, where))).encode())
    matrix = matrix_of(adata, where)
    if matrix is not None:  # whole numbers of molecules: sums of others differ in their last digits, with their order
        digest.update(np.rint(np.asarray(matrix.sum(axis=1), dtype=np.float64)).tobytes())
    return digest.hexdigest()


def attempt(number: int, settings: Settings, fit_and_score: Callable[[], tuple[int, Settings]]) -> Trial:
    """Fit and score one trial: a function that returns the number of epochs, and the scores by name.

    Settings that diverge or do not go together make a trial without a score, not an error: others may succeed.

    Raises
    ------
    InputError
        The data cannot be used, with whatever settings.
    """
    began = time.perf_counter()
    try:
        epochs, scores = fit_and_score()
    except (DivergenceError, ConfigError, InputError) as error:
        if isinstance(error, InputError) and error.code != "empty-batch-group":  # solved by larger minibatches
            raise
        return Trial(number, settings, None, time.perf_counter() - began, 0, error.what)
    seconds = time.perf_counter() - began
    if not math.isfinite(scores["heldout_nll"]):
        return Trial(number, settings, None, seconds, epochs, "its score is not a number")
    return Trial(number, settings, seconds=seconds, epochs=epochs, **scores)


def refuse_interrupted(fitted: Autoencoder, number: int) -> None:
    """Raise a KeyboardInterrupt for a fit that was stopped: it returns, but trial and search are unfinished."""
    if fitted.stopped_ == "interrupted":
        raise KeyboardInterrupt(f"interrupted in trial {number + 1}")


def run_trials(
    n_trials: int,
    run: Callable[[int], Trial],
    about: Settings,
    journal: Path | None,
    report: Callable[[Trial], None] | None,
) -> list[Trial]:
    """Run trials by their numbers, those in the journal excepted, and append each to it; return all, in order.

    Parameters
    ----------
    n_trials
        Number of trials.
    run
        Returns the trial of a number.
    about
        What the trials depend on: a journal of anything else is refused.
    journal
        File of one line a trial, made if missing; None for none.
    report
        Called with every trial, with those of the journal, too.

    Raises
    ------
    ConfigError
        The journal is of another search.
    FileError
        The journal cannot be used, or is damaged.
    """
    trials = [] if journal is None else _journal(journal, about)
    for trial in trials[:n_trials]:
        if report is not None:
            report(trial)
    for number in range(len(trials), n_trials):
        trial = run(number)
        trials.append(trial)
        if journal is not None:
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(trial._asdict()) + "\n")
        if report is not None:
            report(trial)
    return trials[:n_trials]


def _journal(path: Path, about: Settings) -> list[Trial]:
    """Return the trials in a file, which is created if missing."""
    about = json.loads(json.dumps(about))
    try:
        if not path.exists():
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")
            return []
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot use {str(path)!r} as a journal: {getattr(error, 'strerror', None) or error}"
        raise FileError("unreadable", what, "journal", "name a file, in a folder that exists") from error
    lines = text.splitlines()
    head, trials = _parsed(lines)
    if head is None:  # killed while writing the last line
        lines = lines[:-1]
        head, trials = _parsed(lines)
    if [trial.number for trial in trials] != list(range(len(trials))):
        what = f"{path.name} is damaged: its trials are not those of one search, each once and in order"
        raise FileError("bad-journal", what, str(path), "remove it: the search then starts anew")
    if head != about:
        remedy = "give the settings of that search to go on with it, or remove the file"
        raise ConfigError("other-search", f"{path.name} is the journal of another search", str(path), remedy)
    whole = "".join(line + "\n" for line in lines)
    if text != whole:  # else the next trial would be appended to a cut line
        with atomic_path(path) as temporary:
            temporary.write_text(whole, encoding="utf-8")
    return trials


def _parsed(lines: list[str]) -> tuple[Any, list[Trial]]:
    """Return head and trials of a journal; None, and no trials, for lines of another format."""
    try:
        head, *rest = [json.loads(line) for line in lines]
        return head, [Trial(**line) for line in rest]
    except (ValueError, TypeError):
        return None, []
