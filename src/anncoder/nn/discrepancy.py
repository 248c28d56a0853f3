"""Maximum mean discrepancy between groups, and SAUCIE's cluster penalties.

Amodio et al. 2019, doi 10.1038/s41592-019-0576-7.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SIGMAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
TINY = 1e-12


def multiscale_kernel(squared_distance: Tensor) -> Tensor:
    """Return the mean over 19 widths sigma of ``exp(-D / (2 sigma))`` of squared distances D."""
    kernel: Tensor = _MultiscaleKernel.apply(squared_distance)  # type: ignore[no-untyped-call]
    return kernel


def batch_discrepancy(latent: Tensor, codes: Tensor) -> Tensor:
    """Return the maximum mean discrepancy of the latent, a mean over the pairs of batches, ().

    ``|mean K11 + mean K22 - 2 mean K12|`` with K of D / max D over all cells: independent of the scale of the latent,
    (b, k). The diagonal is included, as published. The codes, (b,) int64, are the experimental batch of each cell.
    """
    distance = _squared_distances(latent)
    kernel = multiscale_kernel(distance / distance.max().clamp(min=TINY))
    groups = [codes == code for code in torch.bincount(codes).nonzero().ravel()]
    if len(groups) < 2:
        return latent.sum() * 0

    def mean(one: Tensor, other: Tensor) -> Tensor:
        return kernel[one][:, other].mean()

    pairs = [(mean(a, a) + mean(b, b) - 2 * mean(a, b)).abs() for a, b in combinations(groups, 2)]
    return torch.stack(pairs).mean()


def usage_entropy(activations: Tensor) -> Tensor:
    """Return the entropy of the use of the units, (), in nats: ``-sum q log q``, q their shares of all activation.

    Activations, (b, h), are not negative.
    """
    share = activations / activations.max().clamp(min=TINY)
    use = share.sum(dim=0) / share.sum().clamp(min=TINY)
    return -(use * torch.log(use + 1e-9)).sum()


def within_clusters(x: Tensor, activations: Tensor) -> Tensor:
    """Return the mean distance of pairs of cells in the network input, (), weighted by how alike their activations are.

    The input is (b, g), activations, (b, h), are not negative.
    """
    alike = multiscale_kernel(_squared_distances(activations / activations.max().clamp(min=TINY)))
    low, high = alike.min(), alike.max()
    weight = (alike - low) / (high - low).clamp(min=TINY)
    distance = (_squared_distances(x) + 1e-3).sqrt()
    return (distance * weight).mean()


def _squared_distances(points: Tensor) -> Tensor:
    # by one product; centred, and with a diagonal of zeros: the narrowest kernels are sensitive to rounding
    centred = points - points.detach().mean(dim=0)
    length = centred.square().sum(dim=1)
    distance = (length.unsqueeze(1) + length - 2 * centred @ centred.T).clamp(min=0)
    return distance * (1 - torch.eye(len(points), device=points.device, dtype=points.dtype))


class _MultiscaleKernel(torch.autograd.Function):
    # by hand: autograd would store all 19 terms
    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        total, slope = torch.zeros_like(distance), torch.zeros_like(distance)
        for sigma in SIGMAS:
            term = torch.exp(distance * (-0.5 / sigma))
            total += term
            slope.add_(term, alpha=-0.5 / sigma)
        ctx.save_for_backward(slope / len(SIGMAS))
        return total / len(SIGMAS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return upstream[0] * slope
