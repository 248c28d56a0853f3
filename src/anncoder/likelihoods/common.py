"""Limits of means and dispersions, stored entries in dense tensors, first derivatives only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anncoder.types import CSR, LinearOutput

logger = logging.getLogger("anncoder")

# within these float32 neither overflows nor loses the gradient; float32 numbers, the same limits in every precision
LIMITS = np.log(np.array([1e-8, 1e6, 1e-4, 1e6])).astype(np.float32)
LOG_MEAN_RANGE = (float(LIMITS[0]), float(LIMITS[1]))
LOG_THETA_RANGE = (float(LIMITS[2]), float(LIMITS[3]))

MeanName = Literal["exp", "softmax"]

_KERNEL_LIMITS = {
    (mean, per_gene): torch.tensor(
        [*LIMITS, float(mean == "softmax"), float(per_gene)], dtype=torch.float32, device="cpu"
    )
    for mean in ("exp", "softmax")
    for per_gene in (False, True)
}


def limits_of(mean: MeanName = "exp", log_theta: Tensor | LinearOutput | None = None) -> Tensor:
    """Return the limits for the kernels, (6,), with the kinds of mean and dispersion: see ``kernels.cpu.nb.nb``."""
    return _KERNEL_LIMITS[mean, isinstance(log_theta, Tensor) and log_theta.dim() == 1]


def warn_of_large_means(gene_mean: Tensor) -> None:
    """Warn of genes, (g,), with means above the limit."""
    n_large = int((gene_mean.log() > LOG_MEAN_RANGE[1]).sum())
    if n_large:
        logger.warning("%d genes have more than a million counts a cell: the model expects a million of them", n_large)


def at_entries(parameter: Tensor, counts: CSR, flat: Tensor) -> Tensor:
    """Return a parameter's value at every stored entry, (nnz,), in float64; ``flat`` is ``counts.flat()``.

    The parameter has one value a gene, (g,), one a cell, (b, 1), or one an entry, (b, g).
    """
    if parameter.dim() == 1:
        return parameter[counts.indices].double()
    if parameter.shape[1] == 1 and counts.n_vars != 1:
        return parameter[counts.rows(), 0].double()
    return parameter.reshape(-1)[flat].double()


def put_entries(dense: Tensor, flat: Tensor, values: Tensor) -> Tensor:
    """Replace the stored entries of a dense (b, g) tensor, in place; return it."""
    dense.view(-1)[flat] = values.to(dense.dtype)
    return dense


def weighted_to_shape(per_cell: Tensor, gradient: Tensor, parameter_shape: tuple[int, ...]) -> Tensor:
    """Chain rule: weight a (b, g) gradient by upstream gradients, (b,), and sum it to a parameter's shape."""
    if parameter_shape == gradient.shape[1:]:
        return per_cell @ gradient
    return (gradient * per_cell.unsqueeze(1)).sum_to_size(parameter_shape)


def differentiated_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make second derivatives an error, for the ``backward`` of an autograd function.

    torch's own decorator does so only if the upstream gradient is differentiable. That of a sum is not: a gradient
    penalty, or a product with the Hessian, would silently lack the part of the likelihood.
    """
    inner = once_differentiable(backward)

    def refusing(ctx: Any, *upstream: Any) -> Any:
        if torch.is_grad_enabled():  # in a backward pass: create_graph=True
            raise RuntimeError("a likelihood is differentiated once: create_graph=True has no meaning for it")
        return inner(ctx, *upstream)

    return refusing


def refuse_moving(counts: CSR) -> None:
    """Raise a ValueError for counts that require a gradient: a count likelihood has none."""
    if torch.is_grad_enabled() and counts.values.requires_grad:
        raise ValueError("a likelihood of counts is not differentiated by them: counts.values.detach()")
