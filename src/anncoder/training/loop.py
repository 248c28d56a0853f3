"""Training loop: epochs, early stopping, learning-rate schedule, best weights.

It knows no model, no file format and no AnnData. A network is anything whose ``forward(batch)`` returns a
:class:`~anncoder.types.Loss`; data are anything that yields :class:`~anncoder.types.Batch`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from anncoder.config import TrainingConfig, given
from anncoder.errors import ConfigError, DivergenceError
from anncoder.training import divergence
from anncoder.training.distributed import average_buffers, names_of_all, summed, wrapped
from anncoder.training.optimizer import optimizer_of, step
from anncoder.types import SINGLE, Batch, Loader, Loss, Rank

Record = dict[str, float]
# takes a step, where that is not simply done; returns the loss, and whether all is finite, () bool
StepFunction = Callable[[nn.Module, Batch, torch.optim.Optimizer, TrainingConfig], tuple[Loss, Tensor | bool]]


class Progress(Protocol):
    """Somebody to tell how training goes."""

    def step(self) -> None:
        """Follow one minibatch."""
        ...

    def epoch(self, record: Record) -> None:
        """Follow one epoch."""
        ...


class Checkpointer(Protocol):
    """Somebody who keeps the state of training where a later process finds it again."""

    def restore(self, state: State) -> None:
        """Put the state that was kept, if there is one, in place of that of a start."""
        ...

    def after_step(self, state: State) -> None:
        """Look at the state after a minibatch or an epoch, and keep it if that is due."""
        ...


class History(NamedTuple):
    """What happened in training; the network holds the best weights."""

    records: list[Record]  # one an epoch: epoch, learning_rate, seconds, train_<term>, valid_<term>
    best_epoch: int
    stopped: str  # "early" | "max_epochs" | "interrupted" | "diverged"


class EarlyStopping:
    """The best loss so far, its weights, and how long ago it was.

    Parameters
    ----------
    config
        For ``min_delta``, ``patience``, ``reduce_lr_patience``.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.best = float("inf")
        self.best_epoch = -1
        self.weights: dict[str, Tensor] = {}
        self.mark = float("inf")  # the last loss that fell far enough to count
        self.waited = 0
        self.waited_at_rate = 0

    def after_epoch(self, loss: float, epoch: int, network: nn.Module) -> None:
        """Take note of an epoch's loss, and keep the weights if they are the best (or, without keep_best, the last)."""
        if loss < self.best or not self.config.keep_best:
            self.best, self.best_epoch = loss, epoch
            self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        improved = loss < self.mark - self.config.min_delta * abs(self.mark) if epoch else True
        if improved:
            self.mark = loss
        self.waited = 0 if improved else self.waited + 1
        self.waited_at_rate = 0 if improved else self.waited_at_rate + 1

    def reduces_rate(self) -> bool:
        """Tell whether the learning rate should fall now; starts the next wait if so."""
        patience = self.config.reduce_lr_patience
        if not patience or self.waited_at_rate < patience:
            return False
        self.waited_at_rate = 0
        return True

    def gives_up(self) -> bool:
        """Tell whether to stop early."""
        return bool(self.config.early_stopping) and self.waited >= given(self.config.patience)


