"""Negative binomial likelihood: mean mu, inverse dispersion theta, Var = mu + mu^2 / theta.

With u = log mu - log theta, s = sigmoid(u) and sp = softplus::

    -log NB(0) = theta sp(u)
    -log NB(x) = theta sp(u) + x sp(-u) - [lgamma(x + theta) - lgamma(theta) - lgamma(x + 1)]

which is the usual NB2 form of Hilbe, *Negative Binomial Regression* (2011, doi 10.1017/CBO9780511973420), and of
MASS::glm.nb, without the differences of large logarithms that make the textbook form wrong in float32 (by 0.08 a gene
at theta = 1e6).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from anncoder.kernels import constant, fused, on_gpu
from anncoder.likelihoods.autograd_cpu import LossSpec, cpu_loss
from anncoder.likelihoods.autograd_gpu import GpuLossSpec, gpu_loss
from anncoder.likelihoods.common import (
    LOG_MEAN_RANGE,
    LOG_THETA_RANGE,
    MeanName,
    at_entries,
    differentiated_once,
    limits_of,
    put_entries,
    refuse_moving,
    weighted_to_shape,
)
from anncoder.types import CSR, LinearOutput, materialize


class NBTerms(NamedTuple):
    """A negative log-likelihood and its two gradients, all of one shape."""

    nll: Tensor
    by_log_mu: Tensor
    by_log_theta: Tensor


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)); torch's own switches to the identity above 20, an error of 2e-9 in float64."""
    return -logsigmoid(-x)


def nb_zero(log_mu: Tensor, log_theta: Tensor) -> NBTerms:
    """Return the terms of an observed zero, broadcast over the parameters."""
    u = log_mu - log_theta
    theta = log_theta.exp()
    s = torch.sigmoid(u)
    sp = softplus(u)
    return NBTerms(theta * sp, theta * s, theta * _softplus_minus_sigmoid(u, sp, s))


def nb_positive(x: Tensor, log_mu: Tensor, log_theta: Tensor) -> NBTerms:
    """Return the terms of observed counts x >= 0, element by element; exact in float64."""
    u = log_mu - log_theta
    theta = log_theta.exp()
    s = torch.sigmoid(u)
    rest = torch.sigmoid(-u)
    log_rising, by_theta = rising(x, theta)
    sp = softplus(u)
    return NBTerms(
        theta * sp + x * softplus(-u) - (log_rising - torch.lgamma(x + 1)),
        theta * s - x * rest,
        theta * _softplus_minus_sigmoid(u, sp, s) + x * rest - theta * by_theta,
    )


