"""Saved models read back: the class by the model's name, the network filled from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anncoder.config import TrainingConfig
from anncoder.data.loaders.covariates import Covariates
from anncoder.device import choose_device
from anncoder.errors import ConfigError, FileError
from anncoder.io import model_folder
from anncoder.io.atomic import path_given
from anncoder.models import find, known
from anncoder.models.base import Autoencoder
from anncoder.models.fitted import Fitted
from anncoder.types import Shape


def load(folder: str | Path, model: type[Autoencoder] | None = None, *, device: str = "cpu") -> Autoencoder:
    """Open a model that :meth:`Autoencoder.save` wrote; it embeds and denoises to the same bits.

    Opening a model runs no code from it; files that were changed, cut or swapped are refused.

    Parameters
    ----------
    folder
        Where the model is.
    model
        The class of a model of your own, from outside of this package; None for one of ours, or of an installed
        package that names its models (docs/own-model.md), found by its name.
    device
        Where it is to embed and denoise: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``;
        :meth:`Autoencoder.to` moves it later.

    Raises
    ------
    ConfigError
        ``model`` is not the class of an autoencoder, or there is no such device.
    FileError
        The folder is not a model, is damaged, was written by a newer version, or has a model of another kind.
    """
    kind_given: Any = model
    if kind_given is not None and not (isinstance(kind_given, type) and issubclass(kind_given, Autoencoder)):
        remedy = "load(folder) for the models of this package, load(folder, model=MyModel) for another"
        raise ConfigError("bad-value", f"model is the class of a model of your own, not {model!r}", "model", remedy)
    choose_device(device)
    folder = path_given(folder)
    stored = model_folder.read_stored(folder)
    name, here = stored.config.model, known() if model is None else [model.name]
    if name not in here:
        what = f"this is a model of the kind {name!r}; known here: {', '.join(here)}"
        remedy = "give the class of a model of your own: load(folder, model=MyModel)"
        raise FileError("bad-model", what, str(folder), remedy)
    try:
        return _restore(find(name) if model is None else model, stored, folder).to(device)
    except ConfigError as error:
        raise model_folder.broken(folder, error.what) from error


def _restore(kind: type[Autoencoder], stored: model_folder.StoredModel, folder: Path) -> Autoencoder:
    config = stored.config
    model = kind(**dict(kind.config_class(**config.hyperparameters)))
    training = TrainingConfig(**config.training)
    covariates = Covariates(config.categorical, config.continuous)
    batches, sizes = tuple(config.batches), (covariates.n_columns, len(config.labels))
    shape = Shape(len(stored.genes), len(batches), batches, *sizes)
    # nothing is allocated before the file is known to fit; some models draw from the seed in evaluation, too
    network = model_folder.shapes_only(lambda noise: model._build(shape, noise), training.seed)
    model_folder.read_weights(folder, network)
    model._assign(
        Fitted(
            network=network.eval(),
            training=training,
            layer=config.layer,
            var_names=pd.Index(stored.genes, dtype=object),
            batches=config.batches,
            library_size=config.library_size,
            history=pd.DataFrame(config.history),
            best_epoch=config.best_epoch,
            stopped=config.stopped,
            valid_obs=pd.Index(config.valid_obs, dtype=object),
            valid_sizes=np.array(config.valid_sizes),
            covariates=covariates,
            labels=config.labels,
        )
    )
    return model
