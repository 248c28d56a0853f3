"""DCA, the deep count autoencoder (Eraslan et al. 2019, doi 10.1038/s41467-018-07931-2).

z-scored log-normalised counts go in; means, dispersions and dropout probabilities of the raw counts come out, and the
network is fitted to their likelihood. Re-derived from the paper and the published implementation (theislab/dca 0.3.4,
Apache-2.0): the same objective, architecture and training, in the parts of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from anncoder.config import (
    Activation,
    ActivationName,
    DispersionName,
    HiddenWidths,
    LatentUnits,
    Layers,
    LikelihoodName,
    NetworkConfig,
    Norm,
    NormName,
    Probability,
    Weight,
    arguments,
)
from anncoder.data.sources import Data
from anncoder.errors import ConfigError
from anncoder.likelihoods import nb_nll, poisson_nll, squared_error, zinb_nll
from anncoder.likelihoods.common import warn_of_large_means
from anncoder.models.base import Array, Autoencoder
from anncoder.nn.count_heads import CountParameters, PiOfMean
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import Decoder, Dropout, Encoder, after, linear
from anncoder.nn.penalties import WeightPenalty
from anncoder.nn.sparse import SparseLinear
from anncoder.types import Batch, Loader, Loss, Noise, Shape, Summary

CLIPPED_LOG_MEAN = (math.log(1e-5), math.log(1e6))
LARGEST_THETA = 1e4
SMALLEST_THETA = 1e-4  # of a head
SMALLEST_GENE_THETA = 1e-3  # of the one trainable number of a gene

AeTypeName = Literal[
    "normal",
    "poisson",
    "nb",
    "nb-conddisp",
    "nb-shared",
    "nb-fork",
    "zinb",
    "zinb-conddisp",
    "zinb-shared",
    "zinb-fork",
    "zinb-elempi",
]
InitName = Literal["glorot_uniform", "glorot_normal", "he_uniform", "he_normal"]


class Parts(NamedTuple):
    """Likelihood, dispersion and heads of one of DCA's types."""

    likelihood: LikelihoodName
    # one a gene; one an entry; or one a cell, which then holds for the dropout probability too
    dispersion: DispersionName | None = None
    # one last hidden layer for all, one for each (fork), or dropout as a function of the same gene's mean (elementwise)
    heads: Literal["joint", "fork", "elementwise"] = "joint"


TYPES: dict[AeTypeName, Parts] = {
    "normal": Parts("gaussian"),
    "poisson": Parts("poisson"),
    "nb": Parts("nb", "gene"),
    "nb-conddisp": Parts("nb", "gene-cell"),
    "nb-shared": Parts("nb", "shared"),
    "nb-fork": Parts("nb", "gene-cell", "fork"),
    "zinb": Parts("zinb", "gene"),
    "zinb-conddisp": Parts("zinb", "gene-cell"),
    "zinb-shared": Parts("zinb", "shared"),
    "zinb-fork": Parts("zinb", "gene-cell", "fork"),
    "zinb-elempi": Parts("zinb", "gene-cell", "elementwise"),
}

INITS: dict[InitName, Callable[..., Tensor]] = {
    "glorot_uniform": nn.init.xavier_uniform_,
    "glorot_normal": nn.init.xavier_normal_,
    "he_uniform": nn.init.kaiming_uniform_,
    "he_normal": nn.init.kaiming_normal_,
}


