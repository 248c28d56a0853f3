"""Checks of a latent before it is written: finite, alive, neighbour graph in one part."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from anncoder.errors import InputError, counted, listed
from anncoder.models.base import Array

logger = logging.getLogger("anncoder")

NEIGHBORS = 15  # scanpy's default, the cell itself among them
CELLS = 5000  # for the neighbour graph: of more, a sample


class LatentCheck:
    """Checks, a block of cells at a time, that a latent is finite, differs between cells, and hangs together.

    Parameters
    ----------
    key
        Under which the latent will be written.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._n = self._n_bad = 0
        self._sums: Any = None
        self._random = np.random.default_rng(0)
        self._sample, self._order = np.empty((0, 0), np.float32), np.empty(0)

    def add(self, block: Array) -> None:
        """Take in some cells, (b, k)."""
        if self._sums is None:
            self._shift, self._sums = block[:1].astype(np.float64), np.zeros((2, block.shape[1]))
        values = block - self._shift  # variances are of small differences of latents that may be far from zero
        self._sums += values.sum(axis=0), np.square(values).sum(axis=0)
        self._n += len(block)
        self._n_bad += int((~np.isfinite(block).all(axis=1)).sum())
        # the cells of the smallest random numbers: a sample of any number of cells
        order = np.concatenate([self._order, self._random.random(len(block))])
        sample = np.concatenate([self._sample.reshape(-1, block.shape[1]), block])
        chosen = np.argsort(order)[:CELLS]
        self._order, self._sample = order[chosen], sample[chosen]

    def close(self) -> None:
        """Raise an InputError if a latent is not finite; warn of constant units and of parts."""
        if self._n_bad:
            what = f"the latent of {counted(self._n_bad, 'cell')} is not finite"
            raise InputError("latent-not-finite", what, f"obsm['X_{self.key}']", "fit again with a lower learning_rate")
        mean, square = self._sums / self._n
        dead = int((square - mean**2 < 1e-8).sum())
        if dead == len(mean) and self._n > 1:
            logger.warning("the latent is the same for all cells: fit again with a lower learning_rate")
            return
        if dead and self._n > 1:
            constant = f"{dead} of {len(mean)} latent units are the same for all cells"
            logger.warning("%s: a smaller n_latent would do", constant)
        self._warn_of_parts()

    def _warn_of_parts(self) -> None:
        sizes = parts_of_graph(self._sample)
        if len(sizes) < 2:
            return
        of = f" of {len(self._sample):,} sampled cells" if self._n > len(self._sample) else ""
        logger.warning(
            "the neighbour graph of the latent (%d neighbours)%s falls into %d parts, of %s cells: paths do not cross, "
            "and pseudotime is infinite in the parts without the root. Cells unlike each other are apart with reason; "
            "for a continuous process raise n_neighbors, or fit with another seed (seed=1, --seed 1)",
            NEIGHBORS,
            of,
            len(sizes),
            listed(f"{size:,}" for size in sizes),
        )


def parts_of_graph(latent: Array, n_neighbors: int = NEIGHBORS) -> list[int]:
    """Return the sizes of the connected parts of the kNN graph of a latent, (n, k) float32, the largest first.

    ``n_neighbors`` counts the cell itself, as scanpy does. Too few cells for that are one part.
    """
    n = len(latent)
    if n <= n_neighbors:
        return [n]
    cells = torch.from_numpy(np.ascontiguousarray(latent, dtype=np.float32))
    blocks = (cells[start : start + 1024] for start in range(0, n, 1024))
    nearest = [torch.cdist(block, cells).topk(n_neighbors, largest=False).indices for block in blocks]
    columns = torch.cat(nearest).numpy().ravel()
    indptr = np.arange(0, len(columns) + 1, n_neighbors)
    graph = csr_matrix((np.ones(len(columns), np.int8), columns, indptr), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    return sorted(np.bincount(labels).tolist(), reverse=True)
