"""Corruption of the network input in training: swap, mask, dropout, gaussian, thinning.

Denoising: Vincent et al. 2008, doi 10.1145/1390156.1390294. Every kind but ``gaussian`` reads and writes the stored
values only, which is exact: a zero that is masked, dropped or thinned stays zero, and two zeros that are swapped stay
zeros. The random number of an entry is a function of one key a minibatch and of its position: kernel and reference
decide alike, for any number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anncoder.config import CorruptionName
from anncoder.kernels import constant, empty_float32, fused
from anncoder.kernels.cpu import corruption as kernels
from anncoder.kernels.cpu.sparse import pieces
from anncoder.nn.inputs import LogNormalize
from anncoder.types import CSR, Batch, Noise

BITS = 32  # of a decision's random number


class Corrupted(NamedTuple):
    """A corrupted input and where it differs from the clean one."""

    x: CSR | Tensor  # (b, g)
    changed: CSR | None  # (b, g) the clean value of every changed entry; None where nobody asks, or every entry may be


class InputNoise(nn.Module):
    """The network input of a minibatch, corrupted in training.

    Parameters
    ----------
    kind, strength
        As of :func:`corrupt`, or ``"thinning"``: each molecule is removed with that probability (:func:`thin`).
    inputs
        Counts to network input.
    noise
        The network's own random stream.
    """

    def __init__(self, kind: CorruptionName, strength: float, inputs: LogNormalize, noise: Noise) -> None:
        super().__init__()
        self.kind: CorruptionName = "none" if strength == 0 else kind
        self.strength, self.noise = strength, noise
        self._inputs = [inputs]  # in a list: it is registered once, with the network

    def forward(self, batch: Batch) -> CSR | Tensor:
        """Return the network input, (b, g): corrupted in training, clean in evaluation."""
        if not self.training or self.kind == "none":
            clean: CSR = self._inputs[0](batch)
            return clean
        return self.corrupted(batch, self.noise).x

    def corrupted(self, batch: Batch, noise: Noise, clean: CSR | None = None) -> Corrupted:
        """Return the corrupted input; with the ``clean`` one given, also where the two differ."""
        inputs, generator = self._inputs[0], noise.on(batch.counts.values.device)
        if self.kind != "thinning":
            x: CSR = inputs(batch) if clean is None else clean
            return corrupt(x, self.kind, self.strength, generator, marked=clean is not None, groups=batch.batch_code)
        thinned = thin(batch.counts, self.strength, generator)
        # fewer molecules, smaller library: the normalised values stay on their scale
        x = inputs(batch._replace(counts=thinned, size_factor=batch.size_factor * (1 - self.strength)))
        return Corrupted(x, None if clean is None else select(clean, thinned.values < batch.counts.values))


def corrupt(
    x: CSR,
    kind: CorruptionName,
    strength: float,
    generator: torch.Generator,
    *,
    marked: bool = True,
    groups: Tensor | None = None,
) -> Corrupted:
    """Corrupt expression values.

    Parameters
    ----------
    x
        (b, g) network input, its columns sorted within a row.
    kind
        ``swap``: each value is, with probability ``strength``, the same gene's value in another cell of the minibatch
        (scMAE, Fang et al. 2024, doi 10.1093/bioinformatics/btae020). ``mask``: zero with that probability.
        ``dropout``: the same, the others scaled by 1 / (1 - strength). ``gaussian``: normal noise of that standard
        deviation is added to every entry. ``none``: nothing.
    strength
        Probability, or standard deviation.
    generator
        Source of the random numbers, on the device of x.
    marked
        Whether the changed entries are asked for.
    groups
        (b,) codes: values are swapped within a group (an experimental batch) only; None for one group.
    """
    if kind == "none" or strength == 0 or (kind == "swap" and x.n_rows < 2):
        return Corrupted(x, select(x, torch.zeros_like(x.values, dtype=torch.bool)) if kind == "swap" else None)
    if kind == "gaussian":
        dense = x.to_dense()
        noise = torch.empty_like(dense).normal_(0, strength, generator=generator)
        return Corrupted(dense + noise, None)
    device = x.values.device
    key = torch.randint(2**62, (), generator=generator, device=device)
    if kind == "swap":
        shift = torch.randint(1, x.n_rows, (), generator=generator, device=device)
        return swap(x, partners(x, shift, groups), strength, key)
    dropped = drop(x, strength, key, 1 / (1 - strength) if kind == "dropout" else 1.0)
    return Corrupted(dropped, select(x, (dropped.values == 0) & (x.values != 0)) if marked else None)


def drop(x: CSR, strength: float, key: Tensor, factor: float) -> CSR:
    """Return x with each value zero with probability ``strength``, else multiplied; ``key`` is () int64."""
    if not (constant(x.values) and fused(x.values)):
        return x.with_values(torch.where(hits(key, x.flat(), strength), 0, x.values * factor))
    numbers, out = np.array([int(key), _limit(strength), x.n_vars]), empty_float32(len(x.values))
    arrays = (x.indptr, x.indices, x.values.contiguous(), numbers, np.array([factor], dtype=np.float32), out)
    kernels.drop(pieces(x.n_rows, kernels.ROWS), *arrays)
    return x.with_values(out)


def partners(x: CSR, shift: Tensor, groups: Tensor | None = None) -> Tensor:
    """Return the row that each row may take values of, (b,): of its group, in order, the one ``shift`` further.

    Never itself, where there is another in the group; ``shift``, () int64, is at least 1.
    """
    rows = torch.arange(x.n_rows, device=shift.device)
    if groups is None:
        return (rows + shift) % x.n_rows
    order, sizes = groups.argsort(stable=True), torch.bincount(groups)
    size = sizes[groups[order]]
    start = (sizes.cumsum(0) - sizes)[groups[order]]
    step = 1 + (shift - 1) % (size - 1).clamp(min=1)
    return torch.empty_like(order).scatter_(0, order, order[start + (rows - start + step) % size])


def swap(x: CSR, partner: Tensor, strength: float, key: Tensor) -> Corrupted:
    """Return x with each entry that of its row's partner, (b,), with probability ``strength``; ``key`` is () int64."""
    if not (constant(x.values) and fused(x.values)):
        return swap_reference(x, partner, strength, key)
    numbers = torch.tensor([int(key), _limit(strength), x.n_vars])
    room = x.indptr.diff()
    starts = _from_lengths(room + room[partner])
    n, n_tickets = int(starts[-1]), pieces(x.n_rows, kernels.ROWS)
    corrupted, changed = ((torch.empty(n, dtype=torch.int64), empty_float32(n)) for _ in range(2))
    lengths = torch.empty(2, x.n_rows, dtype=torch.int64)
    stored = (x.indptr, x.indices, x.values.contiguous())
    kernels.swap(n_tickets, *stored, numbers, partner, starts, *corrupted, *changed, lengths.view(-1))
    return Corrupted(_packed(starts, corrupted, lengths[0], x.n_vars), _packed(starts, changed, lengths[1], x.n_vars))


