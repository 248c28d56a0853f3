"""Launching the Triton kernels: torch tensors in and out, all on one device, and never a wait for it.

Only imported where :func:`anncoder.kernels.on_gpu` says that these kernels serve.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from anncoder.kernels import triton_loss, triton_sparse

Kind = Literal["nb", "zinb", "poisson", "squared"]
Theta = Literal["gene", "cell", "entry", "none"]

ROWS = 4  # of a program; with COLUMNS, and ENTRIES of the stored values, never fewer numbers than it has threads
COLUMNS = 256
ENTRIES = 256
WARPS = 8
FACTORIALS = 1024  # from here on the logarithm of a factorial is computed
STORED = 128  # stored values at a time, where a program has one row
SCALED = 1024  # numbers at a time that are only read and multiplied
TOTALS = 32  # genes of a program that adds up what the others found


Arrays: TypeAlias = tuple[Tensor, Tensor, Tensor]  # indptr (int64), indices (int64), values (float32)
Matrix: TypeAlias = tuple[Tensor, Tensor, Tensor]  # the same with int32 indices


class Parameters(NamedTuple):
    """What the loss of a minibatch is computed from; every tensor contiguous, on one device."""

    kind: Kind
    logits: Tensor  # (n, g) float32 log mean at size factor 1, before it is limited; for "squared" the mean
    log_theta: Tensor | None  # (g,), (n, 1) or (n, g) float32, before it is limited
    pi_logits: Tensor | None  # (n, g) float32
    offset: Tensor  # (n,) float32 log size factor
    counts: Arrays
    limits: tuple[float, ...]  # least and largest log mean, least and largest log theta

    @property
    def theta(self) -> Theta:
        """Of what there is one dispersion."""
        if self.log_theta is None:
            return "none"
        if self.log_theta.dim() == 1:
            return "gene"
        return "cell" if self.log_theta.shape[1] == 1 else "entry"


class Gradients(NamedTuple):
    """Of a weighted sum of the cells' losses."""

    by_mean: Tensor  # (n, g)
    by_theta: Tensor | None  # of the shape of log theta
    by_pi: Tensor | None  # (n, g)


class Again(NamedTuple):
    """Other weights than the gradients have, and by what factor they are others; see :func:`agreement`."""

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
    """Write the gradients for other weights, (n,), than the one that they have.

    Whether the weights are others is found out on the device; if they are not, it leaves the gradients as they are.
    """
    _launch(of, of.offset, gradients, weight, Again(per_cell, agreement(per_cell, weight)))


def scale(gradients: Gradients, weight: float, per_cell: Tensor) -> None:
    """Turn the gradients into those for other weights, (n,), where the logits are gone.

    A dispersion of each gene gets NaN if the weights are not all the same: what each cell contributed to it is lost.
    """
    for gradient in gradients:
        if gradient is not None and gradient.dim() == 2 and gradient.numel():
            grid = (gradient.shape[0], -(-gradient.shape[1] // SCALED))
            with _device_of(gradient):
                triton_loss.scale_rows[grid](
                    gradient, per_cell, per_cell.stride(0), weight, gradient.shape[1], COLUMNS=SCALED
                )
    if gradients.by_theta is not None and gradients.by_theta.dim() == 1:
        gradients.by_theta.mul_(agreement(per_cell, weight))


def agreement(per_cell: Tensor, weight: float) -> Tensor:
    """Return by what factor the weights of all cells are another than ``weight``, (1,); NaN if not all by the same."""
    agreed = per_cell.new_ones(1)
    if per_cell.numel():
        with _device_of(per_cell):
            triton_loss.agreement[1,](per_cell, per_cell.stride(0), weight, agreed, per_cell.numel(), BLOCK=SCALED)
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
            triton_sparse.take_rows[len(rows),](*matrix, rows, starts, columns, data, BLOCK=STORED)


def log_normalize(counts: Arrays, size_factor: Tensor) -> Tensor:
    """Return ``log1p(values / size_factor)`` of the stored values, (nnz,)."""
    indptr, _, values = counts
    values, size_factor = values.contiguous(), size_factor.contiguous()
    out = torch.empty_like(values)
    if values.numel():
        with _device_of(values):
            triton_sparse.log_normalize[len(size_factor),](indptr, values, size_factor, out, BLOCK=STORED)
    return out


def densify(x: Arrays, n_vars: int) -> Tensor:
    """Return the dense (b, g) matrix."""
    indptr, indices, values = x
    n = len(indptr) - 1
    out = values.new_empty(n, n_vars)
    if out.numel():
        with _device_of(out):
            arrays = (indptr, indices, values.contiguous())
            triton_sparse.densify[n,](*arrays, out, n_vars, COLUMNS=SCALED, BLOCK=STORED)
    return out


def _unwritten(of: Parameters, *, over_logits: bool) -> Gradients:
    return Gradients(
        of.logits if over_logits else torch.empty_like(of.logits),
        None if of.log_theta is None else torch.empty_like(of.log_theta),
        of.pi_logits if over_logits or of.pi_logits is None else torch.empty_like(of.pi_logits),
    )


def _launch(of: Parameters, nll: Tensor, gradients: Gradients | None, weight: float, again: Again | None) -> None:
    n, g = of.logits.shape
    programs, nnz, nothing = -(-n // ROWS), of.counts[1].numel(), nll
    limits, known = _limits(of.limits, nll.device), _log_factorials(nll.device)
    by_mean, by_theta, by_pi = (nothing if t is None else t for t in gradients or (None, None, None))
    per_gene = gradients is not None and of.theta == "gene"
    partial = nll.new_empty(programs, g, dtype=torch.float64) if per_gene else by_theta
    per_cell, agreed = again or (nothing, nothing)
    with _device_of(of.logits):
        if n:
            triton_loss.count_pass[programs,](
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
                ROWS=ROWS,
                COLUMNS=COLUMNS,
                ENTRIES=ENTRIES,
                FACTORIALS=FACTORIALS,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )
        if per_gene:
            triton_loss.theta_total[-(-g // TOTALS),](
                *(partial, of.log_theta, limits, agreed, by_theta, programs, g),
                RERUN=again is not None,
                ROWS=64,
                COLUMNS=TOTALS,
            )


def _device_of(tensor: Tensor) -> AbstractContextManager[None]:
    # Triton launches on the current device, whatever its arguments are on; nothing happens on the CPU
    on: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return on


@cache
def _limits(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


@cache
def _log_factorials(device: torch.device) -> Tensor:
    return torch.lgamma(torch.arange(1, FACTORIALS + 1, dtype=torch.float64, device=device))
