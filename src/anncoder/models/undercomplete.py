"""Undercomplete autoencoder: fewer latent units than genes; linear, it is PCA.

With ``activation="linear"`` (or no hidden layer) and squared error, the best such network spans the subspace of the
first ``n_latent`` principal components: Baldi & Hornik 1989, doi 10.1016/0893-6080(89)90014-2.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear as product

from anncoder.config import (
    FAST_TRAINING,
    ActivationName,
    CorruptionName,
    LayeredConfig,
    NormName,
    TransformName,
    arguments,
)
from anncoder.errors import ConfigError
from anncoder.likelihoods import absolute_error, squared_error
from anncoder.models.base import Array, Autoencoder
from anncoder.nn.basis import LatentBasis, pulled_back, unit_information
from anncoder.nn.batches import ConditionedDecoder, LatentShifts, start_from_batches
from anncoder.nn.corruption import InputNoise
from anncoder.nn.inputs import PASSES_EXACT, LogNormalize, Projection, Standardize
from anncoder.nn.layers import Encoder, hold_bias, linear, product_of
from anncoder.nn.penalties import WeightPenalty
from anncoder.nn.principal import start_from_components
from anncoder.types import Batch, Loader, Loss, Noise, Shape, Summary


class UndercompleteConfig(LayeredConfig):
    """Hyper-parameters of :class:`anncoder.UndercompleteAutoencoder`."""

    error: Annotated[Literal["squared", "absolute"], Field(description="reconstruction error")] = "squared"
    tied: Annotated[bool, Field(description="decoder weights are the encoder's, transposed")] = False

    @property
    def defaults(self) -> dict[str, Any]:
        """Few epochs; a network that starts at its optimum is to stay there, and takes tiny steps."""
        return {**super().defaults, **FAST_TRAINING, "learning_rate": 1e-5 if self.starts_at_optimum else 3e-3}

    @property
    def noise_kind(self) -> CorruptionName:
        """A linear network reads its input as it is by default: with noise its optimum would not be PCA."""
        linear = not self.n_hidden or self.activation == "linear"
        return "none" if self.corruption is None and linear else super().noise_kind

    @property
    def starts_at_optimum(self) -> bool:
        """Whether the optimum is PCA, and the network starts there."""
        plain = self.error == "squared" and not (self.standardize or self.l1 or self.l2)
        return plain and not self.n_hidden and self.noise_kind == "none" and self.start == "components"

    @property
    def batches(self) -> Literal["unused", "optional"]:
        """A tied decoder has no weights of its own for them."""
        return "unused" if self.tied else "optional"

    @property
    def takes_covariates(self) -> bool:
        """As batches."""
        return not self.tied

    @property
    def instead_of_batches(self) -> str:
        """The remedy for a ``batch_key`` beside tied weights."""
        return "set tied=False (--set tied=false), or leave batch_key out"

    @property
    def instead_of_covariates(self) -> str:
        """The remedy for covariates beside tied weights."""
        return "set tied=False (--set tied=false), or leave them out"

    def model_post_init(self, context: Any, /) -> None:
        """Refuse layers that cannot be tied."""
        super().model_post_init(context)
        if self.tied and (self.norm != "none" or self.linear_decoder):
            found = f"norm={self.norm!r} and linear_decoder={self.linear_decoder}"
            what = f"tied weights go with norm='none' and linear_decoder=False, not {found}"
            raise ConfigError("bad-value", what, "UndercompleteConfig.tied", "set norm='none', or tied=False")


class UndercompleteNetwork(nn.Module):
    """Encoder, decoder and reconstruction error; see :mod:`anncoder.models` for the interface.

    The error is a mean over cells and genes, on the scale of the network input before standardisation.
    """

    def __init__(self, config: UndercompleteConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, n_vars = config, shape.n_vars
        self.inputs = LogNormalize(config.transform, shape, corrects=config.batches_in_encoder)
        self.input_noise = InputNoise(config.noise_kind, config.strength, self.inputs, noise)
        self.standardize = Standardize(n_vars, scaled=config.standardize)
        self.encoder = Encoder(config.layers, n_vars, config.n_latent, noise)
        self.basis = LatentBasis(config.n_latent)
        self.shifts = LatentShifts(shape, config.n_latent, corrects=config.batches_in_encoder)
        self.penalty = WeightPenalty(config.l1, config.l2, config.warmup_steps)
        if config.tied:
            self.tied = TiedDecoder(self.encoder, config.n_hidden)
        else:
            self.decoder = ConditionedDecoder(
                config.decoder_layers, config.n_latent, shape.n_batches, noise, shape.n_covariates
            )
            self.output = linear(self.decoder.n_out, n_vars, noise)
            hold_bias(self.encoder.last, config.decoder_layers)  # only products stand between the two

    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Start the output at the mean expression of each gene, and set the standardisation."""
        self.standardize.start_from(summary)
        if summary.sample is not None and not self.config.tied:
            start_from_batches(self.inputs, self.standardize, self.decoder, [self.output], summary.sample)
        if self.config.start == "components":
            start_from_components(self.encoder, self.inputs, self.standardize, summary, self.input_noise.noise)
        bias = self.tied.output_bias if self.config.tied else self.output.bias
        with torch.no_grad():
            bias.copy_(self.standardize.mean)
            if self.config.starts_at_optimum:
                self._start_at_components(cells)

    def _start_at_components(self, cells: Loader) -> None:
        # of all cells, not of a sample: training does not change much any more
        found = Projection(len(self.standardize.mean), self.config.n_latent)
        found.start_from(cells, self.inputs, PASSES_EXACT)
        self.encoder.first.weight.copy_(found.components)
        self.encoder.first.bias.zero_()
        if not self.config.tied:
            self.output.weight[:, : self.config.n_latent] = found.components

    @torch.no_grad()
    def finish(self, batch: Batch) -> None:
        """Give the latent its natural axes, after training, and take the shifts of the batches from it."""
        latent = self.raw_latent(batch)
        if self.config.natural_axes:
            self.basis.set_from(latent, pulled_back(self.decode, latent, unit_information(batch)))
        self.shifts.set_from(self.basis(latent), batch, self.inputs.removed(batch))

    def forward(self, batch: Batch) -> Loss:
        """Return the reconstruction error and the penalties."""
        x, latent = self.inputs(batch), self.raw_latent(batch)
        if self.config.error == "absolute":
            error = absolute_error(x, self.decode(latent, batch.batch_code, batch.covariates))
        elif self.config.tied:
            error = squared_error(x, self.decode(latent))
        else:
            error = squared_error(x, product_of(self.output, self.decoder(latent, batch.batch_code, batch.covariates)))
        reconstruction = error.sum() / (len(error) * x.n_vars)
        return Loss.of({"reconstruction": reconstruction, **self.penalty(self.parameters())})

    def encode(self, batch: Batch) -> Tensor:
        """Return the latent in its natural axes, (b, k)."""
        latent: Tensor = self.shifts(self.basis(self.raw_latent(batch)), batch.batch_code, batch.covariates)
        return latent

    def raw_latent(self, batch: Batch) -> Tensor:
        """Return the latent in the axes of training, (b, k), which the decoder reads."""
        latent: Tensor = self.encoder(self.input_noise(batch), self.standardize.mean, self.standardize.scale)
        return latent

    def hidden(self, batch: Batch) -> Tensor:
        """Return what the output layer reads, (b, h): the last hidden layer, with batches beside their code."""
        latent = self.raw_latent(batch)
        hidden: Tensor = latent if self.config.tied else self.decoder(latent, batch.batch_code, batch.covariates)
        return hidden

    def decode(self, latent: Tensor, batch_code: Tensor | None = None, covariates: Tensor | None = None) -> Tensor:
        """Return the reconstruction of the network input, (b, g); None for the average of the batches."""
        if self.config.tied:
            tied: Tensor = self.tied(latent)
            return tied
        decoded: Tensor = self.output(self.decoder(latent, batch_code, covariates))
        return decoded

    def denoise(self, batch: Batch) -> Tensor:
        """Return the expected expression, (b, g), at the median library size (``transform="none"``: as it is)."""
        return self.denoise_as(batch, batch)

    def denoise_as(self, batch: Batch, decoded: Batch) -> Tensor:
        """Return :meth:`denoise` as if the cells had the batches and covariates of others, (b, g)."""
        given = decoded.batch_code, decoded.covariates
        return self.inputs.inverse(self.decode(self.raw_latent(batch), *given), *given)


