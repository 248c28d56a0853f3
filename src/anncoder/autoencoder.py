"""What every autoencoder object does: fit, embed, denoise, save.

This is the edge: AnnData comes in here and numpy arrays go out; what happens between is :mod:`anncoder.training` and
:mod:`anncoder.models`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import anndata
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from anncoder import checkpoint
from anncoder.attempt import attempt
from anncoder.config import NetworkConfig, OptimizerName, PrecisionName, SplitName, TrainingConfig, given
from anncoder.data.adata import open_data
from anncoder.device import choose_device, memory_errors, products_in, refuse_size, threads_set, usual_torch
from anncoder.distributed import processes
from anncoder.errors import DivergenceError
from anncoder.identity import run_of
from anncoder.inference import blocks, denoised, expecting, latents
from anncoder.models import network_of
from anncoder.opening import open_for_model, open_source
from anncoder.preparation import Prepared, limited, prepare, split_cells
from anncoder.progress import TrainingReport, announce, warn_interrupted
from anncoder.recording import taking
from anncoder.refusals import refuse_unfitted, refuse_unloadable, refuse_width
from anncoder.resume import Checkpoint, Checkpoints, going_on, keeper_of
from anncoder.sources import Data, Genes, MemorySource, Source
from anncoder.training import History, train
from anncoder.types import Batch, Noise, Shape

Scale = Literal["counts", "normalized"]
Array = np.ndarray[Any, np.dtype[np.float32]]


class Autoencoder:
    """The verbs that all models share; use one of its children.

    Attributes
    ----------
    config
        Hyper-parameters.
    history_
        Data frame, a row an epoch: ``epoch``, ``learning_rate``, ``seconds``, ``train_loss``, ``valid_loss`` and every
        term of the loss, in the unit that ``config.loss_unit`` names.
    var_names_
        Names of the genes the model was fitted on, in its order.
    library_size_
        Median library size of the fitted cells: the scale of ``denoise(scale="normalized")``.
    valid_obs_
        Names of the cells that were held out for validation.
    valid_sizes_
        Their total counts, by which they are told from other cells of the same name.
    batches_
        Names of the experimental batches of ``batch_key``, in the order of their codes; empty without one.
    best_epoch_
        The epoch (from 0) whose weights the model has.
    stopped_
        ``"early"``, ``"max_epochs"``, ``"interrupted"`` or ``"diverged"``.
    """

    name: ClassVar[str]
    cell_results: ClassVar[tuple[str, ...]] = ()  # names of what `of_cells` gives: columns of obs
    gene_results: ClassVar[tuple[str, ...]] = ()  # names of what `of_genes` may give: columns of var, or varm

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config
        self.network_: nn.Module | None = None

    def __repr__(self) -> str:
        changed = {k: v for k, v in self.config if v != type(self.config).model_fields[k].default}
        state = "" if self.network_ is None else f"  # fitted: {len(self.var_names_):,} genes"
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())}){state}"

    def fit(
        self,
        data: Data,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        optimizer: OptimizerName | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        beta1: float | None = None,
        epsilon: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        valid_fraction: float | None = None,
        valid_split: SplitName | None = None,
        valid_stratify: str | None = None,
        valid_groups: str | None = None,
        early_stopping: bool | None = None,
        keep_best: bool | None = None,
        patience: int | None = None,
        min_delta: float = 1e-4,
        reduce_lr_patience: int | None = None,
        reduce_lr_factor: float | None = None,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
        precision: PrecisionName = "float32",
        cuda_graph: bool | None = None,
        progress: bool | None = None,
        checkpoint: str | Path | Checkpoint | None = None,
    ) -> Self:
        """Fit the model and return it; the data are read, never written.

        Parameters
        ----------
        data
            Raw counts, (n_obs, n_vars): AnnData, or, read from disk in blocks, the path of an ``.h5ad`` file or
            ``.zarr`` folder, several in a list or glob, or a backed AnnData.
        layer
            Where the counts are; None and ``"X"`` for ``X``.
        batch_key
            obs column with the experimental batch, for the models that correct for it.
        max_epochs, max_steps, batch_size, optimizer, learning_rate, weight_decay, beta1, epsilon
            Most passes over the data, and most minibatches in whole passes (None for any number where the passes are
            given); cells in a minibatch; ``"adam"`` or ``"rmsprop"``, its step size, decay, memory and the number added
            to its denominator. None, here and below, for what suits the model (``model.config.suited``).
        clip_norm, clip_value
            Largest norm and largest entry of the gradient; 0 for any.
        valid_fraction, valid_split
            Share of the cells held out, 0 for none; ``"random"``, or ``"tail"`` for the last ones.
        valid_stratify, valid_groups
            obs column whose proportions the split keeps, or whose groups it never divides.
        early_stopping, patience, min_delta, keep_best
            Stop after ``patience`` epochs in which the validation loss did not fall by the share ``min_delta``; end
            with the weights of the best epoch, not of the last.
        reduce_lr_patience, reduce_lr_factor
            Multiply the step size by the factor after so many epochs without improvement; 0 for never.
        seed
            Start of every random stream. The same seed, machine and number of threads give the same arrays.
        device, threads, precision, cuda_graph
            ``"auto"`` (a CUDA GPU if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; CPU
            threads, None for torch's choice (which scanpy's neighbour graphs raise: ``training_.threads`` says what it
            was); ``"tf32"`` for faster products on a CUDA GPU, of factors with three digits; whether to record a step
            there and replay it, None for where that can be done (count autoencoder, data in memory).
        progress
            True for a progress bar, False for silence, None for a bar in a terminal, or a notebook with ipywidgets.
        checkpoint
            Folder that keeps the state of an unfinished fit: the same call goes on from there after a kill, to the
            same bits; with an :class:`IterableSource` from the end of an epoch, in the order of its next pass. Removed
            when the fit is over.

        Raises
        ------
        ConfigError
            A value is out of range, a column of obs does not exist, or the checkpoint is of another run.
        FileError
            The file cannot be read.
        InputError
            The data are not what the model needs; see :func:`anncoder.check`.
        DivergenceError
            The loss stopped being finite. The model then holds the best weights until then; after any other error it is
            what it was before, fitted or not.
        """
        settings = {k: v for k, v in locals().items() if k in TrainingConfig.model_fields}
        training = TrainingConfig(**settings).suited_to(self.config)
        source = open_source(data, layer, counts=self.reads_counts, integers=self.config.integers)
        layer = None if layer == "X" else layer
        refuse_width(self.config, len(source.var_names))
        split = split_cells(source.n_obs, source.column, training)
        on_threads = threads_set(training.threads)
        with usual_torch(), attempt(self), processes(training.device) as share, on_threads, memory_errors("fit"):
            self.layer_, self.training_ = layer, training
            self.var_names_, self.valid_obs_ = source.var_names, source.names(split.valid)
            self.valid_sizes_ = np.asarray(source.sizes[split.valid])
            on, noise = choose_device(training.device), Noise(training.seed)
            data_of = prepare(source, split, self.config, training, on, share)
            run = run_of(self.name, self.config, training, source, split, data_of)
            keeper = keeper_of(checkpoint, run, noise, share, on, in_order=source.in_order)
            del split  # eight bytes a cell, which nothing reads again
            training = limited(training, len(data_of.train))
            take = taking(data_of.train, self.config, training, share)
            network = self._start(data_of, noise, on)  # of the same weights in all processes,
            noise.part_ways(share.rank)  # whose noise in training is not
            if progress is not False:
                n_threads = torch.get_num_threads()
                announce(f"training on {on} ({n_threads} threads): {data_of.size}{going_on(keeper)}")
            try:
                report = TrainingReport(len(data_of.train), given(training.max_epochs), show=progress)
                with products_in(training.precision, on), report:
                    history = train(network, data_of.train, data_of.valid, training, on, report, share, keeper, take)
            except DivergenceError as error:
                self._keep(error.history, data_of, on, keeper)
                raise error.named(list(source.names(np.array(error.rows, dtype=np.int64))), source.var_names) from error
            self._keep(history, data_of, on, keeper)
        return self

    def embed(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the latent of each cell, (n_obs, n_latent) float32.

        Parameters
        ----------
        data
            AnnData or path. Genes are matched by name, in any order; genes the model does not know are left out.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``.
        allow_missing
            Share of the model's genes that may be missing from the data; they are taken as zero.

        Raises
        ------
        InputError
            Too many genes are missing, or the values are not what the model was fitted on.
        """
        source = self._source(data, layer, allow_missing)
        return np.concatenate(list(latents(self, source)))

    def denoise(
        self,
        data: Data,
        *,
        scale: Scale = "counts",
        layer: str | None = None,
        genes: str | list[str] | None = None,
        batch: str | int | None = None,
        allow_missing: float = 0.0,
    ) -> Array:
        """Return the expected expression of each cell, (n_obs, n_vars) float32.

        Parameters
        ----------
        data, layer, allow_missing
            As in :meth:`embed`.
        scale
            ``"counts"``: at this cell's own library size. ``"normalized"``: at the median library size of the fitted
            cells (not logarithmic). A model fitted with ``transform="none"`` has its data's own scale, which is called
            ``"normalized"``. Only count likelihoods give expected counts; models of logarithms are below them, those
            that fill in zeros above: see "What `denoise` means" in docs/models.md.
        genes
            Only these columns, in this order, or one gene; None for all genes of the model.
        batch
            Decode every cell as if of this experimental batch, whichever it is of; None for its own. Only of models
            that decode by batch (:class:`VariationalAutoencoder` with ``batch_key``).

        Raises
        ------
        InputError
            As in :meth:`embed`.
        ResourceError
            The result would not fit into memory.
        """
        genes = [genes] if isinstance(genes, str) else genes
        expected = expecting(self, scale, genes, batch)
        source = self._source(data, layer, allow_missing)
        refuse_size(source.n_obs * len(self.var_names_ if genes is None else genes) * 4)
        return np.concatenate(list(denoised(self, source, expected, batch)))

    def save(self, folder: str | Path) -> None:
        """Write the fitted model to a folder; :func:`anncoder.load` reads it back to the same bits.

        Raises
        ------
        FileError
            The folder exists and is not a model, or the network is such that it could not be read back.
        ResourceError
            It cannot be written.
        """
        weights = self._network().state_dict()
        refuse_unloadable(self, weights, checkpoint.shapes_only(self._build))
        record = checkpoint.ModelRecord(
            model=self.name,
            hyperparameters=self.config.model_dump(mode="json"),
            training=self.training_.model_dump(mode="json"),
            layer=self.layer_,
            batches=self.batches_,
            library_size=self.library_size_,
            best_epoch=self.best_epoch_,
            stopped=self.stopped_,
            history=self.history_.to_dict(orient="list"),
            valid_obs=list(self.valid_obs_),
            valid_sizes=self.valid_sizes_.tolist(),
        )
        checkpoint.write_model(folder, record, list(self.var_names_), weights)

    def aligned_matrix(
        self, adata: anndata.AnnData, layer: str | None = None, allow_missing: float = 0.0
    ) -> csr_matrix:
        """Return a copy of what :meth:`embed` reads: checked, in the model's gene order, (n_obs, n_vars) CSR.

        Raises as :meth:`embed` does.
        """
        source = self._source(open_data(adata), layer, allow_missing)
        assert isinstance(source, MemorySource)
        return source.matrix.copy()

    def of_cells(
        self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return what the model says of each cell beside the latent, (n_obs,), by the names of ``cell_results``."""
        return {}

    def of_genes(self) -> dict[str, Array]:
        """Return what the model says of each gene, (n_vars,) or (n_vars, k), by the names of ``gene_results``."""
        return {}

    @property
    def reads_counts(self) -> bool:
        """Whether the model wants raw counts (and not expression values as they are)."""
        return self.config.reads_counts

    def _start(self, data: Prepared, noise: Noise, device: torch.device) -> Any:
        self.library_size_, self.batches_ = data.summary.library_size, data.batches
        self.network_ = network = self._build(noise)
        network.to(device).start_from(data.summary, data.in_order)
        return network

    def _keep(self, history: History, data: Prepared, device: torch.device, keeper: Checkpoints | None) -> None:
        self.history_ = pd.DataFrame(history.records)
        self.best_epoch_, self.stopped_ = history.best_epoch, history.stopped
        self.training_ = self.training_.model_copy(update={"threads": torch.get_num_threads()})  # bits are of so many
        if history.records:
            self._network().finish(data.sample.to(device))
        else:  # stopped in the first epoch: there are no good weights
            self.network_ = None
        if history.stopped == "interrupted":
            warn_interrupted(history)
        elif keeper is not None:
            keeper.forget()

    def _build(self, noise: Noise) -> Any:
        shape = Shape(len(self.var_names_), len(self.batches_), tuple(self.batches_))
        with usual_torch():
            return network_of(self.name)(self.config, shape, noise)

    def _network(self) -> Any:
        refuse_unfitted(self.network_)
        return self.network_

    def _blocks(self, source: Source, compute: Callable[[Batch], Tensor]) -> Iterator[Array]:
        return blocks(self, source, compute)

    def _source(self, data: Data, layer: str | None, allow_missing: float) -> Source:
        self._network()
        where = self.layer_ if layer is None else layer
        genes, of_fit, integers = Genes(self.var_names_, allow_missing), layer is None, self.config.integers
        return open_for_model(data, where, genes, counts=self.reads_counts, layer_is_of_fit=of_fit, integers=integers)
