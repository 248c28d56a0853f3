"""Gaussian likelihood, squared and absolute error of a sparse matrix.

The squared error stays sparse: ``sum (m - x)^2 = sum m^2 + sum over stored values of (x^2 - 2 m x)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anncoder.kernels import constant, fused, on_gpu
from anncoder.likelihoods.autograd_cpu import LossSpec, cpu_loss
from anncoder.likelihoods.autograd_gpu import GpuLossSpec, gpu_loss
from anncoder.likelihoods.common import LOG_THETA_RANGE, at_entries, limits_of
from anncoder.types import CSR, LinearOutput, materialize

LOG_2_PI = math.log(2 * math.pi)


def squared_error(x: CSR, mean: Tensor | LinearOutput) -> Tensor:
    """Return the squared error of each cell, (b,), summed over its genes.

    Parameters
    ----------
    x
        (b, g) expression values.
    mean
        (b, g) reconstruction on the same scale, or the output layer that gives it.
    """
    if constant(x.values) and fused(mean):
        from anncoder.kernels.cpu.poisson import squared

        return cpu_loss(LossSpec(squared, x, None, limits_of()), mean)
    if constant(x.values) and on_gpu(mean):
        return gpu_loss(GpuLossSpec("squared", x), mean)
    mean = materialize(mean)
    stored = mean.reshape(-1)[x.flat()]
    return mean.square().sum(dim=1) + x.with_values(x.values * (x.values - 2 * stored)).row_sums()


def absolute_error(x: CSR, mean: Tensor) -> Tensor:
    """Return the absolute error of each cell, (b,), summed over its genes; arguments as in squared_error."""
    stored = mean.reshape(-1)[x.flat()]
    return mean.abs().sum(dim=1) + x.with_values((stored - x.values).abs() - stored.abs()).row_sums()


def gaussian_nll(x: CSR, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Return the Gaussian negative log-likelihood of each cell, (b,).

    Parameters
    ----------
    x
        (b, g) expression values.
    mean
        (b, g) expected value on the same scale.
    log_sigma
        Logarithm of the standard deviation: (g,), (b, 1) or (b, g); limited to ``LOG_THETA_RANGE`` here.
    """
    log_sigma = log_sigma.clamp(*LOG_THETA_RANGE)
    flat, mean = x.flat(), mean.contiguous()
    stored_sigma = at_entries(log_sigma, x, flat)
    stored = 0.5 * ((x.values.double() - at_entries(mean, x, flat)) * torch.exp(-stored_sigma)).square() + stored_sigma
    everywhere = 0.5 * (mean * torch.exp(-log_sigma)).square() + log_sigma.expand_as(mean)
    # stored entries replace their zeros: a sum of differences would cancel most digits
    whole = everywhere.double().reshape(-1).index_copy(0, flat, stored).view_as(mean)
    return (whole.sum(dim=1) + 0.5 * LOG_2_PI * x.n_vars).to(mean.dtype)
