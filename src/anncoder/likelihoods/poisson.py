"""Poisson likelihood: ``-log P(x) = mu - x log mu + lgamma(x + 1)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anncoder.kernels import constant, fused, on_gpu
from anncoder.likelihoods.autograd_cpu import LossSpec, cpu_loss
from anncoder.likelihoods.autograd_gpu import GpuLossSpec, gpu_loss
from anncoder.likelihoods.common import MeanName, at_entries, differentiated_once, limits_of, put_entries, refuse_moving
from anncoder.likelihoods.nb import at_size
from anncoder.types import CSR, LinearOutput, materialize


def poisson_nll(
    counts: CSR, log_mean: Tensor | LinearOutput, size_factor: Tensor | None = None, *, mean: MeanName = "exp"
) -> Tensor:
    """Return the Poisson negative log-likelihood of each cell, (b,); arguments as of :func:`nb_nll`."""
    refuse_moving(counts)
    plain = constant(size_factor)
    if plain and fused(log_mean):
        return cpu_loss(poisson_spec(counts, size_factor, mean), log_mean)
    if plain and on_gpu(log_mean):
        return gpu_loss(GpuLossSpec("poisson", counts, size_factor, mean), log_mean)
    log_mu = at_size(materialize(log_mean), size_factor, mean)
    nll: Tensor = _Poisson.apply(log_mu, counts)  # type: ignore[no-untyped-call]
    return nll


def poisson_spec(counts: CSR, size_factor: Tensor | None, mean: MeanName = "exp") -> LossSpec:
    """Return kernel and data of :func:`poisson_nll` on the CPU; its parameter is the log mean."""
    from anncoder.kernels.cpu.poisson import poisson

    return LossSpec(poisson, counts, size_factor, limits_of(mean))


class _Poisson(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_mu: Tensor, counts: CSR) -> Tensor:
        flat, x = counts.flat(), counts.values.double()
        mu = log_mu.exp()
        log_mu_stored = at_entries(log_mu, counts, flat)
        mu_stored = log_mu_stored.exp()
        ctx.save_for_backward(put_entries(mu.clone(), flat, mu_stored - x))
        return put_entries(mu, flat, mu_stored - x * log_mu_stored + torch.lgamma(x + 1)).sum(dim=1)

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, *per_cell: Tensor) -> tuple[Tensor, None]:
        (by_log_mu,) = ctx.saved_tensors
        return by_log_mu * per_cell[0].unsqueeze(1), None
