"""Count autoencoder: NB, ZINB or Poisson likelihood of raw counts.

``log mu = log size_factor + decoder(latent)``: Eraslan et al. 2019 (DCA), doi 10.1038/s41467-018-07931-2, with the
dispersion as a parameter of the gene, of the cell, or of both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anncoder.config import (
    FAST_TRAINING,
    ActivationName,
    CorruptionName,
    DispersionOfBatchesName,
    LayeredConfig,
    LikelihoodName,
    NormName,
    TransformName,
    Weight,
    arguments,
)
from anncoder.data.sources import Data
from anncoder.errors import ConfigError
from anncoder.kernels import fused
from anncoder.likelihoods import gaussian_nll, nb_nll, poisson_nll, zinb_nll
from anncoder.likelihoods.common import LOG_MEAN_RANGE, LOG_THETA_RANGE, warn_of_large_means
from anncoder.likelihoods.nb import nb_spec
from anncoder.likelihoods.poisson import poisson_spec
from anncoder.likelihoods.zinb import zinb_spec
from anncoder.models.base import Array, Autoencoder
from anncoder.nn.basis import LatentBasis, pulled_back
from anncoder.nn.batches import ConditionedDecoder, LatentShifts, start_from_batches
from anncoder.nn.chain import Links, backward, forward, links_of
from anncoder.nn.corruption import InputNoise
from anncoder.nn.count_heads import CountHeads, CountParameters
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import Encoder, hold_bias
from anncoder.nn.penalties import WeightPenalty
from anncoder.nn.principal import start_from_components
from anncoder.nn.sparse import centred_product
from anncoder.types import Batch, Loader, Loss, Noise, Shape, Summary, materialize


class CountConfig(LayeredConfig):
    """Hyper-parameters of :class:`anncoder.CountAutoencoder`."""

    likelihood: Annotated[LikelihoodName, Field(description="distribution of the counts")] = "nb"
    dispersion: Annotated[
        DispersionOfBatchesName,
        Field(description="inverse dispersion: one a gene, a gene in each batch, an entry, or a cell (shared)"),
    ] = "gene"
    ridge_pi: Annotated[Weight, Field(description="penalty on the squared dropout probability (zinb)")] = 0.0

    @property
    def defaults(self) -> dict[str, Any]:
        """Few epochs of large steps; of a Gaussian smaller ones: its loss has no bound from below."""
        own = {"learning_rate": 3e-3} if self.likelihood == "gaussian" else {}
        return {**super().defaults, **FAST_TRAINING, **own}

    @property
    def batches(self) -> Literal["optional", "needed"]:
        """A dispersion of each batch needs them."""
        return "needed" if self.dispersion == "gene-batch" and self.likelihood != "poisson" else "optional"

    @property
    def recordable(self) -> bool:
        """Every step does the same, but for the likelihood without a kernel and for random numbers (dropout)."""
        random = self.dropout_rate > 0 or (self.noise_kind != "none" and self.strength > 0)
        return self.likelihood != "gaussian" and self.transform == "log1p" and not random

    def model_post_init(self, context: Any, /) -> None:
        """Refuse expression values for a likelihood of counts."""
        super().model_post_init(context)
        if self.transform == "none" and self.likelihood != "gaussian":
            what = f"likelihood={self.likelihood!r} is of raw counts, which the network reads log-normalised"
            remedy = "set transform='log1p', or likelihood='gaussian' for expression values"
            raise ConfigError("bad-value", what, "CountConfig.transform", remedy)


class CountNetwork(nn.Module):
    """Encoder, decoder, heads and likelihood; see :mod:`anncoder.models` for the interface."""

    def __init__(self, config: CountConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, n_vars = config, shape.n_vars
        self.inputs = LogNormalize(config.transform, shape, corrects=config.batches_in_encoder)
        self.input_noise = InputNoise(config.noise_kind, config.strength, self.inputs, noise)
        self.standardize = Standardize(n_vars, scaled=config.standardize)
        self.encoder = Encoder(config.layers, n_vars, config.n_latent, noise)
        self.decoder = ConditionedDecoder(
            config.decoder_layers, config.n_latent, shape.n_batches, noise, shape.n_covariates
        )
        hold_bias(self.encoder.last, config.decoder_layers)  # only products stand between the two
        self.heads = CountHeads(
            self.decoder.n_out,
            n_vars,
            likelihood=config.likelihood,
            dispersion=config.dispersion,
            noise=noise,
            n_batches=shape.n_batches,
        )
        self.basis = LatentBasis(config.n_latent)
        self.shifts = LatentShifts(shape, config.n_latent, corrects=config.batches_in_encoder)
        self.penalty = WeightPenalty(config.l1, config.l2, config.warmup_steps)
        self.links = self._links()

    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Start every gene at its mean and its moment estimate of the dispersion, and set the standardisation."""
        self.standardize.start_from(summary)
        effects = None
        if summary.sample is not None:
            parts = self.inputs, self.standardize, self.decoder, self.heads.layers
            effects = start_from_batches(*parts, summary.sample)
        if self.config.start == "components":
            start_from_components(self.encoder, self.inputs, self.standardize, summary, self.input_noise.noise)
        gaussian = self.config.likelihood == "gaussian"
        if not gaussian:
            warn_of_large_means(summary.gene_mean)
        log_theta = summary.x_std.log() if gaussian else moment_log_theta(summary)
        with torch.no_grad():
            bias = self.standardize.mean if gaussian else summary.gene_mean.log().clamp(*LOG_MEAN_RANGE)
            self.heads.mean.bias.copy_(bias)
            if effects is not None and not gaussian:
                self.heads.mean.weight[:, -len(effects) :] = effects.T
            if self.heads.gene_log_theta is not None:
                self.heads.gene_log_theta.copy_(log_theta.clamp(*LOG_THETA_RANGE).expand_as(self.heads.gene_log_theta))
            if self.heads.pi is not None:
                self.heads.pi.bias.fill_(-2.0)  # start near "no dropout": pi = 0.12

    @torch.no_grad()
    def finish(self, batch: Batch) -> None:
        """Give the latent its natural axes, after training, and take the shifts of the batches from it."""
        latent = self.raw_latent(batch)
        if self.config.natural_axes:
            metric = pulled_back(lambda z: self._decoded(z).log_mean, latent, self._information)
            self.basis.set_from(latent, metric)
        self.shifts.set_from(self.basis(latent), batch, self.inputs.removed(batch))

    def forward(self, batch: Batch) -> Loss:
        """Return the negative log-likelihood, a mean over cells and genes, and the penalties."""
        log_mean, log_theta, pi_logits = self.heads(self.hidden(batch), batch.batch_code)
        if self.config.ridge_pi and pi_logits is not None:
            pi_logits = materialize(pi_logits)  # read twice
        if self.config.likelihood == "gaussian":
            assert log_theta is not None
            nll = gaussian_nll(self.inputs(batch), materialize(log_mean), materialize(log_theta))
        elif log_theta is None:
            nll = poisson_nll(batch.counts, log_mean, batch.size_factor)
        elif pi_logits is None:
            nll = nb_nll(batch.counts, log_mean, log_theta, batch.size_factor)
        else:
            nll = zinb_nll(batch.counts, log_mean, log_theta, pi_logits, batch.size_factor)
        terms = {"nll": nll.sum() / (len(nll) * batch.counts.n_vars), **self.penalty(self.parameters())}
        if self.config.ridge_pi and pi_logits is not None:
            terms["ridge_pi"] = self.config.ridge_pi * pi_logits.sigmoid().square().mean()
        return Loss.of(terms)

    def _links(self) -> Links | None:
        # where everything between the layers has a form without a graph too
        c = self.config
        plain = type(self) is CountNetwork and c.likelihood != "gaussian" and self.standardize.scale is None
        if not plain or c.dispersion == "shared" or c.noise_kind == "gaussian" or c.l1 or c.l2 or c.ridge_pi:
            return None
        return links_of(self, self.encoder.behind_first(), self.decoder)

    @torch.no_grad()
    def gradients(self, batch: Batch) -> Loss | None:
        """Return the loss and set the gradients, as ``forward`` and ``backward`` do, to the same bits, without a graph.

        None where a setting, a device or a hook has no such form. Nothing is drawn from the random stream then.
        """
        given = (batch.counts.values, batch.size_factor)
        if (
            self.links is None
            or len(batch.rows) < 2
            or not fused(*given, *self.links.parameters)
            or self.links.hooked()
        ):
            return None
        encoder, decoder = self.links.encoder, self.links.decoder
        first, mean, x = self.encoder.first, self.standardize.mean, self.input_noise(batch)
        latent, of_encoder = forward(encoder, centred_product(x, first.weight, first.bias, mean))
        coded = self.decoder.codes(latent, batch.batch_code, batch.covariates)
        hidden, of_decoder = forward(decoder, torch.cat([latent, coded], dim=1) if decoder else latent)
        log_mean, log_theta, pi_logits = self.heads(torch.cat([hidden, coded], dim=1), batch.batch_code)
        weight = torch.full_like(batch.size_factor, 1 / (len(batch.rows) * batch.counts.n_vars))
        if log_theta is None:
            nll, by = poisson_spec(batch.counts, batch.size_factor).run([log_mean], weight)
        elif pi_logits is None:
            nll, by = nb_spec(batch.counts, log_theta, batch.size_factor).run([log_mean, log_theta], weight)
        else:
            zinb = zinb_spec(batch.counts, log_theta, batch.size_factor)
            nll, by = zinb.run([log_mean, log_theta, pi_logits], weight)
        by_hidden = self.heads.set_gradients(by, batch.batch_code)[:, : hidden.shape[1]]
        by_latent = backward(decoder, of_decoder, by_hidden)[:, : latent.shape[1]]
        first.backward(x, mean, backward(encoder, of_encoder, by_latent))
        return Loss.of({"nll": nll.float().sum() / (len(nll) * batch.counts.n_vars)})

    def hidden(self, batch: Batch) -> Tensor:
        """Return what the output layer reads, (b, h): the last hidden layer, with batches beside their code."""
        hidden: Tensor = self.decoder(self.raw_latent(batch), batch.batch_code, batch.covariates)
        return hidden

    def encode(self, batch: Batch) -> Tensor:
        """Return the latent in its natural axes, (b, k)."""
        latent: Tensor = self.shifts(self.basis(self.raw_latent(batch)), batch.batch_code, batch.covariates)
        return latent

    def raw_latent(self, batch: Batch) -> Tensor:
        """Return the latent in the axes of training, (b, k), which the decoder reads."""
        latent: Tensor = self.encoder(self.input_noise(batch), self.standardize.mean, self.standardize.scale)
        return latent

    def parameters_of(self, batch: Batch) -> CountParameters:
        """Return the parameters of the distribution of each entry, at size factor 1."""
        return self._decoded(self.raw_latent(batch), batch.batch_code, batch.covariates)

    def denoise(self, batch: Batch) -> Tensor:
        """Return the expected expression at the median library size and before zero inflation, (b, g)."""
        return self._expected(self.parameters_of(batch), batch)

    def denoise_as(self, batch: Batch, decoded: Batch) -> Tensor:
        """Return :meth:`denoise` as if the cells had the batches and covariates of others, (b, g)."""
        latent = self.raw_latent(batch)
        return self._expected(self._decoded(latent, decoded.batch_code, decoded.covariates), decoded)

    def observed(self, batch: Batch) -> Tensor:
        """Return the expected expression after zero inflation, (b, g)."""
        parameters = self.parameters_of(batch)
        return self._expected(parameters, batch) * parameters.not_inflated()

    def _decoded(
        self, latent: Tensor, batch_code: Tensor | None = None, covariates: Tensor | None = None
    ) -> CountParameters:
        hidden = self.decoder(latent, batch_code, covariates)
        parameters: CountParameters = self.heads.limited(hidden, batch_code)
        return parameters

    def _expected(self, parameters: CountParameters, cells: Batch) -> Tensor:
        if self.config.likelihood == "gaussian":
            return self.inputs.inverse(parameters.log_mean, cells.batch_code, cells.covariates)
        return parameters.log_mean.exp()

    def _information(self, latent: Tensor) -> Tensor:
        # Fisher information of log mu, (b, g): mu / (1 + mu / theta), and mu for Poisson; of the mean for a Gaussian
        log_mean, log_theta, _ = self._decoded(latent)
        if self.config.likelihood == "gaussian":
            assert log_theta is not None
            return torch.exp(-2 * log_theta).expand_as(log_mean)
        return log_mean.exp() if log_theta is None else log_mean.exp() / (1 + (log_mean - log_theta).exp())


