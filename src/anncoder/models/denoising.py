"""Denoising autoencoder: corrupted input, clean target, mask prediction (scMAE).

Vincent et al. 2008, doi 10.1145/1390156.1390294. The default - swapped values, changed entries weighted 0.75, and a
head that predicts from the latent which entries were changed - is scMAE's objective: Fang et al. 2024,
doi 10.1093/bioinformatics/btae020.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from anncoder.config import (
    FAST_TRAINING,
    Activation,
    ActivationName,
    Corruption,
    CorruptionName,
    LatentUnits,
    LayeredConfig,
    LinearDecoder,
    Norm,
    NormName,
    Strength,
    TransformName,
    arguments,
)
from anncoder.likelihoods import squared_error
from anncoder.models.base import Array, Autoencoder
from anncoder.nn.basis import LatentBasis, pulled_back, unit_information
from anncoder.nn.batches import ConditionedDecoder, LatentShifts, start_from_batches
from anncoder.nn.corruption import InputNoise
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import Encoder, linear
from anncoder.nn.penalties import WeightPenalty
from anncoder.nn.principal import start_from_components
from anncoder.types import CSR, Batch, Loader, Loss, Noise, Shape, Summary


class DenoisingConfig(LayeredConfig):
    """Hyper-parameters of :class:`anncoder.DenoisingAutoencoder`."""

    n_latent: LatentUnits = 32
    activation: Activation = "mish"
    norm: Norm = "layer"
    linear_decoder: LinearDecoder = True
    corruption: Corruption = "swap"
    strength: Strength = 0.4
    masked_weight: Annotated[
        float, Field(ge=0, le=1, description="weight of changed entries; the others have 1 minus it")
    ] = 0.75
    mask_predictor: Annotated[bool, Field(description="predict the changed entries from the latent")] = True
    mask_loss_weight: Annotated[
        float, Field(ge=0, le=1, description="weight of that prediction; the reconstruction has 1 minus it")
    ] = 0.7

    @property
    def defaults(self) -> dict[str, Any]:
        """Few epochs of large steps."""
        return {**super().defaults, **FAST_TRAINING}


class DenoisingNetwork(nn.Module):
    """Encoder, decoder, corruption and their objective; see :mod:`anncoder.models` for the interface."""

    def __init__(self, config: DenoisingConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, self.noise, n_vars = config, noise, shape.n_vars
        self.inputs = LogNormalize(config.transform, shape, corrects=config.batches_in_encoder)
        self.input_noise = InputNoise(config.noise_kind, config.strength, self.inputs, noise)
        self.standardize = Standardize(n_vars, scaled=config.standardize)
        self.encoder = Encoder(config.layers, n_vars, config.n_latent, noise)
        self.mask_head = linear(config.n_latent, n_vars, noise) if config.mask_predictor else None
        self.decoder = ConditionedDecoder(
            config.decoder_layers, config.n_latent, shape.n_batches, noise, shape.n_covariates
        )
        self.output = linear(self.decoder.n_out, n_vars, noise)
        self.basis = LatentBasis(config.n_latent)
        self.shifts = LatentShifts(shape, config.n_latent, corrects=config.batches_in_encoder)
        self.penalty = WeightPenalty(config.l1, config.l2, config.warmup_steps)

    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Start the output at the mean expression of each gene, and set the standardisation."""
        self.standardize.start_from(summary)
        if summary.sample is not None:
            start_from_batches(self.inputs, self.standardize, self.decoder, [self.output], summary.sample)
        if self.config.start == "components":
            start_from_components(self.encoder, self.inputs, self.standardize, summary, self.input_noise.noise)
        with torch.no_grad():
            self.output.bias.copy_(self.standardize.mean)

    def forward(self, batch: Batch) -> Loss:
        """Return the reconstruction error of the clean input, the mask prediction and the penalties.

        In evaluation the noise is a function of the minibatch: losses of different epochs can be compared.
        """
        clean = self.inputs(batch)
        noise = self.noise if self.training else Noise(self.noise.seed + int(batch.rows[0]))
        corrupted = self.input_noise.corrupted(batch, noise, clean)
        latent = self._encode(corrupted.x)
        decoded = self.decode(latent, batch.batch_code, batch.covariates)
        terms = {"reconstruction": self._reconstruction(clean, decoded, corrupted.changed)}
        if self.mask_head is not None and corrupted.changed is not None:
            terms["reconstruction"] = (1 - self.config.mask_loss_weight) * terms["reconstruction"]
            terms["mask"] = self.config.mask_loss_weight * _mask_loss(self.mask_head(latent), corrupted.changed)
        return Loss.of(terms | self.penalty(self.parameters()))

    def encode(self, batch: Batch) -> Tensor:
        """Return the latent of the clean input in its natural axes, (b, k)."""
        latent: Tensor = self.shifts(self.basis(self._encode(self.inputs(batch))), batch.batch_code, batch.covariates)
        return latent

    @torch.no_grad()
    def finish(self, batch: Batch) -> None:
        """Give the latent its natural axes, after training, and take the shifts of the batches from it."""
        latent = self._encode(self.inputs(batch))
        if self.config.natural_axes:
            metric = pulled_back(self.decode, latent, unit_information(batch))
            self.basis.set_from(latent, metric)
        self.shifts.set_from(self.basis(latent), batch, self.inputs.removed(batch))

    def decode(self, latent: Tensor, batch_code: Tensor | None = None, covariates: Tensor | None = None) -> Tensor:
        """Return the reconstruction of the network input, (b, g); None for the average of the batches."""
        decoded: Tensor = self.output(self.decoder(latent, batch_code, covariates))
        return decoded

    def denoise(self, batch: Batch) -> Tensor:
        """Return the expected expression, (b, g), at the median library size (``transform="none"``: as it is)."""
        return self.denoise_as(batch, batch)

    def denoise_as(self, batch: Batch, decoded: Batch) -> Tensor:
        """Return :meth:`denoise` as if the cells had the batches and covariates of others, (b, g)."""
        given = decoded.batch_code, decoded.covariates
        return self.inputs.inverse(self.decode(self._encode(self.inputs(batch)), *given), *given)

    def _encode(self, x: CSR | Tensor) -> Tensor:
        latent: Tensor = self.encoder(x, self.standardize.mean, self.standardize.scale)
        return latent

    def _reconstruction(self, clean: CSR, decoded: Tensor, changed: CSR | None) -> Tensor:
        # mean over cells and genes of w (x - decoded)^2, w = masked_weight at changed entries, 1 - masked_weight else
        everywhere = squared_error(clean, decoded)
        if changed is None:
            return everywhere.mean() / clean.n_vars
        at_changed = changed.with_values((decoded.reshape(-1)[changed.flat()] - changed.values).square())
        weight = self.config.masked_weight
        weighted = (1 - weight) * everywhere + (2 * weight - 1) * at_changed.row_sums()
        return weighted.mean() / clean.n_vars


