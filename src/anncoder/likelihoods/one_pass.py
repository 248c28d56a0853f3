"""Between autograd and a kernel that writes loss and gradients in the same pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anncoder.types import CSR

Array = np.ndarray[Any, Any]
# takes the weight of each cell, (b,), or None where no gradient is wanted; returns the loss of each cell, and the
# gradients of the weighted sum for each parameter
Pass = Callable[[Array | None], tuple[Array, tuple[Array, ...]]]


def in_one_pass(run: Pass, *parameters: Tensor, once: bool = False) -> Tensor:
    """Return the loss of each cell, (b,), as ``run`` computes it; differentiable once.

    Gradients are written with the weight that a mean over cells and genes has, so that in training nothing is left to
    do when they are asked for; another common weight multiplies them, and different ones run the pass again.

    Parameters
    ----------
    run
        The kernel, with its data.
    parameters
        What is differentiated; the first is (b, g).
    once
        The kernel writes gradients over its parameters: it cannot run again.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        loss: Tensor = _OnePass.apply(run, once, *parameters)  # type: ignore[no-untyped-call]
        return loss
    return _tensor(run(None)[0], parameters[0])


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Pass, once: bool, *parameters: Tensor) -> Tensor:
        n, g = parameters[0].shape
        ctx.run, ctx.once, ctx.weight = run, once, 1 / max(n * g, 1)
        loss, ctx.gradients = run(np.full(n, ctx.weight, dtype=np.float32))
        return _tensor(loss, parameters[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        per_cell = upstream[0]
        written, ctx.gradients = ctx.gradients, None  # handed out once: whoever gets them may change them
        if written is None or not bool((per_cell == per_cell[:1]).all()):
            if ctx.once:
                raise RuntimeError("with overwrite=True the loss is a mean over cells, and differentiated once")
            written, factor = ctx.run(per_cell.contiguous().numpy())[1], 1.0
        else:
            factor = float(per_cell[0]) / ctx.weight if per_cell.numel() else 1.0
        gradients = tuple(torch.from_numpy(a) for a in written)
        if abs(factor - 1) > 1e-6:  # nearer than that is the rounding of the weight itself
            gradients = tuple(a * factor for a in gradients)
        return (None, None, *gradients)


def arrays(counts: CSR, size_factor: Tensor | None) -> tuple[Array, Array, Array, Array]:
    """Return what every kernel takes of the data: log size factor, (b,), and the CSR arrays."""
    offset = counts.values.new_zeros(counts.n_rows) if size_factor is None else size_factor.log()
    return (
        offset.float().numpy(),
        counts.indptr.numpy(),
        counts.indices.numpy(),
        counts.values.float().contiguous().numpy(),
    )


def room_for(parameter: Array, *, wanted: bool, overwrite: bool) -> Array:
    """Return where the gradient of a (b, g) parameter goes: nowhere, in its place, or into memory of its own."""
    if wanted and overwrite:
        return parameter
    return np.empty((len(parameter) * wanted, parameter.shape[1]), np.float32)


def plain(parameter: Tensor) -> Array:
    """Return a parameter as a contiguous array, outside autograd."""
    array: Array = parameter.detach().contiguous().numpy()
    return array


def _tensor(loss: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(loss).to(like.dtype)
