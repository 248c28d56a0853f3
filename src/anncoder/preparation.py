"""Before training: which cells to fit on, size factors, loaders, and the one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.order import Split, split_rows
from anncoder.data.summary import summarize
from anncoder.distributed import ALONE, Share
from anncoder.sources import Source
from anncoder.types import Batch, Loader, Summary

SAMPLE = 8192  # cells from which the natural axes of the latent are found
VALID_BATCH = 1024
SUMMARY_BLOCK = 8192  # cells at a time: the copies of a block's stored values are all the memory this needs


class Prepared(NamedTuple):
    """What training needs of the data."""

    train: Loader  # cells to fit on, shuffled anew in every epoch
    valid: Loader | None  # cells held out
    summary: Summary
    sample: Batch  # some of the cells to fit on, at random: enough for averages

    @property
    def size(self) -> str:
        """The numbers of cells and genes, for people."""
        n_valid = 0 if self.valid is None else self.valid.n_obs
        return f"{self.train.n_obs:,} cells x {self.sample.counts.n_vars:,} genes, {n_valid:,} cells held out"


def prepare(
    source: Source, split: Split, config: NetworkConfig, training: TrainingConfig, share: Share = ALONE
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
    share
        Which of several processes this is.
    """
    library_size = float(np.median(source.sizes[split.train]))
    factors = (source.sizes / library_size).astype(np.float32)
    fitted, held_out = _mask(split.train, source.n_obs), _mask(split.valid, source.n_obs)
    train = source.loader(factors, fitted, batch_size=training.batch_size, seed=training.seed, share=share)
    valid = source.loader(factors, held_out, batch_size=VALID_BATCH, share=share) if len(split.valid) else None
    exact = source.sizes / library_size
    blocks = ((matrix, exact[rows]) for matrix, rows in source.blocks(fitted, SUMMARY_BLOCK))
    summary = summarize(blocks, len(source.var_names), library_size, transform=config.transform)
    some = source.loader(factors, fitted, batch_size=min(SAMPLE, max(len(split.train), 2)), seed=training.seed)
    return Prepared(train, valid, summary, next(iter(some.epoch(0))))


def split_cells(n_obs: int, codes: Callable[..., Any], training: TrainingConfig) -> Split:
    """Return the cells to fit on and those held out.

    Parameters
    ----------
    n_obs
        Number of cells.
    codes
        Gives a column of obs, by its name, as integer codes.
    training
        For the shares, the columns and the seed.

    Raises
    ------
    ConfigError
        A column of obs does not exist, or has missing values.
    InputError
        The groups cannot be split.
    """
    stratify, groups = training.valid_stratify, training.valid_groups
    return split_rows(
        n_obs,
        training.valid_fraction,
        training.seed,
        stratify=None if stratify is None else codes(stratify, what="valid_stratify"),
        groups=None if groups is None else codes(groups, what="valid_groups"),
    )


def _mask(rows: Any, n_obs: int) -> Any:
    mask = np.zeros(n_obs, dtype=bool)
    mask[rows] = True
    return mask
