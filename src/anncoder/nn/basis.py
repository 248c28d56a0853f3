"""Natural axes of the latent: Fisher metric of the decoder, principal directions.

A decoder undoes any scaling, shear or rotation of the latent, but neighbours, and so clusters and trajectories, depend
on them. After training the latent therefore gets the linear change of axes in which a small step in any direction is
as long as the change of the *output distribution* that it causes: with the Jacobian J of the decoder and the Fisher
information W of its outputs, the metric ``M = E[J' W J]`` becomes the identity. The axes are then turned to their
principal directions, largest variance first. For a linear autoencoder with squared error the result is PCA itself:
components, order and scale.

Arvanitidis, Gonzalez-Duque, Pouplin, Kalatzis, Hauberg 2022, "Pulling back information geometry" (AISTATS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from anncoder.types import Batch

METRIC_CELLS = 512  # a k x k average needs no more, and every one costs k passes of the decoder
JACOBIAN, FEWEST = 1 << 25, 32  # bytes of derivatives at a time, and the least number of cells


class LatentBasis(nn.Module):
    """``(latent - origin) @ axes`` of k latent units; the identity until it is set. Saved with the weights."""

    origin: Tensor
    axes: Tensor

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(n_latent))
        # not torch.eye: on the meta device, where a model that is saved is built again, it imports torch's compiler
        self.register_buffer("axes", torch.zeros(n_latent, n_latent).fill_diagonal_(1))

    def forward(self, latent: Tensor) -> Tensor:
        """Return the latent in natural axes, (b, k)."""
        return (latent - self.origin) @ self.axes

    @torch.no_grad()
    def loadings(self, weight: Tensor) -> Tensor:
        """Return the change of each output of a linear decoder by a step of one along each natural axis, (g, k).

        Parameters
        ----------
        weight
            (g, >= k): its weights in the axes of training; columns beyond the latent, as of batches, are left out.
        """
        n_latent = len(self.origin)
        inverse = torch.linalg.pinv(self.axes.double())  # a direction that the decoder ignores has none
        found: Tensor = weight[:, :n_latent].double() @ inverse.T
        return found.float()

    def set_from(self, latent: Tensor, metric: Tensor) -> None:
        """Make a metric, (k, k), the identity, and the axes principal for a sample of cells, (n, k)."""
        if not bool(torch.isfinite(metric).all()):
            return  # diverged weights have no geometry: the network's own axes stay
        origin = latent.double().mean(dim=0)
        # the eigenvalues of float32 noise may be below zero: a direction that the decoder ignores has no length
        lengths, directions = torch.linalg.eigh(metric.double())
        root = directions * lengths.clamp(min=0).sqrt()
        scaled = (latent.double() - origin) @ root
        _, principal = torch.linalg.eigh(scaled.T @ scaled)
        axes = root @ principal.flip(dims=(1,))  # the widest direction first
        # signs are free: the largest weight is positive
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        self.origin.copy_(origin)
        self.axes.copy_(axes * torch.where(largest < 0, -1.0, 1.0))


@torch.no_grad()
def pulled_back(decode: Callable[[Tensor], Tensor], latent: Tensor, information: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean over cells of ``J' diag(information) J``, (k, k).

    Parameters
    ----------
    decode
        (n, k) latent to (n, g) outputs, in evaluation mode.
    latent
        (n, k) cells to average over; the first 512 are used.
    information
        (n, k) latent to the (n, g) Fisher information of each output.
    """
    latent = latent[:METRIC_CELLS].detach()
    n, k = latent.shape
    metric = latent.new_zeros(k, k)
    root = information(latent).sqrt()
    n_at_once = max(JACOBIAN // (4 * k * root.shape[1]), FEWEST)
    for start in range(0, n, n_at_once):
        cells = slice(start, start + n_at_once)
        weight = root[cells]
        jacobian = latent.new_empty(k, *weight.shape)
        for outputs, row in zip(_derivatives(decode, latent[cells]), jacobian, strict=True):
            torch.mul(outputs, weight, out=row)
        jacobian = jacobian.view(k, -1)
        metric.addmm_(jacobian, jacobian.T, alpha=1 / n)
    return metric


def unit_information(batch: Batch) -> Callable[[Tensor], Tensor]:
    """Return the information of squared error: 1 for every output."""
    return lambda latent: latent.new_ones(len(latent), batch.counts.n_vars)


def _derivatives(decode: Callable[[Tensor], Tensor], latent: Tensor) -> Iterator[Tensor]:
    # of the outputs along each axis of the latent, (n, g). J' u is linear in u, and its derivative by u along an axis
    # is J times that axis: one backward pass for each. Forward differentiation would be as much, but pulls in torch's
    # compiler at its first use; and grad_outputs in place of a sum imports sympy.
    with torch.enable_grad():
        at = latent.clone().requires_grad_()
        outputs = decode(at)
        u = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad((outputs * u).sum(), at, create_graph=True)
        for direction in torch.eye(latent.shape[1], device=latent.device, dtype=latent.dtype):
            yield torch.autograd.grad((pulled * direction).sum(), u, retain_graph=True)[0]
