"""Network input: size-factor normalisation, log1p, z-scores, principal components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from anncoder.kernels import constant, fused, on_gpu
from anncoder.kernels.cpu import sparse
from anncoder.nn.sparse import sparse_matmul, transposed_matmul
from anncoder.types import CSR, Batch, Loader, Shape, Summary

EXACT_GENES = 2048  # up to here the whole covariance is computed, beyond only its products with few vectors
OVERSAMPLING = 10  # directions iterated beside the requested ones
LARGEST_EFFECT = 3.0  # of all covariates together, on a log expectation
PASSES = 8  # over the data, without the covariance
PASSES_EXACT = 40  # where components beside others of nearly the same variance are to be told from them


class BatchFactors(nn.Module):
    """Factors of the expectation of each gene in each experimental batch, (n_batches, g): 1 until they are set.

    Counts divided by them are as of an average batch. Zeros stay zeros. Without batches it does nothing.
    """

    inverse: Tensor  # (n_batches + 1, g); the last row, of cells of no known batch, stays 1

    def __init__(self, n_batches: int, n_vars: int) -> None:
        super().__init__()
        self.n_batches = n_batches
        if n_batches:
            self.register_buffer("inverse", torch.ones(n_batches + 1, n_vars))

    @torch.no_grad()
    def set(self, log_factors: Tensor) -> None:
        """Take the logarithms of the factors, (n_batches, g)."""
        self.inverse[:-1].copy_((-log_factors).exp())

    def removed(self, batch: Batch) -> CSR:
        """Return the counts of a minibatch divided by the factors, (b, g)."""
        counts = batch.counts
        if not self.n_batches or batch.batch_code is None:
            return counts
        inverse = self.inverse.to(counts.values.device)
        if constant(counts.values, inverse) and fused(counts.values, inverse):
            values = torch.empty_like(counts.values)
            arrays = (counts.indptr, counts.indices, counts.values.contiguous(), batch.batch_code, inverse, values)
            sparse.scale_by_group(sparse.pieces(counts.n_rows, sparse.ROWS), *arrays)
            return counts.with_values(values)
        place = batch.batch_code[counts.rows()] * counts.n_vars + counts.indices
        return counts.with_values(counts.values * inverse.view(-1)[place])

    def applied(self, expected: Tensor, batch_code: Tensor | None) -> Tensor:
        """Return expected expression, (b, g), of an average batch, as of the batches of the codes, (b,)."""
        return expected if not self.n_batches or batch_code is None else expected / self.inverse[batch_code]


class CovariateEffects(nn.Module):
    """Log-linear effects of covariates on the expectation of each gene, (g, c): 0 until they are set.

    Counts over the exponential of their sum are as of a cell with the covariates of the average. Zeros stay zeros.
    Without covariates it does nothing.
    """

    effects: Tensor  # (g, c)

    def __init__(self, n_covariates: int, n_vars: int) -> None:
        super().__init__()
        self.n_covariates = n_covariates
        if n_covariates:
            self.register_buffer("effects", torch.zeros(n_vars, n_covariates))

    @torch.no_grad()
    def set(self, effects: Tensor) -> None:
        """Take the effects, (c, g)."""
        self.effects.copy_(effects.T)

    def removed(self, counts: CSR, covariates: Tensor | None) -> CSR:
        """Return counts, (b, g), of cells with these covariates, (b, c), without the effects."""
        if not self.n_covariates or covariates is None:
            return counts
        effects = self.effects.to(counts.values.device)
        if constant(counts.values, effects) and fused(counts.values, effects, covariates):
            values = torch.empty_like(counts.values)
            parts = (counts.indptr, counts.indices, counts.values.contiguous(), covariates.contiguous(), effects)
            limit = torch.tensor([LARGEST_EFFECT], dtype=torch.float32)
            sparse.scale_by_effects(sparse.pieces(counts.n_rows, sparse.ROWS), *parts, limit, values)
            return counts.with_values(values)
        at_entries = self._sums(covariates, effects).reshape(-1)[counts.flat()]
        return counts.with_values(counts.values * (-at_entries).exp())

    def applied(self, expected: Tensor, covariates: Tensor | None) -> Tensor:
        """Return expected expression, (b, g), without the effects, as of cells with these covariates, (b, c)."""
        if not self.n_covariates or covariates is None:
            return expected
        return expected * self._sums(covariates, self.effects).exp()

    def _sums(self, covariates: Tensor, effects: Tensor) -> Tensor:
        return (covariates @ effects.T).clamp(-LARGEST_EFFECT, LARGEST_EFFECT)


class LogNormalize(nn.Module):
    """``log1p(counts / size_factor)`` of the stored values.

    ``transform="normalize"`` is without the logarithm, ``"none"`` leaves the values as they are. The size factor is the
    library size over the median library size of the fitted data: this is ``scanpy.pp.normalize_total`` (target: the
    median) and ``scanpy.pp.log1p``.

    Parameters
    ----------
    transform
        ``"log1p"``, ``"normalize"`` or ``"none"``.
    shape
        Genes, experimental batches, whose factors are divided out first, and covariates, whose effects are; None for
        none.
    corrects
        Whether they are; without, the input does not depend on them.
    """

    def __init__(self, transform: str, shape: Shape | None = None, *, corrects: bool = True) -> None:
        super().__init__()
        self.transform, shape = transform, shape if shape is not None and corrects else Shape(0)
        self.batches = BatchFactors(shape.n_batches, shape.n_vars)
        self.covariates = CovariateEffects(shape.n_covariates, shape.n_vars)

    def removed(self, batch: Batch) -> CSR:
        """Return the counts of a minibatch, (b, g), without effects of batches and covariates."""
        return self.covariates.removed(self.batches.removed(batch), batch.covariates)

    def forward(self, batch: Batch) -> CSR:
        """Return the network input, (b, g), as sparse as the counts."""
        counts = self.removed(batch)
        if self.transform == "none":
            return counts
        by_kernel = self.transform == "log1p" and constant(counts.values, batch.size_factor)
        if by_kernel and fused(counts.values, batch.size_factor):
            if batch.size_factor.shape != (counts.n_rows,):  # the kernel follows addresses
                raise ValueError(f"{counts.n_rows} cells have {tuple(batch.size_factor.shape)} size factors")
            values = torch.empty_like(counts.values)
            arrays = (counts.indptr, counts.values.contiguous(), batch.size_factor.contiguous(), values)
            sparse.log_normalize(sparse.pieces(counts.n_rows, sparse.ROWS), *arrays)
            return counts.with_values(values)
        if by_kernel and on_gpu(counts.values, batch.size_factor):
            from anncoder.kernels.gpu.launch import log_normalize

            return counts.with_values(log_normalize((counts.indptr, *counts[1:3]), batch.size_factor))
        per_entry = batch.size_factor[counts.rows()]
        normalized = counts.values / per_entry
        return counts.with_values(torch.log1p(normalized) if self.transform == "log1p" else normalized)

    def inverse(self, x: Tensor, batch_code: Tensor | None = None, covariates: Tensor | None = None) -> Tensor:
        """Return the expression at the median library size of a reconstructed network input, (b, g).

        ``batch_code``, (b,), and ``covariates``, (b, c): the experimental batches and covariates that it is of; None
        for the average.
        """
        if self.transform == "none":
            return x
        expected = (x.expm1() if self.transform == "log1p" else x).clamp(min=0)
        return self.covariates.applied(self.batches.applied(expected, batch_code), covariates)


class Standardize(nn.Module):
    """Mean and standard deviation of each gene of the network input, (g,), from the fitted cells.

    The first layer folds them into its weights and bias: nothing is made dense. The input is always centred (the mean
    expression would dominate all other directions), and optionally scaled to unit variance.

    Parameters
    ----------
    n_vars
        Number of genes.
    scaled
        Whether to divide.
    """

    mean: Tensor
    scale: Tensor | None

    def __init__(self, n_vars: int, *, scaled: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_vars))
        self.register_buffer("scale", torch.ones(n_vars) if scaled else None)

    def start_from(self, summary: Summary) -> None:
        """Take the moments of the fitted cells."""
        self.mean.copy_(summary.x_mean)
        if self.scale is not None:
            self.scale.copy_(summary.x_std)

    def start_from_inputs(self, inputs: Iterable[CSR]) -> None:
        """Take the moments of network inputs, where they are not those of the summary."""
        n_cells, total = 0, torch.zeros(2, len(self.mean), dtype=torch.float64)
        for x in inputs:
            n_cells += x.n_rows
            values = x.values.double()
            total[0].index_add_(0, x.indices, values)
            total[1].index_add_(0, x.indices, values.square())
        mean, square = total / n_cells
        self.mean.copy_(mean)
        if self.scale is not None:
            std = (square - mean.square()).clamp(min=0).sqrt()
            self.scale.copy_(torch.where(std > 0, std, 1))

    def forward(self, x: CSR) -> Tensor:
        """Return the standardised input, (b, g), dense: for dropout, which cannot be folded into a layer."""
        centred = x.to_dense() - self.mean
        return centred if self.scale is None else centred / self.scale


class Projection(nn.Module):
    """Principal component scores, ``(x - mean) @ components``, at most g; with ``n_pcs=0`` x itself, dense."""

    mean: Tensor
    components: Tensor

    def __init__(self, n_vars: int, n_pcs: int) -> None:
        super().__init__()
        self.n_pcs = min(n_pcs, n_vars)
        self.n_out = self.n_pcs or n_vars
        self.register_buffer("mean", torch.zeros(n_vars if n_pcs else 0))
        self.register_buffer("components", torch.zeros(self.mean.shape[0], self.n_pcs))

    def forward(self, x: CSR) -> Tensor:
        """Return the scores, (b, n_pcs); without components x, (b, g), dense."""
        if not self.n_pcs:
            return x.to_dense()
        return sparse_matmul(x, self.components) - self.mean @ self.components

    def inverse(self, scores: Tensor) -> Tensor:
        """Return the network input of the given scores, (b, g)."""
        return scores @ self.components.T + self.mean if self.n_pcs else scores

    @torch.no_grad()
    def start_from(self, cells: Loader, inputs: Callable[[Batch], CSR], passes: int = PASSES) -> None:
        """Find the components of the fitted cells; ``inputs`` maps a minibatch to the network input.

        Up to 2,048 genes from the covariance itself, beyond by eight rounds (``passes``) of subspace iteration (Halko,
        Martinsson, Tropp 2011, doi 10.1137/090771806), which is as good where the spectrum falls. The same cells give
        the same components: the largest loading of each is positive. Fewer cells than components leave the others at
        zero.
        """
        if not self.n_pcs:
            return

        def blocks() -> Iterator[CSR]:  # on the CPU: in float64, which not every device has
            for batch in cells.epoch(0):
                yield inputs(batch)

        exact = len(self.mean) <= EXACT_GENES
        mean, directions, variances = _exact(blocks, self.n_pcs) if exact else iterated(blocks, self.n_pcs, passes)
        found = variances > 1e-12 * variances.max().clamp(min=1e-300)
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        self.mean.copy_(mean)
        self.components.copy_(directions * torch.where(largest < 0, -1.0, 1.0) * found)


Found = tuple[Tensor, Tensor, Tensor]  # (g,) mean, (g, k) directions and (k,) their sums of squares, largest first


def _exact(blocks: Callable[[], Iterator[CSR]], k: int) -> Found:
    n, total, products = 0, torch.zeros(()), torch.zeros(())
    for x in blocks():
        dense = x.to_dense().double()
        n, total, products = n + len(dense), total + dense.sum(dim=0), products + dense.T @ dense
    mean = total / n
    variances, directions = torch.linalg.eigh(products - n * torch.outer(mean, mean))
    return mean, directions[:, -k:].flip(1), variances[-k:].flip(0)


def iterated(blocks: Callable[[], Iterator[CSR]], k: int, passes: int, dtype: torch.dtype = torch.float64) -> Found:
    """Return what :func:`_exact` does by subspace iteration, in as many passes over the blocks and two more."""
    n, total = 0, torch.zeros(())
    for x in blocks():
        n, total = n + x.n_rows, total + transposed_matmul(x, torch.ones(x.n_rows, 1, dtype=dtype)).ravel()
    mean = total / n
    start = torch.randn(len(mean), k + OVERSAMPLING, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = torch.linalg.qr(start.to(dtype))[0]

    def spread(directions: Tensor) -> Tensor:  # (X - mean)' (X - mean) @ directions
        products = -n * torch.outer(mean, mean @ directions)
        for x in blocks():
            products += transposed_matmul(x, sparse_matmul(x, directions))
        return products

    for _ in range(passes - 1):
        directions = torch.linalg.qr(spread(directions))[0]
    variances, rotation = torch.linalg.eigh(directions.T @ spread(directions))
    return mean, (directions @ rotation).flip(1)[:, :k], variances.flip(0)[:k]
