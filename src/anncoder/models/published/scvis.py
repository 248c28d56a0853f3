"""scvis: variational autoencoder with a t-SNE term, for two-dimensional pictures.

A reimplementation of the published objective: Ding, Condon, Shah 2018, doi 10.1038/s41467-018-04368-5. Written from
the paper and from facts about its implementation; no line of that is here.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear as product
from torch.nn.functional import softplus

from anncoder.config import (
    HiddenWidths,
    LatentUnits,
    NetworkConfig,
    Probability,
    TransformName,
    Weight,
    Width,
    arguments,
)
from anncoder.data.sources import Data
from anncoder.errors import ConfigError
from anncoder.models.base import Array, Autoencoder
from anncoder.nn.inputs import LogNormalize, Projection
from anncoder.nn.tsne import affinities, squared_distances, without_self
from anncoder.types import Batch, Loader, Loss, Noise, Shape, Summary

SAMPLES = 5  # of the latent, for a log-likelihood
SMOOTHING = 0.1  # added to the affinities of a cell, in all
VARIANCES = (1e-6, 1e10)  # limits, of the latent and of expression
DOFS = (0.1, 10.0)  # limits of the degrees of freedom
WEIGHTS = (0.01, 2.0)  # limits of a cell's weight
LEAST_KL_WEIGHT = 0.1


class ScvisConfig(NetworkConfig):
    """Hyper-parameters of :class:`anncoder.SCVIS`."""

    loss_unit: ClassVar[str] = "nats a cell"

    n_latent: LatentUnits = 2
    n_hidden: HiddenWidths = (128, 64, 32)
    n_decoder_hidden: Annotated[
        tuple[Width, ...], Field(min_length=1, max_length=16, description="decoder widths, from the latent on")
    ] = (32, 32, 32, 64, 128)
    n_pcs: Annotated[
        int | None,
        Field(ge=0, le=4096, description="principal components read; 0 for the genes; null: 100 of counts, else 0"),
    ] = None
    perplexity: Annotated[float, Field(gt=1, le=1e4, description="neighbours of a cell, in effect")] = 10.0
    dropconnect_rate: Annotated[
        Probability, Field(description="share of the weights of the latent mean dropped in training")
    ] = 0.1
    l2: Annotated[Weight, Field(description="L2 penalty on the weights, times a half")] = 1e-3
    faithful: Annotated[
        bool, Field(description="with the quirks of the published implementation; see docs/models/scvis.md")
    ] = False

    @property
    def n_components(self) -> int:
        """Number of principal components, 0 for none."""
        if self.n_pcs is None:
            return 100 if self.reads_counts else 0
        return self.n_pcs

    @property
    def effective_perplexity(self) -> float:
        """Perplexity of the affinities; as published, an entropy in nats is compared with one in bits."""
        return self.perplexity ** (1 / math.log(2)) if self.faithful else self.perplexity

    @property
    def fewest_cells(self) -> int:
        """A cell must have more neighbours in its minibatch than the perplexity."""
        return math.floor(self.effective_perplexity) + 2

    @property
    def dof(self) -> int:
        """Degrees of freedom of the similarities in the latent."""
        return self.n_latent - 1 if self.faithful else max(self.n_latent - 1, 1)

    @property
    def defaults(self) -> dict[str, Any]:
        """As published; unless faithful, with cells held out and the best weights."""
        published = {
            "max_epochs": 3000,
            "max_steps": 3000,
            "batch_size": 512,
            "learning_rate": 1e-2,
            "epsilon": 1e-3,
            "clip_value": 3.0,
            "early_stopping": False,
            "reduce_lr_patience": 0,
        }
        to_the_end = {"valid_fraction": 0.0, "keep_best": False} if self.faithful else {}
        return {**super().defaults, **published, **to_the_end}

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a latent for which the published similarity is not defined."""
        if self.dof < 1:
            what = "with n_latent = 1 the published t-SNE term divides by n_latent - 1 = 0"
            raise ConfigError("bad-value", what, "ScvisConfig.n_latent", "set n_latent=2, or faithful=False")


class Posterior(NamedTuple):
    """Posterior of the latent of each cell: independent normal distributions."""

    mean: Tensor  # (b, k)
    var: Tensor  # (b, k)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return one latent a cell, (b, k)."""
        return self.at(torch.empty_like(self.mean).normal_(generator=generator))

    def at(self, standard: Tensor) -> Tensor:
        """Return the latent for standard normal numbers, (b, k) or (k,)."""
        return self.mean + self.var.sqrt() * standard


