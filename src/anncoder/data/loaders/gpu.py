"""GPU loader: minibatches made on the device from a CSR matrix that lies there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.data.loaders.order import Rows
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
        indptr, indices, values = (torch.from_numpy(array).to(device) for array in stored[:3])
        self.arrays = indptr, indices, values

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
            from anncoder.kernels.gpu.launch import take_rows

            taken = CSR(starts, starts.new_empty(nnz), values.new_empty(nnz), self.n_vars)
            take_rows(self.arrays, rows, *taken[:3])
            return taken
        ahead = torch.repeat_interleave(indptr[rows] - starts[:-1], starts.diff(), output_size=nnz)
        entries = ahead + torch.arange(nnz, device=self.device)
        return CSR(starts, indices[entries].long(), values[entries], self.n_vars)


class StaticBatch:
    """Memory that minibatches of the full size take one after the other: a step on them can be recorded.

    ``batch`` is the minibatch there. Its indices and values are longer than its indptr says, for the kernels only.

    Parameters
    ----------
    resident
        The matrix.
    cells
        What belongs to each of its rows: (n,) float32 size factors, and (n,) int64 codes or None.
    rows
        The rows that may come, all of them once an epoch.
    batch_size
        How many a minibatch has.
    """

    def __init__(self, resident: Resident, cells: tuple[Tensor, Tensor | None], rows: Rows, batch_size: int) -> None:
        self.resident, self.cells = resident, cells
        size_factor, code = cells
        like, n_full = resident.arrays[0], len(rows) // batch_size
        self.number = like.new_zeros(1)  # which minibatch of the epoch it is to be
        self.rows = like.new_zeros(n_full * batch_size)
        self.starts = like.new_zeros(n_full * (batch_size + 1))
        nnz = int(np.sort(resident.lengths[rows])[-batch_size:].sum())  # of the rows with the most stored values
        room = CSR(like.new_zeros(batch_size + 1), like.new_zeros(nnz), size_factor.new_zeros(nnz), resident.n_vars)
        codes = None if code is None else like.new_zeros(batch_size)
        self.batch = Batch(room, size_factor.new_ones(batch_size), like.new_zeros(batch_size), codes)

    def begin(self, plan: EpochPlan) -> None:
        """Take the minibatches of an epoch."""
        self.rows.copy_(plan.rows[: len(self.rows)])
        self.starts.copy_(plan.starts[: len(self.starts)])

    def fill(self) -> None:
        """Make the minibatch of this number: launches of kernels alone, which find the number on the device."""
        from anncoder.kernels.gpu.launch import fill

        (indptr, indices, values, _), size_factor, rows, code, *_ = self.batch
        plan = (self.number, self.rows, self.starts)
        fill(self.resident.arrays, plan, self.cells, (indptr, indices, values), (size_factor, code), rows)


class EpochPlan(NamedTuple):
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
    """

    def __init__(self, loader: MemoryLoader, resident: Resident) -> None:
        self.loader, self.resident, self.n_obs = loader, resident, loader.n_obs
        code = loader.batch_code
        self.size_factor = torch.from_numpy(loader.size_factor).to(resident.device)
        self.batch_code = None if code is None else torch.from_numpy(code).to(resident.device)
        beside = loader.covariates
        self.covariates = None if beside is None else torch.from_numpy(beside).to(resident.device)
        self.place: StaticBatch | None = None
        self._ahead: tuple[int, EpochPlan] | None = None  # of the epoch of this number

    def in_one_place(self) -> StaticBatch:
        """Return the place of all full minibatches from here on; whoever takes a step has it filled before."""
        if self.place is None:
            cells = (self.size_factor, self.batch_code)
            self.place = StaticBatch(self.resident, cells, self.loader.rows, self.loader.batch_size)
        return self.place

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return len(self.loader)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order of this epoch."""
        plan = self._ahead[1] if self._ahead is not None and self._ahead[0] == number else self._planned(number)
        size_factor = self.size_factor[plan.rows]
        code = None if self.batch_code is None else self.batch_code[plan.rows]
        beside = None if self.covariates is None else self.covariates[plan.rows]
        if self.place is not None:
            self.place.begin(plan)
        done = 0
        for k, (n, nnz) in enumerate(plan.sizes):
            these = slice(done, done + n)
            if self.place is not None and n == self.loader.batch_size:
                self.place.number.fill_(k)
                yield self.place.batch
            else:
                starts = plan.starts[done + k : done + k + n + 1]
                counts = self.resident.take(plan.rows[these], starts, nnz)
                yield Batch(
                    counts,
                    size_factor[these],
                    plan.rows[these],
                    None if code is None else code[these],
                    None if beside is None else beside[these],
                )
            done += n
        # the device has steps to take yet; without a seed all epochs are alike
        self._ahead = (number, plan) if self.loader.seed is None else (number + 1, self._planned(number + 1))

    def _planned(self, number: int) -> EpochPlan:
        minibatches = list(self.loader.order(number))
        starts = [np.concatenate([[0], np.cumsum(self.resident.lengths[rows])]) for rows in minibatches]
        rows, begins = (self._copied(np.concatenate(arrays)) for arrays in (minibatches, starts))
        return EpochPlan(rows, begins, [(len(r), int(s[-1])) for r, s in zip(minibatches, starts, strict=True)])

    def _copied(self, array: Rows) -> Tensor:
        # pinned memory is copied in its turn, behind the steps that are waiting, while this goes on
        host = torch.from_numpy(array)
        device = self.resident.device
        if device.type != "cuda":
            return host.to(device)
        with torch.cuda.device(device):  # or pinning would wake the first GPU, which is another process's
            return host.pin_memory().to(device, non_blocking=True)
