"""Count autoencoder: the likelihood of raw counts under a count distribution whose mean the decoder gives.

``log mu = log size_factor + decoder(latent)``: Eraslan et al. 2019 (DCA), doi 10.1038/s41467-018-07931-2, with the
dispersion as a parameter of the gene, of the cell, or of both.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from anncoder.config import DispersionName, LayeredConfig, LikelihoodName, Weight
from anncoder.errors import ConfigError
from anncoder.likelihoods import gaussian_nll, nb_nll, poisson_nll, zinb_nll
from anncoder.likelihoods.limits import LOG_MEAN_RANGE, LOG_THETA_RANGE, warn_of_large_means
from anncoder.nn.basis import LatentBasis, pulled_back
from anncoder.nn.heads import CountHeads, CountParameters
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import Decoder, Encoder, hold_bias
from anncoder.nn.penalties import WeightPenalty
from anncoder.types import Batch, Loader, Loss, Noise, Shape, Summary, taken


class CountConfig(LayeredConfig):
    """Hyper-parameters of :class:`anncoder.CountAutoencoder`."""

    likelihood: Annotated[LikelihoodName, Field(description="distribution of the counts")] = "nb"
    dispersion: Annotated[
        DispersionName,
        Field(description="inverse dispersion: one a gene, one an entry, or one a cell (shared)"),
    ] = "gene"
    ridge_pi: Annotated[Weight, Field(description="penalty on the squared dropout probability (zinb)")] = 0.0

    @property
    def suited(self) -> dict[str, Any]:
        """A likelihood of counts has small gradients: at a step of 1e-3 it takes four times the epochs."""
        return {**super().suited, "learning_rate": 5e-3}

    @property
    def recordable(self) -> bool:
        """All of it, but for the likelihood that has no kernel and the layers that draw random numbers."""
        return self.likelihood != "gaussian" and self.transform == "log1p" and self.dropout_rate == 0

    def model_post_init(self, context: Any, /) -> None:
        """Refuse an input that the likelihood cannot have."""
        if self.transform == "none" and self.likelihood != "gaussian":
            raise ConfigError(
                f"likelihood={self.likelihood!r} is of raw counts, which the network reads log-normalised",
                code="bad-value",
                where="CountConfig.transform",
                remedy="set transform='log1p', or likelihood='gaussian' for expression values",
            )


class CountNetwork(nn.Module):
    """Encoder, decoder, heads and likelihood; see :mod:`anncoder.models` for the interface."""

    def __init__(self, config: CountConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, n_vars = config, shape.n_vars
        self.inputs = LogNormalize(config.transform)
        self.standardize = Standardize(n_vars, scaled=config.standardize)
        self.encoder = Encoder(config.layers, n_vars, config.n_latent, noise)
        self.decoder = Decoder(config.decoder_layers, config.n_latent, noise)
        hold_bias(self.encoder.last, config.decoder_layers)  # between the two there is nothing but products
        self.heads = CountHeads(
            self.decoder.n_out,
            n_vars,
            likelihood=config.likelihood,
            dispersion=config.dispersion,
            noise=noise,
        )
        self.basis = LatentBasis(config.n_latent)
        self.penalty = WeightPenalty(config.l1, config.l2, config.warmup_steps)

    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Start every gene at its mean and its moment estimate of the dispersion, and set the standardisation."""
        self.standardize.start_from(summary)
        gaussian = self.config.likelihood == "gaussian"
        if not gaussian:
            warn_of_large_means(summary.gene_mean)
        log_theta = summary.x_std.log() if gaussian else moment_log_theta(summary)
        with torch.no_grad():
            bias = summary.x_mean if gaussian else summary.gene_mean.log().clamp(*LOG_MEAN_RANGE)
            self.heads.mean.bias.copy_(bias)
            if self.heads.gene_log_theta is not None:
                self.heads.gene_log_theta.copy_(log_theta.clamp(*LOG_THETA_RANGE))
            if self.heads.pi is not None:
                self.heads.pi.bias.fill_(-2.0)  # start near "no dropout": pi = 0.12

    @torch.no_grad()
    def finish(self, batch: Batch) -> None:
        """Give the latent its natural axes, after training."""
        if self.config.natural_axes:
            latent = self.raw_latent(batch)
            metric = pulled_back(lambda z: self.heads.limited(self.decoder(z)).log_mean, latent, self._information)
            self.basis.set_from(latent, metric)

    def forward(self, batch: Batch) -> Loss:
        """Return the negative log-likelihood, a mean over cells and genes, and the penalties."""
        log_mean, log_theta, pi_logits = self.heads(self.decoder(self.raw_latent(batch)))
        if self.config.ridge_pi and pi_logits is not None:
            pi_logits = taken(pi_logits)  # it is read twice
        if self.config.likelihood == "gaussian":
            assert log_theta is not None
            nll = gaussian_nll(self.inputs(batch), taken(log_mean), taken(log_theta))
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

    def encode(self, batch: Batch) -> Tensor:
        """Return the latent in its natural axes, (b, k)."""
        latent: Tensor = self.basis(self.raw_latent(batch))
        return latent

    def raw_latent(self, batch: Batch) -> Tensor:
        """Return the latent in the axes that training found, (b, k): what the decoder reads."""
        latent: Tensor = self.encoder(self.inputs(batch), self.standardize.mean, self.standardize.scale)
        return latent

    def parameters_of(self, batch: Batch) -> CountParameters:
        """Return the parameters of the distribution of each entry, at size factor 1."""
        parameters: CountParameters = self.heads.limited(self.decoder(self.raw_latent(batch)))
        return parameters

    def denoise(self, batch: Batch) -> Tensor:
        """Return the expected expression at the median library size and before zero inflation, (b, g)."""
        return self._expected(self.parameters_of(batch))

    def observed(self, batch: Batch) -> Tensor:
        """Return the same less what zero inflation takes away, (b, g)."""
        parameters = self.parameters_of(batch)
        return self._expected(parameters) * parameters.kept()

    def _expected(self, parameters: CountParameters) -> Tensor:
        gaussian = self.config.likelihood == "gaussian"
        return self.inputs.inverse(parameters.log_mean) if gaussian else parameters.log_mean.exp()

    def _information(self, latent: Tensor) -> Tensor:
        # Fisher information of log mu, (b, g): mu / (1 + mu / theta), and mu for Poisson; of the mean for a Gaussian
        parameters: CountParameters = self.heads.limited(self.decoder(latent))
        log_mean, log_theta, _ = parameters
        if self.config.likelihood == "gaussian":
            assert log_theta is not None
            return torch.exp(-2 * log_theta).expand_as(log_mean)
        return log_mean.exp() if log_theta is None else log_mean.exp() / (1 + (log_mean - log_theta).exp())


def moment_log_theta(summary: Summary) -> Tensor:
    """Return the moment estimate of log theta, (g,), from ``Var = m E[1/s] + m^2 / theta`` in normalised counts.

    s are the size factors: divided by them, counts of small cells vary more. Genes with no more than Poisson variance
    have theta = 100.
    """
    excess = (summary.gene_var - summary.gene_mean * summary.inverse_size).clamp(min=1e-8)
    theta = summary.gene_mean.square() / excess
    return theta.clamp(1e-2, 1e2).log()