def swap_reference(x: CSR, partner: Tensor, strength: float, key: Tensor) -> Corrupted:
    """Return what :func:`swap` does, by its definition: dense."""
    before = x.to_dense()
    places = torch.arange(before.numel(), device=before.device).view_as(before)
    after = torch.where(hits(key, places, strength), before[partner], before)
    return Corrupted(_stored(after, after != 0), _stored(before, after != before))


def hits(key: Tensor, places: Tensor, strength: float) -> Tensor:
    """Return whether the random number of each place, int64, is below ``strength``, of the same shape, bool.

    The number is splitmix64's, of the key and the place (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195); its
    unsigned arithmetic in torch's signed integers.
    """
    z = key + (places + 1) * _signed(kernels.GAMMA)
    z = (z ^ _shifted(z, 30)) * _signed(kernels.FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(kernels.SECOND)
    return _shifted(z ^ _shifted(z, 31), 64 - BITS) < _limit(strength)


def thin(counts: CSR, strength: float, generator: torch.Generator) -> CSR:
    """Remove each molecule with probability ``strength``: binomial thinning of counts.

    The two parts are independent for Poisson counts, the basis of molecular cross-validation (Batson, Royer, Webber
    2019, doi 10.1101/786269).
    """
    remaining = torch.binomial(counts.values, torch.full_like(counts.values, 1 - strength), generator=generator)
    return counts.with_values(remaining)


def select(x: CSR, keep: Tensor) -> CSR:
    """Return the matrix with only the chosen stored entries; ``keep`` is (nnz,) bool."""
    per_row = torch.zeros(x.n_rows, dtype=torch.int64, device=keep.device).index_add_(0, x.rows(), keep.long())
    return CSR(_from_lengths(per_row), x.indices[keep], x.values[keep], x.n_vars)


def _stored(dense: Tensor, keep: Tensor) -> CSR:
    return CSR(_from_lengths(keep.sum(dim=1)), keep.nonzero()[:, 1], dense[keep], dense.shape[1])


def _packed(starts: Tensor, entries: tuple[Tensor, Tensor], lengths: Tensor, n_vars: int) -> CSR:
    indptr = _from_lengths(lengths)
    n = int(indptr[-1])
    packed = CSR(indptr, torch.empty(n, dtype=torch.int64), empty_float32(n), n_vars)
    kernels.pack(pieces(len(lengths), kernels.ROWS), starts, *entries, *packed[:3])
    return packed


def _from_lengths(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _limit(strength: float) -> int:
    return int(strength * 2**BITS + 0.5)


def _signed(constant: Any) -> int:
    value = int(constant)
    return value - 2**64 if value >= 2**63 else value


def _shifted(z: Tensor, by: int) -> Tensor:
    # a logical shift to the right
    return (z >> by) & ((1 << (64 - by)) - 1)
