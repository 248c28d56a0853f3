"""scvis as an object."""

from __future__ import annotations

import numpy as np

from anncoder.autoencoder import Array, Autoencoder
from anncoder.config import TransformName, arguments
from anncoder.models.scvis import ScvisConfig
from anncoder.sources import Data


class SCVIS(Autoencoder):
    """A variational autoencoder for pictures: two latent units, whose neighbours are those of the expression.

    A reimplementation of the published objective of scvis (Ding, Condon, Shah 2018, doi 10.1038/s41467-018-04368-5):
    the likelihood of the cells' principal components under a Student-t decoder, the divergence from the prior, and a
    t-SNE term of every minibatch. New cells are put into the picture by :meth:`embed`, and :meth:`log_likelihood` tells
    which of them are like none of the fitted ones.

    Parameters
    ----------
    n_latent
        Number of latent units.
    n_hidden
        Widths of the encoder's hidden layers.
    n_decoder_hidden
        Widths of the decoder's hidden layers, from the latent on.
    n_pcs
        Number of principal components of the network input that are modelled, found before training and saved with the
        model; 0 for the genes themselves. None: 100 for counts, 0 for ``transform="none"``.
    perplexity
        Number of neighbours of a cell, in effect; below the number of cells in a minibatch.
    dropconnect_rate
        Share of the weights of the latent mean that is dropped in training.
    l2
        Penalty on the squared weights, times a half.
    transform
        As in :class:`UndercompleteAutoencoder`; ``"none"`` for data such as PCA scores.
    faithful
        With the quirks of the published implementation: a perplexity p acts as p^1.44, dropped weights in the
        likelihood too, no cells held out, the last weights kept.
    """

    name = "scvis"
    cell_results = ("log_likelihood",)
    config: ScvisConfig

    def __init__(
        self,
        *,
        n_latent: int = 2,
        transform: TransformName = "log1p",
        n_hidden: tuple[int, ...] = (128, 64, 32),
        n_decoder_hidden: tuple[int, ...] = (32, 32, 32, 64, 128),
        n_pcs: int | None = None,
        perplexity: float = 10.0,
        dropconnect_rate: float = 0.1,
        l2: float = 1e-3,
        faithful: bool = False,
    ) -> None:
        super().__init__(ScvisConfig(**arguments(locals())))

    def of_cells(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> dict[str, Array]:
        """Return ``log_likelihood``, (n_obs,)."""
        return {"log_likelihood": self.log_likelihood(data, layer=layer, allow_missing=allow_missing)}

    def log_likelihood(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the log density of each cell's input, (n_obs,), the mean over five samples of its latent, in nats.

        Low for cells that are like none of the fitted ones. It is the density of what the network reads (scores over
        their largest absolute value, say), summed over its components: values of one model can be compared. The same
        cell has the same value whatever is beside it.

        Parameters
        ----------
        data, layer, allow_missing
            As in :meth:`embed`.

        Raises
        ------
        InputError
            As in :meth:`embed`.
        """
        source = self._source(data, layer, allow_missing)
        return np.concatenate(list(self._blocks(source, self._network().log_likelihood)))
