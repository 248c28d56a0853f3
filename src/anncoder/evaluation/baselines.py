"""Baselines beside a model: PCA of the same width, gene means; the model in the same form."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.data.summary import library_sizes
from anncoder.models.base import Array, Autoencoder
from anncoder.training.results import observed

BLOCK = 1024  # cells that are dense at a time
CUT = 10.0  # standard deviations above the mean, as scanpy's tutorials cut scaled values
SMALLEST = 1e-6  # standard deviation, of the largest: what is less is rounding


class Cells(NamedTuple):
    """Some cells, in the model's gene order."""

    matrix: csr_matrix  # (n, g)
    batches: pd.DataFrame | None = None  # their columns of experimental batches, for models that read them
    target: Array | None = None  # (n, d) coordinates, for models that fit their latent to some

    def take(self, rows: Any) -> Cells:
        """Return some of the cells: a slice, a mask or positions."""
        batches = None if self.batches is None else self.batches.iloc[rows]
        return Cells(self.matrix[rows], batches, None if self.target is None else self.target[rows])


class Scaled(Protocol):
    """Counts and their normalisation: a fitted model has them, and :class:`Normalized` is no more than that."""

    @property
    def reads_counts(self) -> bool:
        """Whether the values are counts."""
        ...

    @property
    def library_size_(self) -> float:
        """Library size to which counts are normalised."""
        ...


class Normalized(NamedTuple):
    """Counts, normalised to a library size."""

    library_size_: float
    reads_counts: bool = True


class Method(Protocol):
    """A model or baseline: a latent and expected expression."""

    def latent(self, cells: Cells) -> Array | None:
        """Return the latent, (n, k), or None for a method without."""
        ...

    def expected(self, cells: Cells) -> Iterator[Array]:
        """Yield expected expression at the median library size, block of cells by block."""
        ...

    def reconstructed(self, cells: Cells) -> Iterator[Array]:
        """Yield the reconstruction of :func:`input_of` the cells, block by block."""
        ...


class Trained:
    """A fitted model, through its public verbs."""

    def __init__(self, model: Autoencoder) -> None:
        self.model = model

    def latent(self, cells: Cells) -> Array | None:
        """Return the model's latent, (n, k)."""
        return self.model.embed(as_adata(self.model, cells), layer="X")

    def expected(self, cells: Cells) -> Iterator[Array]:
        """Yield expected expression, zero inflation included, block of cells by block."""
        for rows in blocks(cells.matrix.shape[0]):
            found = observed(self.model, as_adata(self.model, cells.take(rows)))
            yield found.clip(min=0) if self.model.reads_counts else found  # squared errors allow negative values

    def reconstructed(self, cells: Cells) -> Iterator[Array]:
        """Yield the logarithm of that, or the expected expression as it is."""
        for block in self.expected(cells):
            yield np.log1p(block) if self.model.reads_counts else block


