"""Encoder weights that start from principal components (randomised SVD), not at random.

The first layer's units are random directions in the plane of the leading components, and the latent starts as the
components themselves, each at unit variance, in random axes: some epochs less of training, and a better end
(docs/benchmarks.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from anncoder.nn.inputs import LogNormalize, Standardize, iterated
from anncoder.nn.layers import Encoder
from anncoder.nn.sparse import sparse_matmul
from anncoder.types import CSR, Noise, Summary

COMPONENTS = 50  # that the first layer sees at the start
FEWEST = 50  # cells from which components are found
PASSES = 4
SHIFT = 0.5  # standard deviation of the shifts of batch normalisation: the units bend in different places
RIDGE = 1e-3  # of the last product, in cells


@torch.no_grad()
def start_from_components(
    encoder: Encoder, inputs: LogNormalize, standardize: Standardize, summary: Summary, noise: Noise
) -> None:
    """Start an encoder with hidden layers from the principal components of ``summary.sample``.

    Where these are a few cells only, or there is no hidden layer, the encoder stays as it is.
    """
    cells = summary.sample
    if cells is None or cells.counts.n_rows < FEWEST or not len(encoder.rest):
        return
    x, mean = _standardized(inputs(cells), standardize)
    axes, deviations = principal_axes(x, COMPONENTS)
    whitening = axes / deviations.clamp(min=1e-6 * float(deviations[0]) + 1e-30)
    weight = encoder.first.weight
    # the random weights, projected into the plane: components of nearly the same variance are known but for a rotation,
    # and so nothing here depends on it
    directions = axes.T @ weight.cpu()
    directions /= directions.square().sum(0).mean().sqrt()
    weight.copy_(whitening @ directions)
    encoder.first.bias.zero_()
    scores = sparse_matmul(x, whitening) - mean @ whitening
    assert isinstance(encoder.last, nn.Linear)
    k = min(axes.shape[1], encoder.last.out_features)
    own = torch.empty(len(axes), k).normal_(generator=noise.on(axes.device))
    left, _, right = torch.linalg.svd(axes[:, :k].T @ own)
    targets = scores[:, :k] @ (left @ right)
    _fit_last(encoder, (scores @ directions).to(weight.device), targets.to(weight.device), noise)


def _standardized(x: CSR, standardize: Standardize) -> tuple[CSR, Tensor]:
    # the input before it is centred, and the mean to subtract
    mean = standardize.mean.cpu()
    if standardize.scale is None:
        return x, mean
    scale = standardize.scale.cpu()
    return x.with_values(x.values / scale[x.indices]), mean / scale


def _fit_last(encoder: Encoder, product: Tensor, targets: Tensor, noise: Noise) -> None:
    # the last product gives the targets, (n, k), as well as it can by least squares
    assert isinstance(encoder.last, nn.Linear)
    for follow, layer in zip(encoder.after, encoder.rest, strict=True):
        assert isinstance(follow, nn.Sequential)
        norm, activation = follow[0], follow[1]
        if isinstance(norm, _BatchNorm):
            norm.bias.normal_(0, SHIFT, generator=noise.on(norm.bias.device))
        hidden = activation(_normalized(norm, product))
        product = layer(hidden)
    centred = hidden - hidden.mean(0)
    ridge = RIDGE * len(hidden) * torch.eye(hidden.shape[1], device=hidden.device)
    fitted = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ targets)
    encoder.last.weight[: targets.shape[1]] = fitted.T
    encoder.last.bias.zero_()


def _normalized(norm: nn.Module, hidden: Tensor) -> Tensor:
    # batch normalisation by the statistics of these cells
    if isinstance(norm, _BatchNorm):
        return batch_norm(hidden, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    normalized: Tensor = norm(hidden)
    return normalized


@torch.no_grad()
def principal_axes(x: CSR, k: int) -> tuple[Tensor, Tensor]:
    """Return the leading principal axes of x, (g, k), and the standard deviations along them, (k,).

    In float32, for a (n, g) x on the CPU; fewer than k where there are fewer cells or genes.
    """
    k = min(k, x.n_rows - 1, x.n_vars)
    mean, axes, _ = iterated(lambda: iter([x]), k, PASSES, torch.float32)
    # not from the sums of squares: in float32 they lose deviations below a thousandth of the largest
    _, singular, rotation = torch.linalg.svd(sparse_matmul(x, axes) - mean @ axes, full_matrices=False)
    return axes @ rotation.T, singular / (x.n_rows - 1) ** 0.5
