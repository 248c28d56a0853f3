"""Held-out molecules: binomial thinning of counts, and their likelihood under a method."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import gammaln

from anncoder.data.matrix.arrays import near_whole, nearest_whole
from anncoder.data.summary import library_sizes
from anncoder.evaluation.baselines import Cells, Method

logger = logging.getLogger("anncoder")

HELD_OUT = 0.1  # share of molecules set aside


FLOOR = 0.01  # share of the gene mean mixed into every expectation: none may be zero for a molecule set aside


def thin(cells: Cells, seed: int) -> tuple[Cells, csr_matrix]:
    """Split counts by binomial thinning: return cells with nine tenths of their molecules, and the counts set aside.

    Both are copies, of n cells and g genes; cells left without molecules are dropped. Batson, Royer, Webber 2019,
    doi 10.1101/786269.
    """
    parts = split_molecules(cells.matrix, HELD_OUT, np.random.default_rng([seed, 2]))
    alive = library_sizes(parts[0]) > 0
    return cells._replace(matrix=parts[0]).take(alive), parts[1][alive]


def split_molecules(matrix: csr_matrix, share: Any, generator: np.random.Generator) -> tuple[csr_matrix, csr_matrix]:
    """Return two matrices that sum to whole counts, (n, g): molecules kept, and a share of them set aside.

    The share is a number, or one for each stored entry, (nnz,).
    """
    molecules = nearest_whole(matrix.data)
    aside = generator.binomial(molecules.astype(np.int64), share).astype(np.float32)
    # copies: zeros are removed in place, and the indices may be those of the user's own matrix
    kept, rest = (
        csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        for values in (molecules - aside, aside)
    )
    kept.eliminate_zeros()
    rest.eliminate_zeros()
    return kept, rest


def whole(matrix: csr_matrix) -> bool:
    """Return whether all counts are whole, and warn if not: of others no molecules can be set aside."""
    found = bool(near_whole(matrix.data).all())
    if not found:
        logger.warning("no heldout_nll: of counts that are not whole no molecules can be set aside")
    return found


def heldout_nll(method: Method, cells: Cells, aside: csr_matrix, others: Cells, floor: Any) -> float:
    """Return the mean of :func:`nll_of_cells`, in nats a cell."""
    return float(nll_of_cells(method, cells, aside, others, floor).mean())


def nll_of_cells(
    method: Method, cells: Cells, aside: csr_matrix, others: Cells, floor: Any, genes: Any = slice(None)
) -> Any:
    """Return the Poisson negative log-likelihood of molecules set aside in each cell, (n,) float64, in nats.

    Parameters
    ----------
    method
        Source of the expected expression.
    cells, aside
        The two parts of :func:`thin`; the method reads the first and is scored on the second, (n, g).
    others
        Cells that are not scored, for one factor a gene that makes the expected molecules the observed ones there.
    floor
        (g,) expression mixed into every expectation by a hundredth, above zero for every molecule set aside.
    genes
        Columns to score on: of methods that read different genes those that all of them read.
    """
    aside, scores = aside[:, genes], np.zeros(cells.matrix.shape[0])
    for rows, rate in rates(method, cells, HELD_OUT / (1 - HELD_OUT), others, floor, genes):
        found = aside[rows].tocoo()
        logs = found.data * np.log(rate[found.row, found.col]) - gammaln(found.data + 1)
        scores[rows] = rate.sum(axis=1, dtype=np.float64) - np.bincount(found.row, logs, len(rate))
    return scores


def rates(
    method: Method, cells: Cells, ratio: float, others: Cells, floor: Any, genes: Any = slice(None)
) -> Iterator[tuple[slice, Any]]:
    """Yield rows of cells and their expected molecules, (b, g), all above zero, of the part that was set aside.

    ``ratio`` is that of molecules set aside to molecules kept in ``cells``; the others are as in :func:`nll_of_cells`.
    """
    expected_aside = library_sizes(cells.matrix[:, genes]) * ratio
    factor, floor, start = gene_factors(method, others, genes), floor[genes], 0
    for block in method.expected(cells):
        rows = slice(start, start + len(block))
        scaled = block[:, genes] * factor
        share = (1 - FLOOR) * scaled / _positive(scaled.sum(axis=1, keepdims=True)) + FLOOR * floor / floor.sum()
        yield rows, share * (expected_aside[rows] / share.sum(axis=1, dtype=np.float64))[:, None]
        start = rows.stop


def gene_factors(method: Method, cells: Cells, genes: Any = slice(None)) -> Any:
    """Return observed over expected molecules of genes, (g,) float64, with one molecule added to both."""
    matrix, start = cells.matrix[:, genes], 0
    sizes, expected = library_sizes(matrix), np.zeros(matrix.shape[1])
    for whole_block in method.expected(cells):
        block = whole_block[:, genes]
        stop = start + len(block)
        per_molecule = sizes[start:stop] / _positive(block.sum(axis=1, dtype=np.float64))
        expected += per_molecule @ block
        start = stop
    found = np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel()
    return (found + 1) / (expected + 1)


def _positive(totals: Any) -> Any:
    # a row without expected molecules stays a row of zeros
    return np.where(totals > 0, totals, 1)
