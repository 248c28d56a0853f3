"""Launches of the Triton kernels: torch tensors in and out, never a wait for the GPU.

Imported only if :func:`anncoder.kernels.on_gpu` is true for some tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from anncoder.kernels.gpu import adam, loss, sparse

Kind = Literal["nb", "zinb", "poisson", "squared"]
Theta = Literal["gene", "cell", "entry", "none"]

# with COLUMNS, and ENTRIES of the stored values, a program never has fewer numbers than threads
ROWS = 8  # of a program; half as many below FEW
FEW = 2048  # rows: with fewer there are fewer programs than a large GPU runs at once
COLUMNS = 256
ENTRIES = 256
WARPS = 8
FACTORIALS = 1024  # size of the table of log factorials
STORED = 128  # stored values at a time, where a program has one row
SCALED = 1024  # numbers at a time that are only read and multiplied
TOTALS = 16  # genes of a program that adds up partial sums
PARTS = 128  # partial sums at a time
PIECE = 1024  # numbers of a parameter for a program of the optimizer
TENSORS = 32  # parameters of a launch, which has a maximum of arguments


Arrays: TypeAlias = tuple[Tensor, Tensor, Tensor]  # indptr (int64), indices (int64), values (float32)
Matrix: TypeAlias = tuple[Tensor, Tensor, Tensor]  # the same with int32 indices
Cells: TypeAlias = tuple[Tensor, Tensor | None]  # (n,) float32 size factors, (n,) int64 codes if there are any


class Parameters(NamedTuple):
    """Input of the loss of a minibatch; every tensor contiguous, on one device."""

    kind: Kind
    logits: Tensor  # (n, g) float32 log mean at size factor 1, before it is limited; for "squared" the mean
    log_theta: Tensor | None  # (g,), (n, 1) or (n, g) float32, before it is limited
    pi_logits: Tensor | None  # (n, g) float32
    offset: Tensor  # (n,) float32 log size factor
    counts: Arrays
    limits: tuple[float, ...]  # least and largest log mean, least and largest log theta

    @property
    def theta(self) -> Theta:
        """Unit with a dispersion of its own."""
        if self.log_theta is None:
            return "none"
        if self.log_theta.dim() == 1:
            return "gene"
        return "cell" if self.log_theta.shape[1] == 1 else "entry"


class Gradients(NamedTuple):
    """Gradients of a weighted sum of the cells' losses."""

    by_mean: Tensor  # (n, g)
    by_theta: Tensor | None  # of the shape of log theta
    by_pi: Tensor | None  # (n, g)


class Moved(NamedTuple):
    """A parameter, its gradient and moments; contiguous float32 tensors of one shape."""

    parameter: Tensor
    gradient: Tensor
    first: Tensor  # moment
    second: Tensor


class Again(NamedTuple):
    """New weights for the gradients, and their common factor; see :func:`agreement`."""

    per_cell: Tensor  # (n,) float32, of any stride
    agreed: Tensor  # (1,)


def loss_pass(of: Parameters, weight: float | None, *, over_logits: bool = False) -> tuple[Tensor, Gradients | None]:
    """Return the loss of each cell, (n,), and the gradients of their sum times a weight.

    Parameters
    ----------
    of
        Parameters and data.
    weight
        None if no gradient is wanted.
    over_logits
        Write the gradients for the logits, and for those of the dropout, into their own memory.
    """
    nll = of.logits.new_empty(of.logits.shape[0])
    gradients = None if weight is None else _unwritten(of, over_logits=over_logits)
    _launch(of, nll, gradients, weight or 1.0, None)
    return nll, gradients


def gradients_for(of: Parameters, per_cell: Tensor) -> Gradients:
    """Return the gradients of the cells' losses times their weights, (n,)."""
    gradients = _unwritten(of, over_logits=False)
    _launch(of, of.offset, gradients, 1.0, Again(per_cell, per_cell.new_full((1,), float("nan"))))
    return gradients


def write_again(of: Parameters, gradients: Gradients, weight: float, per_cell: Tensor) -> None:
    """Write the gradients again with weights (n,); the device leaves them unchanged if the weights are the same."""
    _launch(of, of.offset, gradients, weight, Again(per_cell, agreement(per_cell, weight)))


