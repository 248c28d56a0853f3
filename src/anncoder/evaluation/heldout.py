"""Held-out molecules: binomial thinning of counts, and their likelihood under a method."""

from __future__ import annotations

import logging
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


def split_molecules(matrix: csr_matrix, share: float, generator: np.random.Generator) -> tuple[csr_matrix, csr_matrix]:
    """Return two matrices that sum to whole counts, (n, g): of each molecule those kept, and a share set aside."""
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
    """Return the Poisson negative log-likelihood of molecules set aside, in nats a cell.

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
    """
    expected_aside = library_sizes(cells.matrix) * HELD_OUT / (1 - HELD_OUT)
    factor = gene_factors(method, others)
    total, start = 0.0, 0
    for block in method.expected(cells):
        stop = start + len(block)
        scaled = block * factor
        share = (1 - FLOOR) * scaled / _positive(scaled.sum(axis=1, keepdims=True)) + FLOOR * floor / floor.sum()
        rate = share * (expected_aside[start:stop] / share.sum(axis=1, dtype=np.float64))[:, None]
        found = aside[start:stop].tocoo()
        logs = found.data * np.log(rate[found.row, found.col]) - gammaln(found.data + 1)
        total += float(rate.sum(dtype=np.float64) - logs.sum(dtype=np.float64))
        start = stop
    return total / float(cells.matrix.shape[0])


def gene_factors(method: Method, cells: Cells) -> Any:
    """Return observed over expected molecules of each gene, (g,) float64, with one molecule added to both."""
    sizes, start = library_sizes(cells.matrix), 0
    expected = np.zeros(cells.matrix.shape[1])
    for block in method.expected(cells):
        stop = start + len(block)
        per_molecule = sizes[start:stop] / _positive(block.sum(axis=1, dtype=np.float64))
        expected += per_molecule @ block
        start = stop
    found = np.asarray(cells.matrix.sum(axis=0, dtype=np.float64)).ravel()
    return (found + 1) / (expected + 1)


def _positive(totals: Any) -> Any:
    # a row without expected molecules stays a row of zeros
    return np.where(totals > 0, totals, 1)
