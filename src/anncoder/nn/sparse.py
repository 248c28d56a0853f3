"""Sparse first layer: CSR minibatch in, dense hidden units out, centring folded in.

The product reads only the stored values. Standardised input stays sparse too: with ``x' = (x - mean) / sd`` the
factor goes into the weights and the shift into the bias, ``x' W + b = x (W / sd) + (b - mean (W / sd))``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.sparse import csc_array
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from anncoder.kernels import constant, empty_float32, fused, on_gpu
from anncoder.kernels.cpu import sparse
from anncoder.types import CSR, Noise


class SparseLinear(nn.Module):
    """``x @ weight + bias`` for a CSR or dense x; initial weights as those of ``torch.nn.Linear``."""

    def __init__(self, n_in: int, n_out: int, noise: Noise) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))  # rows are genes: a stored value reads one row
        self.bias = nn.Parameter(torch.empty(n_out))
        reset(self.weight, n_in, noise)
        reset(self.bias, n_in, noise)

    def forward(self, x: CSR | Tensor, mean: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Return (b, n_out); ``mean`` is subtracted from the input first, and ``scale`` divides it, (n_in,) each."""
        weight = self.weight if scale is None else self.weight / scale.unsqueeze(1)
        if isinstance(x, CSR) and constant(x.values, mean) and fused(x.values, weight, self.bias, mean):
            product: Tensor = _Centred.apply(weight, self.bias, x, mean)  # type: ignore[no-untyped-call]
            return product
        bias = self.bias if mean is None else self.bias - mean @ weight
        return sparse_matmul(x, weight) + bias

    def backward(self, x: CSR, mean: Tensor | None, by_out: Tensor) -> None:
        """Set the gradients of weight and bias from that of the output, (b, n_out); float32 on the CPU."""
        self.weight.grad, by_bias = centred_transposed_matmul(x, mean, by_out)
        if self.bias.requires_grad:
            self.bias.grad = by_bias


def reset(parameter: Tensor, fan_in: int, noise: Noise) -> None:
    """Fill a parameter uniformly within 1 / sqrt(fan_in); does nothing on the ``meta`` device."""
    if not parameter.is_meta:
        bound = 1 / math.sqrt(max(fan_in, 1))
        with torch.no_grad():
            parameter.uniform_(-bound, bound, generator=noise.on(parameter.device))


def sparse_matmul(x: CSR | Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight``, (b, h), for a CSR or dense (b, g) x and a (g, h) weight."""
    if isinstance(x, Tensor):
        return x @ weight
    if not constant(x.values):  # torch's product also has the gradient by the expression values
        return bag(x, weight)
    if fused(x.values, weight):
        centred: Tensor = _Centred.apply(weight, weight.new_zeros(weight.shape[1]), x, None)  # type: ignore[no-untyped-call]
        return centred
    if on_gpu(x.values, weight):
        from anncoder.kernels.gpu.launch import densify

        # dense products are faster there than gathering, and the gradient of the weights reads the same dense matrix
        return densify((x.indptr, x.indices, x.values), x.n_vars) @ weight
    product: Tensor = _SparseMatmul.apply(weight, x)  # type: ignore[no-untyped-call]
    return product


def bag(x: CSR, weight: Tensor) -> Tensor:
    """Return ``x @ weight`` by the fastest of torch's sparse products (its own gradient is the slowest)."""
    values = x.values.to(weight.dtype)
    return embedding_bag(x.indices, weight, x.indptr, mode="sum", per_sample_weights=values, include_last_offset=True)


class _Centred(torch.autograd.Function):
    # (x - mean) @ weight + bias, (b, h), and its gradients in one kernel
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, x: CSR, mean: Tensor | None) -> Tensor:
        ctx.x, ctx.mean = x, mean
        ctx.save_for_backward(*x.changeable())
        return centred_product(x, weight, bias, mean)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        _ = ctx.saved_tensors  # raises if they were changed since
        return (*centred_transposed_matmul(ctx.x, ctx.mean, upstream[0]), None, None)


def centred_product(x: CSR, weight: Tensor, bias: Tensor, mean: Tensor | None) -> Tensor:
    """Return ``(x - mean) @ weight + bias``, (b, h), without a gradient."""
    start = bias if mean is None else torch.addmv(bias, weight.T, mean, alpha=-1)
    return bag(x, weight).add_(start)


def centred_transposed_matmul(x: CSR, mean: Tensor | None, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(x - mean).T @ dense``, (g, h), and the sums of the columns of ``dense``, (h,); float32 on the CPU."""
    out, sums = empty_float32(x.n_vars, dense.shape[1]), empty_float32(dense.shape[1])
    centre = empty_float32(0) if mean is None else mean
    if len(dense) != x.n_rows or len(x.values) != len(x.indices) or centre.shape not in ((0,), (x.n_vars,)):
        # the kernel follows addresses
        raise ValueError(f"{x.n_rows} x {x.n_vars} values, {len(centre)} means and {len(dense)} rows do not fit")
    arrays = (x.indptr, x.indices, x.values.contiguous(), centre, dense.contiguous(), out, sums)
    sparse.transposed_matmul(sparse.pieces(dense.shape[1], sparse.STRIP), *arrays)
    return out, sums


class _SparseMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: CSR) -> Tensor:
        ctx.x = x
        ctx.save_for_backward(*x.changeable())
        return bag(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        _ = ctx.saved_tensors
        return transposed_matmul(ctx.x, upstream[0]), None


def transposed_matmul(x: CSR, dense: Tensor) -> Tensor:
    """Return ``x' @ dense``, (g, h), for a (b, g) x and a dense (b, h)."""
    if fused(x.values, dense):
        return centred_transposed_matmul(x, None, dense)[0]
    if dense.device.type != "cpu":
        return x.to_dense().T @ dense
    # the CSR arrays of x are the CSC arrays of its transpose, so nothing is sorted or copied
    transposed = csc_array(
        (x.values.to(dense.dtype).numpy(), x.indices.numpy(), x.indptr.numpy()), shape=(x.n_vars, x.n_rows)
    )
    return torch.from_numpy(transposed @ dense.numpy())