def rising(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``lgamma(x + theta) - lgamma(theta)`` and its derivative by theta, for x >= 0.

    Where theta is large both are small differences of large numbers, and come from Stirling's series instead.
    """
    t = theta.clamp(min=100)
    z = x + t
    ratio = torch.log1p(x / t)
    of_log = (t - 0.5) * ratio + x * (z.log() - 1)
    of_log = of_log + (1 / z - 1 / t) / 12 - (z**-3 - t**-3) / 360 + (z**-5 - t**-5) / 1260
    slope = ratio + (1 / t - 1 / z) / 2 + (t**-2 - z**-2) / 12 - (t**-4 - z**-4) / 120 + (t**-6 - z**-6) / 252
    large = theta > 100
    return (
        torch.where(large, of_log, torch.lgamma(x + theta) - torch.lgamma(theta)),
        torch.where(large, slope, torch.digamma(x + theta) - torch.digamma(theta)),
    )


def nb_nll(
    counts: CSR,
    log_mean: Tensor | LinearOutput,
    log_theta: Tensor | LinearOutput,
    size_factor: Tensor | None = None,
    *,
    mean: MeanName = "exp",
) -> Tensor:
    """Return the negative binomial negative log-likelihood of each cell, (b,).

    Parameters
    ----------
    counts
        (b, g) raw counts, each entry once.
    log_mean
        (b, g) logarithm of the expected count at size factor 1, or its output layer; limited to ``LOG_MEAN_RANGE``.
    log_theta
        Logarithm of the inverse dispersion: (g,) one a gene, (b, 1) one a cell, (b, g), or its output layer; limited to
        ``LOG_THETA_RANGE``.
    size_factor
        (b,) factor of the mean; None for 1.
    mean
        ``"softmax"``: ``log_mean`` are logits, the expected count is ``size_factor * softmax(logits)`` over the genes,
        and ``size_factor`` a library size (scVI: Lopez et al. 2018, doi 10.1038/s41592-018-0229-2); limited after that.
    """
    refuse_moving(counts)
    log_theta, plain = known_shape(log_theta, log_mean.shape), constant(size_factor)
    if plain and fused(log_mean, log_theta):
        return cpu_loss(nb_spec(counts, log_theta, size_factor, mean), log_mean, log_theta)
    if plain and on_gpu(log_mean, log_theta):
        return gpu_loss(GpuLossSpec("nb", counts, size_factor, mean), log_mean, log_theta)
    log_mu = at_size(materialize(log_mean), size_factor, mean)
    log_theta = materialize(log_theta).clamp(*LOG_THETA_RANGE)
    nll: Tensor = _NegativeBinomial.apply(log_mu, log_theta, counts)  # type: ignore[no-untyped-call]
    return nll


def nb_spec(
    counts: CSR, log_theta: Tensor | LinearOutput, size_factor: Tensor | None, mean: MeanName = "exp"
) -> LossSpec:
    """Return kernel and data of :func:`nb_nll` on the CPU; its parameters are log mean and log theta."""
    from anncoder.kernels.cpu.nb import nb

    return LossSpec(nb, counts, size_factor, limits_of(mean, log_theta))


def known_shape(log_theta: Tensor | LinearOutput, shape: tuple[int, ...]) -> Tensor | LinearOutput:
    """Return a dispersion in one of the shapes (g,), (b, 1) or (b, g)."""
    n, g = shape
    if isinstance(log_theta, LinearOutput) or log_theta.dim() == 1 or log_theta.shape in ((n, 1), (n, g)):
        return log_theta
    return log_theta.expand(n, g)


def at_size(log_mean: Tensor, size_factor: Tensor | None, mean: MeanName = "exp") -> Tensor:
    """Return the log mean at the size factor of each cell, limited (of a softmax, after the size), (b, g)."""
    log_size = 0.0 if size_factor is None else size_factor.log().unsqueeze(1)
    if mean == "softmax":
        return (log_softmax(log_mean, dim=1) + log_size).clamp(*LOG_MEAN_RANGE)
    return log_mean.clamp(*LOG_MEAN_RANGE) + log_size


class _NegativeBinomial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_mu: Tensor, log_theta: Tensor, counts: CSR) -> Tensor:
        flat = counts.flat()
        zero, x = nb_zero(log_mu, log_theta), counts.values.double()
        stored = nb_positive(x, at_entries(log_mu, counts, flat), at_entries(log_theta, counts, flat))
        nll, by_log_mu, by_log_theta = (put_entries(d, flat, s) for d, s in zip(zero, stored, strict=True))
        ctx.save_for_backward(by_log_mu, by_log_theta)
        ctx.log_theta_shape = log_theta.shape
        return nll.sum(dim=1)

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, *per_cell: Tensor) -> tuple[Tensor, Tensor, None]:
        by_log_mu, by_log_theta = ctx.saved_tensors
        by_theta = weighted_to_shape(per_cell[0], by_log_theta, ctx.log_theta_shape)
        return by_log_mu * per_cell[0].unsqueeze(1), by_theta, None


def _softplus_minus_sigmoid(u: Tensor, sp: Tensor, s: Tensor) -> Tensor:
    # for mu << theta the two are equal to first order: the difference then comes from its own series in t = exp(u)
    t = u.clamp(max=-4.6).exp()
    series = t * t * (0.5 - t * (2 / 3 - t * (0.75 - t * (0.8 - t * (5 / 6 - t * (6 / 7))))))
    return torch.where(u < -4.6, series, sp - s)
