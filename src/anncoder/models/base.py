"""Autoencoder, the estimator that every model is: fit, embed, denoise, save, load.

AnnData comes in here and numpy arrays go out; between the two stand the network of the model and
:mod:`anncoder.training.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import anndata
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from anncoder.config import (
    EmptyCellsName,
    NetworkConfig,
    OptimizerName,
    PrecisionName,
    SplitName,
    TrainingConfig,
    refuse_unused_batches,
    refuse_unused_labels,
)
from anncoder.data.adata import (
    open_data,
)
from anncoder.data.loaders.covariates import NONE, Covariates
from anncoder.data.sources import Data, Genes, MemorySource, Source, open_for_model, open_source
from anncoder.data.split import Split, split_cells
from anncoder.device import choose_device, products_in, refuse_size, threads_set, usual_torch
from anncoder.errors import ConfigError, DivergenceError, counted
from anncoder.io import model_folder
from anncoder.models import find, names, scikit_learn
from anncoder.models.adapting import adapted, adapted_key
from anncoder.models.card import card
from anncoder.models.fitted import Fitted, Start, record_of
from anncoder.training.checkpoint import Checkpoint, checkpointer_of, resume_note, run_of
from anncoder.training.cuda_graph import recorded_step_or_none
from anncoder.training.loop import History, train
from anncoder.training.prepare import TrainingData, fit_context, limited, prepare, threads_for
from anncoder.training.progress import TrainingReport, announce, warn_interrupted
from anncoder.training.results import Scale, blocks, denoised, expecting, latents
from anncoder.types import Batch, Noise, Rank, Shape

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
    covariates_
        Categories and their shares, and mean and deviation of numbers, by the column of obs.
    labels_
        Names of the labels of ``label_key``, in the order of their codes; empty without one.
    best_epoch_
        The epoch (from 0) whose weights the model has.
    stopped_
        ``"early"``, ``"max_epochs"``, ``"interrupted"`` or ``"diverged"``.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[NetworkConfig]]
    network_class: ClassVar[type[Any]]
    cell_results: ClassVar[tuple[str, ...]] = ()  # names of the results of `of_cells`: columns of obs
    gene_results: ClassVar[tuple[str, ...]] = ()  # names of the possible results of `of_genes`: columns of var, or varm

    training_: TrainingConfig
    layer_: str | None
    var_names_: pd.Index
    batches_: list[str]
    library_size_: float
    history_: pd.DataFrame
    best_epoch_: int
    stopped_: str
    valid_obs_: pd.Index
    valid_sizes_: np.ndarray[Any, Any]
    covariates_: Covariates = NONE
    labels_: list[str]

    # as scikit-learn calls them
    fit_settings: ClassVar[dict[str, Any]] = {}  # of set_params, until a model has its own
    container: ClassVar[str] = ""  # of set_output
    get_params, set_params = scikit_learn.get_params, scikit_learn.set_params
    fit_transform, transform, score = scikit_learn.fit_transform, scikit_learn.transform, scikit_learn.score
    set_output, get_feature_names_out = scikit_learn.set_output, scikit_learn.get_feature_names_out
    n_features_in_, feature_names_in_ = property(scikit_learn.n_features_in), property(scikit_learn.feature_names_in)
    __sklearn_clone__, __sklearn_is_fitted__ = scikit_learn.clone_of, scikit_learn.is_fitted
    __sklearn_tags__ = scikit_learn.tags_of

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config
        self.network_: nn.Module | None = None

    def __repr__(self) -> str:
        changed = {k: v for k, v in self.config if v != type(self.config).model_fields[k].default}
        state = "" if self.network_ is None else f"  # fitted: {counted(len(self.var_names_), 'gene')}"
        also = ", ".join(f"{k}={v!r}" for k, v in self.fit_settings.items())
        also = f".set_params({also})" * bool(also)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in changed.items())}){also}{state}"

    def _repr_html_(self) -> str:
        return card(self)

    def fit(
        self,
        data: Data,
        y: object = None,
        *,
        layer: str | None = None,
        batch_key: str | list[str] | tuple[str, ...] | None = None,
        categorical_keys: str | list[str] | tuple[str, ...] | None = None,
        continuous_keys: str | list[str] | tuple[str, ...] | None = None,
        label_key: str | None = None,
        mask_var: str | None = "auto",
        empty_cells: EmptyCellsName = "leave-out",
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        optimizer: OptimizerName | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        beta1: float | None = None,
        beta2: float | None = None,
        epsilon: float | None = None,
        lr_warmup_steps: int | None = None,
        averaging: bool | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        valid_fraction: float | None = None,
        valid_split: SplitName | None = None,
        valid_stratify: str | None = None,
        valid_groups: str | None = None,
        early_stopping: bool | None = None,
        keep_best: bool | None = None,
        patience: int | None = None,
        patience_steps: int | None = None,
        min_delta: float | None = None,
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
            ``.zarr`` folder, several in a list or glob, or a backed AnnData; or, as everywhere, a matrix or data frame.
        y
            Ignored: scikit-learn passes labels.
        layer
            Where the counts are; None and ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw`` (and of its genes).
        batch_key
            obs column with the experimental batch, or several (their combinations), for the models that correct for it
            (:mod:`anncoder.nn.batches`). Leave it out where batches differ by the biology that you look for.
        categorical_keys, continuous_keys
            obs columns, one or several, whose effects are not to be in the latent: of categories, each column a factor
            of its own (sex, chemistry), and of numbers (a score, a share), standardised by the fitted cells.
        label_key
            obs column with labels to learn, for models of your own that do (docs/own-model.md); missing: unknown.
        mask_var
            var column of the genes to fit on; ``"auto"``, the default, is ``"highly_variable"`` where there is one
            (scanpy's rule), None all genes. A denoised layer has NaN in the others.
        empty_cells
            Cells without any count in these genes are left out of the fit, with a warning, and embedded like all
            others; ``"error"`` refuses them, in the fit and with the fitted model.
        max_epochs, max_steps, batch_size, optimizer, learning_rate, weight_decay, beta1, beta2, epsilon
            Most passes over the data, and most minibatches in whole passes (None for any number where the passes are
            given); cells in a minibatch; ``"adam"``, ``"rmsprop"``, ``"sgd"``; step size, decay, memories of the
            gradient (of sgd the momentum) and of its square, number added to its denominator. None, here and below, for
            what suits the model (``model.config.defaults``).
        lr_warmup_steps, averaging
            Minibatches over which the step size rises to ``learning_rate``; whether an average of the weights of the
            last steps is what is validated and kept (:mod:`anncoder.training.averaging`).
        clip_norm, clip_value
            Largest norm and largest entry of the gradient; 0 for any.
        valid_fraction, valid_split
            Share of the cells held out, 0 for none; ``"random"``, or ``"tail"`` for the last ones.
        valid_stratify, valid_groups
            obs column whose proportions the split keeps, or whose groups it never divides.
        early_stopping, patience, patience_steps, min_delta, keep_best
            Stop after ``patience`` epochs, and at least ``patience_steps`` minibatches, in which the validation loss
            did not fall by the share ``min_delta``; end with the weights of the best epoch, not of the last.
        reduce_lr_patience, reduce_lr_factor
            Multiply the step size by the factor after so many epochs without improvement; 0 for never.
        seed
            Start of every random stream. The same seed, machine and number of threads give the same arrays.
        device, threads, precision, cuda_graph
            ``"auto"`` (a CUDA GPU if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; CPU
            threads, None for as many as a step has work for, of those that the process may use (``training_.threads``
            has the number); ``"tf32"`` for faster products on a CUDA GPU, of factors with three digits; whether to
            record a step there and replay it, None for where that can be done (count autoencoder, data in memory).
        progress
            True for a progress bar, False for silence, None for a bar in a terminal or a notebook.
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
            The data do not fit the model; see :func:`anncoder.check`.
        DivergenceError
            The loss stopped being finite. The model then holds the best weights until then; any other error leaves it
            unchanged, fitted or not.
        """
        settings = {k: v for k, v in locals().items() if k in TrainingConfig.model_fields}
        training = TrainingConfig(**scikit_learn.settings_of_fit(self, settings)).with_defaults_of(self.config)
        with fit_context(self.config, training, shown=progress is not False) as process:
            source = open_source(
                data, layer, counts=self.reads_counts, integers=self.config.integers, mask_var=training.mask_var
            )
            training = training.model_copy(update={"mask_var": source.mask_var})
            split = split_cells(source, training)
            ready = prepare(source, split, self.config, training, process)
            start = self._start(source, split, ready, process, checkpoint, progress)
            with threads_set(start.threads):
                try:
                    with products_in(training.precision, ready.device), start.report as report:
                        history = train(
                            start.network,
                            ready.train,
                            ready.valid,
                            start.training,
                            ready.device,
                            report,
                            process,
                            start.checkpointer,
                            start.step_fn,
                            ready.sample,
                        )
                except DivergenceError as error:
                    self._keep(error.history, source, split, ready, start, layer)
                    names = list(source.names(np.array(error.rows, dtype=np.int64)))
                    raise error.named(names, source.var_names) from error
                self._keep(history, source, split, ready, start, layer)
        return self

    def to(self, device: str) -> Self:
        """Move the fitted model to a device, where it then embeds and denoises; return it.

        Parameters
        ----------
        device
            ``"auto"``, ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

        Raises
        ------
        ConfigError
            There is no such device, or the model is not fitted.
        """
        self._network().to(choose_device(device))
        return self

    def embed(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the latent of each cell, (n_obs, n_latent) float32.

        Parameters
        ----------
        data
            AnnData or path. Genes are matched by name, in any order; genes the model does not know are left out.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.

        Raises
        ------
        InputError
            Too many genes are missing, or the values are of another kind than those of the fit.
        """
        return np.concatenate(list(latents(self, self._source(data, layer, allow_missing))))

    def adapt(
        self,
        query: Data,
        *,
        batch_key: str | list[str] | tuple[str, ...] | None = None,
        layer: str | None = None,
        allow_missing: float = 0.0,
        seed: int = 0,
    ) -> Self:
        """Return a new model that knows the experimental batches of new cells too; this one stays as it is.

        Learned are factors of the genes and shifts of the latent in the new batches, and how they are decoded
        (:func:`anncoder.nn.batches.adapt`), from up to 8,192 cells; all else is this model's, to the bit: so is the
        latent of the cells of its batches, and what is decoded as of the ``"mean"`` batch is that of before. New cells
        need not be of all types, but must be of types that the model knows.

        Parameters
        ----------
        query
            Raw counts of cells of new batches only, (n_obs, n_vars); AnnData or path; genes are
            matched by name.
        batch_key
            obs column with the batch: that of the fit, which None stands for.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.
        seed
            Start of the random stream that chooses the cells.

        Raises
        ------
        ConfigError
            The model has no batches, or not such, or ``batch_key`` is another column; batches are missing.
        InputError
            A batch is known already, or as :meth:`embed`.
        """
        self._network()
        key = adapted_key(self, batch_key)
        network, batches = adapted(self, self._source(query, layer, allow_missing), key, seed)
        again = copy(self)
        again.network_, again.batches_ = network, batches
        return again

    def denoise(
        self,
        data: Data,
        *,
        scale: Scale = "counts",
        layer: str | None = None,
        genes: str | list[str] | None = None,
        batch: str | int | None = None,
        covariates: Mapping[str, Any] | None = None,
        allow_missing: float = 0.0,
    ) -> Array:
        """Return the expected expression of each cell, (n_obs, n_vars) float32.

        Parameters
        ----------
        data
            AnnData or path. Genes are matched by name, in any order; genes the model does not know are left out.
        scale
            ``"counts"``: at this cell's own library size. ``"normalized"``: at the median library size of the fitted
            cells. ``"log1p"``: log(1 + that), as scanpy plots. Data of ``transform="none"`` have their own scale,
            ``"normalized"``. Only count likelihoods give expected counts; models of logarithms are below them, those
            that fill in zeros above: see "What `denoise` means" in docs/models.md.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        genes
            Only these columns, in this order, or one gene; None for all genes of the model.
        batch
            Decode every cell as if of this experimental batch; None for its own. For models that decode by batch only
            (count, denoising, undercomplete, variational with ``batch_key``); of the first three ``"mean"`` is the
            average of the batches, as which cells of unknown batches are decoded.
        covariates
            Decode every cell as if these covariates had these values, such as ``{"stress": 0.3, "sex": "mean"}``;
            ``"mean"`` is the average of the fitted cells. The others, and the latent, are the cell's own.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.

        Raises
        ------
        InputError
            As :meth:`embed`.
        ResourceError
            The result would not fit into memory.
        """
        genes = [genes] if isinstance(genes, str) else genes
        expected = expecting(self, scale, genes, batch, covariates)
        source = self._source(data, layer, allow_missing)
        refuse_size(source.n_obs * len(self.var_names_ if genes is None else genes) * 4)
        return np.concatenate(list(denoised(self, source, expected, batch)))

    def save(self, folder: str | Path) -> None:
        """Write the fitted model to a folder; :func:`anncoder.load` reads it back to the same bits.

        Parameters
        ----------
        folder
            Where to write: a new folder, or one with a model that is to be replaced.

        Raises
        ------
        FileError
            The folder exists and is not a model, or the network is such that it could not be read back.
        ResourceError
            It cannot be written.
        """
        weights, shape = self._network().state_dict(), self._shape()
        try:
            again = self.unfitted()
        except TypeError as error:
            what = f"{type(self).__name__} does not take every field of its configuration: {error}"
            raise model_folder.unsavable(
                what, "take every field of the configuration in __init__, by its name"
            ) from error
        model_folder.refuse_unsavable(weights, model_folder.shapes_only(lambda noise: again._build(shape, noise)))
        model_folder.write_model(folder, record_of(self), list(self.var_names_), weights)

    def unfitted(self) -> Autoencoder:
        """Return an unfitted model with the same settings; of a name of this package, by the class of this package."""
        kind = find(self.name) if self.name in names() else type(self)
        again: Autoencoder = kind(**dict(self.config))
        return again

    def aligned_matrix(
        self, adata: anndata.AnnData, layer: str | None = None, allow_missing: float = 0.0
    ) -> csr_matrix:
        """Return a copy of the matrix that :meth:`embed` reads, (n_obs, n_vars): checked, in the model's gene order.

        Parameters
        ----------
        adata
            Cells; genes are matched by name.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.
        """
        source = self._source(open_data(adata), layer, allow_missing)
        assert isinstance(source, MemorySource)
        return source.matrix.copy()

    def of_cells(
        self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return further results for each cell, (n_obs,), by the names of ``cell_results``.

        Parameters
        ----------
        data
            AnnData or path; genes are matched by name.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.
        """
        return {}

    def of_genes(self) -> dict[str, Array]:
        """Return results for each gene, (n_vars,) or (n_vars, k), by the names of ``gene_results``."""
        return {}

    @property
    def reads_counts(self) -> bool:
        """Whether the model reads raw counts (and not expression values as they are)."""
        return self.config.reads_counts

    def _start(
        self,
        source: Source,
        split: Split,
        ready: TrainingData,
        process: Rank,
        checkpoint: str | Path | Checkpoint | None,
        progress: bool | None,
    ) -> Start:
        refuse_unused_labels(self.config, ready.training)
        refuse_unused_batches(self.config, ready.training)  # its column exists: that would have been said first
        noise = Noise(ready.training.seed)
        run = run_of(self.name, self.config, ready.training, source, split, ready)
        checkpointer = checkpointer_of(checkpoint, run, noise, process, ready.device, in_order=source.in_order)
        training = limited(ready.training, len(ready.train))
        step_fn = recorded_step_or_none(ready.train, self.config, training, process)
        sizes = (ready.covariates.n_columns, len(ready.labels))
        batches = tuple(ready.batches)
        network = self._build(Shape(len(source.var_names), len(batches), batches, *sizes), noise)
        n_threads = threads_for(network, training, ready.device)
        with threads_set(n_threads):
            network.to(ready.device).start_from(ready.summary, ready.unshuffled)
        noise.seed_for_rank(process.rank)  # all processes start from the same weights, and differ in their noise
        if progress is not False:
            where = f"{ready.device} ({counted(n_threads, 'thread')})"
            announce(f"training on {where}: {ready.size}{resume_note(checkpointer)}")
        report = TrainingReport(len(ready.train), training, show=progress)
        return Start(network, training, checkpointer, step_fn, report, n_threads)

    def _keep(
        self, history: History, source: Source, split: Split, ready: TrainingData, start: Start, layer: str | None
    ) -> None:
        if history.records:
            start.network.finish(ready.sample.to(ready.device))
        start.report.ended(history)
        if history.stopped == "interrupted":
            warn_interrupted(history)
        elif start.checkpointer is not None:
            start.checkpointer.forget()
        self._assign(
            Fitted(
                network=start.network if history.records else None,
                training=ready.training.model_copy(update={"threads": torch.get_num_threads()}),  # bits depend on it
                layer=None if layer == "X" else layer,
                var_names=source.var_names,
                batches=ready.batches,
                library_size=ready.summary.library_size,
                history=pd.DataFrame(history.records),
                best_epoch=history.best_epoch,
                stopped=history.stopped,
                valid_obs=source.names(split.valid),
                valid_sizes=np.asarray(source.sizes[split.valid]),
                covariates=ready.covariates,
                labels=ready.labels,
            )
        )

    def _assign(self, fitted: Fitted) -> None:
        # all at once: a fit that fails leaves the model unchanged
        vars(self).update({f"{name}_": value for name, value in fitted._asdict().items()})

    def _build(self, shape: Shape, noise: Noise) -> Any:
        with usual_torch():
            return self.network_class(self.config, shape, noise)

    def _shape(self) -> Shape:
        batches, sizes = tuple(self.batches_), (self.covariates_.n_columns, len(self.labels_))
        return Shape(len(self.var_names_), len(batches), batches, *sizes)

    def _network(self) -> Any:
        if self.network_ is None:
            raise ConfigError("not-fitted", "the model is not fitted", remedy="fit(adata), or anncoder.load(folder)")
        return self.network_

    def _apply(self, data: Data, compute: Callable[[Batch], Tensor], layer: str | None, allow_missing: float) -> Array:
        # a function of minibatches, for all cells: (n_obs, ...)
        return np.concatenate(list(blocks(self, self._source(data, layer, allow_missing), compute)))

    def _source(self, data: Data, layer: str | None, allow_missing: float) -> Source:
        self._network()
        where = self.layer_ if layer is None else layer
        genes, counts, integers = Genes(self.var_names_, allow_missing), self.reads_counts, self.config.integers
        how = {"layer_is_of_fit": layer is None, "integers": integers, "strict": self.training_.empty_cells == "error"}
        return open_for_model(data, where, genes, counts=counts, **how)


def refuse_no_model(model: Any) -> None:
    """Raise a ConfigError unless this is a fitted model: not the path of one, and not something else."""
    if not hasattr(model, "network_"):
        path = isinstance(model, str | PathLike)
        found = f"the text or path {str(model)!r}" if path else type(model).__name__
        remedy = f"ac.load({str(model)!r}) reads a saved one" if path else "fit(adata), or anncoder.load(folder)"
        raise ConfigError("no-model", f"expected a fitted model, got {found}", "model", remedy)
    model._network()
