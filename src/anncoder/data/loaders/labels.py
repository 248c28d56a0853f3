"""Labels of cells: codes of an obs column, -1 for unknown, in the minibatches of any loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from anncoder.data.adata import batch_name
from anncoder.errors import InputError
from anncoder.types import Batch, Loader

Codes = np.ndarray[Any, np.dtype[np.int64]]


def labels_of(column: Any, key: str) -> tuple[Codes, list[str]]:
    """Return a column as codes, (n_obs,), -1 where a value is missing, and the sorted names of the labels.

    Raises
    ------
    InputError
        No cell has a label.
    """
    positions, values = pd.factorize(np.asarray(column, dtype=object))
    of_values = [batch_name(value) for value in values]
    names = sorted(set(of_values))
    if not names:
        what = f"obs[{key!r}] is missing in every cell: there is no label to learn"
        raise InputError("no-labels", what, "label_key", "name a column with labels, or leave label_key out")
    codes = np.append(pd.Index(names).get_indexer(of_values), -1).astype(np.int64)  # the last of what is missing
    return codes[positions], names


class LabelledLoader:
    """The minibatches of another loader, with the labels of their cells.

    Every loader says which rows of the data a minibatch has: labels are looked up by them, on the device that they are
    on, whatever the order of the cells and the number of processes.

    Parameters
    ----------
    loader
        Makes the minibatches.
    codes
        (n_obs,) labels of all cells of the data.
    """

    def __init__(self, loader: Loader, codes: Codes) -> None:
        self.loader, self.n_obs = loader, loader.n_obs
        self._codes = torch.from_numpy(codes)

    def __len__(self) -> int:
        """Return the number of minibatches in an epoch."""
        return len(self.loader)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield every row once, in the order that belongs to this epoch."""
        for batch in self.loader.epoch(number):
            if self._codes.device != batch.rows.device:
                self._codes = self._codes.to(batch.rows.device)
            yield batch._replace(label=self._codes[batch.rows])
