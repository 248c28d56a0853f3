"""Zero-inflated negative binomial: a zero with probability pi, else NB(mu, theta).

With l = logit(pi) and z = log NB(0) = -theta softplus(log mu - log theta)::

    -log ZINB(0)     = softplus(-l) - softplus(z - l)
    -log ZINB(x > 0) = softplus(l) - log NB(x)

Eraslan et al. 2019 (DCA), doi 10.1038/s41467-018-07931-2, equations 6-7; pscl::zeroinfl in R.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anncoder.kernels import fused, on_gpu
from anncoder.likelihoods.entries import at_entries, put_entries, weighted_to_shape
from anncoder.likelihoods.gpu_pass import Of, in_gpu_pass
from anncoder.likelihoods.limits import LOG_THETA_RANGE, OF_MEAN, MeanName
from anncoder.likelihoods.nb import at_size, nb_positive, nb_zero, softplus, theta_rows, to_shape
from anncoder.likelihoods.one_pass import Array, Pass, arrays, in_one_pass, plain, room_for
from anncoder.types import CSR


def zinb_nll(
    counts: CSR,
    log_mean: Tensor,
    log_theta: Tensor,
    pi_logits: Tensor,
    size_factor: Tensor | None = None,
    *,
    mean: MeanName = "exp",
    overwrite: bool = False,
) -> Tensor:
    """Return the zero-inflated negative binomial negative log-likelihood of each cell, (b,).

    Parameters
    ----------
    counts
        (b, g) raw counts.
    log_mean
        (b, g) logarithm of the expected count before zero inflation at size factor 1; limited to ``LOG_MEAN_RANGE``.
    log_theta
        Logarithm of the inverse dispersion: (g,) one a gene, (b, 1) one a cell, or (b, g); limited to
        ``LOG_THETA_RANGE``.
    pi_logits
        Logit of the dropout probability: (b, g), (g,) or (b, 1).
    size_factor
        (b,) factor of the mean; None for 1.
    mean, overwrite
        With the latter, ``log_mean`` and ``pi_logits`` are not used again: see :func:`anncoder.likelihoods.nb_nll`.
    """
    if fused(log_mean, log_theta, pi_logits):
        dense_logits = pi_logits.expand_as(log_mean)
        run = _one_pass(counts, log_mean, log_theta, dense_logits, size_factor, OF_MEAN[mean], overwrite)
        return in_one_pass(run, log_mean, log_theta, dense_logits, once=overwrite)
    if on_gpu(log_mean, log_theta, pi_logits):
        return in_gpu_pass(Of("zinb", counts, size_factor, mean), log_mean, log_theta, pi_logits, overwrite=overwrite)
    log_mu = at_size(log_mean, size_factor, mean)
    nll: Tensor = _ZeroInflated.apply(log_mu, log_theta.clamp(*LOG_THETA_RANGE), pi_logits, counts)  # type: ignore[no-untyped-call]
    return nll


def _one_pass(
    counts: CSR,
    log_mean: Tensor,
    log_theta: Tensor,
    pi_logits: Tensor,
    size_factor: Tensor | None,
    limits: Array,
    overwrite: bool,
) -> Pass:
    from anncoder.kernels.nb import CHUNK
    from anncoder.kernels.zinb import zinb

    n, g = log_mean.shape
    logits, dropout, data = plain(log_mean), plain(pi_logits), arrays(counts, size_factor)
    rows, shape = theta_rows(log_theta, n, g)

    def run(weight: Array | None) -> tuple[Array, tuple[Array, ...]]:
        wanted = weight is not None
        weights = np.empty(n, np.float32) if weight is None else weight
        nll, by_theta = np.empty(n), np.empty((shape[0] * wanted, shape[1]), np.float32)
        by_mean, by_pi = (room_for(a, wanted=wanted, overwrite=overwrite) for a in (logits, dropout))
        zinb(-(-n // CHUNK), logits, rows, dropout, data[0], weights, *data[1:], limits, nll, by_mean, by_theta, by_pi)
        return nll, (by_mean, to_shape(by_theta, log_theta), by_pi) if wanted else ()

    return run


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
    def backward(ctx: Any, *per_cell: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        by_log_mu, by_log_theta, by_logits = ctx.saved_tensors
        theta_shape, logits_shape = ctx.shapes
        return (
            by_log_mu * per_cell[0].unsqueeze(1),
            weighted_to_shape(per_cell[0], by_log_theta, theta_shape),
            weighted_to_shape(per_cell[0], by_logits, logits_shape),
            None,
        )
