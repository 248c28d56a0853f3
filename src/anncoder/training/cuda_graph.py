"""CUDA graph of a training step, recorded once and replayed.

A step of a small network is a hundred short launches, which take Python longer than the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.loaders.gpu import ResidentLoader, StaticBatch
from anncoder.errors import ConfigError
from anncoder.kernels import on_gpu
from anncoder.training.loop import StepFunction, descend
from anncoder.types import Batch, Loader, Loss, Rank

WARM_UP = 3  # steps: kernels are compiled, libraries make their plans, the optimizer its state


def plain_step(
    network: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, config: TrainingConfig
) -> tuple[Loss, Tensor | bool]:
    """Take a step; return the loss, and whether everything is finite, () bool.

    The autograd graph ends here: its nodes are bound to the stream that they were made on.
    """
    loss: Loss = network(batch)
    finite = descend(optimizer, loss, config)
    return loss._replace(total=loss.total.detach()), finite


class RecordedStep:
    """The ``step_fn`` of :func:`anncoder.training.loop.train` on minibatches at a fixed address.

    The first steps are plain. Then one is recorded, the making of its minibatch included, and replayed; it is recorded
    anew if the step size, a constant of the recording, has changed, once it stays. The last minibatch of an epoch, at
    another address than the full ones (:class:`anncoder.data.loaders.gpu.ResidentLoader`), gets a plain step.
    """

    def __init__(self, place: StaticBatch) -> None:
        self.place = place
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rate, self.n_plain = 0.0, 0
        self.result: tuple[Loss, Tensor | bool] | None = None  # in the memory of the recording

    def __call__(
        self, network: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, config: TrainingConfig
    ) -> tuple[Loss, Tensor | bool]:
        """Take a step."""
        if batch.rows.data_ptr() != self.place.batch.rows.data_ptr():
            return plain_step(network, batch, optimizer, config)
        with torch.cuda.device(batch.rows.device):
            rate = optimizer.param_groups[0]["lr"]
            if self.n_plain < WARM_UP or rate != self.rate:  # it may be rising: recorded once it stays
                self.n_plain += 1
                self.rate, self.graph = rate, None
                return self._on_the_side(network, batch, optimizer, config)
            if self.graph is None:
                self._record(network, batch, optimizer, config)
            assert self.graph is not None
            self.graph.replay()
        assert self.result is not None
        loss, finite = self.result
        return loss, torch.as_tensor(finite).clone()  # the next step overwrites it

    def _record(
        self, network: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, config: TrainingConfig
    ) -> None:
        # torch's default stream for this belongs to the device of the first recording in the process; other threads may
        # work meanwhile
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self.place.fill()
            self.result = plain_step(network, batch, optimizer, config)
        self.graph = graph

    def _on_the_side(
        self, network: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer, config: TrainingConfig
    ) -> tuple[Loss, Tensor | bool]:
        # libraries must be initialised on another stream than the default, as the recording itself
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self.place.fill()
            result = plain_step(network, batch, optimizer, config)
        here.wait_stream(aside)
        return result


def recorded_step_or_none(
    loader: Loader, config: NetworkConfig, training: TrainingConfig, process: Rank
) -> StepFunction | None:
    """Return the step function of a fit; None for plain steps. A ConfigError if a required recording is impossible."""
    if training.cuda_graph is False:
        return None
    if not config.recordable:
        reason = "the model, as it is set, does not do the same for every minibatch"
    elif training.obs_columns:
        reason = "batches and covariates are looked up for each stored value"
    elif training.label_key is not None:
        reason = "labels are looked up by the rows of a minibatch"
    elif training.optimizer != "adam" or training.clip_value:
        reason = "it takes Adam, and no clip_value"
    elif process.size > 1:
        reason = "several processes exchange their gradients in each step"
    elif not isinstance(loader, ResidentLoader) or not on_gpu(loader.resident.arrays[2]):
        reason = "it takes a CUDA GPU with Triton, and data from memory that fit on it"
    elif loader.n_obs < loader.loader.batch_size:
        reason = "there are fewer cells than batch_size"
    else:
        return RecordedStep(loader.in_one_place())
    if training.cuda_graph:
        remedy = "leave cuda_graph out: the steps are the same, only slower"
        raise ConfigError("no-cuda-graph", f"the step cannot be recorded: {reason}", "cuda_graph", remedy)
    return None
