"""Reference likelihoods: textbook forms in float64 on dense arrays, for the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nb_reference(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Return ``-log NB(x; mu, theta)``, (b, g); theta is the inverse dispersion.

    ``NB(x) = Gamma(x + theta) / (Gamma(theta) x!) (theta / (theta + mu))^theta (mu / (theta + mu))^x``.
    """
    log_total = torch.log(theta + mu)
    return (
        torch.lgamma(theta)
        + torch.lgamma(x + 1)
        - torch.lgamma(x + theta)
        - theta * (torch.log(theta) - log_total)
        - x * (torch.log(mu) - log_total)
    )


def zinb_reference(x: Tensor, mu: Tensor, theta: Tensor, pi: Tensor) -> Tensor:
    """Return ``-log ZINB(x)``, (b, g): ``pi [x = 0] + (1 - pi) NB(x)``."""
    nb = torch.exp(-nb_reference(x, mu, theta))
    zero = -torch.log(pi + (1 - pi) * nb)
    positive = nb_reference(x, mu, theta) - torch.log1p(-pi)
    return torch.where(x == 0, zero, positive)


def poisson_reference(x: Tensor, mu: Tensor) -> Tensor:
    """Return ``-log Poisson(x; mu)``, (b, g)."""
    return mu - x * torch.log(mu) + torch.lgamma(x + 1)


def gaussian_reference(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Return ``-log N(x; mean, sigma^2)``, (b, g)."""
    return 0.5 * ((x - mean) / sigma) ** 2 + torch.log(sigma) + 0.5 * math.log(2 * math.pi)
