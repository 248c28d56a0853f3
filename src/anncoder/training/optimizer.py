"""Optimizers (Adam, RMSprop, stochastic gradient descent) and a step with clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anncoder.config import TrainingConfig, given
from anncoder.kernels import fused, on_gpu


def optimizer_of(network: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer of a network's trainable parameters."""
    rate, decay, epsilon = given(config.learning_rate), given(config.weight_decay), given(config.epsilon)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if config.optimizer == "rmsprop":  # rho is Keras's; torch's own is 0.99
        return torch.optim.RMSprop(parameters, lr=rate, alpha=0.9, eps=epsilon, weight_decay=decay)
    betas = (given(config.beta1), given(config.beta2))
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=betas[0], weight_decay=decay)
    if fused(*parameters) and not config.clip_value:
        return Adam(parameters, rate, betas, epsilon, decay)
    if on_gpu(*parameters) and not config.clip_value:
        return GpuAdam(parameters, rate, betas, epsilon, decay, capturable=True)
    # clipping by value has to see every entry before the step does
    has_fused_step = device.type != "mps" and not config.clip_value
    return torch.optim.Adam(parameters, rate, betas, epsilon, decay, fused=has_fused_step)


def step(optimizer: torch.optim.Optimizer, total: Tensor, config: TrainingConfig) -> Tensor | bool:
    """Clip the gradients and take a step, unless something is not finite; return whether everything is, () bool.

    Off the CPU, RMSprop, and Adam with ``clip_value``, then take a step of zero gradient: the device is not waited for,
    the weights stay finite, and only the moments move them.
    """
    clip_norm = config.clip_norm or float("inf")
    if isinstance(optimizer, Adam):
        return optimizer.descend(float(total), clip_norm)
    if isinstance(optimizer, GpuAdam):
        return optimizer.descend(total, clip_norm)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    finite = torch.isfinite(total + norm)
    if optimizer.defaults.get("fused"):
        # the fused step divides the gradients by grad_scale, and does nothing for found_inf: the attributes by which
        # torch's own GradScaler works
        optimizer.grad_scale = (norm / clip_norm).clamp(min=1)  # type: ignore[attr-defined]
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    else:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        if config.clip_value:
            nn.utils.clip_grad_value_(parameters, config.clip_value)
        if total.device.type != "cpu":
            for p in parameters:
                assert p.grad is not None
                p.grad.masked_fill_(~finite, 0.0)
        elif not bool(finite):
            return finite
    optimizer.step()
    return finite


Array = np.ndarray[Any, Any]


