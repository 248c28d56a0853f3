"""Backpropagation through hidden layers without an autograd graph.

A training step of a small minibatch is mostly the fixed cost of its operations and of the graph that records them.
Products, batch normalisation and ReLU are computed here by the operations that torch's own layers call, so results and
gradients have the same bits; the readable form is the modules themselves, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Link(NamedTuple):
    """A product, or a normalisation with the activation behind it."""

    module: Any  # Linear, or BatchNorm1d
    rectified: bool = False  # whether a ReLU follows the normalisation


class Kept(NamedTuple):
    """Input and output of a link, which its gradients read."""

    x: Tensor  # (b, n_in)
    out: Tensor  # (b, n_out)
    mean: Tensor | None = None  # (n_out,) of a normalisation
    inverse: Tensor | None = None  # (n_out,) 1 / standard deviation


class Links(NamedTuple):
    """Encoder and decoder of a network as links; found once, when it is built."""

    encoder: list[Link]
    decoder: list[Link]
    modules: list[nn.Module]  # of the whole network
    parameters: list[Tensor]

    def hooked(self) -> bool:
        """Return whether a module has hooks: a computation without a graph would not call them."""
        return any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in self.modules
        )


def links_of(network: nn.Module, encoder: Iterable[nn.Module], decoder: Iterable[nn.Module]) -> Links | None:
    """Return the layers of a network behind its first product; None if there is one that has no form here."""
    parts = _linked(encoder), _linked(decoder)
    if parts[0] is None or parts[1] is None:
        return None
    return Links(parts[0], parts[1], list(network.modules()), list(network.parameters()))


def _linked(modules: Iterable[nn.Module]) -> list[Link] | None:
    # Linear, BatchNorm1d, a ReLU behind it, and layers that change nothing
    links: list[Link] = []
    for module in _flat(modules):
        if type(module) is nn.Linear or (
            isinstance(module, nn.BatchNorm1d) and module.momentum is not None and module.track_running_stats
        ):
            links.append(Link(module))
        elif type(module) is nn.ReLU and links and isinstance(links[-1].module, nn.BatchNorm1d):
            links[-1] = Link(links[-1].module, rectified=True)
        elif not (type(module) is nn.Identity or getattr(module, "rate", None) == 0):  # a dropout of nothing
            return None
    return links


def _flat(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _flat(module)
        else:
            yield module


def forward(links: list[Link], x: Tensor) -> tuple[Tensor, list[Kept]]:
    """Return the output of layers in training, (b, n_out), and what :func:`backward` reads."""
    kept = []
    for module, rectified in links:
        if type(module) is nn.Linear:
            out = torch.addmm(module.bias, x, module.weight.T)
            kept.append(Kept(x, out))
        else:
            statistics = (module.running_mean, module.running_var)
            out, mean, inverse = torch.native_batch_norm(
                x, module.weight, module.bias, *statistics, True, module.momentum, module.eps
            )
            module.num_batches_tracked.add_(1)
            kept.append(Kept(x, out.relu_() if rectified else out, mean, inverse))
        x = out
    return x, kept


def backward(links: list[Link], kept: list[Kept], by_out: Tensor) -> Tensor:
    """Set the gradients of the parameters of layers; return that of their input, (b, n_in)."""
    for (module, rectified), seen in zip(reversed(links), reversed(kept), strict=True):
        if type(module) is nn.Linear:
            if module.bias.requires_grad:
                module.bias.grad = by_out.sum(dim=0)
            module.weight.grad = by_out.T @ seen.x
            by_out = by_out @ module.weight
            continue
        if rectified:
            by_out = torch.ops.aten.threshold_backward(by_out, seen.out, 0)
        statistics = (module.running_mean, module.running_var, seen.mean, seen.inverse)
        scaled = module.weight is not None
        by_out, by_scale, module.bias.grad = torch.ops.aten.native_batch_norm_backward(
            by_out, seen.x, module.weight, *statistics, True, module.eps, [True, scaled, True]
        )
        if scaled:
            module.weight.grad = by_scale
    return by_out
