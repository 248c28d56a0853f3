"""The denoising autoencoder as an object."""

from __future__ import annotations

from anncoder.autoencoder import Autoencoder
from anncoder.config import ActivationName, CorruptionName, NormName, TransformName, arguments
from anncoder.models.denoising import DenoisingConfig


class DenoisingAutoencoder(Autoencoder):
    """Reconstructs clean expression from a corrupted input.

    The default is scMAE's objective (Fang et al. 2024, doi 10.1093/bioinformatics/btae020): values swapped between
    cells, changed entries weighted 0.75, and a head that predicts from the latent which entries were changed.

    Parameters
    ----------
    corruption
        ``"swap"`` (another cell's value of the same gene), ``"mask"`` (zero), ``"dropout"`` (zero, the rest scaled up),
        ``"gaussian"`` (added noise), ``"thinning"`` (molecules removed at random), ``"none"``. Only in training.
    strength
        Probability of a change, or the standard deviation of the gaussian.
    masked_weight
        Weight of changed entries in the squared error; the others have ``1 - masked_weight``.
    mask_predictor
        Predict the changed entries from the latent with a linear head, and hand its output to the decoder too. The
        decoder then has n_vars x n_vars weights: meant for a few thousand genes.
    mask_loss_weight
        Weight of that prediction's cross-entropy; the reconstruction has 1 minus it.
    n_latent, n_hidden, activation, norm, linear_decoder, dropout_rate
        As in :class:`UndercompleteAutoencoder`.
    transform, standardize, natural_axes, l1, l2, warmup_steps
        As in :class:`UndercompleteAutoencoder`.
    """

    name = "denoising"

    def __init__(
        self,
        *,
        n_latent: int = 32,
        n_hidden: tuple[int, ...] = (256,),
        activation: ActivationName = "mish",
        norm: NormName = "layer",
        linear_decoder: bool = True,
        dropout_rate: float = 0.0,
        corruption: CorruptionName = "swap",
        strength: float = 0.4,
        masked_weight: float = 0.75,
        mask_predictor: bool = True,
        mask_loss_weight: float = 0.7,
        transform: TransformName = "log1p",
        standardize: bool = False,
        natural_axes: bool = True,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(DenoisingConfig(**arguments(locals())))
