"""An AnnData whose X is in its file: the rest is in memory, and may differ from the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from anncoder.data.shard import Shard, slot_name, slots_of


class Backed(Shard):
    """The cells of a backed AnnData: X is read from its file, all else is what the object holds.

    Parameters
    ----------
    adata
        Backed, and no view.
    """

    def __init__(self, adata: anndata.AnnData) -> None:
        self.adata = adata
        super().__init__(adata.file, Path(str(adata.filename)), None)
        self.var_names = pd.Index(adata.var_names.astype(str))

    def index(self) -> Any:
        """Return the names of all cells, (n,)."""
        return np.asarray(self.adata.obs_names.astype(str), dtype=object)

    def slots(self) -> Iterator[tuple[str, Any]]:
        """Yield name and matrix of every slot of the shape of a count matrix."""
        yield from ((slot, matrix) for slot, matrix in slots_of(self.store) if not slot.startswith("layers["))
        for layer, matrix in self.adata.layers.items():
            if layer is not None:  # X, as newer anndata has it
                yield slot_name(layer), matrix

    @property
    def logged(self) -> bool:
        """Whether scanpy noted that it took logarithms."""
        return "log1p" in self.adata.uns

    def _columns(self) -> list[str]:
        return [str(name) for name in self.adata.obs.columns]

    def _column(self, key: str) -> Any:
        return self.adata.obs[key]

    def _coordinates(self, key: str) -> Mapping[str, Any]:
        return dict(self.adata.obsm)
