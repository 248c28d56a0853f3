"""Hyper-parameter search: random trials scored on held-out molecules.

Validation losses are not comparable between likelihoods, held-out molecules are (Batson, Royer, Webber 2019, doi
10.1101/786269): every trial is fitted with the same cells held out, reads nine tenths of their molecules, and is scored
on the rest. Where few settings matter, random search is as good as a grid of many times its size (Bergstra, Bengio
2012, JMLR 13:281).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np

from anncoder.config import TrainingConfig, split_settings
from anncoder.data.adata import genes_of, matrix_of, resolve_layer
from anncoder.data.check import check
from anncoder.data.matrix.notes import said_once
from anncoder.errors import ConfigError, DivergenceError, FileError, InputError
from anncoder.evaluation.comparison import heldout_score, refuse_none_held_out
from anncoder.io.atomic import atomic_path
from anncoder.models import find
from anncoder.models.base import Autoencoder

Settings = dict[str, Any]
Space = Mapping[str, Any]

# settings that a model does not have are left out
SPACE: Space = {
    "n_latent": [8, 16, 32],
    "n_hidden": [[64], [128], [256], [512], [256, 128]],
    "learning_rate": {"low": 5e-4, "high": 1e-2, "log": True},
    "dropout_rate": [0.0, 0.1, 0.2],
    "activation": ["relu", "elu", "mish"],
    "likelihood": ["nb", "zinb"],
    "dispersion": ["gene", "gene-cell"],
}


class Trial(NamedTuple):
    """One set of settings and its score."""

    number: int
    settings: Settings
    heldout_nll: float | None  # nats a cell, lower is better; None where it could not be fitted
    seconds: float
    epochs: int
    problem: str = ""


@said_once()
def search(
    adata: anndata.AnnData,
    model: str = "count",
    *,
    space: Space | None = None,
    n_trials: int = 20,
    layer: str | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    report: Callable[[Trial], None] | None = None,
    **settings: Any,
) -> list[Trial]:
    """Try settings at random; return the trials, the best first.

    Parameters
    ----------
    adata
        Raw counts, (n_obs, n_vars).
    model
        Name of the model.
    space
        For each setting a list of values, or ``{"low": a, "high": b}`` with ``"log": True`` for equal ratios (integers
        if both are); None for ``SPACE``.
    n_trials
        Number of trials. The settings of a trial depend on the seed and its number alone.
    layer
        Where the counts are; None and ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw``.
    seed
        Start of the trials and of every fit.
    journal
        File to which each trial is appended; a search that finds its own continues after the last trial.
    report
        Called with every trial.
    **settings
        Settings common to all trials (``max_epochs``, ``threads``, ``batch_key``...).

    Returns
    -------
    list of Trial
        Sorted by ``heldout_nll``; those that could not be fitted last.

    Raises
    ------
    ConfigError
        Unknown setting, invalid space, or journal of another search.
    FileError
        The journal cannot be used, or is damaged.
    InputError
        The data are not raw counts.
    KeyboardInterrupt
        Stopped by a signal; the unfinished trial is not in the journal.

    Examples
    --------
    >>> import anncoder as ac
    >>> adata = ac.datasets.simulate(n_obs=300, n_vars=50, seed=1)
    >>> best = ac.search(adata, space={"n_latent": [2, 8]}, n_trials=2, max_epochs=2)[0]
    >>> sorted(best.settings)
    ['n_latent']
    """
    space = checked_space(model, space)
    journal = None if journal is None else Path(journal).expanduser()
    if n_trials < 1:
        raise ConfigError("bad-value", f"n_trials = {n_trials}", "n_trials", "ask for one at least")
    hyper, _ = split_settings(settings, find(model).config_class)
    _refuse_unscored(model, reads_counts=hyper.get("transform") != "none")
    check(adata, layer=layer).raise_if_bad()
    TrainingConfig.refuse_value("seed", seed)
    for name, value in settings.items():
        _refuse_values(model, name, [value])
    refuse_none_held_out(settings.get("valid_fraction", 1))
    about = {"model": model, "space": dict(space), "settings": settings, "seed": seed, "data": _digest(adata, layer)}
    trials = [] if journal is None else _journal(journal, about)
    for trial in trials[:n_trials]:
        if report is not None:
            report(trial)
    for number in range(len(trials), n_trials):
        trial = _run(adata, model, number, draw(space, seed, number), layer, {"seed": seed, **settings})
        trials.append(trial)
        if journal is not None:
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(trial._asdict()) + "\n")
        if report is not None:
            report(trial)
    return sorted(trials[:n_trials], key=_rank)


def _rank(trial: Trial) -> float:
    nll = math.inf if trial.heldout_nll is None else trial.heldout_nll
    return math.inf if math.isnan(nll) else nll  # NaN has no order


def _digest(adata: anndata.AnnData, layer: str | None) -> str:
    # hash of the data of the trials: genes, and the molecules of every cell
    where = resolve_layer(layer, adata.layers)
    digest = hashlib.sha256("\n".join(map(str, genes_of(adata, where))).encode())
    matrix = matrix_of(adata, where)
    if matrix is not None:  # whole numbers of molecules: sums of others differ in their last digits, with their order
        digest.update(np.rint(np.asarray(matrix.sum(axis=1), dtype=np.float64)).tobytes())
    return digest.hexdigest()


def draw(space: Space, seed: int, number: int) -> Settings:
    """Return the settings of a trial."""
    generator = np.random.default_rng([seed, 7, number])
    drawn: Settings = {}
    for name, values in space.items():
        if isinstance(values, Mapping):
            low, high = float(values["low"]), float(values["high"])
            at = float(generator.random())
            drawn[name] = low * (high / low) ** at if values.get("log") else low + (high - low) * at
            if isinstance(values["low"], int) and isinstance(values["high"], int):
                drawn[name] = round(drawn[name])
        else:
            drawn[name] = values[int(generator.integers(len(values)))]
    return drawn


def _run(
    adata: anndata.AnnData, model: str, number: int, drawn: Settings, layer: str | None, shared: Settings
) -> Trial:
    began = time.perf_counter()
    try:
        hyper, training = split_settings(shared | drawn, find(model).config_class)
        fitted: Autoencoder = find(model)(**hyper).fit(adata, layer=layer, progress=False, **training)
        if fitted.stopped_ == "interrupted":  # the fit returns, but trial and search are unfinished
            raise KeyboardInterrupt(f"interrupted in trial {number + 1}")
        score = heldout_score(fitted, adata, layer=layer)
    except (DivergenceError, ConfigError, InputError) as error:  # other trials may succeed
        if isinstance(error, InputError) and error.code != "empty-batch-group":  # solved by larger minibatches
            raise
        return Trial(number, drawn, None, time.perf_counter() - began, 0, error.what)
    seconds, epochs = time.perf_counter() - began, len(fitted.history_)
    if not math.isfinite(score):
        return Trial(number, drawn, None, seconds, epochs, "its score is not a number")
    return Trial(number, drawn, score, seconds, epochs)


def checked_space(model: str, space: Space | None) -> Space:
    """Return the space of a search, ``SPACE`` for None.

    Unknown settings, invalid values, and models that are unknown or cannot be scored are a ConfigError.
    """
    config = find(model).config_class
    _refuse_unscored(model, reads_counts=config().reads_counts)
    if space is None:
        known = set(config.model_fields) | {"learning_rate"}
        space = {name: values for name, values in SPACE.items() if name in known}
    if not isinstance(space, Mapping):
        what = f"space is a {type(space).__name__}, not a mapping"
        raise ConfigError("bad-value", what, "space", "name each setting with its values: {'n_latent': [8, 16]}")
    split_settings(dict.fromkeys(space), config, where="space")
    for name, values in space.items():
        if not _ranged(values) and not (isinstance(values, list) and values):
            what = f"{name}: {values!r} is neither a list of values nor a range"
            raise ConfigError("bad-value", what, "space", "write [8, 16] or {low: 0.001, high: 0.01, log: true}")
        # of a range its ends, and a value between them, which is no integer unless both ends are
        drawn = [draw({name: values}, 0, 0)[name], values["low"], values["high"]] if _ranged(values) else values
        _refuse_values(model, name, drawn)
    return space


def _refuse_unscored(model: str, *, reads_counts: bool) -> None:
    if not reads_counts or not find(model).config_class.decodes:
        what = f"{model!r} (as it is set) gives no expected counts: trials cannot be scored on molecules"
        raise ConfigError("no-decoder", what, "model", "search among models of raw counts")


def _refuse_values(model: str, name: str, values: Sequence[Any]) -> None:
    # before the first trial; combinations of values are checked when they are drawn
    for config in (find(model).config_class, TrainingConfig):
        for value in values if name in config.model_fields else ():
            config.refuse_value(name, value)


def _ranged(values: Any) -> bool:
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        return False
    low, high = values["low"], values["high"]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        return False
    return bool((0 if values.get("log") else -math.inf) < low < high < math.inf)


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