class TiedDecoder(nn.Module):
    """A decoder that uses the encoder's weights, transposed, with biases of its own."""

    def __init__(self, encoder: Encoder, widths: tuple[int, ...]) -> None:
        super().__init__()
        self._encoder = [encoder]  # in a list: the encoder's parameters are registered once, with the encoder
        self.biases = nn.ParameterList(torch.zeros(width) for width in widths)
        self.output_bias = nn.Parameter(torch.zeros(encoder.first.weight.shape[0]))

    def forward(self, latent: Tensor) -> Tensor:
        """Return the reconstruction, (b, g)."""
        encoder = self._encoder[0]
        layers = zip(encoder.rest, self.biases, encoder.after, strict=True)
        for layer, bias, follow in reversed(list(layers)):
            latent = follow(product(latent, layer.weight.T, bias))
        return product(latent, encoder.first.weight, self.output_bias)


class UndercompleteAutoencoder(Autoencoder):
    """An autoencoder of log-normalised expression with fewer latent units than genes.

    With ``activation="linear"`` and squared error its optimum is PCA, up to a rotation (Baldi & Hornik 1989,
    doi 10.1016/0893-6080(89)90014-2). Without hidden layers it starts there; ``start="random"`` trains it from scratch,
    which reaches the components that are well apart in variance.

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
        ``"log1p"``: the data are raw counts and are log-normalised here; ``"normalize"``: the same without the
        logarithm. ``"none"``: they are expression values.
    standardize
        z-score the genes of the network input.
    start
        Initial weights of the encoder: ``"components"`` of PCA, or ``"random"``.
    corruption
        What is done to the input in training, which keeps a network from copying the noise of the data:
        ``"swap"`` (another cell's value of the same gene), ``"mask"`` (zero), ``"dropout"`` (zero, the rest scaled up),
        ``"gaussian"`` (added noise), ``"thinning"`` (molecules removed at random), ``"none"``. None for thinning of
        counts, and for nothing where the data are expression values or the network is linear (whose optimum then is
        PCA).
    strength
        Probability of such a change, or the standard deviation of the gaussian.
    natural_axes
        After training, turn and scale the latent so that its distances are those of the output distribution and its
        axes are principal, largest first; of a linear model at its optimum, PCA's.
    batches_in_encoder
        Take batches and covariates from the input and the latent; else the decoder alone reads them, and ``embed``
        needs no columns for them.
    l1, l2
        Penalties on the absolute and on the squared weights.
    warmup_steps
        Training steps over which the penalties rise to full strength.
    """

    name = "undercomplete"
    config_class, network_class = UndercompleteConfig, UndercompleteNetwork
    gene_results = ("loadings",)
    config: UndercompleteConfig

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
        start: Literal["components", "random"] = "components",
        corruption: CorruptionName | None = None,
        strength: float = 0.5,
        natural_axes: bool = True,
        batches_in_encoder: bool = True,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(UndercompleteConfig(**arguments(locals())))

    def of_genes(self) -> dict[str, Array]:
        """Return ``loadings``, (n_vars, n_latent), of a decoder without hidden layers.

        They are the change of each gene's log-normalised expression (of its value, for ``transform="none"``) by a unit
        of each latent.
        """
        if not self.config.decoder_layers.widths:
            network = self._network()
            weight = network.encoder.first.weight if self.config.tied else network.output.weight
            return {"loadings": network.basis.loadings(weight).cpu().numpy()}
        return {}


MODEL = UndercompleteAutoencoder
