"""Leaving out the cells without any count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anncoder.data.scan import structure, unreadable
from anncoder.data.shard import READ, Shard


def drop_empty_cells(shard: Shard, genes: Sequence[str] | None = None) -> int:
    """Leave out the cells without any count, unless that are all of them.

    Parameters
    ----------
    shard
        The cells.
    genes
        The genes that matter; None for all.

    Returns
    -------
    int
        How many were left out.
    """
    with shard.errors():
        if unreadable(shard.matrix) or structure(shard.matrix).fault:
            return 0  # the check that follows says what is wrong
    matters = np.ones(shard.n_vars, dtype=bool) if genes is None else shard.var_names.isin(genes)
    filled = np.zeros(shard.n_obs, dtype=bool)
    for start in range(0, shard.n_obs, READ):
        block = shard.read([(start, min(start + READ, shard.n_obs))])
        owner = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        filled[start + owner[(block.data != 0) & matters[block.indices]]] = True
    n_empty = shard.n_obs - int(np.count_nonzero(filled))
    if n_empty in (0, shard.n_obs):
        return 0
    shard.keep(np.flatnonzero(filled))
    return n_empty
