"""net-SNE as an object."""

from __future__ import annotations

from typing import Literal

from anncoder.autoencoder import Autoencoder
from anncoder.config import TransformName, arguments
from anncoder.models.netsne import NetsneConfig


class NetSNE(Autoencoder):
    """A parametric t-SNE: a network that learns the picture, and puts new cells into it at once.

    A reimplementation of the published objective of net-SNE (Cho, Berger, Peng 2018,
    doi 10.1016/j.cels.2018.05.017). It has no decoder: :meth:`embed` is all it does, :meth:`denoise` is refused.

    Parameters
    ----------
    n_latent
        Number of axes of the picture.
    n_hidden
        Widths of the hidden layers.
    activation
        ``"relu"`` or ``"sigmoid"``, of the hidden layers.
    n_pcs
        Number of principal components of the network input that are read, found before training and saved with the
        model; 0 for the genes themselves. None: 50 for counts, 0 for ``transform="none"``.
    perplexity
        Number of neighbours of a cell, in effect.
    exaggeration, exaggeration_steps
        Factor of the affinities in the first training steps, and how many.
    n_local
        Neighbours drawn of each cell in a step, where minibatches are parts of the data. With ``batch_size`` at least
        the number of cells (5,000 unless it is given) the objective is exact, and nothing is drawn.
    target
        Slot of obsm, such as ``"X_tsne"`` or ``"X_umap"``, with coordinates to learn: the network is then fitted to
        these by regression, so that new cells can be put into a picture that exists already.
    l2
        Penalty on the squared weights.
    transform
        As in :class:`UndercompleteAutoencoder`; ``"none"`` for data such as PCA scores.
    """

    name = "netsne"

    def __init__(
        self,
        *,
        n_latent: int = 2,
        transform: TransformName = "log1p",
        n_hidden: tuple[int, ...] = (50, 50),
        activation: Literal["relu", "sigmoid"] = "relu",
        n_pcs: int | None = None,
        perplexity: float = 30.0,
        exaggeration: float = 12.0,
        exaggeration_steps: int = 250,
        n_local: int = 20,
        l2: float = 0.0,
        target: str | None = None,
    ) -> None:
        super().__init__(NetsneConfig(**arguments(locals())))
