"""Fitted models: the start of a fit, its result, and the record of it that is saved."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from anncoder.config import TrainingConfig
from anncoder.data.loaders.covariates import NONE, Covariates
from anncoder.io.model_folder import ModelRecord
from anncoder.training.checkpoint import FitCheckpointer
from anncoder.training.loop import StepFunction
from anncoder.training.progress import TrainingReport


class Fitted(NamedTuple):
    """Result of a fit: the attributes of :class:`anncoder.models.base.Autoencoder`, each without its underscore."""

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


def record_of(model: Any) -> ModelRecord:
    """Return what is saved of a fitted model beside its weights and genes."""
    return ModelRecord(
        model=model.name,
        hyperparameters=model.config.model_dump(mode="json"),
        training=model.training_.model_dump(mode="json"),
        layer=model.layer_,
        batches=model.batches_,
        library_size=model.library_size_,
        best_epoch=model.best_epoch_,
        stopped=model.stopped_,
        history=model.history_.to_dict(orient="list"),
        valid_obs=list(model.valid_obs_),
        valid_sizes=model.valid_sizes_.tolist(),
        categorical=model.covariates_.categorical,
        continuous=model.covariates_.continuous,
        labels=model.labels_,
    )
