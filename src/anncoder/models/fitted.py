"""Parts of a fit: the network ready to be trained, and the result that an estimator keeps.

:class:`anncoder.models.base.Autoencoder` makes the first, trains it, and takes the second over at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from anncoder.config import TrainingConfig
from anncoder.data.loaders.covariates import NONE, Covariates
from anncoder.training.checkpoint import FitCheckpointer
from anncoder.training.loop import StepFunction
from anncoder.training.progress import TrainingReport


class Fitted(NamedTuple):
    """Result of a fit: the attributes of :class:`Autoencoder`, each without its underscore."""

    network: nn.Module | None  # None where the fit diverged before there were any good weights
    training: TrainingConfig
    layer: str | None
    var_names: pd.Index
    batches: list[str]
    library_size: float
    history: pd.DataFrame
    best_epoch: int
    stopped: str
    valid_obs: pd.Index
    valid_sizes: np.ndarray[Any, Any]
    covariates: Covariates = NONE
    labels: list[str] = []  # noqa: RUF012 - of a NamedTuple


class Start(NamedTuple):
    """A network that is ready to be trained, and its checkpoint, step function and progress report."""

    network: Any
    training: TrainingConfig  # with the epochs that ``max_steps`` leaves
    checkpointer: FitCheckpointer | None
    step_fn: StepFunction | None
    report: TrainingReport
    threads: int
