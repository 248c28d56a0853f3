"""Variational autoencoder (scVI, LDVAE): Gaussian posterior, count likelihood, batches.

Lopez, Regier, Cole, Jordan, Yosef 2018 (scVI), doi 10.1038/s41592-018-0229-2; with a linear decoder Svensson, Gayoso,
Yosef, Pachter 2020 (LDVAE), doi 10.1093/bioinformatics/btaa169. A reimplementation of the published objective.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from anncoder.config import (
    Activation,
    ActivationName,
    HiddenWidths,
    LatentUnits,
    Layers,
    LinearDecoder,
    NetworkConfig,
    Norm,
    NormName,
    Probability,
    Steps,
    TransformName,
    arguments,
)
from anncoder.data.sources import Data
from anncoder.errors import ConfigError
from anncoder.likelihoods import nb_nll, poisson_nll, zinb_nll
from anncoder.likelihoods.common import LOG_MEAN_RANGE, LOG_THETA_RANGE, warn_of_large_means
from anncoder.models.base import Array, Autoencoder
from anncoder.models.count import moment_log_theta, refuse_no_dropout
from anncoder.nn.count_heads import CountParameters
from anncoder.nn.inputs import LogNormalize
from anncoder.nn.layers import ConditionalLayers, product_of, rows_of
from anncoder.nn.penalties import EpochWarmUp
from anncoder.nn.sparse import SparseLinear
from anncoder.types import Batch, Loader, Loss, Noise, Shape, Summary

LEAST_VARIANCE = 1e-4  # of the posterior


class VariationalConfig(NetworkConfig):
    """Hyper-parameters of :class:`anncoder.VariationalAutoencoder`."""

    encodes_batches: ClassVar[bool] = True
    decodes_as: ClassVar[bool] = True

    loss_unit: ClassVar[str] = "nats a cell"

    n_latent: LatentUnits = 10
    n_hidden: HiddenWidths = (128,)
    activation: Activation = "relu"
    norm: Norm = "batch"
    linear_decoder: LinearDecoder = False
    dropout_rate: Annotated[Probability, Field(description="share of the encoder's hidden units dropped")] = 0.1
    likelihood: Annotated[Literal["zinb", "nb", "poisson"], Field(description="distribution of the counts")] = "zinb"
    dispersion: Annotated[
        Literal["gene", "gene-batch", "gene-cell"],
        Field(description="inverse dispersion: one a gene, one a gene in each experimental batch, or one an entry"),
    ] = "gene"
    size_factors: Annotated[
        bool, Field(description="divide the network input by the size factor, before the logarithm")
    ] = False
    batches_in_encoder: Annotated[bool, Field(description="show the experimental batch to the encoder too")] = False
    warmup_epochs: Annotated[Steps, Field(description="epochs over which the divergence gets its full weight")] = 400
    faithful: Annotated[bool, Field(description="start and train as published")] = False

    @property
    def batches(self) -> Literal["optional", "needed"]:
        """The decoder reads the batch where there is one."""
        return "needed" if self.batches_in_encoder or self.dispersion == "gene-batch" else "optional"

    @property
    def takes_covariates(self) -> bool:
        """All hidden layers of the decoder read them."""
        return True

    @property
    def embeds_batches(self) -> bool:
        """The encoder reads the batch with ``batches_in_encoder`` only; the decoder always does."""
        return self.batches_in_encoder

    @property
    def defaults(self) -> dict[str, Any]:
        """The training of scvi-tools; its epsilon is for a loss in nats a cell."""
        published = {
            "learning_rate": 1e-3,
            "weight_decay": 1e-6,
            "epsilon": 0.01,
            "clip_norm": 0.0,
            "patience": 45,
            "reduce_lr_patience": 0,
        }
        quirks = {"early_stopping": False, "keep_best": False} if self.faithful else {}
        return {**super().defaults, **published, **quirks}

    def model_post_init(self, context: Any, /) -> None:
        """Refuse expression values."""
        if self.transform == "none":
            what = f"likelihood={self.likelihood!r} is of raw counts, and transform='none' reads expression values"
            remedy = "set transform='log1p' and fit raw counts; for expression values use another model"
            raise ConfigError("bad-value", what, "VariationalConfig.transform", remedy)


class VariationalNetwork(nn.Module):
    """Encoder, decoder and evidence lower bound; see :mod:`anncoder.models` for the interface.

    The loss is in nats a cell, the sum over the genes, as published.
    """

    log_library: Tensor

    def __init__(self, config: VariationalConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, self.noise, self.n_vars = config, noise, shape.n_vars
        k, n_batches, self.n_covariates = config.n_latent, shape.n_batches, shape.n_covariates
        seen, read = (n_batches, self.n_covariates) if config.batches_in_encoder else (0, 0)
        hidden = Layers(config.n_hidden, config.activation, config.norm)
        self.inputs = LogNormalize(config.transform)
        self.encoder = ConditionalLayers(
            hidden._replace(dropout_rate=config.dropout_rate),
            shape.n_vars,
            seen,
            noise,
            sparse=True,
            n_covariates=read,
        )
        self.posterior_head = SparseLinear(self.encoder.n_out, 2 * k, noise)
        widths = () if config.linear_decoder else tuple(reversed(config.n_hidden))
        self.decoder = ConditionalLayers(
            hidden._replace(widths=widths), k, n_batches, noise, n_covariates=self.n_covariates
        )
        self.heads = nn.ModuleDict({name: self._head(n_batches) for name in _outputs(config)})
        rows = n_batches if config.dispersion == "gene-batch" else 1
        own_theta = config.likelihood != "poisson" and config.dispersion != "gene-cell"
        self.log_theta = nn.Parameter(torch.zeros(rows, shape.n_vars)) if own_theta else None
        self.warm_up = EpochWarmUp(config.warmup_epochs)
        self.register_buffer("log_library", torch.zeros(()))

    def _head(self, n_batches: int) -> ConditionalLayers:
        # a linear decoder is this layer alone: it reads the batch, and is normalised, as LDVAE's
        direct = not self.decoder.products
        layers = Layers((self.n_vars,), "linear", self.config.norm if direct else "none")
        n_covariates = self.n_covariates if direct else 0
        n_in = self.decoder.n_out
        return ConditionalLayers(layers, n_in, n_batches if direct else 0, self.noise, n_covariates=n_covariates)

    @torch.no_grad()
    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Take the library size, and start every gene at its mean and its moment estimate of the dispersion."""
        self.warm_up.start_from(summary)
        warn_of_large_means(summary.gene_mean)
        self.log_library.fill_(math.log(summary.library_size))
        if self.config.faithful:
            if self.log_theta is not None:
                self.log_theta.normal_(generator=self.noise.on(self.log_theta.device))
            return
        if self.log_theta is not None:
            self.log_theta.copy_(moment_log_theta(summary).clamp(*LOG_THETA_RANGE).expand_as(self.log_theta))
        self._bias("scale").copy_(summary.gene_mean.log().clamp(*LOG_MEAN_RANGE))
        if "pi" in self.heads:
            self._bias("pi").fill_(-2.0)  # near "no dropout": pi = 0.12

    def finish(self, batch: Batch) -> None:
        """Leave the latent as it is: its axes have a scale, the prior's."""

    def forward(self, batch: Batch) -> Loss:
        """Return the negative evidence lower bound in nats a cell: one sample of the latent of each cell.

        In evaluation the divergence has its full weight, and the noise is a function of the minibatch.
        """
        mean, variance = self.posterior(batch)
        noise = self.noise if self.training else Noise(self.noise.seed + int(batch.rows[0]))
        normal = torch.empty_like(mean).normal_(generator=noise.on(mean.device))
        nll = self.nll(batch, mean + variance.sqrt() * normal)
        terms = {"nll": nll.mean(), "kl": self.warm_up() * divergence(mean, variance).mean()}
        return Loss.of(terms)

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the latent of each cell, (b, k) both."""
        if not self.config.size_factors:
            batch = batch._replace(size_factor=torch.ones_like(batch.size_factor))
        outputs = self.posterior_head(self.encoder(self.inputs(batch), batch.batch_code, batch.covariates))
        mean, log_variance = outputs.chunk(2, dim=1)
        return mean, log_variance.exp() + LEAST_VARIANCE

    def decode(self, latent: Tensor, batch_code: Tensor | None, covariates: Tensor | None = None) -> CountParameters:
        """Return the parameters of the distribution of each entry, at the median library size."""
        hidden = self.decoder(latent, batch_code, covariates)
        outputs = {name: head(hidden, batch_code, covariates) for name, head in self.heads.items()}
        log_mean = torch.log_softmax(outputs["scale"], dim=1) + self.log_library
        return CountParameters(log_mean, self._log_theta(outputs.get("theta"), batch_code), outputs.get("pi"))

    def nll(self, batch: Batch, latent: Tensor) -> Tensor:
        """Return the negative log-likelihood of each cell given its latent, (b,)."""
        hidden = self.decoder(latent, batch.batch_code, batch.covariates)
        outputs = {name: self._output(name, hidden, batch) for name in self.heads}
        log_theta = self._log_theta(outputs.get("theta"), batch.batch_code)
        library_size = batch.size_factor * self.log_library.exp()
        if log_theta is None:
            return poisson_nll(batch.counts, outputs["scale"], library_size, mean="softmax")
        if "pi" not in outputs:
            return nb_nll(batch.counts, outputs["scale"], log_theta, library_size, mean="softmax")
        return zinb_nll(batch.counts, outputs["scale"], log_theta, outputs["pi"], library_size, mean="softmax")

    def elbo(self, batch: Batch, n_samples: int) -> Tensor:
        """Return the evidence lower bound of each cell, (b,): the same draws for all cells, so that each is its own."""
        mean, variance = self.posterior(batch)
        noise = Noise(self.noise.seed).on(mean.device)
        total = -divergence(mean, variance)
        for _ in range(n_samples):
            normal = torch.empty_like(mean[0]).normal_(generator=noise)
            total = total - self.nll(batch, mean + variance.sqrt() * normal) / n_samples
        return total

    def encode(self, batch: Batch) -> Tensor:
        """Return the posterior mean, (b, k)."""
        return self.posterior(batch)[0]

    def parameters_of(self, batch: Batch) -> CountParameters:
        """Return the parameters of the distribution of each entry, at the posterior mean and median library size."""
        return self.decode(self.encode(batch), batch.batch_code, batch.covariates)

    def denoise(self, batch: Batch) -> Tensor:
        """Return the expected expression at the median library size and before zero inflation, (b, g)."""
        return self.parameters_of(batch).log_mean.exp()

    def observed(self, batch: Batch) -> Tensor:
        """Return the expected expression after zero inflation, (b, g)."""
        parameters = self.parameters_of(batch)
        return parameters.log_mean.exp() * parameters.not_inflated()

    def denoise_as(self, batch: Batch, decoded: Batch) -> Tensor:
        """Return :meth:`denoise` as if the cells had the batches and covariates of others, (b, g)."""
        return self.decode(self.encode(batch), decoded.batch_code, decoded.covariates).log_mean.exp()

    def loadings(self) -> Tensor:
        """Return the change of log expression of each gene by a unit of each latent, (g, k); linear decoder only."""
        product, follow = self._layer("scale")
        if not isinstance(follow, nn.BatchNorm1d):
            return product.weight.detach()  # type: ignore[no-any-return]
        assert follow.running_var is not None
        factor = follow.weight / (follow.running_var + follow.eps).sqrt()
        return (product.weight * factor.unsqueeze(1)).detach()  # type: ignore[no-any-return]

    def _log_theta(self, of_entries: Any, batch_code: Tensor | None) -> Any:
        # (g,), or (b, g) where each experimental batch has its own; or the output of the decoder
        if self.log_theta is None:
            return of_entries
        if len(self.log_theta) == 1:
            return self.log_theta[0]
        assert batch_code is not None
        return rows_of(self.log_theta, batch_code)

    def _output(self, name: str, hidden: Tensor, cells: Batch) -> Any:
        # the product of a head without normalisation is left to the likelihood
        product, follow = self._layer(name)
        if self.decoder.products and isinstance(follow, nn.Identity):
            return product_of(product, hidden)
        return self.heads[name](hidden, cells.batch_code, cells.covariates)

    def _layer(self, name: str) -> tuple[Any, nn.Module]:
        # the product of a head, and the normalisation that follows it
        head: Any = self.heads[name]
        return head.products[0], head.after[0][0]

    def _bias(self, name: str) -> Tensor:
        product, follow = self._layer(name)
        bias: Any = product.bias if isinstance(follow, nn.Identity) else follow.bias
        return bias  # type: ignore[no-any-return]


def divergence(mean: Tensor, variance: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of normal posteriors, (b, k), from the standard normal prior, (b,)."""
    return 0.5 * (mean.square() + variance - 1 - variance.log()).sum(dim=1)


