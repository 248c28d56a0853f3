"""L1 and L2 penalties on weights, with a warm-up."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from anncoder.types import Summary


class WarmUp(nn.Module):
    """A factor that rises linearly from 0 to 1 over the first ``n_steps`` training steps; always 1 if that is 0.

    The number of steps is a buffer, saved with the weights, for resumed runs. In evaluation the factor is 1: losses of
    different epochs are comparable, and the first epoch is not the best by its small penalty.
    """

    steps: Tensor

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        """Return the factor, (), and count the step in training."""
        if self.n_steps == 0 or not self.training:
            return torch.ones((), device=self.steps.device)
        self.steps += 1
        return (self.steps / self.n_steps).clamp(max=1)


class EpochWarmUp(nn.Module):
    """As :class:`WarmUp`, over the first ``n_epochs`` epochs."""

    steps: Tensor
    steps_per_epoch: Tensor

    def __init__(self, n_epochs: int) -> None:
        super().__init__()
        self.n_epochs = n_epochs
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps_per_epoch", torch.ones((), dtype=torch.int64))

    def start_from(self, summary: Summary) -> None:
        """Take the number of steps in an epoch."""
        self.steps_per_epoch.fill_(max(summary.n_steps, 1))

    def forward(self) -> Tensor:
        """Return the factor, (); the first training step has 0."""
        if self.n_epochs == 0 or not self.training:
            return torch.ones((), device=self.steps.device)
        factor = (self.steps / (self.n_epochs * self.steps_per_epoch)).clamp(max=1)
        self.steps += 1
        return factor


class WeightPenalty(nn.Module):
    """``l1 * sum |w| + l2 * sum w^2`` over the weight matrices (not biases) of a network, with a :class:`WarmUp`."""

    def __init__(self, l1: float, l2: float, warmup_steps: int) -> None:
        super().__init__()
        self.l1, self.l2 = l1, l2
        self.warm_up = WarmUp(warmup_steps)

    def forward(self, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return the weighted terms with a factor above 0, by name."""
        if not (self.l1 or self.l2):
            return {}
        weights = [p for p in parameters if p.dim() == 2]
        factor = self.warm_up()
        terms = {}
        if self.l1:
            terms["l1"] = factor * self.l1 * torch.stack([w.abs().sum() for w in weights]).sum()
        if self.l2:
            terms["l2"] = factor * self.l2 * torch.stack([w.square().sum() for w in weights]).sum()
        return terms
