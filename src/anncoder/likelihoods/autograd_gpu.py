"""Autograd of the Triton kernels: loss and gradients in one pass.

Nothing here waits for the device, which itself decides whether the gradients have to be written again with other
weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from anncoder.likelihoods.common import LIMITS, MeanName, differentiated_once
from anncoder.types import CSR, LinearOutput, materialize

RANGES = tuple(float(limit) for limit in LIMITS)


class GpuLossSpec(NamedTuple):
    """A likelihood and its data."""

    kind: str  # as kernels.gpu.Kind
    counts: CSR
    size_factor: Tensor | None = None  # (n,)
    mean: MeanName = "exp"


def gpu_loss(
    of: GpuLossSpec,
    log_mean: Tensor | LinearOutput,
    log_theta: Tensor | LinearOutput | None = None,
    pi_logits: Tensor | LinearOutput | None = None,
) -> Tensor:
    """Return the loss of each cell, (n,), differentiable once.

    Where mean and dropout are products of output layers, the gradients overwrite the products. If the cells then have
    different weights, the gradient for a dispersion of each gene is NaN.
    """
    overwrite = isinstance(log_mean, LinearOutput) and not isinstance(pi_logits, Tensor)
    log_mean = materialize(log_mean)
    log_theta, pi_logits = (None if p is None else materialize(p) for p in (log_theta, pi_logits))
    n, g = log_mean.shape
    if of.mean == "softmax":  # limited after the size factor, which the kernel then does not read
        log_size = 0.0 if of.size_factor is None else of.size_factor.log().unsqueeze(1)
        log_mean, of = log_softmax(log_mean, dim=1) + log_size, of._replace(size_factor=None)
    tensors = (log_mean, log_theta, None if pi_logits is None else pi_logits.expand(n, g))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        loss: Tensor = _GpuPass.apply(of, overwrite, *tensors)  # type: ignore[no-untyped-call]
        return loss
    from anncoder.kernels.gpu.launch import loss_pass

    return loss_pass(_parameters(of, *tensors), None)[0]


class _GpuPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, of: GpuLossSpec, overwrite: bool, log_mean: Tensor, log_theta: Tensor | None, pi_logits: Tensor | None
    ) -> Tensor:
        from anncoder.kernels.gpu.launch import loss_pass

        n, g = log_mean.shape
        ctx.of, ctx.overwrite, ctx.weight = of, overwrite, 1 / max(n * g, 1)
        parameters = _parameters(of, log_mean, log_theta, pi_logits)
        loss, ctx.gradients = loss_pass(parameters, ctx.weight, over_logits=overwrite)
        if overwrite:
            changed = [log_mean] if pi_logits is None else [log_mean, pi_logits]
            torch.autograd.graph.increment_version(changed)  # autograd then notices other readers
        else:
            ctx.save_for_backward(log_mean, log_theta, pi_logits)
        return loss

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        from anncoder.kernels.gpu.launch import gradients_for, scale, write_again

        gradients, ctx.gradients = ctx.gradients, None  # handed out once: the receiver may change them
        if ctx.overwrite:
            if gradients is None:
                raise RuntimeError("the loss of a product is differentiated once")
            scale(gradients, ctx.weight, upstream[0])
        elif gradients is None:
            gradients = gradients_for(_parameters(ctx.of, *ctx.saved_tensors), upstream[0])
        else:
            write_again(_parameters(ctx.of, *ctx.saved_tensors), gradients, ctx.weight, upstream[0])
        return (None, None, *gradients)


def _parameters(of: GpuLossSpec, log_mean: Tensor, log_theta: Tensor | None, pi_logits: Tensor | None) -> Any:
    from anncoder.kernels.gpu.launch import Kind, Parameters

    def plain(parameter: Tensor | None) -> Any:
        return None if parameter is None else parameter.detach().contiguous()

    counts = of.counts
    offset = log_mean.new_zeros(counts.n_rows) if of.size_factor is None else of.size_factor.log().float()
    arrays = (counts.indptr, counts.indices, counts.values.float().contiguous())
    return Parameters(cast(Kind, of.kind), plain(log_mean), plain(log_theta), plain(pi_logits), offset, arrays, RANGES)
