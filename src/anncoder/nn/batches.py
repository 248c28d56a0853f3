"""Experimental batches and covariates: conditioned decoder, shifts of the latent, adapting.

What batches and covariates do to genes is found before the training, in :mod:`anncoder.nn.effects`; the decoder here
reads them, and what is left of them in the latent is shifted away after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anncoder.config import Layers
from anncoder.nn.effects.covariates import PRIOR
from anncoder.nn.effects.factors import GROUPS, LARGEST, OF_A_GROUP, batch_effects, grouped
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import Decoder
from anncoder.types import CSR, Batch, Noise, Shape

SHIFT_ROUNDS = 15  # of groups and shifts of the latent, in turns
RIDGE = 20.0  # cells without a shift of their own, beside those of a batch in a group
WIDTH = 0.35  # of the groups' edges: share of the mean squared distance from a cell to the centre of its group
GROUP_ROUNDS = 10  # of memberships, and centres and shifts of groups
AWAY = 1e3  # largest coordinates to the centre of a group that is not used
ADAPT_ROUNDS = 15  # of groups and factors, of new batches


class ConditionedDecoder(Decoder):
    """A decoder that reads covariates and the experimental batch, in one-hot code, as does the layer behind it.

    Without hidden layers only the layer behind it reads them. Without any it is a :class:`Decoder`.

    Parameters
    ----------
    layers, n_in, noise
        As of :class:`Decoder`.
    n_batches, n_covariates
        Experimental batches, and covariates beside them.
    """

    coding: Tensor  # (n_batches + 1, n_batches): behind the one-hot codes the average batch

    def __init__(self, layers: Layers, n_in: int, n_batches: int, noise: Noise, n_covariates: int = 0) -> None:
        n_read = n_covariates + n_batches
        super().__init__(layers, n_in + (n_read if layers.widths else 0), noise)
        self.n_batches, self.n_covariates, self.n_read = n_batches, n_covariates, n_read
        self.n_out += n_read
        if n_batches:
            self.register_buffer("coding", torch.zeros(n_batches + 1, n_batches).fill_diagonal_(1))

    def forward(self, latent: Tensor, batch_code: Tensor | None = None, covariates: Tensor | None = None) -> Tensor:
        """Return the last hidden layer with covariates and the code of the batch beside it, (b, n_out).

        ``batch_code``, (b,): ``n_batches``, and None for all cells, stands for the average of the batches.
        ``covariates``, (b, c): None for their average.
        """
        if not self.n_read:
            return self._hidden(latent)
        coded = self.codes(latent, batch_code, covariates)
        hidden = self._hidden(torch.cat([latent, coded], dim=1)) if len(self) else latent
        return torch.cat([hidden, coded], dim=1)

    def codes(self, latent: Tensor, batch_code: Tensor | None, covariates: Tensor | None = None) -> Tensor:
        """Return covariates and codes of the batches of the cells of a latent, (b, n_read)."""
        coded = latent.new_empty(len(latent), 0)
        if self.n_batches:
            coded = self.coding[-1].expand(len(latent), -1) if batch_code is None else self.coding[batch_code]
        if not self.n_covariates:
            return coded
        given = latent.new_zeros(len(latent), self.n_covariates) if covariates is None else covariates
        return torch.cat([given, coded], dim=1)

    def _hidden(self, latent: Tensor) -> Tensor:
        hidden: Tensor = super().forward(latent)  # type: ignore[no-untyped-call]
        return hidden

    @torch.no_grad()
    def start_from(self, batch_code: Tensor | None, outputs: list[nn.Linear]) -> None:
        """Take the shares of the batches, and start without an effect of what is read on this and the output layers."""
        if batch_code is not None and self.n_batches:
            self.coding[-1].copy_(torch.bincount(batch_code, minlength=self.n_batches) / len(batch_code))
        for layer in (*_first_linear(self), *outputs):
            layer.weight[:, -self.n_read :] = 0


class LatentShifts(nn.Module):
    """The shift of the latent of each experimental batch among like cells, and in each group of these: zero until set.

    Of covariates it is a shift for each unit, common to all groups.

    An effect of a batch can differ from one type of cell to the next. What is left of it in a group is shrunk towards
    zero where the batch has few cells there, or fewer than of all cells, or is no farther than by chance: it then has
    the shift that it has in all groups, and a type that it lacks is not merged with those beside it. The memberships
    of a cell follow from its latent and its batch alone. Soft groups and a ridge in each are Harmony's idea.
    """

    slope: Tensor  # (n_covariates, k)
    shift: Tensor  # (n_batches + 1, k), common to all groups; the last row, of cells of no known batch, stays 0
    of_groups: Tensor  # (n_batches + 1, GROUPS, k): what is shifted besides in each group; the last row stays 0
    centres: Tensor  # (GROUPS, k) means of the latent, without shifts, of groups of like cells
    width: Tensor  # of the groups' edges, a squared distance
    profiles: Tensor  # (GROUPS, g) their means of counts / size factor, as of an average batch

    def __init__(self, shape: Shape, n_latent: int, *, corrects: bool = True) -> None:
        super().__init__()
        self.n_batches = shape.n_batches if corrects else 0
        self.n_covariates = shape.n_covariates if corrects else 0
        if self.n_covariates:
            self.register_buffer("slope", torch.zeros(shape.n_covariates, n_latent))
        if self.n_batches:
            self.register_buffer("shift", torch.zeros(shape.n_batches + 1, n_latent))
            self.register_buffer("of_groups", torch.zeros(shape.n_batches + 1, GROUPS, n_latent))
            self.register_buffer("centres", torch.zeros(GROUPS, n_latent))
            self.register_buffer("width", torch.ones(()))
            self.register_buffer("profiles", torch.zeros(GROUPS, shape.n_vars))

    def forward(self, latent: Tensor, batch_code: Tensor | None, covariates: Tensor | None = None) -> Tensor:
        """Return the latent, (b, k), without the shifts."""
        if self.n_covariates and covariates is not None:
            latent = latent - covariates @ self.slope
        if not self.n_batches or batch_code is None:
            return latent
        found, of_groups = latent - self.shift[batch_code], self.of_groups[batch_code]
        share = _memberships(found, self.centres + of_groups, self.width)
        return found - (share.unsqueeze(2) * of_groups).sum(1)

    @torch.no_grad()
    def set_from(self, latent: Tensor, cells: Batch, corrected: CSR) -> None:
        """Take the shifts from a sample of cells, (n, k): of batches in the mean over groups of like ones, and in each.

        ``corrected``, (n, g): their counts divided by the factors. Groups and their means are kept for batches to come.
        """
        if not (self.n_batches or self.n_covariates) or not bool(torch.isfinite(latent).all()):
            return
        latent, parts = latent.cpu(), []
        if self.n_covariates and cells.covariates is not None:
            parts.append(cells.covariates.cpu())
        if self.n_batches and cells.batch_code is not None:
            parts.append(torch.nn.functional.one_hot(cells.batch_code.cpu(), self.n_batches).float())
        if not parts:
            return
        design = torch.cat(parts, dim=1)
        generator, shift = torch.Generator().manual_seed(0), torch.zeros(design.shape[1], latent.shape[1])
        n_groups = max(1, min(GROUPS, len(latent) // OF_A_GROUP))
        for _ in range(SHIFT_ROUNDS):
            groups = grouped(latent - design @ shift, n_groups, generator)
            shift = _shifts(latent, design, torch.nn.functional.one_hot(groups, n_groups).float())
        if self.n_covariates:
            self.slope.copy_(shift[: self.n_covariates])
        if self.n_batches and cells.batch_code is not None:
            self.shift[:-1].copy_(shift[self.n_covariates :])
            self._keep_groups(
                self._set_groups(latent - design @ shift, cells.batch_code.cpu(), groups), cells, corrected
            )

    def _set_groups(self, latent: Tensor, codes: Tensor, groups: Tensor) -> Tensor:
        # the groups, given those to start from; a mixture whose components are at other places in each batch
        start = torch.nn.functional.one_hot(groups, GROUPS).float()
        size = start.sum(0).unsqueeze(1)
        centres = torch.where(size > 0, start.T @ latent / size.clamp(min=1), AWAY * latent.abs().max())
        spread = (latent - centres[groups]).square().sum(1).mean().clamp(min=1e-12)
        self.width.fill_(WIDTH * spread)
        member = torch.nn.functional.one_hot(codes, self.n_batches).float()
        of_groups = torch.zeros(self.n_batches, *centres.shape)
        for _ in range(GROUP_ROUNDS):
            share = _memberships(latent, (centres + of_groups)[codes], self.width.cpu())
            centres, of_groups = _shifts_within(latent, member, share, centres, spread)
        self.centres.copy_(centres)
        self.of_groups[:-1].copy_(of_groups)
        return _memberships(latent, (centres + of_groups)[codes], self.width.cpu()).argmax(dim=1)

    def _keep_groups(self, groups: Tensor, cells: Batch, corrected: CSR) -> None:
        sizes = torch.bincount(groups, minlength=GROUPS).unsqueeze(1).float()
        rows = corrected.rows().cpu()
        values = corrected.values.cpu() / cells.size_factor.cpu()[rows]
        place = groups[rows] * corrected.n_vars + corrected.indices.cpu()
        sums = torch.bincount(place, weights=values.double(), minlength=GROUPS * corrected.n_vars)
        sums = sums.view(GROUPS, -1).float()
        self.profiles.copy_(torch.where(sizes > 0, sums / sizes.clamp(min=1), sums.sum(0) / len(groups)))


def _memberships(latent: Tensor, centres: Tensor, width: Tensor) -> Tensor:
    # (n, GROUPS) of cells, (n, k), in groups with centres in the batch of each cell, (n, GROUPS, k)
    return (-(latent.unsqueeze(1) - centres).square().sum(2) / width).softmax(dim=1)


def _shifts_within(
    latent: Tensor, member: Tensor, share: Tensor, before: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    # centres of the groups, (GROUPS, k), those of before where no cell is, and the shifts of batches from them,
    # (n_batches, GROUPS, k): least squares in each group with a ridge of RIDGE cells, a larger one where a batch has
    # fewer cells than its share of all; less what cells of such a spread are apart by chance (James, Stein 1961)
    size = member.T @ share
    means = torch.stack([(of_batch.unsqueeze(1) * share).T @ latent for of_batch in member.T])
    means /= size.clamp(min=1e-6).unsqueeze(2)
    expected = member.mean(0).unsqueeze(1) * size.sum(0)
    kept = (size / (size + RIDGE) * (size / expected.clamp(min=1e-6)).clamp(max=1)).unsqueeze(2)
    weight = kept.sum(0)
    centres = torch.where(weight > 1e-6, (kept * means).sum(0) / weight.clamp(min=1e-6), before)
    apart = means - centres
    by_chance = spread / (size.unsqueeze(2) * apart.square().sum(2, keepdim=True)).clamp(min=1e-12)
    return centres, kept * (1 - by_chance).clamp(min=0) * apart


@torch.no_grad()
def extend(network: Any, wider: Any) -> None:
    """Fill a network of more experimental batches from one of fewer; the new ones start as average batches.

    The latent of cells of the old batches has the same bits. Behind the average of the batches stand the old ones
    alone: what is decoded as of it stays.

    Parameters
    ----------
    network
        The fitted network, of n batches, with parts as :func:`start_from_batches` starts them.
    wider
        One built for more, whose first n are those.
    """
    weights, n, more = network.state_dict(), network.decoder.n_batches, wider.decoder.n_batches
    shares = network.decoder.coding[-1]
    names = {id(value): name for name, value in network.named_parameters()}
    for name in ("inputs.batches.inverse", "shifts.shift", "shifts.of_groups"):
        known, neutral = weights[name][:-1], weights[name][-1:]
        weights[name] = torch.cat([known, neutral.expand(more - n + 1, *neutral.shape[1:])])
    weights["decoder.coding"] = wider.decoder.coding.to(shares.device).clone()
    weights["decoder.coding"][-1] = torch.cat([shares, shares.new_zeros(more - n)])
    if "heads.gene_log_theta" in weights and weights["heads.gene_log_theta"].dim() == 2:  # one a gene and batch
        known = weights["heads.gene_log_theta"]
        weights["heads.gene_log_theta"] = torch.cat([known, known.mean(0, keepdim=True).expand(more - n, -1)])
    for layer in (*_first_linear(network.decoder), *output_layers(network)):
        average = (layer.weight[:, -n:] @ shares).unsqueeze(1)
        weights[names[id(layer.weight)]] = torch.cat([layer.weight, average.expand(-1, more - n)], dim=1)
    wider.load_state_dict(weights)


def output_layers(network: Any) -> list[nn.Linear]:
    """Return the layers behind the decoder, which read the code of the batch."""
    return list(network.heads.layers) if hasattr(network, "heads") else [network.output]


def _first_linear(decoder: ConditionedDecoder) -> list[nn.Linear]:
    return [layer for layer in decoder if isinstance(layer, nn.Linear)][:1]


@torch.no_grad()
def adapt(network: Any, cells: list[Batch], n_known: int) -> None:
    """Find factors and latent shifts of the new batches of a network of :func:`extend`.

    The model is that of :func:`log_factors`, with the groups of the fitted cells and their means given: each cell goes
    to the group with the nearest centre, factors and shifts follow from the groups, and with them groups are found
    anew.

    Parameters
    ----------
    network
        The network, in evaluation, on the device of the cells.
    cells
        Minibatches of cells of the new batches, their codes from ``n_known`` on.
    n_known
        Batches that keep what they have.
    """
    shifts, inverse, n_new = network.shifts, network.inputs.batches.inverse, network.decoder.n_batches - n_known
    counts_of_cells = getattr(network.config, "likelihood", "gaussian") != "gaussian"
    columns = network.heads.mean.weight[:, -n_new:] if counts_of_cells else None
    start = None if columns is None else columns.clone()
    codes = torch.cat([_codes(batch) for batch in cells]) - n_known
    member = torch.nn.functional.one_hot(codes, n_new).float()
    size = member.sum(0).clamp(min=1).unsqueeze(1)  # of many batches a small one may not be in the sample
    bare = [c._replace(counts=network.inputs.covariates.removed(c.counts, c.covariates)) for c in cells]
    sums = torch.stack([_sums(bare, n_known + code) for code in range(n_new)])
    counted = sums.sum(0) > 0  # nothing can be told of the other genes, which may be missing from the data
    for _ in range(ADAPT_ROUNDS):
        latent = torch.cat([network.encode(batch) for batch in cells])
        groups = torch.cdist(latent, shifts.centres).argmin(dim=1)
        expected = member.T @ shifts.profiles[groups]
        prior = PRIOR * expected / size + 1e-9
        found = ((sums + prior) / (expected + prior)).log().clamp(-LARGEST, LARGEST) * counted
        inverse[n_known:-1] = (-found).exp()
        residual = torch.cat([network.encode(batch) for batch in cells]) - shifts.centres[groups]
        shifts.shift[n_known:-1] += member.T @ residual / (size + PRIOR)
        if columns is not None:
            columns.copy_(start + found.T)


def _codes(batch: Batch) -> Tensor:
    assert batch.batch_code is not None
    return batch.batch_code


def _sums(cells: list[Batch], code: int) -> Tensor:
    # of the normalised counts of a batch, (g,)
    found = torch.zeros(cells[0].counts.n_vars, device=cells[0].size_factor.device)
    for batch in cells:
        rows = batch.counts.rows()
        weight = (_codes(batch) == code)[rows] / batch.size_factor[rows]
        found.index_add_(0, batch.counts.indices, batch.counts.values * weight)
    return found


def _shifts(latent: Tensor, member: Tensor, group: Tensor) -> Tensor:
    # least squares of latent = mean of the group + shift of the batch, the means eliminated; a ridge of PRIOR cells
    size = group.sum(0).clamp(min=1).unsqueeze(1)
    both = group.T @ member
    share = both / size
    left = member.T @ member - both.T @ share + PRIOR * torch.eye(member.shape[1])
    found: Tensor = torch.linalg.solve(left, member.T @ latent - share.T @ (group.T @ latent))
    return found


def start_from_batches(
    inputs: LogNormalize, standardize: Standardize, decoder: ConditionedDecoder, outputs: list[nn.Linear], cells: Batch
) -> Tensor | None:
    """Find effects of batches and covariates in a sample of the fitted cells, and start parts of a network from them.

    Returns them, (n_covariates + n_batches, g), as a layer behind the decoder reads them. Of expression values
    (``transform="none"``), which are no counts, they stay 0, and None is returned. ``outputs`` are the layers behind
    the decoder.
    """
    if not decoder.n_read:
        return None
    decoder.start_from(cells.batch_code, outputs)
    if inputs.transform == "none":
        return None
    factors, effects = batch_effects(cells, decoder.n_batches)
    if inputs.batches.n_batches:
        inputs.batches.set(factors)
    if inputs.covariates.n_covariates:
        inputs.covariates.set(effects)
    standardize.start_from_inputs([inputs(cells)])
    return torch.cat([effects, factors])
