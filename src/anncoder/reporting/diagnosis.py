"""Diagnoses of a training, in words: functions of loss curves, settings and latent.

Each returns a :class:`Finding`, or None where there is nothing to say. Losses are compared with their own fall, so that
the bounds hold for every model and unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from anncoder.config import TrainingConfig, given
from anncoder.errors import counted, listed
from anncoder.models.base import Autoencoder
from anncoder.tl.latent_check import parts_of_graph

# shares of the fall of a loss, from the first epoch to the lowest
STILL_FALLING = 0.02  # in the last quarter of the epochs
RISING = 0.05  # of the validation loss, after its best epoch
JUMPING = 0.2  # of the training loss, from one epoch to the next
SMALLEST = 1e-3  # fall of a loss, of its value: what is less is no fall
FEW_EPOCHS = 4  # from which on a curve is read
UNUSED = 0.01  # standard deviation of a latent unit, of the largest
DEAD = 1e-4  # standard deviation of a latent unit that is the same for all cells

Severity = Literal["good", "note", "warning"]


class Finding(NamedTuple):
    """A diagnosis."""

    code: str
    severity: Severity
    text: str  # what was found, in one sentence or two
    remedy: str = ""  # what to do about it


def diagnose(model: Autoencoder, latent: Any) -> list[Finding]:
    """Return everything that is to be said about a training, warnings first.

    Parameters
    ----------
    model
        A fitted model.
    latent
        (n, k) float32, the latent of some cells.
    """
    found = list(_findings(model, latent))
    if any(finding.severity == "warning" for finding in found):  # nothing is good then, not even a quiet end
        found = [one._replace(severity="note") if one.severity == "good" else one for one in found]
    order = {"warning": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def _findings(model: Autoencoder, latent: Any) -> Iterator[Finding]:
    history, best, training = model.history_, model.best_epoch_, model.training_
    found = [
        ending(history, best, model.stopped_, training),
        still_improving(history, best, model.stopped_),
        overfitting(history, best, training),
        step_too_large(history, training),
        none_held_out(history),
        units_unused(latent),
        in_parts(latent),
    ]
    yield from (finding for finding in found if finding is not None)


def ending(history: pd.DataFrame, best: int, stopped: str, training: TrainingConfig) -> Finding:
    """Say how training ended, and of which epoch the weights are.

    Parameters
    ----------
    history
        A row an epoch, with ``train_loss`` and, where cells were held out, ``valid_loss``.
    best, stopped, training
        ``best_epoch_``, from 0, ``stopped_`` and ``training_`` of the model.
    """
    epochs = counted(len(history), "epoch")
    weights = f"the model has the weights of epoch {best + 1}"
    if stopped == "early":
        watched = "held-out cells" if "valid_loss" in history else "fitted cells"
        text = f"Training ended by itself after {epochs}, when the loss of the {watched} no longer fell; {weights}."
        if best == 0:
            text = (
                f"Training ended by itself after {epochs}: the loss of the {watched} was never below the first epoch's."
            )
            return Finding("no-better", "warning", text, f"Fit again with a smaller step: {_smaller(training)}.")
        return Finding("converged", "good", text)
    if stopped == "diverged":
        text = (
            f"Training diverged after {epochs}: the loss was no longer a finite number; {weights}, the last good ones."
        )
        return Finding("diverged", "warning", text, f"Fit again with a smaller step: {_smaller(training)}.")
    if stopped == "interrupted":
        text = f"Training was interrupted after {epochs}; {weights}."
        return Finding("interrupted", "warning", text, "Run the same command again: it goes on from there.")
    return Finding("all-epochs", "note", f"Training took all {epochs} that it was given; {weights}.")


def still_improving(history: pd.DataFrame, best: int, stopped: str) -> Finding | None:
    """Tell a training that was cut short: its loss was still falling in the last quarter of the epochs."""
    if stopped not in ("max_epochs", "interrupted"):
        return None
    loss = _watched(history)
    more = f"Fit again with more epochs: max_epochs={4 * len(loss)} (--set max_epochs={4 * len(loss)})."
    if len(loss) < FEW_EPOCHS:
        text = f"After {counted(len(loss), 'epoch')} nothing tells whether the loss would have gone on falling."
        return Finding("too-short", "warning", text, more)
    quarter = max(1, len(loss) // 4)
    before = loss[: len(loss) - quarter].min()
    recent = (before - loss[-quarter:].min()) / _fall(loss)
    if best < len(loss) - quarter or recent < STILL_FALLING:
        return None
    last = counted(quarter, "epoch") if quarter > 1 else "epoch"
    text = f"The loss was still falling: {recent:.0%} of its whole fall came in the last {last}."
    return Finding("still-improving", "warning", text, more)


def overfitting(history: pd.DataFrame, best: int, training: TrainingConfig) -> Finding | None:
    """Tell a loss that falls for the fitted cells, and rises for those held out, after its best epoch."""
    if "valid_loss" not in history:
        return None
    train, valid = history["train_loss"].to_numpy(float), history["valid_loss"].to_numpy(float)
    if not given(training.keep_best):  # `best` is the last epoch then
        best = int(np.nanargmin(valid))
    if best >= len(history) - 2:
        return None
    last = max(best + 1, len(valid) - max(2, len(valid) // 5))
    rise = (np.median(valid[last:]) - valid[best]) / _fall(valid)
    if rise < RISING or np.median(train[last:]) >= train[best]:
        return None
    text = (
        f"Overfitting: after epoch {best + 1} the loss of the fitted cells went on falling, while that of the held-out "
        f"cells rose by {rise:.0%} of what it had fallen."
    )
    if given(training.keep_best):
        return Finding("overfitting", "note", f"{text} The weights kept are those from before.")
    remedy = (
        "Keep the best weights (keep_best=True), and make the model smaller or noisier: fewer n_hidden, a dropout_rate."
    )
    return Finding("overfitting", "warning", f"{text} The weights kept are those of the end.", remedy)


def step_too_large(history: pd.DataFrame, training: TrainingConfig) -> Finding | None:
    """Tell a training loss that jumps up between epochs, or does not fall at all.

    Of the loss its first term is read, the reconstruction: penalties may rise by design, as they are warmed up.
    """
    loss = history[_first_term(history)].to_numpy(float)
    if len(loss) < FEW_EPOCHS:
        return None
    remedy = f"Fit again with a smaller step: {_smaller(training)}."
    if loss[0] - loss.min() < SMALLEST * abs(loss[0]):
        text = "The loss of the fitted cells did not fall: the step size is too large, or there is nothing to learn."
        return Finding("no-progress", "warning", text, remedy)
    jump = float(np.diff(loss).max()) / _fall(loss)
    if jump < JUMPING:
        return None
    epoch = int(np.diff(loss).argmax()) + 2
    share = f"{jump:.0%} of its whole fall" if jump <= 1 else "more than its whole fall"
    text = f"The step size is too large: the loss of the fitted cells jumps up, in epoch {epoch} by {share}."
    return Finding("step-too-large", "warning", text, remedy)


def none_held_out(history: pd.DataFrame) -> Finding | None:
    """Tell a fit without held-out cells, in which overfitting cannot be seen."""
    if "valid_loss" in history:
        return None
    text = "No cells were held out: overfitting cannot be seen, and unseen molecules cannot be scored."
    return Finding("none-held-out", "note", text, "Fit with valid_fraction=0.1 (--set valid_fraction=0.1).")


def units_unused(latent: Any) -> Finding | None:
    """Tell latent units, of (n, k), that are the same for all cells or nearly so."""
    if len(latent) < 2:
        return None
    deviation = np.asarray(latent, dtype=np.float64).std(axis=0)
    if (deviation < DEAD).all():
        text = "The latent is the same for all cells: the model has learned nothing about them."
        return Finding("latent-constant", "warning", text, "Fit again with a smaller learning_rate.")
    unused = int((deviation < max(DEAD, UNUSED * deviation.max())).sum())
    if not unused:
        return None
    left = len(deviation) - unused
    text = f"{unused} of {len(deviation)} latent units are unused: they hardly differ between cells."
    return Finding(
        "units-unused", "note", text, f"A narrower latent would do: n_latent={left} (--set n_latent={left})."
    )


def in_parts(latent: Any) -> Finding | None:
    """Tell a latent, (n, k), whose graph of nearest neighbours falls into parts."""
    sizes = parts_of_graph(np.asarray(latent, dtype=np.float32))
    if len(sizes) < 2:
        return None
    cells = listed(f"{size:,}" for size in sizes)
    text = (
        f"The neighbour graph of the latent falls into {len(sizes)} parts, of {cells} cells. Cells unlike each other "
        "are apart with reason; for a continuous process it means that paths, and pseudotime, do not cross."
    )
    return Finding("in-parts", "note", text, "Raise n_neighbors, or fit with another seed (seed=1, --set seed=1).")


def _watched(history: pd.DataFrame) -> Any:
    found = history["valid_loss" if "valid_loss" in history else "train_loss"]
    return found.to_numpy(float)


def _fall(loss: Any) -> float:
    """Return the fall of a loss from its first epoch to the lowest, at least a thousandth of its value."""
    return max(float(loss[0] - loss.min()), SMALLEST * abs(float(loss[0])), np.finfo(float).tiny)


def _first_term(history: pd.DataFrame) -> str:
    terms = [str(name) for name in history if str(name).startswith("train_") and name != "train_loss"]
    return terms[0] if terms else "train_loss"


def _smaller(training: TrainingConfig) -> str:
    rate = given(training.learning_rate) / 10
    return f"learning_rate={rate:g} (--set learning_rate={rate:g})"
