"""Corruption of the input of denoising autoencoders: swap, mask, dropout, thinning.

Every kind but ``gaussian`` reads and writes the stored values only, which is exact: a zero that is masked, dropped or
thinned stays zero, and two zeros that are swapped stay zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anncoder.config import CorruptionName
from anncoder.types import CSR


class Corrupted(NamedTuple):
    """A corrupted input and where it differs from the clean one."""

    x: CSR | Tensor  # (b, g)
    changed: CSR | None  # (b, g) the clean value of every changed entry; None for noise on every entry, or none at all


def corrupt(x: CSR, kind: CorruptionName, strength: float, generator: torch.Generator) -> Corrupted:
    """Corrupt expression values.

    Parameters
    ----------
    x
        (b, g) network input.
    kind
        ``swap``: each value is, with probability ``strength``, the same gene's value in another cell of the minibatch
        (scMAE, Fang et al. 2024, doi 10.1093/bioinformatics/btae020). ``mask``: zero with that probability.
        ``dropout``: the same, the others scaled by 1 / (1 - strength). ``gaussian``: normal noise of that standard
        deviation is added to every entry. ``none``: nothing.
    strength
        Probability, or standard deviation.
    generator
        Source of the random numbers, on the device of x.
    """
    if kind == "none" or strength == 0:
        return Corrupted(x, None)
    if kind == "swap":
        return swap(x, strength, generator)
    if kind == "gaussian":
        dense = x.to_dense()
        noise = torch.empty_like(dense).normal_(0, strength, generator=generator)
        return Corrupted(dense + noise, None)
    hit = _uniform(x.values, generator) < strength
    rest = x.values / (1 - strength) if kind == "dropout" else x.values
    return Corrupted(x.with_values(torch.where(hit, 0, rest)), select(x, hit & (x.values != 0)))


def thin(counts: CSR, strength: float, generator: torch.Generator) -> CSR:
    """Remove each molecule with probability ``strength``: binomial thinning of counts.

    The two parts are independent for Poisson counts, the basis of molecular cross-validation (Batson, Royer, Webber
    2019, doi 10.1101/786269).
    """
    remaining = torch.binomial(counts.values, torch.full_like(counts.values, 1 - strength), generator=generator)
    return counts.with_values(remaining)


def swap(x: CSR, strength: float, generator: torch.Generator) -> Corrupted:
    """Swap values between cells of a minibatch; see :func:`corrupt`.

    Row i may take values of row i + s (modulo b), with one shift s > 0 a minibatch: always another cell.
    """
    if x.n_rows < 2:
        return Corrupted(x, select(x, torch.zeros_like(x.values, dtype=torch.bool)))
    shift = int(torch.randint(1, x.n_rows, (), generator=generator, device=x.values.device))
    other = roll_rows(x, shift)
    own_at, other_at = x.flat(), other.flat()
    # one decision an entry of the (b, g) matrix: where both rows hold a value, they must take the same one
    partner = torch.searchsorted(own_at, other_at).clamp(max=max(own_at.numel() - 1, 0))
    both = own_at[partner] == other_at if own_at.numel() else torch.zeros_like(other_at, dtype=torch.bool)
    own_draw, other_draw = _uniform(x.values, generator), _uniform(other.values, generator)
    if own_at.numel():
        other_draw = torch.where(both, own_draw[partner], other_draw)
    leave, take = own_draw < strength, other_draw < strength
    corrupted = _interleave(select(x, ~leave), select(other, take))
    # an entry that both rows hold is counted once, on the side of the row's own value; else the clean value is 0
    incoming = select(other, take & ~both & (other.values != 0))
    changed = _interleave(
        select(x, leave & _differs(x, other, partner, both)), incoming.with_values(torch.zeros_like(incoming.values))
    )
    return Corrupted(corrupted, changed)


def roll_rows(x: CSR, shift: int) -> CSR:
    """Return the matrix whose row i is row (i + shift) modulo b of x."""
    cut = int(x.indptr[shift])
    lengths = x.indptr.diff().roll(-shift)
    indptr = torch.cat([x.indptr.new_zeros(1), lengths.cumsum(0)])
    return CSR(indptr, x.indices.roll(-cut), x.values.roll(-cut), x.n_vars)


def select(x: CSR, keep: Tensor) -> CSR:
    """Return the matrix with only the chosen stored entries; ``keep`` is (nnz,) bool."""
    per_row = torch.zeros(x.n_rows, dtype=torch.int64, device=keep.device).index_add_(0, x.rows(), keep.long())
    indptr = torch.cat([x.indptr.new_zeros(1), per_row.cumsum(0)])
    return CSR(indptr, x.indices[keep], x.values[keep], x.n_vars)


def _differs(x: CSR, other: CSR, partner: Tensor, both: Tensor) -> Tensor:
    # for each own entry: would taking the other row's value (0 where it holds none) change it?
    incoming = torch.zeros_like(x.values)
    incoming[partner[both]] = other.values[both]
    return x.values != incoming


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).uniform_(generator=generator)


def _interleave(left: CSR, right: CSR) -> CSR:
    # rows of left followed by the same rows of right; the two share no entry, and the order in a row is free
    indptr = left.indptr + right.indptr
    to_left = torch.arange(left.values.numel(), device=indptr.device) + right.indptr[left.rows()]
    to_right = torch.arange(right.values.numel(), device=indptr.device) + left.indptr[right.rows() + 1]
    indices = left.indices.new_empty(left.indices.numel() + right.indices.numel())
    values = left.values.new_empty(indices.numel())
    indices[to_left], indices[to_right] = left.indices, right.indices
    values[to_left], values[to_right] = left.values, right.values
    return CSR(indptr, indices, values, left.n_vars)
