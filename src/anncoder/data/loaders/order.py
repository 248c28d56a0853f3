"""Order of cells: shuffling, minibatches and the share of each process; all from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from anncoder.errors import ConfigError

Rows = np.ndarray[Any, np.dtype[np.int64]]


def shuffled(rows: Rows, seed: int, epoch: int) -> Rows:
    """Return the rows in the order of an epoch; a function of seed and epoch alone, so it can be resumed."""
    return np.random.default_rng([seed, 1, epoch]).permutation(rows)


def minibatches(rows: Rows, batch_size: int, fewest: int = 2) -> Iterator[Rows]:
    """Cut rows into minibatches; a last one of fewer than ``fewest`` cells joins the one before it.

    (Batch normalisation has no meaning for one cell.)
    """
    starts = list(range(0, len(rows), batch_size))
    if not starts:  # one of several processes may have none of the few cells held out
        return
    if len(starts) > 1 and len(rows) - starts[-1] < fewest:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield rows[start:stop]


def n_minibatches(n_rows: int, batch_size: int, fewest: int = 2) -> int:
    """Return how many minibatches :func:`minibatches` makes."""
    whole, rest = divmod(n_rows, batch_size)
    return whole + (rest >= fewest or (rest > 0 and whole == 0))


def refuse_small_share(fewest: int, n_processes: int) -> None:
    """Raise a ConfigError if the process with the fewest cells to fit on has none, or one, which cannot be normalised.

    Every process takes as many steps as the others, and they would wait for it.
    """
    if fewest < 2 and n_processes > 1:
        what = f"of {n_processes} processes, one would have {fewest} cells to fit on"
        raise ConfigError("few-cells", what, "torchrun", "start fewer processes (--nproc-per-node), or fit more cells")