def scale(gradients: Gradients, weight: float, per_cell: Tensor) -> None:
    """Scale the gradients to other weights, (n,), after the logits were overwritten.

    A dispersion of each gene gets NaN if the weights differ: the contributions of the cells are lost.
    """
    for gradient in gradients:
        if gradient is not None and gradient.dim() == 2 and gradient.numel():
            grid = (gradient.shape[0], -(-gradient.shape[1] // SCALED))
            with _device_of(gradient):
                loss.scale_rows[grid](gradient, per_cell, per_cell.stride(0), weight, gradient.shape[1], COLUMNS=SCALED)
    if gradients.by_theta is not None and gradients.by_theta.dim() == 1:
        gradients.by_theta.mul_(agreement(per_cell, weight))


def agreement(per_cell: Tensor, weight: float) -> Tensor:
    """Return the factor of the weights of all cells over ``weight``, (1,); NaN if they differ."""
    agreed = per_cell.new_ones(1)
    if per_cell.numel():
        with _device_of(per_cell):
            loss.agreement[1,](per_cell, per_cell.stride(0), weight, agreed, per_cell.numel(), BLOCK=SCALED)
    return agreed


def take_rows(matrix: Matrix, rows: Tensor, starts: Tensor, columns: Tensor, data: Tensor) -> None:
    """Copy some rows of a matrix.

    Parameters
    ----------
    matrix
        indptr (int64), indices (int32) and values (float32) of a CSR matrix.
    rows
        (b,) int64, in any order.
    starts
        (b + 1,) int64 where each row begins in the copy, and the last one ends.
    columns, data
        int64 and float32, written; at least that long.
    """
    if columns.numel():
        with _device_of(rows):
            sparse.take_rows[len(rows),](*matrix, rows, starts, columns, data, BLOCK=STORED)


def fill(matrix: Matrix, plan: Arrays, cells: Cells, counts: Arrays, taken: Cells, rows: Tensor) -> None:
    """Fill given arrays with a minibatch, the number of which is on the device.

    Parameters
    ----------
    matrix
        As for :func:`take_rows`.
    plan
        (1,) int64 number k of the minibatch; (k_max * b,) int64 rows of all of them, and (k_max * (b + 1),) int64 where
        each row begins in its minibatch, and the last one of each ends.
    cells
        Of all rows of the matrix.
    counts, taken, rows
        Of the b cells of the minibatch, written; indices and values are at least as long as it needs.
    """
    (size_factors, codes), (size_factor, code) = cells, taken
    coded = codes is not None and code is not None
    with _device_of(rows):
        sparse.fill[len(rows),](
            *(matrix, plan, size_factors, codes if coded else rows, counts),
            *(size_factor, rows, code if coded else rows, len(rows)),
            CODED=coded,
            BLOCK=STORED,
        )


def log_normalize(counts: Arrays, size_factor: Tensor) -> Tensor:
    """Return ``log1p(values / size_factor)`` of the stored values, (nnz,)."""
    indptr, _, values = counts
    values, size_factor = values.contiguous(), size_factor.contiguous()
    out = torch.empty_like(values)
    if values.numel():
        with _device_of(values):
            sparse.log_normalize[len(size_factor),](indptr, values, size_factor, out, BLOCK=STORED)
    return out


def densify(x: Arrays, n_vars: int) -> Tensor:
    """Return the dense (b, g) matrix."""
    indptr, indices, values = x
    n = len(indptr) - 1
    out = values.new_empty(n, n_vars)
    if out.numel():
        with _device_of(out):
            arrays = (indptr, indices, values.contiguous())
            sparse.densify[n,](*arrays, out, n_vars, COLUMNS=SCALED, BLOCK=STORED)
    return out


class AdamSettings(NamedTuple):
    """Settings of a step of Adam."""

    rate: float
    betas: tuple[float, float]
    epsilon: float
    decay: float
    clip_norm: float


def adam_step(tensors: Sequence[Moved], taken: Tensor, total: Tensor, settings: AdamSettings) -> Tensor:
    """Take a step of Adam in place, unless the gradient or the loss is not finite; return whether they are, () bool.

    Parameters
    ----------
    tensors
        Parameters with gradients and moments.
    taken
        (len(tensors),) float32 number of steps taken, the same for all.
    total
        () float32 loss.
    settings
        Step size, and so on; constants of a recorded step.
    """
    groups = [tensors[k : k + TENSORS] for k in range(0, len(tensors), TENSORS)]
    sizes = [tuple(of.parameter.numel() for of in group) for group in groups]
    pieces = [sum(-(-n // PIECE) for n in each) for each in sizes]
    sums = total.new_empty(sum(pieces), dtype=torch.float64)
    numbers, finite = total.new_empty(3), total.new_empty((), dtype=torch.bool)
    beta1, beta2 = settings.betas
    with _device_of(total):
        for group, each, n, own in zip(groups, sizes, pieces, torch.split(sums, pieces), strict=True):
            adam.sum_squares[n,](tuple(of.gradient for of in group), each, own, BLOCK=PIECE)
        adam.settle[1,](
            *(sums, len(sums), total, settings.clip_norm, settings.rate, _log(beta1), _log(beta2)),
            *(taken, len(tensors), numbers, finite),
            BLOCK=SCALED,
        )
        for group, each, n in zip(groups, sizes, pieces, strict=True):
            adam.adam[n,](
                *(*zip(*group, strict=True), each, numbers, finite),
                *(settings.decay, 1 - beta1, 1 - beta2, settings.epsilon),
                BLOCK=PIECE,
            )
    return finite


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf


def _unwritten(of: Parameters, *, over_logits: bool) -> Gradients:
    return Gradients(
        of.logits if over_logits else torch.empty_like(of.logits),
        None if of.log_theta is None else torch.empty_like(of.log_theta),
        of.pi_logits if over_logits or of.pi_logits is None else torch.empty_like(of.pi_logits),
    )


def _launch(of: Parameters, nll: Tensor, gradients: Gradients | None, weight: float, again: Again | None) -> None:
    n, g = of.logits.shape
    rows = ROWS if n >= FEW else ROWS // 2
    programs, nnz, nothing = -(-n // rows), of.counts[1].numel(), nll
    limits, known = _limits(of.limits, nll.device), _log_factorials(nll.device)
    by_mean, by_theta, by_pi = (nothing if t is None else t for t in gradients or (None, None, None))
    per_gene = gradients is not None and of.theta == "gene"
    partial = nll.new_empty(programs, g, dtype=torch.float64) if per_gene else by_theta
    per_cell, agreed = again or (nothing, nothing)
    with _device_of(of.logits):
        if n:
            loss.count_pass[programs,](
                *(of.logits, nothing if of.log_theta is None else of.log_theta),
                *(nothing if of.pi_logits is None else of.pi_logits, of.offset, limits, known, *of.counts),
                *(weight, per_cell, per_cell.stride(0), agreed),
                *(nll, by_mean, partial, by_pi),
                *(nll.new_empty(nnz * (1 + (of.kind == "zinb"))), nll.new_empty(nnz, dtype=torch.float64)),
                *(n, g, nnz),
                KIND=of.kind,
                THETA=of.theta,
                GRADIENT=gradients is not None,
                RERUN=again is not None,
                ROWS=rows,
                COLUMNS=COLUMNS,
                ENTRIES=ENTRIES,
                FACTORIALS=FACTORIALS,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )
        if per_gene:
            loss.theta_total[-(-g // TOTALS),](
                *(partial, of.log_theta, limits, agreed, by_theta, programs, g),
                RERUN=again is not None,
                ROWS=PARTS,
                COLUMNS=TOTALS,
            )


def _device_of(tensor: Tensor) -> AbstractContextManager[None]:
    # Triton launches on the current device, not on that of its arguments; does nothing on the CPU
    on: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return on


@cache
def _limits(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


@cache
def _log_factorials(device: torch.device) -> Tensor:
    return torch.lgamma(torch.arange(1, FACTORIALS + 1, dtype=torch.float64, device=device))
