"""Progress bar and log lines of a training."""

from __future__ import annotations

import logging
import sys
import threading
import time
from importlib.util import find_spec
from types import FrameType
from typing import Any

from anncoder.config import TrainingConfig, given
from anncoder.training.loop import History, Record

logger = logging.getLogger("anncoder")

PATIENCE = 2.0  # seconds for a first minibatch, until it is said what takes so long
AHEAD = "anncoder-compile"  # name of the thread that compiles ahead


def announce(message: str) -> None:
    """Write one line: to the log if it has a handler for it, else to stderr."""
    if logger.level > logging.INFO:  # silenced by the caller
        return
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info(message)
    else:
        sys.stderr.write(message + "\n")


def warn_interrupted(history: History) -> None:
    """Warn which weights the model of an interrupted fit has; a KeyboardInterrupt if it has none."""
    if not history.records:
        raise KeyboardInterrupt("interrupted before the first epoch was over: there is no model")
    logger.warning("interrupted: the model has the best weights until then (epoch %d)", history.best_epoch + 1)


def bar(total: int | None, unit: str, *, always: bool = False, **settings: Any) -> Any:
    """Return a tqdm bar: where stderr is a terminal, in a notebook, or ``always``; one line that renews itself."""
    plain = find_spec("ipywidgets") is None  # tqdm.auto warns without it in a notebook
    if plain:
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    if plain and in_notebook():  # which shows stderr on red
        settings["file"] = sys.stdout
    # disable=None is tqdm's own "not where the stream is no terminal"
    shown = always or in_notebook()
    return tqdm(total=total, unit=unit, disable=False if shown else None, leave=False, **settings)


def in_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


class TrainingReport:
    """Progress bar and log lines of a training run of ``n_steps`` minibatches an epoch; a context manager.

    Where training may stop early nobody knows the end: the bar then is of the epoch, not of ``max_epochs``.

    Parameters
    ----------
    n_steps
        Minibatches in an epoch.
    training
        The settings of the fit.
    show
        True for a bar always, None for one where :func:`bar` finds a place for it, False for nothing.
    """

    def __init__(self, n_steps: int, training: TrainingConfig, *, show: bool | None) -> None:
        self.n_steps, self.training = n_steps, training
        self.max_epochs = given(training.max_epochs)
        self.shown = show is not False
        self.times: list[float] = []  # at the end of each epoch
        self.bar: Any = None
        if self.shown:
            total = n_steps if training.early_stopping else n_steps * self.max_epochs
            self.bar = bar(total, "batch", always=show is True, mininterval=0.2)
        drawn = self.bar is not None and not self.bar.disable
        self.level = logging.INFO if self.shown and not drawn else logging.DEBUG  # two lines of one thing are too many
        self.first_step: threading.Timer | None = threading.Timer(PATIENCE, self._say_compiling)

    def step(self) -> None:
        """Follow one minibatch."""
        if self.first_step is not None:
            self.first_step.cancel()
            self.first_step = None
        if self.bar is not None:
            self.bar.update()

    def epoch(self, record: Record) -> None:
        """Follow one epoch: its losses, and the time left where that is known."""
        done = int(record["epoch"]) + 1
        self.times.append(time.perf_counter())
        logger.log(self.level, "epoch %d%s  %s%s", done, self._of_all(), losses(record), self._left(done))
        if self.bar is None:
            return
        if self.training.early_stopping:
            self.bar.reset()
        self.bar.n = 0 if self.training.early_stopping else done * self.n_steps
        self.bar.set_description_str(f"epoch {done + 1}{self._of_all()}", refresh=False)
        self.bar.set_postfix_str(losses(record), refresh=True)

    def ended(self, history: History) -> None:
        """Say when training stopped and why; warn if it was to go on."""
        if self.shown:
            announce(ending(history))
        early = self.training.early_stopping  # who leaves it out has chosen the number of epochs
        if early and history.stopped == "max_epochs" and still_improving(history, given(self.training.min_delta)):
            logger.warning(
                "training ended at max_epochs = %d while the loss was still falling: raise max_epochs "
                "(--set max_epochs=%d)",
                self.max_epochs,
                4 * self.max_epochs,
            )

    def __enter__(self) -> TrainingReport:
        if self.first_step is not None and self.shown:
            self.first_step.daemon = True
            self.first_step.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.first_step is not None:
            self.first_step.cancel()
        if self.bar is not None:
            self.bar.close()

    def _say_compiling(self) -> None:
        say_compiling(ahead=False)

    def _of_all(self) -> str:
        return "" if self.training.early_stopping else f"/{self.max_epochs}"

    def _left(self, done: int) -> str:
        # the first epoch is left out: it may compile, and read ahead
        if self.training.early_stopping or len(self.times) < 2:
            return ""
        an_epoch = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        return f"  {an_epoch * (self.max_epochs - done):.0f} s left"


def say_compiling(*, ahead: bool) -> None:
    """Say that numba compiles, if it does: in the thread that compiles ahead, or in another."""
    if compiling(ahead=ahead):
        announce("compiling the kernels, once for this installation (some ten seconds)")


def compiling(*, ahead: bool) -> bool:
    """Return whether numba compiles in the thread of this process that compiles ahead, or in another one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        at: FrameType | None = frame if (names.get(number) == AHEAD) == ahead else None
        while at is not None:
            if str(at.f_globals.get("__name__", "")).startswith("numba.core.compiler"):
                return True
            at = at.f_back
    return False


def ending(history: History) -> str:
    """Return when a training stopped and why: ``"stopped after epoch 41, no longer improving (best: epoch 26)"``."""
    why = {"early": ", no longer improving", "interrupted": ", interrupted", "diverged": ", diverged"}
    best = f" (best: epoch {history.best_epoch + 1})" if history.best_epoch >= 0 else ""
    if history.stopped == "max_epochs":
        return f"reached max_epochs = {len(history.records)}{best}"
    return f"stopped after epoch {len(history.records)}{why.get(history.stopped, '')}{best}"


def still_improving(history: History, min_delta: float) -> bool:
    """Return whether the last epoch was better than all before it, by more than the share ``min_delta``."""
    values = [record.get("valid_loss", record["train_loss"]) for record in history.records]
    if len(values) < 2:
        return False
    before = min(values[:-1])
    return values[-1] < before - min_delta * abs(before)


def losses(record: Record) -> str:
    """Return ``"train 0.4231  valid 0.4302"``."""
    pairs = (("train", "train_loss"), ("valid", "valid_loss"))
    return "  ".join(f"{name} {record[key]:.5g}" for name, key in pairs if key in record)
