"""Card of a model in a notebook (HTML): settings, genes, training, the next line to run."""

from __future__ import annotations

from typing import Any

import pandas as pd

from anncoder.config import given
from anncoder.data.adata import batch_label, slot_label
from anncoder.errors import counted


def card(model: Any) -> str:
    """Return the HTML table that stands for a model in a notebook.

    Parameters
    ----------
    model
        An autoencoder of :mod:`anncoder.models`, fitted or not.
    """
    rows = {"model": repr(model).partition("  #")[0]}
    rows |= {"fitted": "no", "next": "model.fit(adata)"} if model.network_ is None else _of_fit(model)
    with pd.option_context("display.max_colwidth", None):
        return str(pd.Series(rows).to_frame().to_html(header=False))


def _of_fit(model: Any) -> dict[str, str]:
    record = model.history_.iloc[model.best_epoch_]
    watched = "valid_loss" if "valid_loss" in record else "train_loss"
    rows = {"genes": f"{len(model.var_names_):,}, from {slot_label(model.layer_)}"}
    if model.batches_:
        rows["batches"] = f"{len(model.batches_)}, of {batch_label(model.training_.batch_key)}"
    return rows | {
        "training": f"{counted(len(model.history_), 'epoch')}, {model.history_['seconds'].sum():.1f} s, "
        f"{counted(given(model.training_.threads), 'thread')}; ended: "
        f"{'no longer improving' if model.stopped_ == 'early' else model.stopped_}",
        "best": f"epoch {model.best_epoch_ + 1}: {watched} {record[watched]:.5g} "
        f"({model.config.loss_unit or 'no unit'})",
        "held out": counted(len(model.valid_obs_), "cell"),
        "next": "model.embed(adata); ac.evaluate(model, adata); ac.pl.history(model)",
    }
