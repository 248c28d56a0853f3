"""Progress bar and log lines of a training."""

from __future__ import annotations

import logging
import sys
import time
from importlib.util import find_spec
from typing import Any

from anncoder.training.loop import History, Record

logger = logging.getLogger("anncoder")


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


def bar(total: int, unit: str, *, always: bool = False, **settings: Any) -> Any:
    """Return a tqdm bar: where stderr is a terminal, in a notebook with ipywidgets, or ``always``."""
    if find_spec("ipywidgets") is None:  # tqdm.auto warns without it in a notebook, and uses the plain bar
        from tqdm import tqdm
    else:
        from tqdm.auto import tqdm
    # disable=None is tqdm's own "not where stderr is no terminal"; a notebook's bar does not ask
    return tqdm(total=total, unit=unit, disable=False if always else None, leave=False, **settings)


class TrainingReport:
    """Progress bar and log lines of a training run of ``n_steps`` minibatches an epoch; a context manager.

    ``show``: True for a bar always, None for one where :func:`bar` finds a place for it, False for nothing.
    """

    def __init__(self, n_steps: int, max_epochs: int, *, show: bool | None) -> None:
        self.n_steps, self.max_epochs = n_steps, max_epochs
        self.level = logging.DEBUG if show is False else logging.INFO
        self.began, self.first = time.perf_counter(), -1
        self.bar: Any = None
        if show is not False:
            self.bar = bar(n_steps * max_epochs, "batch", always=show is True, mininterval=0.2)

    def step(self) -> None:
        """Follow one minibatch."""
        if self.bar is not None:
            self.bar.update()

    def epoch(self, record: Record) -> None:
        """Follow one epoch: its losses, and an upper bound of the time left."""
        done = int(record["epoch"]) + 1
        self.first = done if self.first < 0 else self.first  # a resumed run does not start with epoch 1
        left = (time.perf_counter() - self.began) / (done - self.first + 1) * (self.max_epochs - done)
        logger.log(self.level, "epoch %d/%d  %s  at most %.0f s left", done, self.max_epochs, losses(record), left)
        if self.bar is None:
            return
        self.bar.n = done * self.n_steps
        self.bar.set_description_str(f"epoch {done}/{self.max_epochs}", refresh=False)
        self.bar.set_postfix_str(losses(record), refresh=False)

    def __enter__(self) -> TrainingReport:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()


def losses(record: Record) -> str:
    """Return ``"train 0.4231  valid 0.4302"``."""
    pairs = (("train", "train_loss"), ("valid", "valid_loss"))
    return "  ".join(f"{name} {record[key]:.5g}" for name, key in pairs if key in record)
