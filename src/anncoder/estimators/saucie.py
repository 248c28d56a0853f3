"""SAUCIE as an object."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from anncoder.autoencoder import Autoencoder
from anncoder.config import TransformName, arguments
from anncoder.errors import ConfigError
from anncoder.models.saucie import SAUCIEConfig
from anncoder.sources import Data


class Clusters(NamedTuple):
    """The clusters of some cells."""

    labels: np.ndarray[Any, np.dtype[np.int64]]  # (n_obs,) from 0, the largest of the fitted cells first; -1 for none
    n_clusters: int  # those that the model knows; -1 is none of them
    pct_assigned: float  # cells in one of them, in percent


class SAUCIE(Autoencoder):
    """A two-dimensional picture, batch correction, clusters and denoised expression from one network.

    Amodio et al. 2019, doi 10.1038/s41592-019-0576-7, written from the published objective; see docs/models/saucie.md.

    Parameters
    ----------
    n_latent
        Number of latent units: two, to be looked at.
    n_hidden
        Widths of the encoder's hidden layers, at least one; the decoder mirrors them, and its last layer, as wide as
        the first of these, makes the clusters.
    lambda_b
        Weight of the maximum mean discrepancy between experimental batches in the latent, a mean over the pairs of
        them; such as 0.1, with ``fit(..., batch_key=COLUMN)``. ``denoise`` then gives expression as in the reference.
    lambda_c
        Weight of the entropy of the use of the cluster layer's units, such as 0.1; more makes fewer clusters, 0 none.
    lambda_d
        Weight of the distances within clusters, about twice ``lambda_c``, which it needs.
    reference
        Name of the batch that the others are corrected to; None for the first in alphabetical order.
    min_cells
        A pattern of active units that more than so many of the fitted cells have is a cluster (the publication's
        ``binmin``).
    rescale
        Multiply the input so that its largest absolute value is this; the author's rule for the penalties is 10 at
        most. 0 for as it is. Results are on the scale of the data.
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here. ``"none"``: they are expression values or
        principal components.
    faithful
        The publication's three networks (a sigmoid after the first layer of the one without penalties), input that is
        not centred, and training on all cells for a fixed time; not for ``lambda_b`` and ``lambda_c`` at once.
    """

    name = "saucie"
    cell_results = ("cluster",)
    config: SAUCIEConfig

    def __init__(
        self,
        *,
        n_latent: int = 2,
        n_hidden: tuple[int, ...] = (512, 256, 128),
        lambda_b: float = 0.0,
        lambda_c: float = 0.0,
        lambda_d: float = 0.0,
        reference: str | None = None,
        min_cells: int = 100,
        rescale: float = 0.0,
        transform: TransformName = "log1p",
        faithful: bool = False,
    ) -> None:
        super().__init__(SAUCIEConfig(**arguments(locals())))

    def clusters(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Clusters:
        """Return the cluster of each cell, of those that were found among the fitted cells.

        Parameters
        ----------
        data, layer, allow_missing
            As in :meth:`embed`.

        Raises
        ------
        ConfigError
            The model was made without ``lambda_c``.
        """
        network = self._network()
        if not self.config.lambda_c:
            raise ConfigError(
                "the model makes no clusters: lambda_c = 0",
                code="no-clusters",
                where="lambda_c",
                remedy="fit SAUCIE(lambda_c=0.1, lambda_d=0.2), or cluster the latent: sc.tl.leiden(adata)",
            )
        labels = np.concatenate(list(self._blocks(self._source(data, layer, allow_missing), network.clusters)))
        return Clusters(labels.astype(np.int64), int(network.n_clusters), 100 * float((labels >= 0).mean()))

    def of_cells(
        self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return ``cluster``, (n_obs,) text with "-1" for none, if the model makes clusters."""
        if not self.config.lambda_c:
            return {}
        labels = self.clusters(data, layer=layer, allow_missing=allow_missing).labels
        return {"cluster": labels.astype(str).astype(object)}
