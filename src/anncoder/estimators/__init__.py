"""The models as objects, one file each: hyper-parameters in the constructor, data in ``fit``, arrays out.

``ESTIMATORS`` is the one table of them, by the names of :data:`anncoder.models.MODELS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anncoder import checkpoint
from anncoder.autoencoder import Autoencoder
from anncoder.config import TrainingConfig
from anncoder.errors import ConfigError, FileError
from anncoder.estimators.autoimpute import AutoImpute
from anncoder.estimators.count import CountAutoencoder
from anncoder.estimators.dca import DCA
from anncoder.estimators.denoising import DenoisingAutoencoder
from anncoder.estimators.netsne import NetSNE
from anncoder.estimators.saucie import SAUCIE
from anncoder.estimators.scscope import ScScope
from anncoder.estimators.scvis import SCVIS
from anncoder.estimators.undercomplete import UndercompleteAutoencoder
from anncoder.estimators.variational import VariationalAutoencoder
from anncoder.models import MODELS

__all__ = [
    "DCA",
    "ESTIMATORS",
    "SAUCIE",
    "SCVIS",
    "AutoImpute",
    "CountAutoencoder",
    "DenoisingAutoencoder",
    "NetSNE",
    "ScScope",
    "UndercompleteAutoencoder",
    "VariationalAutoencoder",
    "load",
]

ESTIMATORS: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (
        AutoImpute,
        CountAutoencoder,
        DCA,
        DenoisingAutoencoder,
        NetSNE,
        SAUCIE,
        SCVIS,
        ScScope,
        UndercompleteAutoencoder,
        VariationalAutoencoder,
    )
}


def load(folder: str | Path) -> Autoencoder:
    """Open a model that :meth:`Autoencoder.save` wrote; it embeds and denoises to the same bits.

    Opening a model runs no code from it; files that were changed, cut or swapped are refused.

    Raises
    ------
    FileError
        The folder is no model, or is damaged, or was written by a newer version.
    """
    stored = checkpoint.read_stored(folder)
    if stored.config.model not in ESTIMATORS:
        raise FileError(
            f"this is a model of the kind {stored.config.model!r}; known here are {', '.join(sorted(ESTIMATORS))}",
            code="bad-model",
            where=str(folder),
            remedy="enter a model of your own in anncoder.estimators.ESTIMATORS and anncoder.models.MODELS",
        )
    try:
        return _restore(stored, Path(folder))
    except ConfigError as error:
        raise checkpoint.broken(Path(folder), error.what) from error


def _restore(stored: checkpoint.StoredModel, folder: Path) -> Autoencoder:
    config = stored.config
    hyperparameters = MODELS[config.model].config(**config.hyperparameters)
    model: Autoencoder = ESTIMATORS[config.model](**dict(hyperparameters))
    model.var_names_, model.batches_ = pd.Index(stored.genes, dtype=object), config.batches
    model.training_ = TrainingConfig(**config.training)
    # nothing is allocated before the file is known to fit; from the seed some evaluations draw, too
    network = checkpoint.shapes_only(model._build, model.training_.seed)
    checkpoint.read_weights(folder, network)
    model.network_ = network.eval()
    model.layer_, model.library_size_ = config.layer, config.library_size
    model.best_epoch_, model.stopped_ = config.best_epoch, config.stopped
    model.history_ = pd.DataFrame(config.history)
    model.valid_obs_ = pd.Index(config.valid_obs, dtype=object)
    model.valid_sizes_ = np.array(config.valid_sizes)
    return model
