"""The undercomplete autoencoder as an object."""

from __future__ import annotations

from typing import Literal

from anncoder.autoencoder import Autoencoder
from anncoder.config import ActivationName, NormName, TransformName, arguments
from anncoder.models.undercomplete import UndercompleteConfig


class UndercompleteAutoencoder(Autoencoder):
    """Fewer latent units than genes, fitted to reconstruct log-normalised expression.

    With ``activation="linear"`` and squared error its optimum is PCA, up to a rotation (Baldi & Hornik 1989,
    doi 10.1016/0893-6080(89)90014-2). Training reaches the leading components that are well apart in variance; the
    settings of ``configs/linear.yaml`` come closer to the rest than the defaults do.

    Parameters
    ----------
    n_latent
        Number of latent units, below the number of genes.
    n_hidden
        Widths of the encoder's hidden layers; the decoder mirrors them; ``()`` for none.
    activation
        Activation of the hidden layers; the latent and the output are linear.
    norm
        ``"batch"``, ``"batch-shift"`` (without a scale), ``"layer"`` or ``"none"``: normalisation of the hidden layers.
    linear_decoder
        Decode without hidden layers.
    dropout_rate
        Share of hidden units dropped in training.
    error
        ``"squared"`` or ``"absolute"`` reconstruction error.
    tied
        Use the encoder's weights, transposed, in the decoder (with ``norm="none"``).
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here. ``"none"``: they are expression values.
    standardize
        z-score the genes of the network input.
    natural_axes
        After training, turn and scale the latent so that its distances are those of the output distribution and its
        axes are principal, largest first (:mod:`anncoder.nn.basis`); of a linear model at its optimum, PCA's.
    l1, l2
        Penalties on the weights.
    warmup_steps
        Training steps over which the penalties rise to full strength.
    """

    name = "undercomplete"

    def __init__(
        self,
        *,
        n_latent: int = 16,
        n_hidden: tuple[int, ...] = (256,),
        activation: ActivationName = "relu",
        norm: NormName = "batch",
        linear_decoder: bool = False,
        dropout_rate: float = 0.0,
        error: Literal["squared", "absolute"] = "squared",
        tied: bool = False,
        transform: TransformName = "log1p",
        standardize: bool = False,
        natural_axes: bool = True,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(UndercompleteConfig(**arguments(locals())))