def moment_log_theta(summary: Summary) -> Tensor:
    """Return the moment estimate of log theta, (g,), from ``Var = m E[1/s] + m^2 / theta`` in normalised counts.

    s are the size factors: counts of small cells, divided by them, vary more. Genes with at most Poisson variance have
    theta = 100.
    """
    excess = (summary.gene_var - summary.gene_mean * summary.inverse_size).clamp(min=1e-8)
    theta = summary.gene_mean.square() / excess
    return theta.clamp(1e-2, 1e2).log()


class CountAutoencoder(Autoencoder):
    """An autoencoder fitted to the likelihood of the raw counts.

    The decoder gives the mean ``mu = size_factor * exp(decoder(latent))``; size factors are library sizes over their
    median (Eraslan et al. 2019, doi 10.1038/s41467-018-07931-2).

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
    likelihood
        ``"nb"`` (molecule counts), ``"zinb"`` (more zeros than that), ``"poisson"`` (no extra variance), or
        ``"gaussian"`` (log-normalised expression).
    dispersion
        Inverse dispersion theta, Var = mu + mu^2 / theta: ``"gene"`` one a gene, ``"gene-batch"`` one a gene in each
        experimental batch, ``"gene-cell"`` one an entry, ``"shared"`` one a cell. For ``"gaussian"`` it is
        the standard deviation.
    ridge_pi
        Penalty on the squared dropout probability of ``"zinb"``.
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here; ``"normalize"``: the same without the
        logarithm. ``"none"``: they are expression values.
    standardize
        z-score the genes of the network input.
    start
        Initial weights of the encoder: ``"components"`` of PCA, or ``"random"``.
    corruption
        What is done to the input in training, which keeps the network from copying the noise of the data:
        ``"swap"`` (another cell's value of the same gene), ``"mask"`` (zero), ``"dropout"`` (zero, the rest scaled up),
        ``"gaussian"`` (added noise), ``"thinning"`` (molecules removed at random), ``"none"``. None for thinning, and
        for nothing where the data are expression values.
    strength
        Probability of such a change, or the standard deviation of the gaussian.
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

    name = "count"
    config_class, network_class = CountConfig, CountNetwork
    gene_results = ("loadings", "theta")
    config: CountConfig

    def __init__(
        self,
        *,
        n_latent: int = 16,
        n_hidden: tuple[int, ...] = (256,),
        activation: ActivationName = "relu",
        norm: NormName = "batch",
        linear_decoder: bool = False,
        dropout_rate: float = 0.0,
        likelihood: LikelihoodName = "nb",
        dispersion: DispersionOfBatchesName = "gene",
        ridge_pi: float = 0.0,
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
        super().__init__(CountConfig(**arguments(locals())))

    def of_genes(self) -> dict[str, Array]:
        """Return ``theta``, where the dispersion is one a gene or in each batch, and ``loadings`` of a linear decoder.

        ``theta`` is (n_vars,) or (n_vars, n_batches); loadings, (n_vars, n_latent), are the change of the log
        expression of each gene by a unit of each latent.
        """
        found: dict[str, Array] = {}
        if self.config.dispersion in ("gene", "gene-batch") and self.config.likelihood in ("nb", "zinb"):
            found["theta"] = self.dispersion()
        if not self.config.decoder_layers.widths:
            network = self._network()
            found["loadings"] = network.basis.loadings(network.heads.mean.weight).cpu().numpy()
        return found

    def dispersion(self, data: Data | None = None, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return theta, the inverse dispersion: Var = mu + mu^2 / theta.

        Parameters
        ----------
        data
            AnnData or path, whose genes are matched by name; not needed with ``dispersion="gene"`` or ``"gene-batch"``.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.

        Returns
        -------
        Array
            (n_vars,) for ``"gene"``, (n_vars, n_batches), in the order of ``batches_``, for ``"gene-batch"``,
            (n_obs, 1) for ``"shared"``, (n_obs, n_vars) for ``"gene-cell"``.

        Raises
        ------
        ConfigError
            The likelihood has no dispersion, or the data are missing.
        """
        network = self._network()
        if self.config.likelihood == "poisson":
            raise ConfigError("no-dispersion", "a Poisson model has no dispersion", remedy="use likelihood='nb'")
        if self.config.dispersion in ("gene", "gene-batch"):
            gene_theta: Array = network.heads.gene_log_theta.detach().clamp(*LOG_THETA_RANGE).exp().cpu().numpy()
            return gene_theta.T
        if data is None:
            what = f"dispersion={self.config.dispersion!r} differs between cells"
            raise ConfigError("no-data", what, remedy="give the data: model.dispersion(adata)")
        return self._apply(data, lambda batch: network.parameters_of(batch).log_theta.exp(), layer, allow_missing)

    def dropout_probability(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the probability that an entry is zero for technical reasons, (n_obs, n_vars); ``"zinb"`` only.

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
        ConfigError
            The likelihood has no zero inflation.
        """
        network = self._network()
        refuse_no_dropout(self.config.likelihood)
        return self._apply(data, lambda batch: network.parameters_of(batch).pi_logits.sigmoid(), layer, allow_missing)


def refuse_no_dropout(likelihood: str) -> None:
    """Raise a ConfigError unless the likelihood is zero-inflated."""
    if likelihood != "zinb":
        what = f"likelihood={likelihood!r} has no dropout probability"
        raise ConfigError("no-dropout", what, remedy="use likelihood='zinb'")


MODEL = CountAutoencoder
