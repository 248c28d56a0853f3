"""Neighbour consistency: nearest neighbours in two parts of the molecules of each cell.

A judgement without labels (Ahlmann-Eltze, Huber 2023, doi 10.1038/s41592-023-01814-1): what two independent samples of
one cell agree on is the cell; what they do not is noise. The published parts are equal; here each cell is divided in a
ratio of its own, so that having the same depth does not count as agreement. Batches still do, and a latent that forgets
small groups loses little: read it beside held-out molecules, not alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation.baselines import Cells, Method
from anncoder.evaluation.graph import nearest
from anncoder.evaluation.heldout import split_molecules
from anncoder.models.base import Array

K = 50  # neighbours, as published
SHARES = (0.25, 0.75)  # of a cell's molecules in its first part, drawn for each cell
LARGEST = 5000  # cells: all pairs are compared
DEEP = 5000  # molecules a cell, in the median, from which on a fifth is a cell as droplets give them
SHALLOW = 0.2  # share of the molecules that deep cells are thinned to


class Views(NamedTuple):
    """The same cells, seen twice with fewer molecules, and deep ones once more; made by :func:`views`."""

    parts: tuple[Cells, Cells]
    deep: tuple[Cells, Cells] | None  # all molecules and a fifth of them; None for cells of few molecules
    n_neighbors: int

    def of_genes(self, columns: Any) -> Views:
        """Return the same cells in some of their genes."""

        def narrow(pair: tuple[Cells, Cells]) -> tuple[Cells, Cells]:
            first, second = (cells._replace(matrix=cells.matrix[:, columns]) for cells in pair)
            return first, second

        return Views(narrow(self.parts), None if self.deep is None else narrow(self.deep), self.n_neighbors)

    def with_counts_in(self, columns: Any) -> Views:
        """Return the cells, in all genes, that both times have counts in some of them."""

        def alive(pair: tuple[Cells, Cells]) -> tuple[Cells, Cells]:
            use = _some_in(*(cells.matrix[:, columns] for cells in pair))
            return pair[0].take(use), pair[1].take(use)

        return Views(alive(self.parts), None if self.deep is None else alive(self.deep), self.n_neighbors)


def views(cells: Cells, seed: int, n_neighbors: int | None = None) -> Views:
    """Split the molecules of cells; at most 5,000 are taken, drawn at random.

    Parameters
    ----------
    cells
        Whole counts, (n, g).
    seed
        Start of the random stream.
    n_neighbors
        Nearest neighbours to compare; None for 50, or a tenth of the cells where that is less.

    Raises
    ------
    ConfigError
        ``n_neighbors`` is no positive whole number.
    InputError
        There are no more cells than neighbours.
    """
    generator = np.random.default_rng([seed, 8])
    if cells.matrix.shape[0] > LARGEST:
        cells = cells.take(np.sort(generator.choice(cells.matrix.shape[0], LARGEST, replace=False)))
    # every cell in another ratio: a latent that arranges cells by depth would agree with itself between equal parts
    share = generator.uniform(*SHARES, cells.matrix.shape[0])
    first, second = split_molecules(cells.matrix, np.repeat(share, np.diff(cells.matrix.indptr)), generator)
    in_both = _some_in(first, second)
    parts = (cells._replace(matrix=first).take(in_both), cells._replace(matrix=second).take(in_both))
    deep = None
    if np.median(library_sizes(cells.matrix)) >= DEEP:
        _, few = split_molecules(cells.matrix, SHALLOW, generator)
        alive = _some_in(few)
        deep = (cells.take(alive), cells._replace(matrix=few).take(alive))
    return Views(parts, deep, _neighbors(n_neighbors, int(in_both.sum())))


def _some_in(*matrices: csr_matrix) -> Any:
    return np.all([library_sizes(matrix) > 0 for matrix in matrices], axis=0)


def _neighbors(asked: Any, n_obs: int) -> int:
    if asked is None:
        return max(1, min(K, n_obs // 10))
    if not isinstance(asked, int | np.integer) or asked < 1:
        raise ConfigError("bad-value", f"n_neighbors = {asked!r}", "n_neighbors", "a whole number from 1 on, or None")
    if asked >= n_obs:
        what = f"{n_obs} cells have no {asked} neighbours each"
        raise InputError("too-few-cells", what, "n_neighbors", "ask for fewer neighbours, or evaluate more cells")
    return int(asked)


def neighbor_scores(method: Method, cells: Views | None) -> dict[str, float]:
    """Return ``neighbor_consistency`` and ``depth_agreement``, shares from 0 to 1; NaN where there is nothing to ask.

    The second is the agreement of the neighbours among all molecules with those after thinning to a fifth.
    """

    def agreement(pair: tuple[Cells, Cells] | None) -> float:
        if cells is None or pair is None:
            return float("nan")
        first, second = (method.latent(view) for view in pair)
        return float("nan") if first is None or second is None else overlap(first, second, cells.n_neighbors)

    parts, deep = (None, None) if cells is None else (cells.parts, cells.deep)
    return {"neighbor_consistency": agreement(parts), "depth_agreement": agreement(deep)}


def overlap(first: Array, second: Array, k: int) -> float:
    """Return the mean share of each row's k nearest neighbours, itself left out, that two (n, d) arrays agree on."""
    n = len(first)
    sets = [nearest(latent, min(k, n - 1))[1] for latent in (first, second)]
    marked = np.zeros((n, n), dtype=bool)
    np.put_along_axis(marked, sets[0], values=True, axis=1)
    return float(np.take_along_axis(marked, sets[1], axis=1).mean())