class Adam(torch.optim.Adam):
    """torch's Adam for float32 on the CPU, with steps in two passes over memory; its state is torch's.

    torch keeps its compiler away from some methods, and imports it for that, which takes longer than many a fit: they
    are called as they were written.
    """

    _plan: AdamPlan | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to be optimized."""
        _as_written(torch.optim.Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and settings."""
        found: dict[str, Any] = _as_written(torch.optim.Optimizer.state_dict)(self)
        return found

    @torch.no_grad()
    def descend(self, total: float, clip_norm: float) -> bool:
        """Take a step down the gradient, scaled to a norm of at most ``clip_norm``; return whether all was finite.

        If the norm or the loss, ``total``, is not finite, nothing changes.
        """
        from anncoder.kernels.cpu.adam import adam, sum_squares

        (group,) = self.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        # a parameter may get other memory: `p.data = ...`
        places = [_address(p) for p in parameters]
        if self._plan is None or self._plan.places != places:
            self._plan = self._planned(parameters, places)
        plan = self._plan
        gradients = np.array([_address(p.grad) for p in parameters], dtype=np.int64)
        np.add(gradients[plan.pieces[:, 5]], plan.starts, out=plan.pieces[:, 1])
        sum_squares(len(plan.pieces), plan.pieces, plan.sums)
        norm = math.sqrt(float(plan.sums.sum()))
        if not math.isfinite(norm + total):
            return False
        plan.n_steps.add_(1)
        factor = min(1.0, clip_norm / norm) if norm else 1.0
        numbers = np.array([factor, group["lr"], group["weight_decay"], *group["betas"], group["eps"]])
        adam(len(plan.pieces), plan.pieces, plan.n_steps, numbers)
        return True

    def load_state_dict(self, state_dict: Any) -> None:
        """Take the state of another optimizer of the same parameters."""
        self._plan = None
        super().load_state_dict(state_dict)

    def _planned(self, parameters: list[Tensor], places: list[int]) -> AdamPlan:
        from anncoder.kernels.cpu.adam import PIECE

        n_steps = counted(self, parameters)
        tensors, pieces, starts = [], [], []
        for number, p in enumerate(parameters):
            state = self.state[p]
            tensors += [p.detach(), state["exp_avg"], state["exp_avg_sq"]]
            p_at, m_at, v_at = (_address(t) for t in tensors[-3:])
            for start in range(0, 4 * p.numel(), 4 * PIECE):
                length = min(PIECE, p.numel() - start // 4)
                pieces.append([p_at + start, 0, m_at + start, v_at + start, length, number])
                starts.append(start)
        table = np.array(pieces, dtype=np.int64).reshape(-1, 6)
        return AdamPlan(places, tensors, n_steps, table, np.array(starts, dtype=np.int64), np.empty(len(table)))


class GpuAdam(torch.optim.Adam):
    """torch's Adam for float32 on a CUDA GPU, with steps of a few launches, never waiting; its state is torch's."""

    _n_steps: Tensor | None = None  # (n_parameters,) the same for all
    _parameters: tuple[int, ...] = ()  # identities

    @torch.no_grad()
    def descend(self, total: Tensor, clip_norm: float) -> Tensor:
        """As :meth:`Adam.descend`; the result, () bool, stays on the device."""
        from anncoder.kernels.gpu.launch import AdamSettings, Moved, adam_step

        (group,) = self.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        identities = tuple(id(p) for p in parameters)
        if self._n_steps is None or self._parameters != identities:
            if self._n_steps is not None:
                raise RuntimeError("the parameters that have a gradient are others than in the steps before")
            self._n_steps, self._parameters = counted(self, parameters), identities
        states = [self.state[p] for p in parameters]
        moved = [Moved(p, p.grad, s["exp_avg"], s["exp_avg_sq"]) for p, s in zip(parameters, states, strict=True)]
        settings = AdamSettings(group["lr"], group["betas"], group["eps"], group["weight_decay"], clip_norm)
        return adam_step(moved, self._n_steps, total, settings)

    def load_state_dict(self, state_dict: Any) -> None:
        """Take the state of another optimizer of the same parameters."""
        self._n_steps = None
        super().load_state_dict(state_dict)


def counted(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> Tensor:
    """Initialise missing states of Adam; return the step counts as one tensor, (n,), which the states view.

    One addition then counts a step of all parameters.
    """
    for p in parameters:
        if not optimizer.state[p]:
            optimizer.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    n_steps = torch.stack([optimizer.state[p]["step"] for p in parameters])
    for p, steps in zip(parameters, n_steps.unbind(), strict=True):
        optimizer.state[p]["step"] = steps
    return n_steps


class AdamPlan(NamedTuple):
    """Addresses of the pieces of parameters and moments, for :mod:`anncoder.kernels.cpu.adam`."""

    places: list[int]  # addresses of the parameters
    tensors: list[Tensor]  # parameters and moments, referenced so that their memory is not freed
    n_steps: Tensor  # (n_parameters,); the state has views of it
    pieces: Array  # (n, 6) int64, see the kernel; the addresses of the gradients are written before each step
    starts: Array  # (n,) offset of each in its parameter, in bytes
    sums: Array  # (n,) float64, working memory of the kernel


def _as_written(method: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(method, "__wrapped__", method)


def _address(tensor: Tensor | None) -> int:
    if tensor is None or not tensor.is_contiguous():
        raise RuntimeError("a parameter, its gradient or a moment is not contiguous: torch.optim.Adam takes those")
    return tensor.data_ptr()
