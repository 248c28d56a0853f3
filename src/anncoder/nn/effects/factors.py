"""Factors of genes in experimental batches, found among like cells across the batches.

A batch changes the expectation of each gene by a factor. The ratio of the means of two batches is that factor only if
both have the same kinds of cells: else a type of cell that one of them lacks would be taken for an effect of the batch,
and removed. So cells are put into groups of like ones, across batches, and the factors are those of the model
``E[count] = size factor * mean of the group * factor of the batch``, fitted by Poisson likelihood (iterative
proportional fitting: Deming, Stephan 1940, doi 10.1214/aoms/1177731829); with these factors removed groups are found
anew. Grouping across batches and correcting in turns is the idea of Harmony (Korsunsky et al. 2019,
doi 10.1038/s41592-019-0619-0), here for counts and before the training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anncoder.nn.effects.covariates import PRIOR, log_effects, without_effects
from anncoder.nn.sparse import sparse_matmul, transposed_matmul
from anncoder.types import CSR, Batch

MOST_CELLS, OF_A_BATCH = 2048, 200  # from which the factors are found: the larger of it and so many a batch
GROUPS, OF_A_GROUP = 20, 25  # groups, and cells of one in the mean, at least
ROUNDS, SWEEPS, STEPS = 4, 20, 10  # of groups and factors in turns; of the fit; of k-means
COMPONENTS, PASSES = 20, 3  # principal components that groups are found in, and iterations for the first ones
LARGEST = 3.0  # size of a log factor


def log_factors(cells: Batch, n_batches: int) -> Tensor:
    """Return the log factor of each gene in each experimental batch: the first part of :func:`batch_effects`."""
    return batch_effects(cells, n_batches)[0]


@torch.no_grad()
def batch_effects(cells: Batch, n_batches: int) -> tuple[Tensor, Tensor]:
    """Return the log factor of each gene in each experimental batch, (n_batches, g), and effects of covariates, (c, g).

    The average of the batches is 0.

    Parameters
    ----------
    cells
        Counts of a sample of cells, their batches and covariates, on the CPU; the first 2,048 are used, of many batches
        more.
    n_batches
        Number of batches.
    """
    cells = cells.head(max(MOST_CELLS, OF_A_BATCH * n_batches))
    counts, n, n_codes = cells.counts, cells.counts.n_rows, max(n_batches, 1)
    codes = torch.zeros(n, dtype=torch.int64) if cells.batch_code is None else cells.batch_code
    rows = counts.rows()
    normalized = counts.with_values(counts.values / cells.size_factor[rows])
    generator = torch.Generator().manual_seed(0)
    n_groups = max(1, min(GROUPS, n // OF_A_GROUP))
    beside, groups = cells.covariates, torch.zeros(n, dtype=torch.int64)
    effects = torch.zeros(0 if beside is None else beside.shape[1], counts.n_vars)
    effects, bare = _without_covariates(normalized, beside, codes, effects)
    found = _fitted(bare, codes, groups, (1, n_codes))
    axes = torch.randn(counts.n_vars, min(COMPONENTS, n, counts.n_vars), generator=generator)
    for i in range(ROUNDS if n_groups > 1 else 0):
        place = codes[rows] * counts.n_vars + counts.indices
        x = bare.with_values(torch.log1p(bare.values * (-found).exp().view(-1)[place]))
        axes, scores = _components_within(x, (codes, n_codes), axes, 1 if i else PASSES)
        groups = grouped(scores, n_groups, generator)
        effects, bare = _without_covariates(normalized, beside, groups * n_codes + codes, effects)
        found = _fitted(bare, codes, groups, (n_groups, n_codes))
    return found[:n_batches], effects


def _without_covariates(x: CSR, covariates: Tensor | None, classes: Tensor, start: Tensor) -> tuple[Tensor, CSR]:
    # effects of covariates given the class of each cell, and normalised counts without them
    if covariates is None:
        return start, x
    effects = log_effects(x, covariates, classes, start)
    return effects, without_effects(x, covariates, effects)


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


def grouped(scores: Tensor, n_groups: int, generator: torch.Generator) -> Tensor:
    """Return the group of each cell, (n,): k-means from cells that are spread out (Arthur, Vassilvitskii 2007)."""
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