class Principal:
    """PCA of log-normalised expression, fitted to cells; the matrix stays sparse.

    Parameters
    ----------
    scale
        The model beside it, or :class:`Normalized` counts.
    cells
        What it is fitted to.
    n_components, seed
        Width, and start of the solver.
    unit_variance
        Give every gene the same variance, and cut what is more than ten standard deviations above its mean.
    """

    def __init__(
        self, scale: Scaled, cells: Cells, n_components: int, seed: int, *, unit_variance: bool = False
    ) -> None:
        from sklearn.decomposition import PCA

        self.scale = scale
        self.deviation: Any = None  # (g,) of each gene, with unit variance
        x = input_of(scale, cells.matrix)
        if unit_variance:
            mean = np.asarray(x.mean(axis=0)).ravel()
            variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
            self.deviation = np.sqrt(np.maximum(variance, 0))
            self.deviation[self.deviation <= SMALLEST * self.deviation.max()] = 1  # of genes that do not vary
            self.largest = mean / self.deviation + CUT
        self.pca = PCA(n_components, svd_solver="arpack", random_state=seed).fit(self._input(cells.matrix))

    def latent(self, cells: Cells) -> Array | None:
        """Return the first components, (n, k)."""
        latent: Array = self.pca.transform(self._input(cells.matrix)).astype(np.float32)
        return latent

    def expected(self, cells: Cells) -> Iterator[Array]:
        """Yield the reconstruction on the normalised scale, block of cells by block."""
        for block in self.reconstructed(cells):
            yield np.expm1(block) if self.scale.reads_counts else block

    def reconstructed(self, cells: Cells) -> Iterator[Array]:
        """Yield the reconstruction by the first components, at least 0 for logarithms of counts."""
        for rows in blocks(cells.matrix.shape[0]):
            x = self.pca.inverse_transform(self.pca.transform(self._input(cells.matrix[rows])))
            if self.deviation is not None:
                x = x * self.deviation
            yield x.clip(min=0) if self.scale.reads_counts else x

    def _input(self, matrix: csr_matrix) -> csr_matrix:
        x = input_of(self.scale, matrix)
        if self.deviation is None:
            return x
        cut = np.minimum(x.data / self.deviation[x.indices], self.largest[x.indices])
        return csr_matrix((cut, x.indices, x.indptr), shape=x.shape)


class GeneMean:
    """The average cell for every cell: the share of each gene among all molecules, and the mean of its logarithms."""

    def __init__(self, model: Autoencoder, cells: Cells) -> None:
        matrix = cells.matrix
        total = matrix.sum(axis=0, dtype=np.float64)
        of_all = total / total.sum() * model.library_size_ if model.reads_counts else total / matrix.shape[0]
        self.mean = np.asarray(of_all).ravel()  # (g,) expected expression at the median library size
        self.mean_input = np.asarray(input_of(model, matrix).mean(axis=0)).ravel()

    def latent(self, cells: Cells) -> Array | None:
        """Return None: the average cell has no coordinates."""
        return None

    def expected(self, cells: Cells) -> Iterator[Array]:
        """Yield the mean of each gene, block of cells by block."""
        return self._repeated(self.mean, cells)

    def reconstructed(self, cells: Cells) -> Iterator[Array]:
        """Yield the mean of each gene's logarithms, or of its values."""
        return self._repeated(self.mean_input, cells)

    def _repeated(self, row: Array, cells: Cells) -> Iterator[Array]:
        for rows in blocks(cells.matrix.shape[0]):
            yield np.broadcast_to(row, (rows.stop - rows.start, len(row)))


def as_adata(model: Autoencoder, cells: Cells) -> anndata.AnnData:
    """Return cells as AnnData for a model, with its gene names, and the batches and coordinates that it reads."""
    names = pd.Index(np.arange(cells.matrix.shape[0]).astype(str))
    obs = pd.DataFrame(index=names) if cells.batches is None else cells.batches.set_axis(names)
    obsm = None if cells.target is None else {model.config.fits_slot: cells.target}
    return anndata.AnnData(cells.matrix, obs=obs, var=pd.DataFrame(index=model.var_names_), obsm=obsm)


def blocks(n: int) -> Iterator[slice]:
    """Yield consecutive slices of n cells, all of about one size: no last block of a single cell."""
    edges = np.linspace(0, n, -(-n // BLOCK) + 1).astype(int)
    for start, stop in pairwise(edges.tolist()):
        yield slice(start, stop)


def input_of(model: Scaled, matrix: csr_matrix) -> csr_matrix:
    """Return log-normalised counts, or expression as it is, (n, g) CSR: what all methods are scored on."""
    if not model.reads_counts:
        return matrix
    per_entry = np.repeat(library_sizes(matrix) / model.library_size_, np.diff(matrix.indptr))
    return csr_matrix((matrix.data / per_entry, matrix.indices, matrix.indptr), shape=matrix.shape).log1p()
