"""Transport plans rebuilt from dual potentials by blocks: push forward, pull back, rows.

Of a plan P between I and J cells, ``T = P / p`` is kept in mind: T_ij is the expected number of descendants of cell i
that are like cell j, and the sum of a row is the growth of the cell. No method holds more than a block of T at a time
(but :meth:`Plan.rows`, what it returns).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from anncoder.dynamics.transport.cost import Cost, add_to, full_precision

Array = np.ndarray[Any, Any]
T = TypeVar("T")


class Plan:
    """A transport plan in the form of its potentials.

    Parameters
    ----------
    cost
        Cost of every pair, with epsilon.
    f, g
        Dual potentials, (I,) and (J,), in units of the scaled cost.
    """

    def __init__(self, cost: Cost, f: Array, g: Array) -> None:
        self.cost = cost
        self.u, self.v = (
            torch.tensor(np.asarray(potential, np.float64) / cost.epsilon, device=cost.device) for potential in (f, g)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Cells of source and target."""
        return self.cost.shape

    def blocks(self, compute: Callable[[slice, Tensor], T], rows: Array | None = None) -> Iterator[tuple[slice, T]]:
        """Yield slices of rows and what is computed of these rows of T, (b, J); in order.

        ``compute`` gets the slice and the block, and must not return the block itself; ``rows`` are positions in the
        source, None for all of them.
        """
        chosen = None if rows is None else torch.from_numpy(np.asarray(rows, np.int64)).to(self.cost.device)
        offset = self.u - self.cost.half_x
        offset = (offset if chosen is None else offset[chosen]).to(self.cost.dtype)[:, None]

        def exponentials(at: slice, block: Tensor) -> T:
            return compute(at, block.add_(offset[at]).exp_())

        with full_precision():
            yield from self.cost.blocks(self.v, exponentials, chosen)

    def row_sums(self) -> Array:
        """Return the expected number of descendants of each source cell, (I,)."""
        with full_precision():
            return torch.exp(self.u + self.cost.log_sums(self.v)).cpu().numpy()

    def pull_back(self, values: Array) -> Array:
        """Return ``T @ values``, (I, k) or (I,) float64: of each source cell, the sum over its descendants."""
        given = self._given(values)
        out = torch.empty((self.shape[0], given.shape[1]), dtype=torch.float64, device=self.cost.device)
        for at, products in self.blocks(lambda _, block: (block @ given).double()):
            out[at] = products
        return out.cpu().numpy().reshape(-1, *np.shape(values)[1:])

    def push_forward(self, values: Array) -> Array:
        """Return ``T.T @ values``, (J, k) or (J,) float64: of each target cell, the sum over its ancestors."""
        given = self._given(values)
        out = torch.zeros((self.shape[1], given.shape[1]), dtype=torch.float64, device=self.cost.device)
        for _, products in self.blocks(lambda at, block: (block.T @ given[at]).double()):
            add_to(out, products)
        return out.cpu().numpy().reshape(-1, *np.shape(values)[1:])

    def _given(self, values: Array) -> Tensor:
        columns = np.asarray(values, np.float64).reshape(len(values), -1)
        return torch.from_numpy(np.ascontiguousarray(columns)).to(self.cost.device, self.cost.dtype)

    def rows(self, rows: Array | None = None, *, top: int | None = None) -> csr_matrix:
        """Return rows of T, (n, J) float64; with ``top``, of each row its largest entries alone."""
        n_columns = self.shape[1]
        least = n_columns if top is None else min(top, n_columns)

        def sparse(_: slice, block: Tensor) -> csr_matrix:
            if least == n_columns:
                return csr_matrix(block.double().cpu().numpy())
            values, columns = block.topk(least, dim=1)
            order = torch.argsort(columns, dim=1)
            data, indices = values.gather(1, order).double(), columns.gather(1, order)
            starts = np.arange(0, data.numel() + 1, least)
            arrays = (data.cpu().numpy().ravel(), indices.cpu().numpy().ravel(), starts)
            return csr_matrix(arrays, shape=(len(block), n_columns))

        parts = [part for _, part in self.blocks(sparse, rows)]
        return vstack(parts, format="csr") if parts else csr_matrix((0, n_columns))

    def draw(self, weights: Array, uniform: Array) -> tuple[Array, Array]:
        """Return pairs of cells (i, j), drawn in proportion to ``T_ij weights_i``.

        Parameters
        ----------
        weights
            Of the source cells, (I,), not negative.
        uniform
            Increasing numbers in [0, 1), one a pair: equal steps for a systematic sample. They are read along the
            cumulative weights, rows in order.
        """
        masses = self.row_sums() * weights
        edges = np.concatenate([[0], np.cumsum(masses)])
        wanted = np.asarray(uniform) * edges[-1]
        i = np.clip(np.searchsorted(edges, wanted, side="right") - 1, 0, self.shape[0] - 1)
        rest = (wanted - edges[i]) / masses[i]  # how far into its row
        used, where = np.unique(i, return_inverse=True)
        j = np.empty(len(i), np.int64)

        def columns(at: slice, block: Tensor) -> list[Array]:
            cumulative = np.cumsum(block.double().cpu().numpy(), axis=1)
            parts = [rest[where == at.start + row] * line[-1] for row, line in enumerate(cumulative)]
            return [np.searchsorted(line, part, side="right") for line, part in zip(cumulative, parts, strict=True)]

        for at, found in self.blocks(columns, used):
            for row, chosen in enumerate(found):
                j[where == at.start + row] = chosen
        return i, np.minimum(j, self.shape[1] - 1)
