"""Averaged weights, with exact batch-norm statistics, for validation and for the result.

At a constant learning rate the weights walk around the optimum; their average is nearer to it (Polyak, Juditsky 1992,
doi 10.1137/0330046), and its validation loss is smooth. The running statistics of batch normalisation are those of
other weights: for the average they are computed anew, from cells of the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anncoder.types import Batch

EVERY = 4  # steps between two updates of the average
MEMORY = 0.99  # of the average, a step: it reaches back by some hundred steps
WARM = 9.0  # in the beginning the average reaches back by a tenth of the run: t / (1 + WARM) updates
CELLS = 2048  # from which the statistics of batch normalisation are computed


class AveragedWeights:
    """The running average of a network's trainable parameters.

    Parameters
    ----------
    network
        The network, not a wrapper of it.
    sample
        Cells of the fit for the statistics of batch normalisation, at least two; None leaves the running ones.
    """

    def __init__(self, network: nn.Module, sample: Batch | None) -> None:
        self.network = network
        self.parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self.values = [p.detach().clone() for p in self.parameters]
        self.sample = sample

    @torch.no_grad()
    def after_step(self, n_steps: int) -> None:
        """Follow a step, the ``n_steps``-th of the run (from 1)."""
        if n_steps % EVERY == 0:
            n_updates = n_steps // EVERY
            weight = max(1 - MEMORY**EVERY, WARM / (WARM + n_updates))
            torch._foreach_lerp_(self.values, self.parameters, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the averaged weights, and statistics of theirs, for the time of a block.

        The parameters stay where they are in memory: optimizers and CUDA graphs hold their addresses.
        """
        current = [p.detach().clone() for p in self.parameters]
        self._copy(self.values)
        try:
            if self.sample is not None:
                recompute_statistics(self.network, self.sample)
            yield
        finally:
            self._copy(current)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def recompute_statistics(network: nn.Module, sample: Batch) -> None:
    """Set the running statistics of batch normalisation to those of a sample, (n, g): in evaluation, of clean input.

    One pass of all its cells at once, through ``network.hidden`` where there is one (all but the output layer), else
    through ``forward``. Nothing is drawn from the network's random stream.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    compute: Callable[[Batch], Any] = getattr(network, "hidden", network)
    try:
        compute(sample)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
