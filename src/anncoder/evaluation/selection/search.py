"""Hyper-parameter search: random trials scored on held-out molecules.

How a trial is scored: :mod:`anncoder.evaluation.selection.trials`. Where few settings matter, random search is as good
as a grid of many times its size (Bergstra, Bengio 2012, JMLR 13:281).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from anncoder.config import TrainingConfig, split_settings
from anncoder.data.check import check
from anncoder.data.matrix.notes import said_once
from anncoder.errors import ConfigError
from anncoder.evaluation.comparison import heldout_score, refuse_none_held_out
from anncoder.evaluation.selection.trials import (
    Settings,
    Trial,
    attempt,
    digest_of,
    rank,
    refuse_interrupted,
    run_trials,
)
from anncoder.models import find
from anncoder.models.base import Autoencoder

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
    about = {"model": model, "space": dict(space), "settings": settings, "seed": seed, "data": digest_of(adata, layer)}

    def run(number: int) -> Trial:
        drawn = draw(space, seed, number)
        return attempt(
            number, drawn, lambda: _fit_and_score(adata, model, number, layer, {"seed": seed} | settings | drawn)
        )

    return sorted(run_trials(n_trials, run, about, journal, report), key=rank)


def _fit_and_score(
    adata: anndata.AnnData, model: str, number: int, layer: str | None, settings: Settings
) -> tuple[int, Settings]:
    hyper, training = split_settings(settings, find(model).config_class)
    fitted: Autoencoder = find(model)(**hyper).fit(adata, layer=layer, progress=False, **training)
    refuse_interrupted(fitted, number)
    return len(fitted.history_), {"heldout_nll": heldout_score(fitted, adata, layer=layer)}


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
