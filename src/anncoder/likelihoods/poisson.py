"""Poisson with mean mu: ``-log P(x) = mu - x log mu + lgamma(x + 1)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anncoder.likelihoods.entries import at_entries, put_entries
from anncoder.types import CSR


def poisson_nll(counts: CSR, log_mu: Tensor) -> Tensor:
    """Return the Poisson negative log-likelihood of each cell, (b,).

    Parameters
    ----------
    counts
        (b, g) raw counts.
    log_mu
        (b, g) logarithm of the expected count, size factor included.
    """
    nll: Tensor = _Poisson.apply(log_mu, counts)  # type: ignore[no-untyped-call]
    return nll


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
