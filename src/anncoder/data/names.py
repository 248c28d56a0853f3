"""Names of cells that stay on the disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from anncoder.data.shard import Shard, within


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
        hashes = self._hashes()
        hashes.sort()
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(twice):
            return pd.Index([], dtype=object)
        names = self[np.flatnonzero(np.isin(self._hashes(), twice))]
        return names[names.duplicated()].unique()

    def _hashes(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        hashes = np.empty(len(self), dtype=np.uint64)
        for start, block in self.shard.name_blocks():
            hashes[start : start + len(block)] = pd.util.hash_array(block.astype(object))
        return hashes