class State:
    """Where training stands: all that is needed to go on from here, beside the network's random streams.

    Parameters
    ----------
    network, optimizer
        The network itself, not a wrapper of it, and what moves its weights.
    config
        Training settings.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig) -> None:
        self.network, self.optimizer, self.early_stopping = network, optimizer, EarlyStopping(config)
        self.records: list[Record] = []  # of the epochs that are over
        self.mean = RunningMean()  # of the losses in the epoch that is not
        self.healthy: Tensor | bool = True  # whether everything was finite in it, () bool


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
) -> History:
    """Fit a network in place and leave it with its best weights, in evaluation mode.

    Parameters
    ----------
    network
        ``network(batch)`` is the loss.
    loader, valid_loader
        Cells to fit on, and cells held out. Without the latter the training loss is watched instead.
    config
        Training settings.
    device
        Where to compute.
    progress
        Told of every step and epoch.
    process
        Which of several processes this is.
    checkpointer
        Has the state to go on from, and keeps the later ones.
    step_fn
        Takes the steps, where they are not simply taken; see :mod:`anncoder.training.cuda_graph`.

    Raises
    ------
    DivergenceError
        The loss, on the cells to fit on or on those held out, or the gradient stopped being finite; the network holds
        the best weights until then, if there are any.
    ConfigError
        A term of the loss has a name that is taken.
    """
    network.to(device)
    optimizer = optimizer_of(network, config, device)
    state = State(network, optimizer, config)
    if checkpointer is not None:
        checkpointer.restore(state)
    parallel = wrapped(network, process)
    early_stopping, records, stopped = state.early_stopping, state.records, "max_epochs"
    try:
        for epoch in range(len(records), given(config.max_epochs)):
            began = time.perf_counter()
            fitted = fit_epoch(parallel, loader, state, config, progress, process, checkpointer, step_fn)
            average_buffers(network, process)
            held_out = {} if valid_loader is None else mean_loss(network, valid_loader, device, process)
            if not all(math.isfinite(value) for value in held_out.values()):
                raise divergence.in_epoch(held_out, epoch, held_out=True)
            means = {f"train_{k}": v for k, v in fitted.items()} | {f"valid_{k}": v for k, v in held_out.items()}
            rate = optimizer.param_groups[0]["lr"]
            records.append({"epoch": epoch, "learning_rate": rate, "seconds": time.perf_counter() - began, **means})
            progress.epoch(records[-1])
            early_stopping.after_epoch(means["train_loss" if valid_loader is None else "valid_loss"], epoch, network)
            if early_stopping.gives_up():
                stopped = "early"
                break
            if early_stopping.reduces_rate():
                optimizer.param_groups[0]["lr"] = rate * given(config.reduce_lr_factor)
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
        for parameter in network.parameters():  # as large as the network, and of no use to a fitted one
            parameter.grad = None
    return History(records, early_stopping.best_epoch, stopped)


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
    """Take the steps that are left of an epoch, one a minibatch; return the mean of each term over all its cells."""
    network.train()
    device = next(network.parameters()).device
    epoch, done = len(state.records), state.mean.n_steps
    for number, host_batch in enumerate(islice(loader.epoch(epoch), done, None), done):
        batch = host_batch if device.type == "cpu" else host_batch.to(device)
        if step_fn is None:
            loss: Loss = network(batch)
            finite = descend(state.optimizer, loss, config)
        else:
            loss, finite = step_fn(network, batch, state.optimizer, config)
        state.healthy = finite & state.healthy
        # on the CPU the answer is there; a GPU would have to be waited for, and is asked once an epoch
        if device.type == "cpu" and not bool(finite):
            raise divergence.in_minibatch(network, batch, loss, epoch, number)
        state.mean.add(loss, len(batch.rows))
        if checkpointer is not None:
            checkpointer.after_step(state)
        progress.step()
    if not bool(state.healthy):
        raise divergence.in_epoch(state.mean.sums, epoch)
    return state.mean.result(device, process)


def descend(optimizer: torch.optim.Optimizer, loss: Loss, config: TrainingConfig) -> Tensor | bool:
    """Take a step down the gradient of a loss; return whether all is finite, () bool."""
    for group in optimizer.param_groups:  # as zero_grad does, which takes forty times as long
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
    """Mean of losses over cells, accumulated where the losses are: from a GPU nothing is copied until the end."""

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
            # in float64: a million small minibatches must not drown in the sum
            here = value.item() if value.device.type == "cpu" else value.double()
            self.sums[name] = self.sums.get(name, 0.0) + here * n_cells
        self.n_cells += n_cells
        self.n_steps += 1

    def result(self, device: torch.device, process: Rank = SINGLE) -> Record:
        """Return the means, over the cells of all processes; this one may have seen none."""
        names = names_of_all(list(self.sums), process, device)
        numbers = (*(self.sums.get(name, 0.0) for name in names), self.n_cells)
        sums = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in numbers])
        *totals, n_cells = summed(sums, process).tolist()
        means = {name: total / n_cells for name, total in zip(names, totals, strict=True)}
        return {"loss": sum(means.values()), **means}
