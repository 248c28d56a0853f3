"""Training loop: epochs, early stopping, learning-rate schedule, best weights.

It knows no model, no file format and no AnnData. A network is any module with ``forward(batch)`` returning a
:class:`~anncoder.types.Loss`; data are any iterable of :class:`~anncoder.types.Batch`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from anncoder.config import TrainingConfig, given
from anncoder.errors import ConfigError, DivergenceError
from anncoder.training import divergence
from anncoder.training.averaging import CELLS, AveragedWeights
from anncoder.training.distributed import average_buffers, names_of_all, summed, wrapped
from anncoder.training.optimizer import optimizer_of, step
from anncoder.types import SINGLE, Batch, Loader, Loss, Rank

Record = dict[str, float]
# a replacement of forward, backward and step; returns the loss, and whether everything is finite, () bool
StepFunction = Callable[[nn.Module, Batch, torch.optim.Optimizer, TrainingConfig], tuple[Loss, Tensor | bool]]


class Progress(Protocol):
    """Listener to the progress of training."""

    def step(self) -> None:
        """Follow one minibatch."""
        ...

    def epoch(self, record: Record) -> None:
        """Follow one epoch."""
        ...


class Checkpointer(Protocol):
    """Storage of the state of training, for a later process."""

    def restore(self, state: State) -> None:
        """Replace the initial state by the stored one, if there is one."""
        ...

    def after_step(self, state: State) -> None:
        """Store the state after a minibatch or an epoch, if that is due."""
        ...


class History(NamedTuple):
    """Record of a training; the network holds the best weights."""

    records: list[Record]  # one an epoch: epoch, learning_rate, seconds, train_<term>, valid_<term>
    best_epoch: int
    stopped: str  # "early" | "max_epochs" | "interrupted" | "diverged"


class EarlyStopping:
    """The best loss so far, its weights, and how long ago it was."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.best = float("inf")
        self.best_epoch = -1
        self.weights: dict[str, Tensor] = {}
        self.mark = float("inf")  # the last loss that fell far enough to count
        self.waited = 0
        self.waited_at_rate = 0

    def after_epoch(self, loss: float, epoch: int, network: nn.Module) -> None:
        """Record an epoch's loss; copy the weights if they are the best (without ``keep_best``, always)."""
        if loss < self.best or not self.config.keep_best:
            self.best, self.best_epoch = loss, epoch
            self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        improved = loss < self.mark - given(self.config.min_delta) * abs(self.mark) if epoch else True
        if improved:
            self.mark = loss
        self.waited = 0 if improved else self.waited + 1
        self.waited_at_rate = 0 if improved else self.waited_at_rate + 1

    def reduces_rate(self) -> bool:
        """Return whether the learning rate should fall now, and if so restart the wait."""
        patience = self.config.reduce_lr_patience
        if not patience or self.waited_at_rate < patience:
            return False
        self.waited_at_rate = 0
        return True

    def gives_up(self, n_minibatches: int) -> bool:
        """Return whether to stop early, where an epoch has so many minibatches."""
        enough = self.waited * n_minibatches >= given(self.config.patience_steps)
        return bool(self.config.early_stopping) and enough and self.waited >= given(self.config.patience)


