"""Before training: which cells to fit on, size factors, loaders, and the one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from anncoder.config import NetworkConfig, TrainingConfig, given
from anncoder.data.adata import batches_of, codes_of
from anncoder.data.disk import kept
from anncoder.data.memory import MemoryLoader
from anncoder.data.order import Split, split_rows
from anncoder.data.resident import Resident, ResidentLoader
from anncoder.data.summary import summarize
from anncoder.device import fits
from anncoder.distributed import ALONE, Share
from anncoder.refusals import refuse_few_cells
from anncoder.sources import PerCell, Source
from anncoder.types import Batch, Loader, Summary

SAMPLE = 8192  # cells from which the natural axes of the latent are found
VALID_BATCH = 1024
SUMMARY_BLOCK = 8192  # cells at a time


class Prepared(NamedTuple):
    """What training needs of the data."""

    train: Loader  # cells to fit on, shuffled anew in every epoch
    valid: Loader | None  # cells held out
    summary: Summary
    sample: Batch  # some of the cells to fit on, at random: enough for averages
    in_order: Loader  # the cells to fit on, in the order of the data, for the models that look at them before training
    batches: list[str]  # names of the experimental batches, in the order of their codes; empty where there are none
    codes: np.ndarray[Any, Any] | None  # (n_obs,) int64, the experimental batch of each cell

    @property
    def size(self) -> str:
        """The numbers of cells and genes, for people."""
        n_valid = 0 if self.valid is None else self.valid.n_obs
        return f"{self.train.n_obs:,} cells x {self.sample.counts.n_vars:,} genes, {n_valid:,} cells held out"


def prepare(
    source: Source,
    split: Split,
    config: NetworkConfig,
    training: TrainingConfig,
    device: torch.device,
    share: Share = ALONE,
) -> Prepared:
    """Return loaders and summary of the data.

    Parameters
    ----------
    source
        Checked counts, or expression with ``transform="none"``.
    split
        Rows to fit on and rows held out.
    config
        For ``transform``.
    training
        For ``batch_size`` and ``seed``.
    device
        Where the network will be.
    share
        Which of several processes this is.

    Raises
    ------
    ConfigError
        The minibatches are smaller than the model needs, or there is no slot that it is to be fitted to.
    """
    refuse_few_cells(config, given(training.batch_size), len(split.train))
    library_size = float(np.median(source.sizes[split.train]))
    factors = (source.sizes / library_size).astype(np.float32)
    fitted, held_out = _mask(split.train, source.n_obs), _mask(split.valid, source.n_obs)
    codes, batches = batches_in(source, training.batch_key)
    cells = PerCell(factors, codes)
    train = source.loader(cells, fitted, batch_size=given(training.batch_size), seed=training.seed, share=share)
    valid = kept(source.loader(cells, held_out, batch_size=VALID_BATCH, share=share)) if len(split.valid) else None
    # not the factors, which are rounded
    blocks = ((matrix, source.sizes[rows] / library_size) for matrix, rows in source.blocks(fitted, SUMMARY_BLOCK))
    summary = summarize(blocks, len(source.var_names), library_size, transform=config.transform)
    if config.fits_slot is not None:
        summary = summary._replace(target=torch.from_numpy(source.coordinates(config.fits_slot)))
    some = source.loader(cells, fitted, batch_size=min(SAMPLE, max(len(split.train), 2)), seed=training.seed)
    in_order = source.loader(cells, fitted, batch_size=VALID_BATCH)
    summary = summary._replace(n_steps=len(train))
    train, valid = on_device([train, valid], device)
    return Prepared(train, valid, summary, next(iter(some.epoch(0))), in_order, batches, codes)


def on_device(loaders: list[Any], device: torch.device) -> list[Any]:
    """Return loaders of one matrix in memory that make their minibatches on a GPU, where the matrix fits on it.

    Others, and None, are returned as they are.
    """
    in_memory = [loader for loader in loaders if isinstance(loader, MemoryLoader)]
    if not in_memory:
        return loaders
    stored = in_memory[0].stored
    if not fits(sum(array.nbytes for array in stored[:3]), device):
        return loaders
    resident = Resident(stored, device)
    return [ResidentLoader(loader, resident) if loader in in_memory else loader for loader in loaders]


def limited(training: TrainingConfig, n_minibatches: int) -> TrainingConfig:
    """Return the settings with so few epochs, of so many minibatches, that the last one reaches ``max_steps``."""
    if training.max_steps is None:
        return training
    enough = -(-training.max_steps // n_minibatches)
    return training.model_copy(update={"max_epochs": min(given(training.max_epochs), enough)})


def batches_in(
    source: Source, key: str | None, known: list[str] | None = None
) -> tuple[np.ndarray[Any, Any] | None, list[str]]:
    """Return the experimental batch of each cell, (n_obs,) int64 codes, and the names; None and none without a key.

    Raises
    ------
    ConfigError
        There is no such column, or it has missing values or a single one.
    InputError
        A cell is of a batch that is not among the known ones.
    """
    return (None, []) if key is None else batches_of(source.column(key, what="batch_key"), key, known)


def split_cells(n_obs: int, column: Callable[..., Any], training: TrainingConfig) -> Split:
    """Return the cells to fit on and those held out.

    Parameters
    ----------
    n_obs
        Number of cells.
    column
        Gives a column of obs by its name.
    training
        For the shares, the columns and the seed.

    Raises
    ------
    ConfigError
        A column of obs does not exist, or has missing values.
    InputError
        The groups cannot be split.
    """

    def codes(what: str) -> Any:
        key = getattr(training, what)
        return None if key is None else codes_of(column(key, what=what), key, what=what)

    return split_rows(
        n_obs,
        given(training.valid_fraction),
        training.seed,
        stratify=codes("valid_stratify"),
        groups=codes("valid_groups"),
        tail=training.valid_split == "tail",
    )


def _mask(rows: Any, n_obs: int) -> Any:
    mask = np.zeros(n_obs, dtype=bool)
    mask[rows] = True
    return mask
