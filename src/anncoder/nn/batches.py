"""Experimental batches: factors found among like cells, conditioned decoder, shifts.

A batch changes the expectation of each gene by a factor. The ratio of the means of two batches is that factor only if
both have the same kinds of cells: else a type of cell that one of them lacks would be taken for an effect of the batch,
and removed. So cells are put into groups of like ones, across batches, and the factors are those of the model
``E[count] = size factor * mean of the group * factor of the batch``, fitted by Poisson likelihood (iterative
proportional fitting: Deming, Stephan 1940, doi 10.1214/aoms/1177731829); with these factors removed groups are found
anew. Grouping across batches and correcting in turns is the idea of Harmony (Korsunsky et al. 2019,
doi 10.1038/s41592-019-0619-0), here for counts and before the training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anncoder.config import Layers
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import Decoder
from anncoder.nn.sparse import sparse_matmul, transposed_matmul
from anncoder.types import CSR, Batch, Noise, Shape

MOST_CELLS, OF_A_BATCH = 2048, 200  # from which the factors are found: the larger of it and so many a batch
GROUPS, OF_A_GROUP = 20, 25  # groups, and cells of one in the mean, at least
ROUNDS, SHIFT_ROUNDS, SWEEPS, STEPS = 4, 15, 20, 10  # of both in turns, of the latent's; of the fit; of k-means
COMPONENTS, PASSES = 20, 3  # principal components that groups are found in, and iterations for the first ones
PRIOR = 5.0  # average cells that each batch has beside its own: of few molecules little can be told
LARGEST = 3.0  # size of a log factor
RIDGE = 20.0  # cells without a shift of their own, beside those of a batch in a group
WIDTH = 0.35  # of the groups' edges: share of the mean squared distance from a cell to the centre of its group
GROUP_ROUNDS = 10  # of memberships, and centres and shifts of groups
AWAY = 1e3  # largest coordinates to the centre of a group that is not used
ADAPT_ROUNDS = 15  # of groups and factors, of new batches


class ConditionedDecoder(Decoder):
    """A decoder that reads the experimental batch beside the latent, in one-hot code, as does the layer behind it.

    Without hidden layers only the layer behind it reads the batch. Without batches it is a :class:`Decoder`.

    Parameters
    ----------
    layers, n_in, noise
        As of :class:`Decoder`.
    n_batches
        Experimental batches.
    """

    coding: Tensor  # (n_batches + 1, n_batches): behind the one-hot codes the average batch

    def __init__(self, layers: Layers, n_in: int, n_batches: int, noise: Noise) -> None:
        super().__init__(layers, n_in + (n_batches if layers.widths else 0), noise)
        self.n_batches = n_batches
        self.n_out += n_batches
        if n_batches:
            self.register_buffer("coding", torch.zeros(n_batches + 1, n_batches).fill_diagonal_(1))

    def forward(self, latent: Tensor, batch_code: Tensor | None = None) -> Tensor:
        """Return the last hidden layer with the code of the batch beside it, (b, n_out).

        ``batch_code``, (b,): ``n_batches``, and None for all cells, stands for the average of the batches.
        """
        if not self.n_batches:
            return self._hidden(latent)
        coded = self.codes(latent, batch_code)
        hidden = self._hidden(torch.cat([latent, coded], dim=1)) if len(self) else latent
        return torch.cat([hidden, coded], dim=1)

    def codes(self, latent: Tensor, batch_code: Tensor | None) -> Tensor:
        """Return the codes of the batches of the cells of a latent, (b, n_batches); without batches (b, 0)."""
        if not self.n_batches:
            return latent.new_empty(len(latent), 0)
        return self.coding[-1].expand(len(latent), -1) if batch_code is None else self.coding[batch_code]

    def _hidden(self, latent: Tensor) -> Tensor:
        hidden: Tensor = super().forward(latent)  # type: ignore[no-untyped-call]
        return hidden

    @torch.no_grad()
    def start_from(self, batch_code: Tensor, outputs: list[nn.Linear]) -> None:
        """Take the shares of the batches, and start without an effect of theirs on this and the output layers."""
        shares = torch.bincount(batch_code, minlength=self.n_batches) / len(batch_code)
        self.coding[-1].copy_(shares)
        for layer in (*_first_linear(self), *outputs):
            layer.weight[:, -self.n_batches :] = 0


class LatentShifts(nn.Module):
    """The shift of the latent of each experimental batch among like cells, and in each group of these: zero until set.

    An effect of a batch can differ from one type of cell to the next. What is left of it in a group is shrunk towards
    zero where the batch has few cells there, or fewer than of all cells, or is no farther than by chance: it then has
    the shift that it has in all groups, and a type that it lacks is not merged with those beside it. The memberships
    of a cell follow from its latent and its batch alone. Soft groups and a ridge in each are Harmony's idea.
    """

    shift: Tensor  # (n_batches + 1, k), common to all groups; the last row, of cells of no known batch, stays 0
    of_groups: Tensor  # (n_batches + 1, GROUPS, k): what is shifted besides in each group; the last row stays 0
    centres: Tensor  # (GROUPS, k) means of the latent, without shifts, of groups of like cells
    width: Tensor  # of the groups' edges, a squared distance
    profiles: Tensor  # (GROUPS, g) their means of counts / size factor, as of an average batch

    def __init__(self, shape: Shape, n_latent: int) -> None:
        super().__init__()
        self.n_batches = shape.n_batches
        if shape.n_batches:
            self.register_buffer("shift", torch.zeros(shape.n_batches + 1, n_latent))
            self.register_buffer("of_groups", torch.zeros(shape.n_batches + 1, GROUPS, n_latent))
            self.register_buffer("centres", torch.zeros(GROUPS, n_latent))
            self.register_buffer("width", torch.ones(()))
            self.register_buffer("profiles", torch.zeros(GROUPS, shape.n_vars))

    def forward(self, latent: Tensor, batch_code: Tensor | None) -> Tensor:
        """Return the latent, (b, k), without the shifts."""
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
        if not self.n_batches or cells.batch_code is None or not bool(torch.isfinite(latent).all()):
            return
        latent, codes = latent.cpu(), cells.batch_code.cpu()
        member = torch.nn.functional.one_hot(codes, self.n_batches).float()
        generator, shift = torch.Generator().manual_seed(0), torch.zeros(self.n_batches, latent.shape[1])
        n_groups = max(1, min(GROUPS, len(latent) // OF_A_GROUP))
        for _ in range(SHIFT_ROUNDS):
            groups = _grouped(latent - member @ shift, n_groups, generator)
            shift = _shifts(latent, member, torch.nn.functional.one_hot(groups, n_groups).float())
        self.shift[:-1].copy_(shift)
        self._keep_groups(self._set_groups(latent - member @ shift, codes, groups), cells, corrected)

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
    sums = torch.stack([_sums(cells, n_known + code) for code in range(n_new)])
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
) -> None:
    """Find the factors of the batches in a sample of the fitted cells, and start the parts of a network from them.

    Of expression values (``transform="none"``), which are no counts, the factors stay 1. ``outputs`` are the layers
    behind the decoder.
    """
    if not decoder.n_batches or cells.batch_code is None:
        return
    decoder.start_from(cells.batch_code, outputs)
    if inputs.transform != "none":
        inputs.batches.set(log_factors(cells, decoder.n_batches))
        standardize.start_from_inputs([inputs(cells)])


@torch.no_grad()
def log_factors(cells: Batch, n_batches: int) -> Tensor:
    """Return the log factor of each gene in each experimental batch, (n_batches, g); the average of the batches is 0.

    Parameters
    ----------
    cells
        Counts of a sample of cells, and their batches, on the CPU; the first 2,048 are used, of many batches more.
    n_batches
        Number of batches.
    """
    cells = cells.head(max(MOST_CELLS, OF_A_BATCH * n_batches))
    assert cells.batch_code is not None
    counts, codes, n = cells.counts, cells.batch_code, cells.counts.n_rows
    rows = counts.rows()
    normalized = counts.with_values(counts.values / cells.size_factor[rows])
    generator = torch.Generator().manual_seed(0)
    n_groups = max(1, min(GROUPS, n // OF_A_GROUP))
    found = _fitted(normalized, codes, torch.zeros(n, dtype=torch.int64), (1, n_batches))
    axes = torch.randn(counts.n_vars, min(COMPONENTS, n, counts.n_vars), generator=generator)
    for i in range(ROUNDS if n_groups > 1 else 0):
        place = codes[rows] * counts.n_vars + counts.indices
        x = normalized.with_values(torch.log1p(normalized.values * (-found).exp().view(-1)[place]))
        axes, scores = _components_within(x, (codes, n_batches), axes, 1 if i else PASSES)
        groups = _grouped(scores, n_groups, generator)
        found = _fitted(normalized, codes, groups, (n_groups, n_batches))
    return found


def _fitted(x: CSR, codes: Tensor, groups: Tensor, shape: tuple[int, int]) -> Tensor:
    # log factors (n_batches, g) of normalised counts x, given the group of each cell
    n_groups, n_batches = shape
    cell = groups * n_batches + codes
    size = n_groups * n_batches
    of_cells = torch.bincount(cell, minlength=size).view(n_groups, n_batches).double()
    place = cell[x.rows()] * x.n_vars + x.indices
    sums = torch.bincount(place, weights=x.values.double(), minlength=size * x.n_vars).view(*shape, x.n_vars)
    by_group, by_batch = sums.sum(1), sums.sum(0)
    prior = PRIOR * by_batch.sum(0) / x.n_rows + 1e-9
    shares = of_cells.sum(0) / x.n_rows
    log_factor = torch.zeros_like(by_batch)
    for _ in range(SWEEPS):
        mean = (by_group + 1e-9) / (of_cells @ log_factor.exp() + 1e-9)
        log_factor = ((by_batch + prior) / (of_cells.T @ mean + prior)).log()
        log_factor -= shares @ log_factor
    return log_factor.clamp(-LARGEST, LARGEST).float()


def _components_within(x: CSR, batches: tuple[Tensor, int], axes: Tensor, n_passes: int) -> tuple[Tensor, Tensor]:
    # principal axes within the batches, by subspace iteration from earlier ones, and the scores of all cells
    member = torch.nn.functional.one_hot(*batches).float()
    sums = transposed_matmul(x, member)
    means = sums / member.sum(0).clamp(min=1)
    for _ in range(n_passes):
        spread = transposed_matmul(x, sparse_matmul(x, axes)) - sums @ (means.T @ axes)
        axes = torch.linalg.qr(spread)[0]
    return axes, sparse_matmul(x, axes)


def _grouped(scores: Tensor, n_groups: int, generator: torch.Generator) -> Tensor:
    # k-means from cells that are spread out (Arthur, Vassilvitskii 2007): the group of each cell
    chosen = torch.randint(len(scores), (1,), generator=generator)
    distance = torch.cdist(scores, scores[chosen]).squeeze(1).square()
    while len(chosen) < n_groups:
        chosen = torch.cat([chosen, torch.multinomial(distance + 1e-12, 1, generator=generator)])
        distance = torch.minimum(distance, torch.cdist(scores, scores[chosen[-1:]]).squeeze(1).square())
    centres = scores[chosen]
    for _ in range(STEPS):
        groups = torch.cdist(scores, centres).argmin(dim=1)
        sizes = torch.bincount(groups, minlength=n_groups).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add_(0, groups, scores)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return torch.cdist(scores, centres).argmin(dim=1)
