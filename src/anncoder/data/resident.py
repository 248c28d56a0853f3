"""Minibatches of a CSR matrix that is on the device, whole: made there, so that no step waits for a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anncoder.data.memory import MemoryLoader, Stored
from anncoder.data.order import Rows
from anncoder.kernels import on_gpu
from anncoder.types import CSR, Batch


class Resident:
    """A matrix on a device.

    Parameters
    ----------
    stored
        (n, g) matrix in memory.
    device
        Where it goes; 8 bytes a stored value and 8 a row.
    """

    def __init__(self, stored: Stored, device: torch.device) -> None:
        self.device, self.n_vars = device, stored.n_vars
        self.lengths = np.diff(stored.indptr)  # stays in memory: from it the sizes of all minibatches are known
        self.arrays = (
            torch.from_numpy(stored.indptr).to(device),
            torch.from_numpy(stored.indices).to(device),
            torch.from_numpy(stored.values).to(device),
        )

    def take(self, rows: Tensor, starts: Tensor, nnz: int) -> CSR:
        """Return some rows, in the order given.

        Parameters
        ----------
        rows
            (b,) int64, on the device.
        starts, nnz
            (b + 1,) int64, on the device, where each begins in the copy; the last of these numbers.
        """
        indptr, indices, values = self.arrays
        if on_gpu(values):
            taken = CSR(starts, starts.new_empty(nnz), values.new_empty(nnz), self.n_vars)
            self.take_into(taken, rows)
            return taken
        ahead = torch.repeat_interleave(indptr[rows] - starts[:-1], starts.diff(), output_size=nnz)
        entries = ahead + torch.arange(nnz, device=self.device)
        return CSR(starts, indices[entries].long(), values[entries], self.n_vars)

    def take_into(self, taken: CSR, rows: Tensor) -> None:
        """Write some rows into memory that is there: indices and values, which may be longer, for the indptr given."""
        from anncoder.kernels.gpu import take_rows

        take_rows(self.arrays, rows, *taken[:3])


class Plan(NamedTuple):
    """The minibatches of an epoch, on the device, one after the other; ``starts`` has one number more for each."""

    rows: Tensor  # (n,) int64
    starts: Tensor  # (n + number of minibatches,) int64
    sizes: list[tuple[int, int]]  # cells and stored values of each


class ResidentLoader:
    """The minibatches of another loader, made on the device; what an epoch needs to know of them is copied before it.

    Parameters
    ----------
    loader
        Has the rows, their order and what belongs to them.
    resident
        The matrix of that loader, on the device.
    in_place
        Minibatches of the full size all come in the same memory, ``self.place``: a step on them can be recorded. Their
        indices and values are longer than their indptr says, for the kernels only.
    """

    def __init__(self, loader: MemoryLoader, resident: Resident, *, in_place: bool = False) -> None:
        self.loader, self.resident, self.n_obs = loader, resident, loader.n_obs
        code = loader.batch_code
        self.size_factor = torch.from_numpy(loader.size_factor).to(resident.device)
        self.batch_code = None if code is None else torch.from_numpy(code).to(resident.device)
        self.place = self._room() if in_place and self.n_obs >= loader.batch_size else None

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return len(self.loader)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order of this epoch."""
        plan = self.plan(list(self.loader.order(number)))
        size_factor = self.size_factor[plan.rows]
        code = None if self.batch_code is None else self.batch_code[plan.rows]
        done = 0
        for k, (n, nnz) in enumerate(plan.sizes):
            these = slice(done, done + n)
            starts = plan.starts[done + k : done + k + n + 1]
            own = None if code is None else code[these]
            if self.place is not None and n == self.loader.batch_size:
                yield self._in_place(starts, size_factor[these], plan.rows[these], own)
            else:
                yield Batch(
                    self.resident.take(plan.rows[these], starts, nnz), size_factor[these], plan.rows[these], own
                )
            done += n

    def plan(self, minibatches: list[Rows]) -> Plan:
        """Return the minibatches of an epoch, on the device."""
        starts = [np.concatenate([[0], np.cumsum(self.resident.lengths[rows])]) for rows in minibatches]
        rows, begins = (torch.from_numpy(np.concatenate(a)).to(self.resident.device) for a in (minibatches, starts))
        return Plan(rows, begins, [(len(r), int(s[-1])) for r, s in zip(minibatches, starts, strict=True)])

    def _room(self) -> Batch:
        # for the rows with the most stored values there are
        b, like = self.loader.batch_size, self.resident.arrays[0]
        nnz = int(np.sort(self.resident.lengths[self.loader.rows])[-b:].sum())
        counts = CSR(like.new_zeros(b + 1), like.new_zeros(nnz), self.size_factor.new_zeros(nnz), self.resident.n_vars)
        code = None if self.batch_code is None else like.new_zeros(b)
        return Batch(counts, self.size_factor.new_ones(b), like.new_zeros(b), code)

    def _in_place(self, starts: Tensor, size_factor: Tensor, rows: Tensor, code: Tensor | None) -> Batch:
        assert self.place is not None
        self.place.counts.indptr.copy_(starts)
        self.resident.take_into(self.place.counts, rows)
        self.place.size_factor.copy_(size_factor)
        self.place.rows.copy_(rows)
        if code is not None and self.place.batch_code is not None:
            self.place.batch_code.copy_(code)
        return self.place
