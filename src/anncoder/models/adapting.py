"""Fitted models adapted to new experimental batches, all that they knew left as it is."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from anncoder.data.adata import batch_column, batch_columns, batch_label, new_batches_of, warn_of_small_batches
from anncoder.data.sources import PerCell, Source
from anncoder.data.summary import size_factors
from anncoder.device import usual_torch
from anncoder.errors import ConfigError
from anncoder.nn.batches import adapt, extend
from anncoder.training.prepare import SAMPLE, covariates_in
from anncoder.training.results import BLOCK
from anncoder.types import Noise


def adapted_key(model: Any, given_key: Any) -> Any:
    """Return the column, or columns, of the batches that a model is to be adapted to; a ConfigError if it cannot be."""
    config, key = model.config, model.training_.batch_key
    if not config.other_batches:
        what = f"{type(model).__name__} cannot be adapted to new batches"
        remedy = "use CountAutoencoder, DenoisingAutoencoder or UndercompleteAutoencoder, or fit it with these cells"
        raise ConfigError("batches-unused", what, "adapt", remedy)
    if key is None or not config.reads_counts or not config.embeds_batches:
        lacks = "was fitted without batch_key" if key is None else "takes no effect of batches from its input"
        remedy = "fit it to counts with batch_key (and batches_in_encoder), or embed these cells as they are"
        raise ConfigError("batches-unused", f"the model {lacks}: there are no batches to add to", "adapt", remedy)
    if given_key is not None and batch_columns(given_key) != batch_columns(key):
        what = f"batch_key = {given_key!r}, but the model was fitted with {key!r}"
        raise ConfigError("bad-value", what, "batch_key", f"give the column of the batches this name: {key!r}")
    return key


def adapted(model: Any, source: Source, key: Any, seed: int) -> tuple[Any, list[str]]:
    """Return a copy of the model's network that knows the batches of these cells too, and the names of all batches."""
    column = batch_column(key, lambda name: source.column(name, what="batch_key"))
    codes, new = new_batches_of(column, batch_label(key), model.batches_)
    warn_of_small_batches(codes - len(model.batches_), new, batch_label(key))
    cells = PerCell(size_factors(source.sizes, model.library_size_), codes, covariates_in(source, model.covariates_))
    loader = source.loader(cells, np.ones(source.n_obs, dtype=bool), batch_size=BLOCK, seed=seed)
    device = next(model.network_.parameters()).device
    sample = [batch.to(device) for batch in islice(loader.epoch(0), SAMPLE // BLOCK)]
    names = [*model.batches_, *new]
    shape = model._shape()._replace(n_batches=len(names), batch_names=tuple(names))
    wider = model._build(shape, Noise(seed)).to(device).eval()
    with usual_torch():
        extend(model.network_, wider)
        adapt(wider, sample, len(model.batches_))
    return wider, names
