"""Autograd of the CPU kernels: loss and gradients in one pass, output layer by blocks.

A parameter is a tensor, or the :class:`~anncoder.types.LinearOutput` of an output layer. The latter is computed by
blocks of cells: the product, its loss, the gradient in place of the product, and the products of that gradient with
weights and hidden units, while the block is in a cache.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from anncoder.kernels import empty_float32
from anncoder.kernels.cpu.nb import CHUNK
from anncoder.kernels.cpu.sparse import rows_fit
from anncoder.kernels.cpu.threads import Kernel
from anncoder.likelihoods.common import differentiated_once
from anncoder.types import CSR, LinearOutput

BLOCK = 1 << 21  # bytes of a product at a time, to stay in a cache
FEWEST = 64  # rows of a block: products of fewer are slow


class LossSpec(NamedTuple):
    """A kernel and its data."""

    kernel: Kernel  # arrays: parameters, offset, weight, indptr, indices, values, limits, loss, gradients
    counts: CSR
    size_factor: Tensor | None  # (b,)
    limits: Tensor  # (6,) float32; see anncoder.kernels.cpu.nb.nb

    def run(self, parameters: list[Tensor | LinearOutput], weight: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of each cell, (b,) float64, and the gradients of the weighted sum, none without a weight.

        A :class:`LinearOutput` has three: for hidden units, weight and bias. A ValueError if counts, parameters and
        size factors do not have the same cells and genes.
        """
        counts, wanted = self.counts, weight is not None
        n, g = parameters[0].shape
        self._refuse_other_shapes(n, g, parameters)
        loss = torch.empty(n, dtype=torch.float64, device="cpu")
        weights = empty_float32(n) if weight is None else weight
        offset = empty_float32(n).zero_() if self.size_factor is None else self.size_factor.log().float()
        values = counts.values.float().contiguous()
        parts = [_part(place, parameter, wanted=wanted) for place, parameter in enumerate(parameters)]
        for rows in _blocks(n, g, parameters):
            opened = [part.open(rows) for part in parts]
            cells = (offset[rows], weights[rows], counts.indptr[rows.start : rows.stop + 1], counts.indices, values)
            arrays = (*(value for value, _ in opened), *cells, self.limits, loss[rows], *(room for _, room in opened))
            self.kernel(-(-(rows.stop - rows.start) // CHUNK), *arrays)
            for part in parts:
                part.close(rows)
        return loss, [gradient for part in parts for gradient in part.gradients]

    def _refuse_other_shapes(self, n: int, g: int, parameters: list[Tensor | LinearOutput]) -> None:
        # the kernel works on addresses: wrong shapes would read and write foreign memory
        counts, size = self.counts, self.size_factor
        same = (counts.n_rows, counts.n_vars) == (n, g) and len(counts.values) == len(counts.indices)
        if not same or (size is not None and size.shape != (n,)):
            stored = f"{len(counts.indices)} stored genes and {len(counts.values)} values"
            found = f"counts are {counts.n_rows} x {counts.n_vars} with {stored}, the mean is {n} x {g}"
            raise ValueError(f"{found}, size factors {'none' if size is None else tuple(size.shape)}")
        answer = np.array([g])
        rows_fit(1, counts.indptr, counts.indices, answer)
        if not answer[0]:
            raise ValueError("counts have a gene, or a row, that lies outside of them")
        for parameter in parameters:
            if tuple(parameter.shape) not in ((g,), (n, 1), (n, g)):
                raise ValueError(f"a parameter of {n} cells and {g} genes has the shape {tuple(parameter.shape)}")


def cpu_loss(spec: LossSpec, *parameters: Tensor | LinearOutput) -> Tensor:
    """Return the loss of each cell, (b,); differentiable once.

    Gradients are written with the weight of a mean over cells and genes, so that nothing is left to do for the backward
    pass of a training step. Another common weight multiplies them; different weights run the pass again. Parameters are
    float32: (b, g) tensors or output layers, (b, 1), or (g,).
    """
    tensors = [t for p in parameters for t in (p if isinstance(p, LinearOutput) else (p,))]
    products = tuple(isinstance(p, LinearOutput) for p in parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        loss: Tensor = _OnePass.apply(spec, products, *tensors)  # type: ignore[no-untyped-call]
        return loss
    return spec.run(_gathered(products, tensors), None)[0].float()


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spec: LossSpec, products: tuple[bool, ...], *tensors: Tensor) -> Tensor:
        parameters = _gathered(products, tensors)
        n, g = parameters[0].shape
        ctx.spec, ctx.products, ctx.weight = spec, products, 1 / max(n * g, 1)
        ctx.save_for_backward(*tensors, *spec.counts.changeable())
        loss, ctx.gradients = spec.run(parameters, empty_float32(n).fill_(ctx.weight))
        return loss.float()

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        per_cell = upstream[0]
        gradients, ctx.gradients = ctx.gradients, None  # handed out once: the receiver may change them
        alike = per_cell.stride() == (0,) or bool((per_cell == per_cell[:1]).all())  # of a sum: one number
        if gradients is None or not alike:
            gradients = ctx.spec.run(_gathered(ctx.products, ctx.saved_tensors), per_cell.contiguous())[1]
            return (None, None, *gradients)
        factor = float(per_cell[0]) / ctx.weight if per_cell.numel() else 1.0
        if not abs(factor - 1) <= 1e-6:  # closer is the rounding of the weight itself; also false for NaN
            gradients = [gradient * factor for gradient in gradients]
        return (None, None, *gradients)


class _Part(Protocol):
    """A parameter block by block, for the kernel, and its gradients."""

    gradients: tuple[Tensor, ...]

    def open(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the values of a block, and memory for its gradient: (0, g) if none is wanted."""
        ...

    def close(self, rows: slice) -> None:
        """Process the gradient of a block."""
        ...


class _PerEntry:
    """A parameter of every entry or every cell, (b, g) or (b, 1)."""

    def __init__(self, value: Tensor, *, wanted: bool) -> None:
        self.value, self.wanted = value.contiguous(), wanted
        self.gradients: tuple[Tensor, ...] = (
            empty_float32(*value.shape) if wanted else empty_float32(0, value.shape[1]),
        )

    def open(self, rows: slice) -> tuple[Tensor, Tensor]:
        (gradient,) = self.gradients
        return self.value[rows], gradient[rows] if self.wanted else gradient

    def close(self, rows: slice) -> None:
        """Do nothing: the kernel has written the gradient in place."""


class _PerGene:
    """A parameter of every gene, (g,); the gradient of a block is a partial sum for each chunk of rows."""

    def __init__(self, value: Tensor, *, wanted: bool) -> None:
        self.value, self.wanted = value.contiguous()[None], wanted
        self.gradients: tuple[Tensor, ...] = (torch.zeros_like(self.value[0]),)

    def open(self, rows: slice) -> tuple[Tensor, Tensor]:
        n_chunks = -(-(rows.stop - rows.start) // CHUNK) * self.wanted
        self.partial = empty_float32(n_chunks, self.value.shape[1])
        return self.value, self.partial

    def close(self, rows: slice) -> None:
        if self.wanted:
            self.gradients[0].add_(self.partial.sum(dim=0))


class _Layer:
    """The product of an output layer; the gradient overwrites it."""

    def __init__(self, place: int, product: LinearOutput, *, wanted: bool) -> None:
        self.place, self.product, self.wanted = place, product, wanted
        self.transposed = product.weight.T
        like = product if wanted else ()
        self.gradients: tuple[Tensor, ...] = tuple(torch.empty_like(t) for t in like)

    def open(self, rows: slice) -> tuple[Tensor, Tensor]:
        hidden, _, bias = self.product
        block = _scratch.block(self.place, rows.stop - rows.start, len(bias))
        torch.addmm(bias, hidden[rows], self.transposed, out=block)
        self.gradient = block if self.wanted else block[:0]
        return block, self.gradient

    def close(self, rows: slice) -> None:
        if not self.wanted:
            return
        hidden, weight, _ = self.product
        by_hidden, by_weight, by_bias = self.gradients
        torch.mm(self.gradient, weight, out=by_hidden[rows])
        by_weight.addmm_(self.gradient.T, hidden[rows], beta=float(rows.start > 0))  # the first block begins the sums
        if rows.start == 0:
            torch.sum(self.gradient, 0, out=by_bias)
        else:
            by_bias.add_(self.gradient.sum(dim=0))


def _part(place: int, parameter: Tensor | LinearOutput, *, wanted: bool) -> _Part:
    if isinstance(parameter, LinearOutput):
        return _Layer(place, parameter, wanted=wanted)
    return _PerGene(parameter, wanted=wanted) if parameter.dim() == 1 else _PerEntry(parameter, wanted=wanted)


def _blocks(n: int, g: int, parameters: list[Tensor | LinearOutput]) -> Iterator[slice]:
    size = n
    if any(isinstance(parameter, LinearOutput) for parameter in parameters):
        size = max(BLOCK // (4 * g) // CHUNK * CHUNK, FEWEST)
    for start in range(0, max(n, 1), max(size, 1)):
        yield slice(start, min(start + size, n))


def _gathered(products: tuple[bool, ...], tensors: Any) -> list[Tensor | LinearOutput]:
    # the parameters made of these tensors, outside autograd
    each = iter(tensors)
    return [
        LinearOutput(*(next(each).detach().contiguous() for _ in LinearOutput._fields))
        if product
        else next(each).detach()
        for product in products
    ]


class _Scratch(threading.local):
    """Reused memory of a thread: allocating it costs as much as the product."""

    def __init__(self) -> None:
        # arrays: a tensor keeps the inference mode in which it was made
        self.arrays: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}

    def block(self, place: int, n: int, g: int) -> Tensor:
        """Return uninitialised (n, g) float32 memory of a place."""
        if place not in self.arrays or self.arrays[place].size < n * g:
            self.arrays[place] = np.empty(n * g, dtype=np.float32)
        return torch.from_numpy(self.arrays[place][: n * g]).view(n, g)


_scratch = _Scratch()
