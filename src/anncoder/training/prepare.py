"""Preparation of a fit: size factors, loaders, gene summary, limits of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from anncoder.config import BatchKey, NetworkConfig, TrainingConfig, given
from anncoder.data.adata import (
    batch_column,
    batch_columns,
    batch_label,
    batches_of,
    warn_of_small_batches,
    warn_unknown_batches,
)
from anncoder.data.loaders.covariates import Covariates, coded, fitted_covariates
from anncoder.data.loaders.disk import cached_loader
from anncoder.data.loaders.gpu import Resident, ResidentLoader
from anncoder.data.loaders.labels import LabelledLoader, labels_of
from anncoder.data.loaders.memory import MemoryLoader
from anncoder.data.sources import PerCell, Source
from anncoder.data.split import Split
from anncoder.data.summary import median_library_size, size_factors, summarize
from anncoder.device import choose_device, fits, memory_errors, threads_set, usual_torch
from anncoder.errors import ConfigError, counted
from anncoder.training.compiling import compile_ahead
from anncoder.training.distributed import processes
from anncoder.types import SINGLE, Batch, Loader, Rank, Summary

SAMPLE = 8192  # cells from which the natural axes of the latent are found
VALID_BATCH = 1024
SUMMARY_BLOCK = 8192  # cells at a time
WORK_OF_A_THREAD = 100_000_000  # parameters times cells of a minibatch


class TrainingData(NamedTuple):
    """What training needs of the data."""

    train: Loader  # cells to fit on, shuffled anew in every epoch
    valid: Loader | None  # cells held out
    summary: Summary
    sample: Batch  # some of the cells to fit on, at random: enough for averages
    unshuffled: (
        Loader  # the cells to fit on, in the order of the data, for the models that look at them before training
    )
    batches: list[str]  # names of the experimental batches, in the order of their codes; empty where there are none
    codes: np.ndarray[Any, Any] | None  # (n_obs,) int64, the experimental batch of each cell
    training: TrainingConfig
    device: torch.device
    covariates: Covariates
    values: np.ndarray[Any, Any] | None  # (n_obs, c) float32, the covariates of each cell
    labels: list[str] = []  # noqa: RUF012 - of a NamedTuple: names of the labels, in the order of their codes
    label_codes: np.ndarray[Any, Any] | None = None  # (n_obs,) int64, the label of each cell, -1 for unknown

    @property
    def size(self) -> str:
        """The numbers of cells and genes, for people."""
        n_valid = 0 if self.valid is None else self.valid.n_obs
        fitted = counted(self.train.n_obs, "cell")
        return f"{fitted} x {counted(self.sample.counts.n_vars, 'gene')}, {counted(n_valid, 'cell')} held out"


@contextmanager
def fit_context(config: NetworkConfig, training: TrainingConfig, *, shown: bool) -> Iterator[Rank]:
    """Let torch be as a fit expects it, on its threads and joined to the other processes, for the time of a block.

    Kernels are compiled meanwhile; ``shown`` tells whether that is said.
    """
    with usual_torch(), processes(training.device) as process, threads_set(training.threads), memory_errors("fit"):
        compile_ahead(config, training, shown=shown and process.rank == 0)
        yield process


def threads_for(network: torch.nn.Module, training: TrainingConfig, device: torch.device) -> int:
    """Return the CPU threads for training steps: those asked for, else as many as a step has work for.

    A step is some hundred short operations, after each of which the threads wait for each other. Where there is little
    to share a second thread gains nothing on an idle machine, and costs time beside other work (docs/benchmarks.md).
    The number depends on network and minibatch alone, not on how busy the machine is: the bits depend on it.
    """
    if training.threads is not None or device.type != "cpu":
        return torch.get_num_threads()
    work = given(training.batch_size) * sum(parameter.numel() for parameter in network.parameters())
    return max(1, min(torch.get_num_threads(), work // WORK_OF_A_THREAD))


def prepare(
    source: Source, split: Split, config: NetworkConfig, training: TrainingConfig, process: Rank = SINGLE
) -> TrainingData:
    """Return loaders and summary of the data: checked counts, or expression with ``transform="none"``.

    Raises
    ------
    ConfigError
        The latent is as wide as the data, the minibatches are smaller than the model needs, there is no such device,
        or no slot that the model is to be fitted to.
    """
    refuse_width(config, len(source.var_names))
    device = choose_device(training.device)
    refuse_few_cells(config, given(training.batch_size), len(split.train))
    library_size = median_library_size(source.sizes[split.train])
    factors = size_factors(source.sizes, library_size)
    fitted, held_out = _mask(split.train, source.n_obs), _mask(split.valid, source.n_obs)
    codes, batches = batches_in(source, training.batch_key)
    values, covariates = covariates_to_fit(source, training, fitted)
    if training.batch_key is not None and codes is not None:
        warn_of_small_batches(codes, batches, batch_label(training.batch_key))
    cells = PerCell(factors, codes, values)
    train = source.loader(cells, fitted, batch_size=given(training.batch_size), seed=training.seed, process=process)
    held_out_cells = source.loader(cells, held_out, batch_size=VALID_BATCH, process=process)
    valid = cached_loader(held_out_cells) if len(split.valid) else None
    # not the factors, which are rounded
    blocks = ((matrix, source.sizes[rows] / library_size) for matrix, rows in source.blocks(fitted, SUMMARY_BLOCK))
    summary = summarize(blocks, len(source.var_names), library_size, transform=config.transform)
    if config.fits_slot is not None:
        summary = summary._replace(target=torch.from_numpy(source.coordinates(config.fits_slot)))
    some = source.loader(cells, fitted, batch_size=min(SAMPLE, max(len(split.train), 2)), seed=training.seed)
    unshuffled = source.loader(cells, fitted, batch_size=VALID_BATCH)
    sample = next(iter(some.epoch(0)))
    summary = summary._replace(n_steps=len(train), sample=sample)
    train, valid = on_device([train, valid], device)
    loaders = train, valid, summary, sample, unshuffled
    ready = TrainingData(*loaders, batches, codes, training, device, covariates, values)
    return with_labels(ready, source)


def with_labels(ready: TrainingData, source: Source) -> TrainingData:
    """Return what training needs of the data with the labels of ``label_key``, if there is one, in all minibatches.

    Raises
    ------
    ConfigError
        There is no such column.
    InputError
        No cell has a label.
    """
    key = ready.training.label_key
    if key is None:
        return ready
    codes, names = labels_of(source.column(key, what="label_key"), key)
    sample = ready.sample._replace(label=torch.from_numpy(codes[ready.sample.rows.numpy()]))
    return ready._replace(
        train=LabelledLoader(ready.train, codes),
        valid=None if ready.valid is None else LabelledLoader(ready.valid, codes),
        unshuffled=LabelledLoader(ready.unshuffled, codes),
        summary=ready.summary._replace(sample=sample),
        sample=sample,
        labels=names,
        label_codes=codes,
    )


def refuse_width(config: NetworkConfig, n_vars: int) -> None:
    """Raise a ConfigError unless the latent is narrower than the data, or need not be."""
    if config.compresses and config.n_latent >= n_vars:
        what = f"n_latent = {config.n_latent} is not below the number of genes, {n_vars}"
        fewer = max(1, n_vars // 2)
        remedy = f"set n_latent below {n_vars}, such as n_latent={fewer} (--set n_latent={fewer}), or fit more genes"
        raise ConfigError("latent-too-wide", what, "n_latent", remedy)


def refuse_few_cells(config: NetworkConfig, batch_size: int, n_fitted: int) -> None:
    """Raise a ConfigError unless the minibatches can be as large as the model needs."""
    fewest = config.fewest_cells
    if min(batch_size, n_fitted) < fewest:
        why = f"batch_size = {batch_size}" if batch_size < fewest else f"there are {n_fitted:,} cells to fit on"
        what = f"the model, as it is set, needs minibatches of {fewest:,} cells or more, and {why}"
        where = "batch_size" if batch_size < fewest else "n_obs"
        raise ConfigError("few-cells", what, where, "raise batch_size, fit more cells, or lower perplexity")


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
    source: Source, key: BatchKey | None, known: list[str] | None = None, *, others: bool = False
) -> tuple[np.ndarray[Any, Any] | None, list[str]]:
    """Return the experimental batch of each cell, (n_obs,) int64 codes, and the names; None and none without a key.

    With ``others`` cells of no known batch have the code behind the last, also where there is no such column.

    Raises
    ------
    ConfigError
        There is no such column, or it has missing values or a single one.
    InputError
        A cell is of a batch that is not among the known ones.
    """
    if key is None:
        return None, []
    label = batch_label(key)
    try:
        column = batch_column(key, lambda name: source.column(name, what="batch_key"))
    except ConfigError as error:
        if not others or known is None or error.code != "unknown-key":
            raise
        warn_unknown_batches(label, [], source.n_obs)
        return np.full(source.n_obs, len(known)), known
    return batches_of(column, label, known, others=others)


def covariates_to_fit(
    source: Source, training: TrainingConfig, fitted: Any
) -> tuple[np.ndarray[Any, Any] | None, Covariates]:
    """Return the covariates of the cells, (n_obs, c), and their names and moments among the fitted ones, (n_obs,) bool.

    Raises
    ------
    ConfigError, InputError
        As :func:`anncoder.data.loaders.covariates.fitted_covariates`.
    """
    keys = batch_columns(training.categorical_keys), batch_columns(training.continuous_keys)
    return fitted_covariates(lambda key, what: source.column(key, what=what), *keys, fitted)


def covariates_in(source: Source, known: Covariates) -> np.ndarray[Any, Any] | None:
    """Return covariates of cells for a fitted model, (n_obs, c): :func:`anncoder.data.loaders.covariates.coded`."""
    return coded(lambda key, what: source.column(key, what=what), known, source.n_obs)


def _mask(rows: Any, n_obs: int) -> Any:
    mask = np.zeros(n_obs, dtype=bool)
    mask[rows] = True
    return mask