class ScvisNetwork(nn.Module):
    """Encoder, decoder, likelihood and neighbours; see :mod:`anncoder.models` for the interface.

    Terms are means over the cells and, as published, *sums* over the inputs of a cell: the weights of the terms, the
    clipping and the optimizer's epsilon are set for that scale.
    """

    largest: Tensor
    steps: Tensor

    def __init__(self, config: ScvisConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, self.noise = config, noise
        self.inputs = LogNormalize(config.transform)
        self.projection = Projection(shape.n_vars, config.n_components)
        n_inputs, n_latent = self.projection.n_out, config.n_latent
        encoder, decoder = [n_inputs, *config.n_hidden], [n_latent, *config.n_decoder_hidden]
        self.encoder = elu_layers(encoder, noise)
        self.latent_mean = he_linear(encoder[-1], n_latent, noise)
        self.latent_var = he_linear(encoder[-1], n_latent, noise)
        self.decoder = elu_layers(decoder, noise)
        self.mean = he_linear(decoder[-1], n_inputs, noise)
        self.var = he_linear(decoder[-1], n_inputs, noise)
        self.dof = nn.Parameter(torch.ones(n_inputs))
        self.register_buffer("largest", torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Find the principal components, and the largest absolute value that the input is divided by."""
        self.projection.start_from(cells, self.inputs)
        device = self.largest.device
        largest = [self.projection(self.inputs(batch.to(device))).abs().max() for batch in cells.epoch(0)]
        self.largest.copy_(torch.stack(largest).max())
        self.largest += self.largest == 0

    def finish(self, batch: Batch) -> None:
        """Leave the latent as it is: its scale is that of the t-SNE term."""

    def forward(self, batch: Batch) -> Loss:
        """Return the weighted likelihood, the divergence from the prior, the t-SNE term and the penalty.

        In evaluation the ramps are over, and the sample of the latent is a function of the minibatch: losses of
        different epochs can be compared.
        """
        x = self.scaled(batch)
        generator = (self.noise if self.training else Noise(self.noise.seed + int(batch.rows[0]))).on(x.device)
        posterior = self.posterior(x, generator if self.training else None)
        latent = posterior.sample(generator)
        p = x.new_zeros(1, 1)  # a single cell has no neighbours
        if len(x) > 1:
            p = affinities(without_self(squared_distances(x)), self._perplexity(len(x)))
        weight = p.sum(dim=0).clamp(*WEIGHTS)
        of_neighbours, of_prior = self.ramps()
        terms = {
            "nll": -(weight * self.log_density(x, latent)).mean(),
            "kl": of_prior * kl_from_standard(posterior).mean(),
            "tsne": of_neighbours * tsne_term(latent, p, self.config.dof),
        }
        if self.config.l2:
            squares = [w.square().sum() for w in self.parameters() if w.dim() == 2]
            terms["l2"] = self.config.l2 / 2 * torch.stack(squares).sum()
        return Loss.of(terms)

    def ramps(self) -> tuple[Tensor, Tensor]:
        """Return the weights of the t-SNE term, ``min(t, D)``, and of the prior, ``max(0.1, D / t)``, () each.

        t is the training step, which this counts, and D the number of inputs.
        """
        n_inputs = torch.tensor(float(self.projection.n_out), device=self.steps.device)
        if not self.training:
            return n_inputs, torch.full_like(n_inputs, LEAST_KL_WEIGHT)
        self.steps += 1
        return torch.minimum(self.steps, n_inputs), (n_inputs / self.steps).clamp(min=LEAST_KL_WEIGHT)

    def scaled(self, batch: Batch) -> Tensor:
        """Return the input of the encoder, (b, d): scores or expression over the largest absolute value fitted."""
        scores: Tensor = self.projection(self.inputs(batch))
        return scores / self.largest

    def posterior(self, x: Tensor, dropping: torch.Generator | None = None) -> Posterior:
        """Return the distribution of the latent, (b, k); weights of its mean are dropped with these random numbers."""
        hidden = self.encoder(x)
        weight, rate = self.latent_mean.weight, self.config.dropconnect_rate
        if dropping is not None and rate:
            weight = weight * torch.empty_like(weight).bernoulli_(1 - rate, generator=dropping) / (1 - rate)
        mean = product(hidden, weight, self.latent_mean.bias)
        return Posterior(mean, softplus(self.latent_var(hidden)).clamp(*VARIANCES))

    def log_density(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return the logarithm of the density of each cell's input, (b,), given its latent."""
        hidden = self.decoder(latent)
        var = softplus(self.var(hidden)).clamp(*VARIANCES)
        return student_t_log_density(x, self.mean(hidden), var, self.dof.clamp(*DOFS))

    def encode(self, batch: Batch) -> Tensor:
        """Return the mean of the latent, (b, k)."""
        return self.posterior(self.scaled(batch)).mean

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return the mean log density of each cell over five samples of its latent, (b,).

        All cells use the same five standard normal draws, so a cell's result does not depend on the others.
        """
        x = self.scaled(batch)
        generator = Noise(0).on(x.device)
        posterior = self.posterior(x, generator if self.config.faithful else None)
        standard = torch.empty(SAMPLES, self.config.n_latent, device=x.device).normal_(generator=generator)
        return torch.stack([self.log_density(x, posterior.at(draw)) for draw in standard]).mean(dim=0)

    def denoise(self, batch: Batch) -> Tensor:
        """Return the expected expression, (b, g), at the median library size (``transform="none"``: as it is)."""
        decoded = self.mean(self.decoder(self.encode(batch))) * self.largest
        return self.inputs.inverse(self.projection.inverse(decoded))

    def _perplexity(self, n_cells: int) -> float:
        # the last minibatch of an epoch may be too small for the perplexity: a third of it, as t-SNE recommends
        perplexity = self.config.effective_perplexity
        return perplexity if n_cells > perplexity + 1 else max((n_cells - 1) / 3, 1.0)


def he_linear(n_in: int, n_out: int, noise: Noise) -> nn.Linear:
    """Return a linear layer with weights from a normal cut at two deviations, of variance 2 / n_in, and biases 0.1.

    He et al. 2015, doi 10.1109/ICCV.2015.123.
    """
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out, device=torch.get_default_device())  # type: ignore[no-untyped-call]
    if not layer.weight.is_meta:
        deviation = math.sqrt(2 / n_in) / 0.8796  # of a standard normal cut at 2: 0.8796
        with torch.no_grad():
            generator = noise.on(layer.weight.device)
            nn.init.trunc_normal_(layer.weight, 0, deviation, -2 * deviation, 2 * deviation, generator=generator)
            layer.bias.fill_(0.1)
    return layer


def elu_layers(widths: list[int], noise: Noise) -> nn.Sequential:
    """Return linear layers from each width to the next, ELU behind each."""
    return nn.Sequential(*(part for a, b in pairwise(widths) for part in (he_linear(a, b, noise), nn.ELU())))


def student_t_log_density(x: Tensor, mean: Tensor, var: Tensor, dof: Tensor) -> Tensor:
    """Return the log density of independent Student-t distributions, (b,), summed over the inputs.

    Values, locations and squared scales are (b, d), degrees of freedom (d,).
    """
    constant = torch.lgamma((dof + 1) / 2) - torch.lgamma(dof / 2) - (math.pi * dof).log() / 2
    distance = (x - mean).square() / (dof * var)
    return (constant - var.log() / 2 - (dof + 1) / 2 * distance.log1p()).sum(dim=1)


def kl_from_standard(posterior: Posterior) -> Tensor:
    """Return the divergence of each cell's posterior from the standard normal prior, (b,), in nats."""
    mean, var = posterior
    return (mean.square() + var - 1 - var.log()).sum(dim=1) / 2


def tsne_term(latent: Tensor, p: Tensor, dof: int) -> Tensor:
    """Return the cross-entropy of neighbours in the latent under those of the input, (): the paper's t-SNE term.

    ``mean_i [log sum_(j != i) q_ij - sum_j p_ij log q_ij]``, ``q_ij = (1 + d_ij^2 / dof)^(-(dof + 1) / 2)``, where
    0.1 / b first is added to every p_ij, and rows are brought to 1 again. ``p`` are the (b, b)
    :func:`anncoder.nn.tsne.affinities` of the input, 0 of a cell to itself.
    """
    if len(latent) < 2:
        return latent.sum() * 0
    p = p + SMOOTHING / len(p)
    p = p / p.sum(dim=1, keepdim=True)
    log_q = -(dof + 1) / 2 * (squared_distances(latent) / dof).log1p()
    of_others = log_q - torch.diag(torch.full_like(log_q[0], float("inf")))
    return (of_others.logsumexp(dim=1) - (p * log_q).sum(dim=1)).mean()


class SCVIS(Autoencoder):
    """A variational autoencoder for pictures: two latent units that preserve the neighbours of each cell.

    A reimplementation of the published objective of scvis (Ding, Condon, Shah 2018, doi 10.1038/s41467-018-04368-5):
    the likelihood of the cells' principal components under a Student-t decoder, the divergence from the prior, and a
    t-SNE term of every minibatch. :meth:`embed` places new cells in the picture, and :meth:`log_likelihood` is low for
    those unlike the fitted cells.

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
        ``"log1p"``: the data are raw counts and are log-normalised here; ``"normalize"``: the same without the
        logarithm. ``"none"``: they are read as they are, such as PCA scores.
    faithful
        With the quirks of the published implementation: a perplexity p acts as p^1.44, dropped weights in the
        likelihood too, no cells held out, the last weights.
    """

    name = "scvis"
    config_class, network_class = ScvisConfig, ScvisNetwork
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
        """Return ``log_likelihood``, (n_obs,): see :meth:`log_likelihood`.

        Parameters
        ----------
        data
            AnnData or path; genes are matched by name.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.
        """
        return {"log_likelihood": self.log_likelihood(data, layer=layer, allow_missing=allow_missing)}

    def log_likelihood(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the log density of each cell's input, (n_obs,), the mean over five samples of its latent, in nats.

        Low for cells unlike the fitted ones. It is the density of the network input (such as scores over their largest
        absolute value), summed over its components: comparable within one model. A cell's value does not depend on the
        other cells.

        Parameters
        ----------
        data
            AnnData or path; genes are matched by name.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.

        Raises
        ------
        InputError
            Too many genes are missing, or the values are of another kind than those of the fit.
        """
        return self._apply(data, self._network().log_likelihood, layer, allow_missing)


MODEL = SCVIS
