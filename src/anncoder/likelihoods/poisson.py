"""Poisson with mean mu: ``-log P(x) = mu - x log mu + lgamma(x + 1)``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anncoder.kernels import fused, on_gpu
from anncoder.likelihoods.entries import at_entries, put_entries
from anncoder.likelihoods.gpu_pass import Of, in_gpu_pass
from anncoder.likelihoods.limits import OF_MEAN, MeanName
from anncoder.likelihoods.nb import at_size
from anncoder.likelihoods.one_pass import Array, Pass, arrays, in_one_pass, plain, room_for
from anncoder.types import CSR


def poisson_nll(
    counts: CSR,
    log_mean: Tensor,
    size_factor: Tensor | None = None,
    *,
    mean: MeanName = "exp",
    overwrite: bool = False,
) -> Tensor:
    """Return the Poisson negative log-likelihood of each cell, (b,).

    Parameters
    ----------
    counts
        (b, g) raw counts.
    log_mean
        (b, g) logarithm of the expected count at size factor 1; limited to ``LOG_MEAN_RANGE`` here.
    size_factor
        (b,) factor of the mean; None for 1.
    mean, overwrite
        See :func:`anncoder.likelihoods.nb_nll`.
    """
    if fused(log_mean):
        run = _one_pass(counts, log_mean, size_factor, OF_MEAN[mean], overwrite)
        return in_one_pass(run, log_mean, once=overwrite)
    if on_gpu(log_mean):
        return in_gpu_pass(Of("poisson", counts, size_factor, mean), log_mean, overwrite=overwrite)
    nll: Tensor = _Poisson.apply(at_size(log_mean, size_factor, mean), counts)  # type: ignore[no-untyped-call]
    return nll


def _one_pass(counts: CSR, log_mean: Tensor, size_factor: Tensor | None, limits: Array, overwrite: bool) -> Pass:
    from anncoder.kernels.nb import CHUNK
    from anncoder.kernels.poisson import poisson

    n = len(log_mean)
    logits, data = plain(log_mean), arrays(counts, size_factor)

    def run(weight: Array | None) -> tuple[Array, tuple[Array, ...]]:
        weights = np.empty(n, np.float32) if weight is None else weight
        nll, by_mean = np.empty(n), room_for(logits, wanted=weight is not None, overwrite=overwrite)
        poisson(-(-n // CHUNK), logits, data[0], weights, *data[1:], limits, nll, by_mean)
        return nll, () if weight is None else (by_mean,)

    return run


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
    def backward(ctx: Any, *per_cell: Tensor) -> tuple[Tensor, None]:
        (by_log_mu,) = ctx.saved_tensors
        return by_log_mu * per_cell[0].unsqueeze(1), None
