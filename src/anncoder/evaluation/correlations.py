"""Invented gene-gene correlations: how many a method finds between permuted genes.

Denoised genes are functions of a few numbers a cell, and thus correlated even where the genes are not (Andrews, Hemberg
2019, doi 10.12688/f1000research.16613.2). Here the counts of some genes are permuted between cells of nearly the same
number of molecules, which preserves the distribution of each gene and removes all correlations. The model is fitted
anew, and the denoised pairs of permuted genes are tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csc_matrix, csr_matrix

from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation.baselines import Cells, Method, Principal, Trained, as_adata
from anncoder.models.base import Autoencoder

GENES = 100  # permuted, at most
FEWEST = 20
LEAST = 0.1  # share of the cells with a molecule of a gene to permute
NEIGHBOURS = 20  # cells of nearly the same library size, between which counts are permuted
LEVEL = 0.05  # of a two-sided test, divided by the number of pairs


def invented(model: Autoencoder, cells: Cells, seed: int) -> dict[str, float]:
    """Return the share of pairs of permuted genes that are significantly correlated, for the model and for PCA.

    Parameters
    ----------
    model
        A fitted model, left unchanged: another with its settings is fitted to the permuted counts.
    cells
        Raw counts of n cells in the model's gene order.
    seed
        Start of the choice of genes and of the permutation.

    Raises
    ------
    ConfigError
        The model gives no expected counts.
    InputError
        Fewer than twenty genes are found in a tenth of the cells.
    """
    if not (model.reads_counts and model.config.decodes):
        what = f"{model.name!r}, as it is set, gives no expected counts"
        raise ConfigError("no-decoder", what, "guard", "evaluate it without the guard")
    genes = _chosen(cells.matrix, seed)
    other = cells._replace(matrix=permuted(cells.matrix, genes, seed))
    settings = model.training_.model_dump() | dict.fromkeys(("valid_stratify", "valid_groups", "mask_var"))
    again = model.unfitted().fit(as_adata(model, other), progress=False, **settings)
    methods: dict[str, Method] = {"model": Trained(again), "pca": Principal(again, other, again.config.width, seed)}
    return {name: correlated(_columns(method, other, genes)) for name, method in methods.items()}


def permuted(matrix: csr_matrix, genes: Any, seed: int) -> csr_matrix:
    """Return (n, g) counts with the genes at these positions permuted between cells of nearly the same total."""
    generator = np.random.default_rng([seed, 8])
    by_size = np.argsort(library_sizes(matrix), kind="stable")
    group = np.empty(len(by_size), dtype=np.int64)
    group[by_size] = np.arange(len(by_size)) // NEIGHBOURS
    columns = csc_matrix(matrix, copy=True)
    for gene in genes:
        values = columns[:, [gene]].toarray().ravel()
        # ordered by group and then at random: every group is filled by its own cells
        shuffled = np.lexsort((generator.random(len(values)), group))
        in_order = np.lexsort((np.arange(len(values)), group))
        moved = np.empty_like(values)
        moved[in_order] = values[shuffled]
        stored = slice(columns.indptr[gene], columns.indptr[gene + 1])
        rows = np.flatnonzero(moved)
        columns.indices[stored], columns.data[stored] = rows, moved[rows]  # as many as there were
    return csr_matrix(columns)


def correlated(values: Any) -> float:
    """Return the share of pairs of columns with a significant Spearman correlation, for (n, k) values."""
    from scipy.stats import rankdata  # as long an import as half of torch, for a guard that few ask for
    from scipy.stats import t as student

    n, k = values.shape
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    length = np.sqrt(np.square(ranks).sum(axis=0))
    ranks = np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)
    rho = np.abs((ranks.T @ ranks)[np.triu_indices(k, 1)])
    quantile = student.isf(LEVEL / len(rho) / 2, n - 2)
    return float((rho > quantile / np.sqrt(n - 2 + quantile**2)).mean())


def _chosen(matrix: csr_matrix, seed: int) -> Any:
    frequent = np.flatnonzero(np.diff(csc_matrix(matrix).indptr) >= LEAST * matrix.shape[0])
    if len(frequent) < FEWEST:
        what = f"{len(frequent)} genes are found in a tenth of the cells: too few to permute"
        raise InputError("too-few-genes", what, "guard", "evaluate without the guard")
    n = min(GENES, len(frequent))
    return np.sort(np.random.default_rng([seed, 7]).choice(frequent, n, replace=False))


def _columns(method: Method, cells: Cells, genes: Any) -> Any:
    return np.concatenate([block[:, genes] for block in method.expected(cells)])