def _outputs(config: VariationalConfig) -> list[str]:
    theta = ["theta"] * (config.likelihood != "poisson" and config.dispersion == "gene-cell")
    return ["scale", *theta, *["pi"] * (config.likelihood == "zinb")]


class VariationalAutoencoder(Autoencoder):
    """A variational autoencoder of raw counts: Gaussian posterior in the latent, scVI's evidence lower bound.

    Reimplementation of the objective of Lopez et al. 2018 (scVI), doi 10.1038/s41592-018-0229-2; with
    ``linear_decoder=True`` of Svensson et al. 2020 (LDVAE), doi 10.1093/bioinformatics/btaa169. The latent is the
    posterior mean. Losses are in nats a cell. ``batch_key`` is optional: all hidden layers of the decoder then
    read the experimental batch of a cell, and the latent need not encode it.

    Parameters
    ----------
    n_latent
        Number of latent units, below the number of genes.
    transform
        ``"log1p"``: the network reads log-normalised counts; ``"normalize"``: without the logarithm.
    n_hidden
        Widths of the encoder's hidden layers; the decoder mirrors them; ``()`` for none.
    activation
        Activation of the hidden layers; the latent and the output are linear.
    norm
        ``"batch"``, ``"batch-shift"`` (without a scale), ``"layer"`` or ``"none"``: normalisation of the hidden layers.
    likelihood
        ``"zinb"``, ``"nb"`` (enough for molecule counts, and twice as fast) or ``"poisson"``.
    dispersion
        Inverse dispersion theta, Var = mu + mu^2 / theta: ``"gene"`` one a gene, ``"gene-batch"`` one a gene in each
        experimental batch, ``"gene-cell"`` one an entry.
    size_factors
        Divide the counts by the size factor before the network reads them: the latent then is free of the depth.
    batches_in_encoder
        Show the experimental batch, and covariates, to the encoder too.
    warmup_epochs
        Epochs over which the weight of the divergence rises to 1; validation losses always have it in full.
    linear_decoder
        Decode without hidden layers: ``of_genes()["loadings"]`` has the effect of each latent unit on each gene.
    dropout_rate
        Share of the encoder's hidden units dropped in training.
    faithful
        Start at random dispersions and without the gene means, and train without early stopping to the last weights,
        as published.
    """

    name = "variational"
    config_class, network_class = VariationalConfig, VariationalNetwork
    cell_results = ("elbo",)
    gene_results = ("loadings", "theta")
    config: VariationalConfig

    def __init__(
        self,
        *,
        n_latent: int = 10,
        transform: TransformName = "log1p",
        n_hidden: tuple[int, ...] = (128,),
        activation: ActivationName = "relu",
        norm: NormName = "batch",
        linear_decoder: bool = False,
        dropout_rate: float = 0.1,
        likelihood: Literal["zinb", "nb", "poisson"] = "zinb",
        dispersion: Literal["gene", "gene-batch", "gene-cell"] = "gene",
        size_factors: bool = False,
        batches_in_encoder: bool = False,
        warmup_epochs: int = 400,
        faithful: bool = False,
    ) -> None:
        super().__init__(VariationalConfig(**arguments(locals())))

    def of_cells(
        self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return ``elbo``, (n_obs,): see :meth:`elbo`.

        Parameters
        ----------
        data
            AnnData or path; genes are matched by name.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.
        """
        return {"elbo": self.elbo(data, layer=layer, allow_missing=allow_missing)}

    def of_genes(self) -> dict[str, Array]:
        """Return ``theta``, (n_vars,) or (n_vars, n_batches), and ``loadings``, (n_vars, n_latent), where defined."""
        network, found = self._network(), {}
        if network.log_theta is not None:
            theta: Tensor = network.log_theta.detach().clamp(*LOG_THETA_RANGE).exp().cpu()
            found["theta"] = (theta[0] if len(theta) == 1 else theta.T).numpy()
        if self.config.linear_decoder:
            found["loadings"] = self.loadings()
        return found

    def elbo(self, data: Data, *, n_samples: int = 5, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the evidence lower bound of each cell, (n_obs,) in nats: low for cells unlike the fitted ones.

        Parameters
        ----------
        data
            Raw counts, AnnData or path; genes are matched by name.
        n_samples
            Samples of the latent to average over; the same draws serve all cells.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.
        """
        network = self._network()
        return self._apply(data, lambda batch: network.elbo(batch, n_samples), layer, allow_missing)

    def dropout_probability(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the probability that an entry is zero for technical reasons, (n_obs, n_vars); ``"zinb"`` only.

        Parameters
        ----------
        data
            Raw counts, AnnData or path; genes are matched by name.
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

    def loadings(self) -> Array:
        """Return the change of log expression of each gene by a unit of each latent, (n_vars, n_latent).

        Raises
        ------
        ConfigError
            The decoder is not linear.
        """
        network = self._network()
        if not self.config.linear_decoder:
            what = "a decoder with hidden layers has no loadings"
            raise ConfigError("no-loadings", what, "loadings", "fit with linear_decoder=True")
        loadings: Array = network.loadings().cpu().numpy()
        return loadings


MODEL = VariationalAutoencoder
