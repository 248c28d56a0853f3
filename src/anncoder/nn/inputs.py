"""From raw counts to what the network reads; part of the model, so that new data go through the same door."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from anncoder.kernels import constant, fused, on_gpu, sparse
from anncoder.types import CSR, Batch, Summary


class LogNormalize(nn.Module):
    """``log1p(counts / size_factor)`` of the stored values.

    With ``transform="normalize"`` without the logarithm, with ``"none"`` the values as they are.

    The size factor is the library size over the median library size of the fitted data, so this is
    ``scanpy.pp.normalize_total`` (target: the median) and ``scanpy.pp.log1p``.
    """

    def __init__(self, transform: str) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, batch: Batch) -> CSR:
        """Return the network input, (b, g), as sparse as the counts."""
        counts = batch.counts
        if self.transform == "none":
            return counts
        by_kernel = self.transform == "log1p" and constant(counts.values, batch.size_factor)
        if by_kernel and fused(counts.values, batch.size_factor):
            if batch.size_factor.shape != (counts.n_rows,):  # the kernel follows addresses
                raise ValueError(f"{counts.n_rows} cells have {tuple(batch.size_factor.shape)} size factors")
            values = torch.empty_like(counts.values)
            arrays = (counts.indptr, counts.values.contiguous(), batch.size_factor.contiguous(), values)
            sparse.log_normalize(sparse.pieces(counts.n_rows, sparse.ROWS), *(a.numpy() for a in arrays))
            return counts.with_values(values)
        if by_kernel and on_gpu(counts.values, batch.size_factor):
            from anncoder.kernels.gpu import log_normalize

            return counts.with_values(log_normalize((counts.indptr, *counts[1:3]), batch.size_factor))
        per_entry = batch.size_factor[counts.rows()]
        normalized = counts.values / per_entry
        return counts.with_values(torch.log1p(normalized) if self.transform == "log1p" else normalized)

    def inverse(self, x: Tensor) -> Tensor:
        """Return expression at the median library size for what the network says of its input, (b, g)."""
        if self.transform == "none":
            return x
        return (x.expm1() if self.transform == "log1p" else x).clamp(min=0)


class Standardize(nn.Module):
    """Mean and standard deviation of each gene of the network input, (g,), from the fitted cells.

    They go to the first layer, which folds them into its weights and bias: nothing is made dense. The input is always
    centred (with the mean left in, its direction would drown the others), and divided by the standard deviation only
    where that is asked for.

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
        """Take the moments of these network inputs, where they are not those that the summary has."""
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
        """Return the standardised input, (b, g): dense, for what cannot be folded into a layer."""
        centred = x.to_dense() - self.mean
        return centred if self.scale is None else centred / self.scale