class State:
    """State of training: all that a resume needs, beside the network's random streams.

    ``network`` is the network itself, not a wrapper of it; ``sample`` are cells of the fit, on its device.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        sample: Batch | None = None,
    ) -> None:
        self.network, self.optimizer, self.early_stopping = network, optimizer, EarlyStopping(config)
        self.averaged = AveragedWeights(network, sample) if config.averaging else None
        self.warmup_steps = given(config.lr_warmup_steps)
        self.rate = given(config.learning_rate)  # step size after the warm-up
        self.n_steps = 0  # since the beginning
        self.records: list[Record] = []  # of the finished epochs
        self.mean = RunningMean()  # of the losses in the current epoch
        self.healthy: Tensor | bool = True  # whether everything was finite in it, () bool

    def before_step(self) -> None:
        """Set the step size."""
        rate = self.rate * min(1.0, (self.n_steps + 1) / (self.warmup_steps + 1))
        self.optimizer.param_groups[0]["lr"] = rate

    def after_step(self) -> None:
        """Count a step, and let the average follow."""
        self.n_steps += 1
        if self.averaged is not None:
            self.averaged.after_step(self.n_steps)

    def as_validated(self) -> AbstractContextManager[None]:
        """Give the network the weights to validate and to keep, for the time of a block."""
        return nullcontext() if self.averaged is None else self.averaged.in_place()


def train(
    network: nn.Module,
    loader: Loader,
    valid_loader: Loader | None,
    config: TrainingConfig,
    device: torch.device,
    progress: Progress,
    process: Rank = SINGLE,
    checkpointer: Checkpointer | None = None,
    step_fn: StepFunction | None = None,
    sample: Batch | None = None,
) -> History:
    """Fit a network in place and leave it with its best weights, in evaluation mode.

    Parameters
    ----------
    network
        ``network(batch)`` is the loss.
    loader, valid_loader
        Cells to fit on, and cells held out. Without the latter, early stopping follows the training loss.
    config, device
        Training settings, and where to compute.
    progress
        Called after every step and epoch.
    process
        Rank of this process.
    checkpointer
        Restores the state of an unfinished run, and stores later ones.
    step_fn
        Replaces the plain step; see :mod:`anncoder.training.cuda_graph`.
    sample
        Cells of the fit, for the batch-norm statistics of averaged weights; the same in all processes.

    Raises
    ------
    DivergenceError
        The loss, on the cells to fit on or on those held out, or the gradient stopped being finite; the network holds
        the best weights until then, if there are any.
    ConfigError
        A term of the loss is called ``"loss"``.
    """
    network.to(device)
    seen = None if sample is None or not config.averaging else sample.head(CELLS).to(device)
    state = State(network, optimizer_of(network, config, device), config, seen)
    if checkpointer is not None:
        checkpointer.restore(state)
    parallel = wrapped(network, process)
    early_stopping, records, stopped = state.early_stopping, state.records, "max_epochs"
    try:
        for _ in range(len(records), given(config.max_epochs)):
            began = time.perf_counter()
            fitted = fit_epoch(parallel, loader, state, config, progress, process, checkpointer, step_fn)
            average_buffers(network, process)
            validate(state, fitted, valid_loader, device, process, began)
            progress.epoch(records[-1])
            if early_stopping.gives_up(len(loader)):
                stopped = "early"
                break
            if early_stopping.reduces_rate():
                state.rate *= given(config.reduce_lr_factor)
            state.mean, state.healthy = RunningMean(), True
            if checkpointer is not None:
                checkpointer.after_step(state)
    except DivergenceError as error:
        error.history = History(records, early_stopping.best_epoch, "diverged")
        raise
    except KeyboardInterrupt:
        stopped = "interrupted"
    finally:
        if early_stopping.weights:
            network.load_state_dict(early_stopping.weights)
        network.eval()
        for parameter in network.parameters():  # as large as the network, and useless after the fit
            parameter.grad = None
    return History(records, early_stopping.best_epoch, stopped)


def validate(
    state: State,
    fitted: Record,
    loader: Loader | None,
    device: torch.device,
    process: Rank,
    began: float,
) -> None:
    """Score the weights of an epoch on the cells held out; add its record, and keep the weights if they are the best.

    ``fitted`` has the mean losses of the cells fitted, ``began`` is the time at which the epoch did.
    """
    epoch = len(state.records)
    with state.as_validated():
        held_out = {} if loader is None else mean_loss(state.network, loader, device, process)
        if not all(math.isfinite(value) for value in held_out.values()):
            raise divergence.in_epoch(held_out, epoch, held_out=True)
        means = {f"train_{k}": v for k, v in fitted.items()} | {f"valid_{k}": v for k, v in held_out.items()}
        loss = means["train_loss" if loader is None else "valid_loss"]
        state.early_stopping.after_epoch(loss, epoch, state.network)
    times = {"epoch": epoch, "learning_rate": state.rate, "seconds": time.perf_counter() - began}
    state.records.append({**times, **means})


def fit_epoch(
    network: nn.Module,
    loader: Loader,
    state: State,
    config: TrainingConfig,
    progress: Progress,
    process: Rank = SINGLE,
    checkpointer: Checkpointer | None = None,
    step_fn: StepFunction | None = None,
) -> Record:
    """Take the remaining steps of an epoch, one a minibatch; return the mean of each term over all its cells."""
    network.train()
    device = next(network.parameters()).device
    epoch, done = len(state.records), state.mean.n_steps
    gradients: Callable[[Batch], Loss | None] | None = getattr(network, "gradients", None)
    for number, host_batch in enumerate(islice(loader.epoch(epoch), done, None), done):
        batch = host_batch if device.type == "cpu" else host_batch.to(device)
        state.before_step()
        if step_fn is None:
            loss: Loss | None = None if gradients is None else gradients(batch)
            if loss is None:
                loss = network(batch)
                finite = descend(state.optimizer, loss, config)
            else:
                finite = step(state.optimizer, loss.total, config)
        else:
            loss, finite = step_fn(network, batch, state.optimizer, config)
        state.healthy = finite & state.healthy
        # on the CPU the answer costs nothing; a GPU would have to be waited for, and is asked once an epoch
        if device.type == "cpu" and not bool(finite):
            raise divergence.in_minibatch(network, batch, loss, epoch, number)
        state.after_step()
        state.mean.add(loss, len(batch.rows))
        if checkpointer is not None:
            checkpointer.after_step(state)
        progress.step()
    if not bool(state.healthy):
        raise divergence.in_epoch(state.mean.sums, epoch)
    return state.mean.result(device, process)


def descend(optimizer: torch.optim.Optimizer, loss: Loss, config: TrainingConfig) -> Tensor | bool:
    """Take a step down the gradient of a loss; return whether everything is finite, () bool."""
    for group in optimizer.param_groups:  # zero_grad does the same in forty times the time
        for parameter in group["params"]:
            parameter.grad = None
    loss.total.backward()  # type: ignore[no-untyped-call]
    return step(optimizer, loss.total.detach(), config)


@torch.no_grad()
def mean_loss(network: nn.Module, loader: Loader, device: torch.device, process: Rank = SINGLE) -> Record:
    """Return the mean over the cells of the loss and of each of its terms, in evaluation mode."""
    network.eval()
    mean = RunningMean()
    for batch in loader.epoch(0):
        mean.add(network(batch if device.type == "cpu" else batch.to(device)), len(batch.rows))
    return mean.result(device, process)


class RunningMean:
    """Mean of losses over cells, accumulated on the device: a GPU is not waited for until the end."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}  # float64 numbers, or tensors on a GPU
        self.n_cells = 0
        self.n_steps = 0

    def add(self, loss: Loss, n_cells: int) -> None:
        """Add the loss of a minibatch of n_cells."""
        if "loss" in loss.terms:
            what = "a term of the model's loss is called 'loss', which is the name of their sum"
            raise ConfigError("bad-name", what, "Loss.terms", "give the term another name in the model's forward")
        for name, value in loss.terms.items():
            # in float64: the sum is of a million small minibatches
            loss_of_cell = value.item() if value.device.type == "cpu" else value.double()
            self.sums[name] = self.sums.get(name, 0.0) + loss_of_cell * n_cells
        self.n_cells += n_cells
        self.n_steps += 1

    def result(self, device: torch.device, process: Rank = SINGLE) -> Record:
        """Return the means over the cells of all processes; this process may have had none."""
        names = names_of_all(list(self.sums), process, device)
        numbers = (*(self.sums.get(name, 0.0) for name in names), self.n_cells)
        sums = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in numbers])
        *totals, n_cells = summed(sums, process).tolist()
        means = {name: total / n_cells for name, total in zip(names, totals, strict=True)}
        return {"loss": sum(means.values()), **means}
