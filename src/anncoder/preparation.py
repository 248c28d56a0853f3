"""Before training: which cells to fit on, size factors, loaders, and the one pass over the data."""

from __future__ import annotations

from typing import Any, NamedTuple

import anndata
import numpy as np
import torch
from scipy.sparse import csr_matrix

from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.adata import obs_column
from anncoder.data.memory import MemoryLoader, take_rows
from anncoder.data.order import Split, split_rows
from anncoder.data.summary import library_sizes, summarize
from anncoder.types import Batch, Summary

SAMPLE = 8192  # cells from which the natural axes of the latent are found
VALID_BATCH = 1024


class Prepared(NamedTuple):
    """What training needs of the data."""

    train: MemoryLoader  # cells to fit on, shuffled anew in every epoch
    valid: MemoryLoader | None  # cells held out
    summary: Summary

    @property
    def size(self) -> str:
        """The numbers of cells and genes, for people."""
        n_valid = 0 if self.valid is None else self.valid.n_obs
        return f"{self.train.n_obs:,} cells x {self.train.matrix.shape[1]:,} genes, {n_valid:,} cells held out"


def prepare(matrix: csr_matrix, split: Split, config: NetworkConfig, training: TrainingConfig) -> Prepared:
    """Return loaders and summary of a matrix.

    Parameters
    ----------
    matrix
        (n_obs, n_vars) checked counts, or expression with ``transform="none"``.
    split
        Rows to fit on and rows held out.
    config
        For ``transform``.
    training
        For ``batch_size`` and ``seed``.
    """
    sizes = library_sizes(matrix) if config.transform == "log1p" else np.ones(matrix.shape[0])
    library_size = float(np.median(sizes[split.train]))
    factors = sizes / library_size
    train = MemoryLoader(matrix, factors, split.train, batch_size=training.batch_size, seed=training.seed)
    valid = MemoryLoader(matrix, factors, split.valid, batch_size=VALID_BATCH) if len(split.valid) else None
    return Prepared(train, valid, summarize(matrix, split.train, library_size, transform=config.transform))


def split_cells(adata: anndata.AnnData, training: TrainingConfig) -> Split:
    """Return the cells to fit on and those held out.

    Raises
    ------
    ConfigError
        A column of obs does not exist, or has missing values.
    InputError
        The groups cannot be split.
    """

    def codes(key: str | None, what: str) -> Any:
        return None if key is None else obs_column(adata, key, what=what)

    return split_rows(
        adata.n_obs,
        training.valid_fraction,
        training.seed,
        stratify=codes(training.valid_stratify, "valid_stratify"),
        groups=codes(training.valid_groups, "valid_groups"),
    )


def sample(loader: MemoryLoader, seed: int) -> Batch:
    """Return some of a loader's cells, at random: enough for averages."""
    rows = np.random.default_rng([seed, 4]).permutation(loader.rows)[:SAMPLE]
    return Batch(take_rows(loader.matrix, rows), torch.from_numpy(loader.size_factor[rows]), torch.from_numpy(rows))
