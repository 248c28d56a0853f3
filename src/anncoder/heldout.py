"""Molecules set aside by binomial thinning, and how well a method foretells them.

It compares methods whatever their own likelihoods are (Batson, Royer, Webber 2019, doi 10.1101/786269).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import gammaln

from anncoder.baselines import Cells, Method
from anncoder.data.summary import library_sizes
from anncoder.progress import logger

HELD_OUT = 0.1  # share of molecules set aside
FLOOR = 0.01  # share of the gene mean mixed into every expectation: none may be zero where a molecule is found


def thin(cells: Cells, seed: int) -> tuple[Cells, csr_matrix]:
    """Split counts at random into molecules kept and molecules set aside, a tenth; cells left with none are dropped.

    Parameters
    ----------
    cells
        Those whose counts are split; left as they are.
    seed
        Start of the thinning.

    Returns
    -------
    kept, aside
        The same cells with the rest of their counts, and the counts set aside, (n, g): together they are the counts.

    References
    ----------
    Batson, Royer, Webber 2019, doi 10.1101/786269.
    """
    generator, matrix = np.random.default_rng([seed, 2]), cells.matrix
    aside = generator.binomial(matrix.data.astype(np.int64), HELD_OUT).astype(np.float32)
    parts = [
        # copies: zeros are removed in place, and the indices may be those of the user's own matrix
        csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        for values in (matrix.data - aside, aside)
    ]
    alive = library_sizes(parts[0]) > 0
    for part in parts:
        part.eliminate_zeros()
    return cells._replace(matrix=parts[0]).take(alive), parts[1][alive]


def whole(matrix: csr_matrix) -> bool:
    """Tell whether all counts are whole; of others no molecules can be set aside (and there is a warning)."""
    found = bool((matrix.data == np.floor(matrix.data)).all())
    if not found:
        logger.warning("no heldout_nll: of counts that are not whole no molecules can be set aside")
    return found


def heldout_nll(method: Method, kept: Cells, aside: csr_matrix, others: Cells, floor: Any) -> float:
    """Return the Poisson negative log-likelihood of molecules set aside, in nats a cell.

    Parameters
    ----------
    method
        What gives the expected expression.
    kept, aside
        Counts of n cells, as :func:`thin` splits them; the method reads the first and is scored on the second, (n, g).
    others
        Cells that are not scored, for one factor a gene: there the method then expects as many molecules as there are.
    floor
        (g,) expression of which every expectation has a hundredth mixed in, above zero wherever a molecule is found.
    """
    expected_aside = library_sizes(kept.matrix) * HELD_OUT / (1 - HELD_OUT)
    factor = gene_factors(method, others)
    total, start = 0.0, 0
    for block in method.expected(kept):
        stop = start + len(block)
        scaled = block * factor
        share = (1 - FLOOR) * scaled / _positive(scaled.sum(axis=1, keepdims=True)) + FLOOR * floor / floor.sum()
        rate = share * (expected_aside[start:stop] / share.sum(axis=1, dtype=np.float64))[:, None]
        found = aside[start:stop].tocoo()
        logs = found.data * np.log(rate[found.row, found.col]) - gammaln(found.data + 1)
        total += float(rate.sum(dtype=np.float64) - logs.sum(dtype=np.float64))
        start = stop
    return total / float(kept.matrix.shape[0])


def gene_factors(method: Method, cells: Cells) -> Any:
    """Return the molecules of each gene in some cells over those that a method expects there, (g,) float64.

    One molecule is added to both: a gene with hardly any keeps a factor near 1.
    """
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
    # a row of which nothing is expected stays a row of zeros
    return np.where(totals > 0, totals, 1)
