"""Out-of-core loader: blocks of rows from disk in random order, pooled and shuffled.

A block of neighbouring rows is read at once; the blocks of a pool come from all over the data, and the cells of a pool
are shuffled. With 32 rows a block and 32,768 a pool, the labels in a minibatch of a file sorted by label have 0.998 of
the entropy that a full shuffle gives (64 and 16,384: 0.987). One thread reads the next pool while this one is used, and
two pools are all that is in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from anncoder.data.loaders.memory import Stored
from anncoder.data.loaders.order import Rows, n_minibatches, refuse_small_share
from anncoder.data.stores import Stores
from anncoder.types import CSR, SINGLE, Batch, Rank

BLOCK = 32  # rows read at once; where the stored chunks are compressed, as many as one holds
IN_ORDER = 8_192  # cells read at once where nothing is shuffled
POOL = 32_768  # cells shuffled at once, and
BLOCKS = 128  # the blocks that they come from, at least; but no more than
POOL_BYTES = 128 * 2**20

PATIENCE = 120.0  # seconds without anything read, after which it is said which file it is
READER = "anncoder-reader"  # begins the names of the threads
OVER = object()  # stands for the end of the items

Array = np.ndarray[Any, Any]
T = TypeVar("T")
logger = logging.getLogger("anncoder")


class Pool(NamedTuple):
    """Cells in memory, and their order."""

    stored: Stored  # (m, g)
    rows: Rows  # (m,) where each cell is in the data
    order: Rows  # positions in the pool
    last: bool  # of the epoch


class DiskLoader:
    """Minibatches of some rows of matrices on disk.

    Parameters
    ----------
    stores
        The matrices.
    size_factor, batch_size, batch_code, covariates
        As in :class:`anncoder.data.loaders.memory.MemoryLoader`.
    chosen
        (n_obs,) bool, the rows to go through.
    seed
        Draws the order of the blocks and of the cells of a pool anew in every epoch; None keeps the order of the data.
    process
        Which of several processes this is: each reads every ``size``-th block of the epoch's order.
    block, pool
        Rows read at once, and cells shuffled at once; None for what suits the files.

    Raises
    ------
    ConfigError
        There are several processes, and too few blocks or cells to shuffle for one of them.
    """

    def __init__(
        self,
        stores: Stores,
        size_factor: Array,
        chosen: Array,
        *,
        batch_size: int,
        seed: int | None = None,
        batch_code: Array | None = None,
        process: Rank = SINGLE,
        block: int | None = None,
        pool: int | None = None,
        covariates: Array | None = None,
    ) -> None:
        self._ahead: tuple[int, prefetched[Pool]] | None = None  # the epoch that is being read ahead
        self.stores, self.size_factor, self.chosen = stores, size_factor, chosen
        self.batch_size, self.seed, self.batch_code, self.process = batch_size, seed, batch_code, process
        self.covariates = covariates
        block = max(BLOCK, stores.chunk_rows) if block is None else block
        if pool is None:
            shuffled = max(POOL, BLOCKS * block)
            pool = min(IN_ORDER if seed is None else shuffled, POOL_BYTES // max(stores.row_bytes, 1))
        self.pool = max(pool, 2 * batch_size)
        self.blocks = np.array(list(stores.borders(block)), dtype=np.int64).reshape(-1, 2)
        self.n_obs = int(np.count_nonzero(chosen))
        self._n_chosen = np.add.reduceat(chosen, self.blocks[:, 0], dtype=np.int64)  # blocks follow each other
        if seed is not None:  # in some epoch, a process may have as many of the smallest blocks as there are for each
            smallest = np.sort(self._n_chosen[self._n_chosen > 0])
            refuse_small_share(int(smallest[: len(smallest) // process.size].sum()), process.size)

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return self._steps(0)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order of this epoch.

        Of several processes each takes the same number of whole minibatches; what is left over is others in every
        epoch.

        Raises
        ------
        FileError
            A file is damaged, or has changed since it was opened.
        """
        self.stores.refuse_change()
        steps = self._steps(number)
        return islice(self._all(number), steps)

    def _all(self, number: int) -> Iterator[Batch]:
        (ahead, pools), self._ahead = self._ahead or (None, None), None
        if pools is not None and ahead != number:
            pools.close()
        if pools is None or ahead != number:
            pools = self._started(number)
        with closing(pools):
            yield from minibatches_of(
                self._and_ahead(pools, number), self.size_factor, self.batch_code, self.batch_size, self.covariates
            )

    def _and_ahead(self, pools: Iterator[Pool], number: int) -> Iterator[Pool]:
        # the last pool of an epoch is used while the first one of the next is read
        for pool in pools:
            if pool.last and self.seed is not None:
                self._ahead = number + 1, self._started(number + 1)
            yield pool
            del pool  # or it would be kept while the next one is read

    def _started(self, number: int) -> prefetched[Pool]:
        # of what the pools are made of, and not of this loader: the thread must not keep it alive
        seed = None if self.seed is None else [self.seed, 2, number]
        pools = pools_of(self.stores, self.chosen, list(self._groups(number)), seed)
        return prefetched(pools, self.stores.stores[0].path.name)

    def _steps(self, number: int) -> int:
        rank, size = self.process
        shares = [int(self._n_chosen[self._order(number)[r::size]].sum()) for r in range(size)]
        if size == 1 or self.seed is None:
            return n_minibatches(shares[rank], self.batch_size)
        return max(min(shares) // self.batch_size, 1)

    def _order(self, number: int) -> Rows:
        order = np.flatnonzero(self._n_chosen)
        return order if self.seed is None else np.random.default_rng([self.seed, 1, number]).permutation(order)

    def _groups(self, number: int) -> Iterator[Array]:
        """Yield the blocks of each pool, (n, 2): as many as hold its number of cells, chosen or not."""
        order = self._order(number)[self.process.rank :: self.process.size]
        sizes = np.diff(self.blocks[order], axis=1).ravel()
        before = np.cumsum(sizes) - sizes
        cuts = np.flatnonzero(np.diff(before // self.pool)) + 1
        for part in np.split(order, cuts):
            if len(part):
                yield self.blocks[part]


def pools_of(stores: Stores, chosen: Array, groups: list[Array], seed: list[int] | None) -> Iterator[Pool]:
    """Read the pools of an epoch.

    Parameters
    ----------
    stores, chosen
        As in :class:`DiskLoader`.
    groups
        The blocks of each pool, (n, 2).
    seed
        Start of the order of the cells, with the number of the pool; None for that of the data.
    """
    for at, blocks in enumerate(groups):
        blocks = blocks[np.argsort(blocks[:, 0])]
        matrix = stores.read(_joined(blocks))
        rows = np.concatenate([np.arange(a, b) for a, b in blocks])
        order = np.flatnonzero(chosen[rows])
        if seed is not None:
            order = np.random.default_rng([*seed, at]).permutation(order)
        yield Pool(Stored.of(matrix), rows, order, last=at == len(groups) - 1)
        del matrix  # or it would be kept while the next one is read


class KeptLoader:
    """Few cells on disk, in their order: they are read once, and kept.

    Cells held out at random are in every block of a file: to find them again in every epoch, all of it would be read.

    Parameters
    ----------
    loader
        Reads them.
    """

    def __init__(self, loader: DiskLoader) -> None:
        self.loader, self.n_obs = loader, loader.n_obs
        self._batches: list[Batch] | None = None

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return len(self.loader)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once."""
        if self._batches is None:
            self._batches = list(self.loader.epoch(number))
        return iter(self._batches)


def cached_loader(loader: Any) -> Any:
    """Return a loader that reads its cells once, if that is one from disk and they take no more memory than a pool."""
    if not isinstance(loader, DiskLoader) or loader.seed is not None:
        return loader
    # an index has eight bytes in a minibatch, four on disk
    return KeptLoader(loader) if 3 * loader.stores.row_bytes * loader.n_obs <= 2 * POOL_BYTES else loader


def minibatches_of(
    pools: Iterator[Pool],
    size_factor: Array,
    batch_code: Array | None,
    batch_size: int,
    covariates: Array | None = None,
) -> Iterator[Batch]:
    """Cut pools into minibatches, across their borders; a last one of one cell joins the one before it.

    Parameters
    ----------
    pools
        Cells in memory, one pool after the other.
    size_factor, batch_code, covariates
        Of all cells, (n_obs,) and (n_obs, c); None for no experimental batches, or no covariates.
    batch_size
        Cells in a minibatch.
    """

    def batch(pool: Pool, chosen: Rows) -> Batch:
        at = pool.rows[chosen]
        code = None if batch_code is None else torch.from_numpy(batch_code[at])
        beside = None if covariates is None else torch.from_numpy(covariates[at])
        return Batch(pool.stored.take(chosen), torch.from_numpy(size_factor[at]), torch.from_numpy(at), code, beside)

    rest: Batch | None = None  # of the pool before: a minibatch at most
    while (pool := next(pools, None)) is not None:
        n_rest = 0 if rest is None else len(rest.rows)
        left = n_rest + len(pool.order)
        used = 0
        # a last minibatch of one cell joins the one before it: before the end, one at least is kept back
        while left > batch_size + pool.last or (pool.last and left):
            size = batch_size if left > batch_size + 1 or not pool.last else left
            yield _below(rest, batch(pool, pool.order[used : used + size - n_rest]))
            used, left = used + size - n_rest, left - size
            rest, n_rest = None, 0
        if used < len(pool.order):
            rest = _below(rest, batch(pool, pool.order[used:]))
        del pool  # two are in memory, not three


def _joined(blocks: Array) -> list[tuple[int, int]]:
    """Return the ranges of ascending blocks, neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for a, b in blocks.tolist():
        if ranges and ranges[-1][1] == a:
            ranges[-1] = (ranges[-1][0], b)
        else:
            ranges.append((a, b))
    return ranges


def _below(top: Batch | None, bottom: Batch) -> Batch:
    if top is None:
        return bottom
    counts = CSR(
        torch.cat([top.counts.indptr, bottom.counts.indptr[1:] + top.counts.indptr[-1]]),
        torch.cat([top.counts.indices, bottom.counts.indices]),
        torch.cat([top.counts.values, bottom.counts.values]),
        bottom.counts.n_vars,
    )
    codes = [part.batch_code for part in (top, bottom) if part.batch_code is not None]
    covariates = [part.covariates for part in (top, bottom) if part.covariates is not None]
    return Batch(
        counts,
        torch.cat([top.size_factor, bottom.size_factor]),
        torch.cat([top.rows, bottom.rows]),
        torch.cat(codes) if codes else None,
        torch.cat(covariates) if covariates else None,
    )


class prefetched(Generic[T]):
    """Iterate over the items of an iterator that runs in a thread of its own.

    Two items exist at most: the one that was taken last, and the next one, made or in the making. The thread ends with
    this object, and the interpreter waits for what it reads: killed, it would keep the lock of HDF5.

    Parameters
    ----------
    items
        Runs ahead; its exceptions come out here.
    where
        What it reads, for a message when nothing comes for two minutes.
    """

    def __init__(self, items: Iterator[T], where: str = "the data") -> None:
        self._items, self._where = items, where
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=READER)
        self._next: Future[Any] | None = self._thread.submit(next, items, OVER)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._next is None:
            raise StopIteration
        while not wait([self._next], PATIENCE).done:
            asked = "is its disk, or the network to it, still there?"
            logger.warning("nothing has come from %s for %.0f s: %s", self._where, PATIENCE, asked)
        made, self._next = self._next, None
        try:
            item = made.result()
        except BaseException:
            self.close(wait=False)
            raise
        if item is OVER:
            self.close(wait=False)
            raise StopIteration
        self._next = self._thread.submit(next, self._items, OVER)
        found: T = item
        return found

    def close(self, *, wait: bool = True) -> None:
        """End the thread; wait for what it reads, or only tell it to end."""
        self._next = None
        self._thread.shutdown(wait=wait, cancel_futures=True)