class DCAConfig(NetworkConfig):
    """Hyper-parameters of :class:`anncoder.DCA`."""

    ae_type: Annotated[AeTypeName, Field(description="likelihood, dispersion and heads, by DCA's names")] = (
        "nb-conddisp"
    )
    n_latent: LatentUnits = 32
    n_hidden: HiddenWidths = (64,)
    n_hidden_decoder: Annotated[
        HiddenWidths | None, Field(description="decoder widths; null for the encoder's, mirrored")
    ] = None
    activation: Activation = "relu"
    norm: Norm = "batch-shift"
    dropout_rate: Annotated[Probability, Field(description="share of hidden units dropped in training")] = 0.0
    input_dropout: Annotated[Probability, Field(description="share of input values dropped in training")] = 0.0
    init: Annotated[InitName, Field(description="initial weights, by Keras's names")] = "glorot_uniform"
    transform: Annotated[
        Literal["log1p", "normalize"], Field(description="log1p: logarithm of the network input; normalize: none")
    ] = "log1p"
    standardize: Annotated[bool, Field(description="z-score the genes of the network input")] = True
    size_factors: Annotated[bool, Field(description="divide the input, and multiply the mean, by library size")] = True
    ridge_pi: Annotated[Weight, Field(description="penalty on the squared dropout probability (zinb)")] = 0.0
    l1: Annotated[Weight, Field(description="L1 penalty on the weights")] = 0.0
    l2: Annotated[Weight, Field(description="L2 penalty on the weights")] = 0.0
    l1_encoder: Annotated[Weight, Field(description="L1 penalty of encoder and latent, if not 0, in place of l1")] = 0.0
    l2_encoder: Annotated[Weight, Field(description="L2 penalty of encoder and latent, if not 0, in place of l2")] = 0.0
    check_counts: Annotated[bool, Field(description="refuse counts that are not integers")] = True
    faithful: Annotated[
        bool, Field(description="as published: means start at 1, last cells are held out, last weights kept")
    ] = False

    @property
    def parts(self) -> Parts:
        """Likelihood, dispersion and heads of the type."""
        return TYPES[self.ae_type]

    @property
    def integers(self) -> bool:
        """Whether these counts must be integers."""
        return self.check_counts

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Hidden layers of the decoder."""
        return tuple(reversed(self.n_hidden)) if self.n_hidden_decoder is None else self.n_hidden_decoder

    @property
    def defaults(self) -> dict[str, Any]:
        """Keras's RMSprop as DCA calls it; the published split takes the last cells, and the last weights stay."""
        published = {
            "max_epochs": 300,
            "batch_size": 32,
            "optimizer": "rmsprop",
            "learning_rate": 1e-3,
            "epsilon": 1e-7,
            "clip_norm": 0.0,
            "clip_value": 5.0,
            "patience": 15,
            "reduce_lr_patience": 10,
            "reduce_lr_factor": 0.1,
        }
        quirks = {"valid_split": "tail", "keep_best": False} if self.faithful else {}
        return {**super().defaults, **published, **quirks}

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a fork where there is nothing to fork."""
        if self.parts.heads == "fork" and not self.decoder_widths:
            what = f"ae_type={self.ae_type!r} gives each head a last hidden layer of its own, and the decoder has none"
            remedy = f"set ae_type={self.ae_type.replace('fork', 'conddisp')!r}, or a width in n_hidden_decoder"
            raise ConfigError("bad-value", what, "DCAConfig.ae_type", remedy)


class DCANetwork(nn.Module):
    """Encoder, decoder, heads and likelihood; see :mod:`anncoder.models` for the interface."""

    def __init__(self, config: DCAConfig, shape: Shape, noise: Noise) -> None:
        super().__init__()
        self.config, self.noise, n_vars = config, noise, shape.n_vars
        layers = Layers(config.n_hidden, config.activation, config.norm, config.dropout_rate)
        self.inputs = LogNormalize(config.transform)
        self.standardize = Standardize(n_vars, scaled=True) if config.standardize else None
        self.input_dropout = Dropout(config.input_dropout, noise)
        self.encoder = Encoder(layers, n_vars, config.n_latent, noise)
        self.after_latent = after(config.n_latent, layers, noise)
        n_own = 1 if config.parts.heads == "fork" else 0  # hidden layers that each head has for itself
        n_common = len(config.decoder_widths) - n_own
        common, own = config.decoder_widths[:n_common], config.decoder_widths[n_common:]
        self.decoder = Decoder(layers._replace(widths=common), config.n_latent, noise)
        self.heads = DCAHeads(config.parts, layers._replace(widths=own), self.decoder.n_out, n_vars, noise)
        self.encoder_penalty = WeightPenalty(config.l1_encoder or config.l1, config.l2_encoder or config.l2, 0)
        self.penalty = WeightPenalty(config.l1, config.l2, 0)
        start_weights(self, config.init, noise)

    def start_from(self, summary: Summary, cells: Loader) -> None:
        """Set the standardisation, and start every gene at its mean (as published: at 1)."""
        if self.config.parts.likelihood != "gaussian":
            warn_of_large_means(summary.gene_mean)
        if not self.config.faithful:
            self.heads.start_from(summary.gene_mean)
        if self.standardize is None:
            return
        if self.config.size_factors:
            self.standardize.start_from(summary)
        else:  # the summary is of normalised counts
            self.standardize.start_from_inputs(self.inputs(_unsized(batch)) for batch in cells.epoch(0))

    def finish(self, batch: Batch) -> None:
        """Do nothing: the latent stays as the network has it."""

    def forward(self, batch: Batch) -> Loss:
        """Return the negative log-likelihood, a mean over cells and genes, and the penalties."""
        mean, log_theta, pi_logits = self.parameters_of(batch)
        size_factor = batch.size_factor if self.config.size_factors else None
        if self.config.parts.likelihood == "gaussian":
            nll = squared_error(batch.counts, mean if size_factor is None else mean * size_factor.unsqueeze(1))
        elif log_theta is None:
            nll = poisson_nll(batch.counts, mean, size_factor)
        elif pi_logits is None:
            nll = nb_nll(batch.counts, mean, log_theta, size_factor)
        else:
            nll = zinb_nll(batch.counts, mean, log_theta, pi_logits, size_factor)
        terms = {"nll": nll.mean() / batch.counts.n_vars, **self._penalties()}
        if self.config.ridge_pi and pi_logits is not None:
            terms["ridge_pi"] = self.config.ridge_pi * pi_logits.sigmoid().square().mean()
        return Loss.of(terms)

    def encode(self, batch: Batch) -> Tensor:
        """Return the latent, (b, k): the product of the centre layer, before normalisation and activation."""
        x = self.inputs(batch if self.config.size_factors else _unsized(batch))
        moments = () if self.standardize is None else (self.standardize.mean, self.standardize.scale)
        if self.training and self.config.input_dropout:  # of z-scores, which are dense
            x = self.input_dropout(x.to_dense() if self.standardize is None else self.standardize(x))
            moments = ()
        latent: Tensor = self.encoder(x, *moments)
        return latent

    def parameters_of(self, batch: Batch) -> CountParameters:
        """Return the parameters of the distribution of each entry, at size factor 1, limited as published."""
        parameters: CountParameters = self.heads(self.decoder(self.after_latent(self.encode(batch))))
        return parameters

    def denoise(self, batch: Batch) -> Tensor:
        """Return the expected counts at the median library size and before zero inflation, (b, g)."""
        return self._expected(self.parameters_of(batch), batch)

    def observed(self, batch: Batch) -> Tensor:
        """Return the expected counts after zero inflation, (b, g)."""
        parameters = self.parameters_of(batch)
        return self._expected(parameters, batch) * parameters.not_inflated()

    def _expected(self, parameters: CountParameters, batch: Batch) -> Tensor:
        mean = parameters.log_mean
        if self.config.parts.likelihood != "gaussian":
            mean = mean.exp()
        elif not self.config.faithful:  # a linear output may be below zero, which no count is
            mean = mean.clamp(min=0)
        return mean if self.config.size_factors else mean / batch.size_factor.unsqueeze(1)

    def _penalties(self) -> dict[str, Tensor]:
        encoder = {id(p) for p in self.encoder.parameters()}
        of_encoder = self.encoder_penalty(self.encoder.parameters())
        of_rest = self.penalty(p for p in self.parameters() if id(p) not in encoder)
        names = sorted(of_encoder | of_rest)
        return {n: torch.stack([terms[n] for terms in (of_encoder, of_rest) if n in terms]).sum() for n in names}


class DCAHeads(nn.Module):
    """From the last common hidden layer, (b, n_in), to the parameters of each entry, limited as published.

    ``parts`` tells which parameters there are, ``layers`` the hidden layers that each head has for itself.
    """

    def __init__(self, parts: Parts, layers: Layers, n_in: int, n_vars: int, noise: Noise) -> None:
        super().__init__()
        self.parts = parts
        n_hidden, n_units = layers.widths[-1] if layers.widths else n_in, 1 if parts.dispersion == "shared" else n_vars

        def head(width: int) -> nn.Sequential:
            return nn.Sequential(Decoder(layers, n_in, noise), linear(n_hidden, width, noise))

        by_gene, inflated = parts.dispersion == "gene", parts.likelihood == "zinb"
        self.mean = head(n_vars)
        self.gene_log_theta = nn.Parameter(torch.zeros(n_vars)) if by_gene else None
        self.theta = head(n_units) if parts.dispersion and not by_gene else None
        self.pi = head(n_units) if inflated and parts.heads != "elementwise" else None
        self.pi_of_mean = PiOfMean(n_vars) if inflated and parts.heads == "elementwise" else None

    def forward(self, hidden: Tensor) -> CountParameters:
        """Return the parameters for (b, n_in) hidden values; ``log_mean`` is the mean itself for squared error."""
        mean = self.mean(hidden)
        if self.parts.likelihood == "gaussian":
            return CountParameters(mean, None, None)
        if self.pi_of_mean is not None:
            mean = -mean
            pi_logits = self.pi_of_mean(mean)
        else:
            pi_logits = None if self.pi is None else self.pi(hidden)
        return CountParameters(mean.clamp(*CLIPPED_LOG_MEAN), self.log_theta(hidden), pi_logits)

    @torch.no_grad()
    def start_from(self, gene_mean: Tensor) -> None:
        """Start the mean of each gene, (g,), where it will be: at 1, abundant genes take most of the training."""
        log_mean = gene_mean.log().clamp(*CLIPPED_LOG_MEAN)
        last = self.mean[-1]
        assert isinstance(last, nn.Linear)
        if self.parts.likelihood == "gaussian":
            last.bias.copy_(gene_mean)
        else:
            last.bias.copy_(-log_mean if self.pi_of_mean is not None else log_mean)

    def log_theta(self, hidden: Tensor | None = None) -> Tensor | None:
        """Return the log inverse dispersion, (g,), (b, 1) or (b, g); that of genes needs no hidden values."""
        if self.gene_log_theta is not None:
            return self.gene_log_theta.clamp(math.log(SMALLEST_GENE_THETA), math.log(LARGEST_THETA))
        if self.theta is None:
            return None
        return softplus(self.theta(hidden)).clamp(SMALLEST_THETA, LARGEST_THETA).log()


def start_weights(network: nn.Module, init: InitName, noise: Noise) -> None:
    """Give weights their initial values as Keras does, and biases zero; nothing to do while only shapes are wanted."""
    for part in network.modules():
        if isinstance(part, nn.Linear | SparseLinear) and not part.weight.is_meta:
            outputs_first = part.weight if isinstance(part, nn.Linear) else part.weight.T
            INITS[init](outputs_first, generator=noise.on(part.weight.device))
            nn.init.zeros_(part.bias)
        elif isinstance(part, PiOfMean) and not part.slope.is_meta:
            bound = math.sqrt(3 / part.slope.numel())  # glorot_uniform of a vector
            nn.init.uniform_(part.slope, -bound, bound, generator=noise.on(part.slope.device))


def _unsized(batch: Batch) -> Batch:
    # as if all cells had one library size
    return batch._replace(size_factor=torch.ones_like(batch.size_factor))


class DCA(Autoencoder):
    """The deep count autoencoder: counts denoised under a likelihood of counts.

    Eraslan et al. 2019, doi 10.1038/s41467-018-07931-2. Objective, corrections of the published
    implementation and results: docs/models/dca.md. :func:`anncoder.tl.dca` takes the keywords of the
    function that scanpy had, and fills its slots.

    Parameters
    ----------
    ae_type
        Likelihood, dispersion theta (Var = mu + mu^2 / theta) and heads. ``"nb"`` and ``"zinb"``: one theta a gene;
        ``"-conddisp"``: one an entry; ``"-shared"``: one a cell, and one dropout probability a cell; ``"-fork"``: one
        an entry, and a last hidden layer for each head; ``"zinb-elempi"``: the dropout logit is a line in the log mean
        of the same gene. ``"poisson"``, and ``"normal"`` for squared error of the counts.
    n_latent, n_hidden, n_hidden_decoder
        Units of the centre layer; widths of the encoder, and of the decoder (None for the encoder's, mirrored).
    activation, norm
        Of every hidden layer, the centre too. ``"batch-shift"`` is batch normalisation without a scale.
    dropout_rate, input_dropout
        Share of the hidden units, and of the (z-scored) input values, dropped in training.
    init
        Initial weights: ``"glorot_uniform"``, ``"glorot_normal"``, ``"he_uniform"``, ``"he_normal"``.
    transform, standardize, size_factors
        The network reads counts divided by the size factor (``size_factors``), their logarithm
        (``transform="log1p"``), its z-score (``standardize``); each can be switched off.
    ridge_pi
        Penalty on the squared dropout probability of the ``"zinb"`` types.
    l1, l2, l1_encoder, l2_encoder
        Penalties on the weights; the latter two, if not 0, take the place of the former up to the latent.
    check_counts
        Refuse counts that are not integers; False for corrected or expected counts.
    faithful
        As published: every mean starts at 1, not at the mean of its gene; the last cells are held out, not random
        ones; the last weights are kept, not the best; the output of ``"normal"`` may be negative.
    """

    name = "dca"
    config_class, network_class = DCAConfig, DCANetwork
    gene_results = ("theta",)
    config: DCAConfig

    def __init__(
        self,
        *,
        ae_type: AeTypeName = "nb-conddisp",
        n_latent: int = 32,
        n_hidden: tuple[int, ...] = (64,),
        n_hidden_decoder: tuple[int, ...] | None = None,
        activation: ActivationName = "relu",
        norm: NormName = "batch-shift",
        dropout_rate: float = 0.0,
        input_dropout: float = 0.0,
        init: InitName = "glorot_uniform",
        transform: Literal["log1p", "normalize"] = "log1p",
        standardize: bool = True,
        size_factors: bool = True,
        ridge_pi: float = 0.0,
        l1: float = 0.0,
        l2: float = 0.0,
        l1_encoder: float = 0.0,
        l2_encoder: float = 0.0,
        check_counts: bool = True,
        faithful: bool = False,
    ) -> None:
        super().__init__(DCAConfig(**arguments(locals())))

    def of_genes(self) -> dict[str, Array]:
        """Return ``theta``, (n_vars,), of the types that have one a gene."""
        return {"theta": self.dispersion()} if self.config.parts.dispersion == "gene" else {}

    def dispersion(self, data: Data | None = None, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return theta, the inverse dispersion: Var = mu + mu^2 / theta.

        Parameters
        ----------
        data
            AnnData or path, whose genes are matched by name; not needed for ``"nb"`` and ``"zinb"``.
        layer
            Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
        allow_missing
            Share of the model's genes that may be missing from the data; their counts are then zero.

        Returns
        -------
        Array
            (n_vars,) for ``"nb"`` and ``"zinb"``, (n_obs, 1) for the ``"-shared"`` types, (n_obs, n_vars) for the
            others.

        Raises
        ------
        ConfigError
            The type has no dispersion, or the data are missing.
        """
        network = self._network()
        if self.config.parts.dispersion is None:
            raise self._without("dispersion", "no-dispersion", "nb-conddisp")
        if self.config.parts.dispersion == "gene":
            theta: Array = network.heads.log_theta().detach().exp().cpu().numpy()
            return theta
        if data is None:
            what = f"with ae_type={self.config.ae_type!r} the dispersion differs between cells"
            raise ConfigError("no-data", what, remedy="give the data: model.dispersion(adata)")
        return self._apply(data, lambda batch: network.parameters_of(batch).log_theta.exp(), layer, allow_missing)

    def dropout_probability(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the probability that an entry is zero for technical reasons, (n_obs, n_vars); ``"zinb"`` types only.

        (n_obs, 1) for ``"zinb-shared"``.

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
        if self.config.parts.likelihood != "zinb":
            raise self._without("dropout probability", "no-dropout", "zinb-conddisp")
        return self._apply(data, lambda batch: network.parameters_of(batch).pi_logits.sigmoid(), layer, allow_missing)

    def _without(self, what: str, code: str, other: AeTypeName) -> ConfigError:
        return ConfigError(code, f"ae_type={self.config.ae_type!r} has no {what}", remedy=f"use ae_type={other!r}")


MODEL = DCA
