"""Zero-inflated negative binomial likelihood: zero with probability pi, else NB.

With l = logit(pi) and z = log NB(0) = -theta softplus(log mu - log theta)::

    -log ZINB(0)     = softplus(-l) - softplus(z - l)
    -log ZINB(x > 0) = softplus(l) - log NB(x)

Eraslan et al. 2019 (DCA), doi 10.1038/s41467-018-07931-2, equations 6-7; pscl::zeroinfl in R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anncoder.kernels import constant, fused, on_gpu
from anncoder.likelihoods.autograd_cpu import LossSpec, cpu_loss
from anncoder.likelihoods.autograd_gpu import GpuLossSpec, gpu_loss
from anncoder.likelihoods.common import (
    LOG_THETA_RANGE,
    MeanName,
    at_entries,
    differentiated_once,
    limits_of,
    put_entries,
    refuse_moving,
    weighted_to_shape,
)
from anncoder.likelihoods.nb import at_size, known_shape, nb_positive, nb_zero, softplus
from anncoder.types import CSR, LinearOutput, materialize


def zinb_nll(
    counts: CSR,
    log_mean: Tensor | LinearOutput,
    log_theta: Tensor | LinearOutput,
    pi_logits: Tensor | LinearOutput,
    size_factor: Tensor | None = None,
    *,
    mean: MeanName = "exp",
) -> Tensor:
    """Return the zero-inflated negative binomial negative log-likelihood of each cell, (b,).

    The mean is that before zero inflation, ``pi_logits`` the logit of the dropout probability: (b, g), (g,), (b, 1), or
    an output layer. Other arguments as of :func:`anncoder.likelihoods.nb_nll`.
    """
    refuse_moving(counts)
    log_theta, plain = known_shape(log_theta, log_mean.shape), constant(size_factor)
    if plain and fused(log_mean, log_theta, pi_logits):
        spec = zinb_spec(counts, log_theta, size_factor, mean)
        dropout = pi_logits if isinstance(pi_logits, LinearOutput) else pi_logits.expand(log_mean.shape)
        return cpu_loss(spec, log_mean, log_theta, dropout)
    if plain and on_gpu(log_mean, log_theta, pi_logits):
        return gpu_loss(GpuLossSpec("zinb", counts, size_factor, mean), log_mean, log_theta, pi_logits)
    log_mu = at_size(materialize(log_mean), size_factor, mean)
    log_theta = materialize(log_theta).clamp(*LOG_THETA_RANGE)
    nll: Tensor = _ZeroInflated.apply(log_mu, log_theta, materialize(pi_logits), counts)  # type: ignore[no-untyped-call]
    return nll


def zinb_spec(
    counts: CSR, log_theta: Tensor | LinearOutput, size_factor: Tensor | None, mean: MeanName = "exp"
) -> LossSpec:
    """Return kernel and data of :func:`zinb_nll` on the CPU; its parameters are log mean, log theta, dropout logits."""
    from anncoder.kernels.cpu.zinb import zinb

    return LossSpec(zinb, counts, size_factor, limits_of(mean, log_theta))


class _ZeroInflated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_mu: Tensor, log_theta: Tensor, pi_logits: Tensor, counts: CSR) -> Tensor:
        flat, x = counts.flat(), counts.values.double()
        nb0 = nb_zero(log_mu, log_theta)
        shifted = -nb0.nll - pi_logits
        from_nb = torch.sigmoid(shifted)  # probability that an observed zero is not a dropout
        zero = (
            softplus(-pi_logits) - softplus(shifted),
            from_nb * nb0.by_log_mu,
            from_nb * nb0.by_log_theta,
            from_nb - torch.sigmoid(-pi_logits),
        )
        logits = at_entries(pi_logits, counts, flat)
        nb = nb_positive(x, at_entries(log_mu, counts, flat), at_entries(log_theta, counts, flat))
        stored = (softplus(logits) + nb.nll, nb.by_log_mu, nb.by_log_theta, torch.sigmoid(logits))
        positive = x > 0  # an explicitly stored zero keeps the form of a zero
        nll, *gradients = (put_entries(d, flat[positive], s[positive]) for d, s in zip(zero, stored, strict=True))
        ctx.save_for_backward(*gradients)
        ctx.shapes = log_theta.shape, pi_logits.shape
        return nll.sum(dim=1)

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, *per_cell: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        by_log_mu, by_log_theta, by_logits = ctx.saved_tensors
        theta_shape, logits_shape = ctx.shapes
        by_theta = weighted_to_shape(per_cell[0], by_log_theta, theta_shape)
        by_pi = weighted_to_shape(per_cell[0], by_logits, logits_shape)
        return by_log_mu * per_cell[0].unsqueeze(1), by_theta, by_pi, None
