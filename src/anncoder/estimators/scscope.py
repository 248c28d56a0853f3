"""scScope as an object."""

from __future__ import annotations

from typing import Literal

from anncoder.autoencoder import Array, Autoencoder
from anncoder.config import TransformName, arguments
from anncoder.models.scscope import ScScopeConfig


class ScScope(Autoencoder):
    """An autoencoder run several times with the same weights, each time on its own guesses of the zeros.

    Reimplementation of the objective of Deng et al. 2019, doi 10.1038/s41592-019-0353-7. Zeros are taken as not
    observed: only the other entries are reconstructed, and from the second round on the zeros are filled in. With
    ``batch_key`` a layer learns what each experimental batch adds to each gene, and takes it away. The data must not
    be negative.

    Parameters
    ----------
    n_latent
        Number of latent units of one round.
    n_hidden
        Widths of the encoder's hidden layers; the decoder mirrors them; ``()`` for none.
    n_rounds
        How many times the network is run, T; 1 for a plain autoencoder.
    n_imputer
        Hidden units of the layers that guess the zeros from the last round's reconstruction.
    latent_activation
        ``"relu"`` or ``"linear"``.
    readout
        ``"concat"``: the latent of a cell is that of all rounds side by side, n_rounds * n_latent columns; ``"last"``;
        ``"mean"``.
    keep_observed
        Whether ``denoise`` keeps what was observed and fills in the zeros, instead of giving every entry anew.
    transform
        ``"normalize"`` (library-size normalised counts without the logarithm, as published), ``"log1p"``, or
        ``"none"`` for expression values.
    faithful
        Start, mask and train as published: weights of standard deviation 0.1 whatever the scale of the data, entries
        that the batch layer brings to zero no longer count, 100 epochs at a step of 1e-4 without early stopping.
    """

    name = "scscope"
    gene_results = ("batch_effects",)
    config: ScScopeConfig

    def __init__(
        self,
        *,
        n_latent: int = 50,
        transform: TransformName = "normalize",
        n_hidden: tuple[int, ...] = (),
        n_rounds: int = 2,
        n_imputer: int = 64,
        latent_activation: Literal["relu", "linear"] = "relu",
        readout: Literal["concat", "last", "mean"] = "concat",
        keep_observed: bool = False,
        faithful: bool = False,
    ) -> None:
        super().__init__(ScScopeConfig(**arguments(locals())))

    def of_genes(self) -> dict[str, Array]:
        """Return ``batch_effects``, (n_vars, n_batches), where there are batches.

        It is what is subtracted from each batch's cells, on the scale of the network input, in the order of
        ``batches_``.
        """
        network = self._network()
        if network.of_batch is None:
            return {}
        effects: Array = network.batch_effects().detach().T.cpu().numpy()
        return {"batch_effects": effects}
