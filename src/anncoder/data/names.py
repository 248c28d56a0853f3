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
        """Return the names that occur more than once: of every name eight bytes are in memory at a time."""
        hashes = [pd.util.hash_array(block.astype(object)) for _, block in self.shard.name_blocks()]
        unique, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_counts=True)
        twice = unique[counts > 1]
        if not len(twice):
            return pd.Index([], dtype=object)
        at = np.flatnonzero(np.isin(np.concatenate(hashes), twice))
        names = self[at]
        return names[names.duplicated()].unique()
