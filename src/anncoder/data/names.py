"""Names of cells that stay on the disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from anncoder.data.shard import Shard, within

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


class Names:
    """The names of all cells of a file, as far as messages need them; they stay on the disk.

    Parameters
    ----------
    shard
        The file.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def __len__(self) -> int:
        return int(self.shard.index().shape[0])

    def __getitem__(self, at: Any) -> Any:
        """Return one name, or an index of several."""
        if isinstance(at, int | np.integer):
            return str(self.shard.index()[int(at)])
        found = [str(name) for start, block in self.shard.name_blocks() for name in block[within(at, start)]]
        return pd.Index(found, dtype=object)

    def repeated(self) -> pd.Index:
        """Return the names that occur more than once: of every name nine bytes are in memory at a time."""
        hashes = self.hashes()
        hashes.sort()
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(twice):
            return pd.Index([], dtype=object)
        names = self[np.flatnonzero(np.isin(self.hashes(), twice))]
        return names[names.duplicated()].unique()

    def hashes(self) -> Hashes:
        """Return a number for every name, (n,), which is the same for equal ones."""
        hashes = np.empty(len(self), dtype=np.uint64)
        for start, block in self.shard.name_blocks():
            hashes[start : start + len(block)] = pd.util.hash_array(block.astype(object))
        return hashes


def n_repeated(shards: list[Shard], sizes: np.ndarray[Any, Any]) -> int:
    """Return how many cells of several files have the name, and the number of molecules, of a cell of another file.

    The same barcode may well be in two samples, but hardly with the same total.

    Parameters
    ----------
    shards
        The files.
    sizes
        (n_obs,) library sizes of all their cells.
    """
    of_files, start = [], 0
    for shard in shards:
        names = Names(shard).hashes()
        own = (names if shard.rows is None else names[shard.rows]) ^ pd.util.hash_array(
            sizes[start : start + shard.n_obs]
        )
        of_files.append(np.unique(own))
        start += shard.n_obs
    together = np.concatenate(of_files)
    return len(together) - len(np.unique(together))
