"""The variational count autoencoder as an object."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor

from anncoder.autoencoder import Array, Autoencoder
from anncoder.config import ActivationName, NormName, TransformName, arguments
from anncoder.errors import ConfigError
from anncoder.likelihoods.limits import LOG_THETA_RANGE
from anncoder.models.variational import VariationalConfig
from anncoder.refusals import refuse_no_dropout
from anncoder.sources import Data
from anncoder.types import Batch


class VariationalAutoencoder(Autoencoder):
    """A Gaussian posterior in the latent, the likelihood of raw counts behind it: scVI's evidence lower bound.

    Reimplementation of the objective of Lopez et al. 2018 (scVI), doi 10.1038/s41592-018-0229-2; with
    ``linear_decoder=True`` of Svensson et al. 2020 (LDVAE), doi 10.1093/bioinformatics/btaa169. The latent is the
    posterior mean. Losses are in nats a cell. ``batch_key`` is optional: the decoder then has each cell's experimental
    batch in all its hidden layers, so that the latent need not have it.

    Parameters
    ----------
    likelihood
        ``"zinb"``, ``"nb"`` (enough for molecule counts, and twice as fast) or ``"poisson"``.
    dispersion
        Inverse dispersion theta, Var = mu + mu^2 / theta: ``"gene"`` one a gene, ``"gene-batch"`` one a gene in each
        experimental batch, ``"gene-cell"`` one an entry.
    size_factors
        Divide the counts by the size factor before the network reads them: the latent then does not see the depth.
    batches_in_encoder
        Show the experimental batch to the encoder too.
    warmup_epochs
        Epochs over which the weight of the divergence rises to 1; validation losses always have it in full.
    linear_decoder
        Decode without hidden layers: ``of_genes()["loadings"]`` says what each latent unit does to each gene.
    dropout_rate
        Share of the encoder's hidden units dropped in training.
    faithful
        Start at random dispersions and without the gene means, and train without early stopping to the last weights,
        as published.
    n_latent, n_hidden, activation, norm, transform
        As in :class:`UndercompleteAutoencoder`; ``transform="normalize"`` leaves the logarithm out.
    """

    name = "variational"
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
        """Return ``elbo``, (n_obs,): see :meth:`elbo`."""
        return {"elbo": self.elbo(data, layer=layer, allow_missing=allow_missing)}

    def of_genes(self) -> dict[str, Array]:
        """Return ``theta``, (n_vars,) or (n_vars, n_batches), and ``loadings``, (n_vars, n_latent), where there are."""
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
        data, layer, allow_missing
            As in :meth:`embed`.
        n_samples
            Samples of the latent to average over; the same draws serve all cells.
        """
        network = self._network()

        def bound(batch: Batch) -> Tensor:
            values: Tensor = network.elbo(batch, n_samples)
            return values

        return np.concatenate(list(self._blocks(self._source(data, layer, allow_missing), bound)))

    def dropout_probability(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the probability that an entry is zero for technical reasons, (n_obs, n_vars); ``"zinb"`` only.

        Raises
        ------
        ConfigError
            The likelihood has no zero inflation.
        """
        network = self._network()
        refuse_no_dropout(self.config.likelihood)

        def pi(batch: Batch) -> Tensor:
            probability: Tensor = network.decode(network.encode(batch), batch.batch_code).pi_logits.sigmoid()
            return probability

        return np.concatenate(list(self._blocks(self._source(data, layer, allow_missing), pi)))

    def loadings(self) -> Array:
        """Return what one unit of each latent adds to the log expression of each gene, (n_vars, n_latent).

        Raises
        ------
        ConfigError
            The decoder is not linear.
        """
        network = self._network()
        if not self.config.linear_decoder:
            raise ConfigError(
                "a decoder with hidden layers has no loadings",
                code="no-loadings",
                where="loadings",
                remedy="fit with linear_decoder=True",
            )
        loadings: Array = network.loadings().cpu().numpy()
        return loadings