def _mask_loss(logits: Tensor, changed: CSR) -> Tensor:
    # binary cross-entropy with a sparse target: softplus(logit) everywhere, minus the logit where the target is 1
    at_changed = logits.reshape(-1)[changed.flat()]
    return (softplus(logits).sum() - at_changed.sum()) / logits.numel()


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder that reconstructs clean expression from a corrupted input.

    The default is scMAE's objective (Fang et al. 2024, doi 10.1093/bioinformatics/btae020): values swapped between
    cells, changed entries weighted 0.75, and a head that predicts from the latent which entries were changed.

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
    corruption
        ``"swap"`` (another cell's value of the same gene), ``"mask"`` (zero), ``"dropout"`` (zero, the rest scaled up),
        ``"gaussian"`` (added noise), ``"thinning"`` (molecules removed at random), ``"none"``. Only in training.
    strength
        Probability of a change, or the standard deviation of the gaussian.
    masked_weight
        Weight of changed entries in the squared error; the others have ``1 - masked_weight``.
    mask_predictor
        Predict the changed entries from the latent with a linear head. (In scMAE the decoder reads the head's output
        too; that is a linear function of the latent, which a linear decoder can express by itself.)
    mask_loss_weight
        Weight of that prediction's cross-entropy; the reconstruction has 1 minus it.
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here; ``"normalize"``: the same without the
        logarithm. ``"none"``: they are expression values.
    standardize
        z-score the genes of the network input.
    start
        Initial weights of the encoder: ``"components"`` of PCA, or ``"random"``.
    natural_axes
        After training, turn and scale the latent so that its distances are those of the output distribution and its
        axes are principal, largest first.
    batches_in_encoder
        Take batches and covariates from the input and the latent; else the decoder alone reads them, and ``embed``
        needs no columns for them.
    l1, l2
        Penalties on the absolute and on the squared weights.
    warmup_steps
        Training steps over which the penalties rise to full strength.
    """

    name = "denoising"
    config_class, network_class = DenoisingConfig, DenoisingNetwork
    gene_results = ("loadings",)
    config: DenoisingConfig

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
        start: Literal["components", "random"] = "components",
        natural_axes: bool = True,
        batches_in_encoder: bool = True,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(DenoisingConfig(**arguments(locals())))

    def of_genes(self) -> dict[str, Array]:
        """Return ``loadings``, (n_vars, n_latent), of a decoder without hidden layers.

        They are the change of each gene's log-normalised expression (of its value, for ``transform="none"``) by a unit
        of each latent.
        """
        if not self.config.decoder_layers.widths:
            network = self._network()
            return {"loadings": network.basis.loadings(network.output.weight).cpu().numpy()}
        return {}


MODEL = DenoisingAutoencoder
