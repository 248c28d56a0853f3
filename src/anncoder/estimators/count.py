"""The count autoencoder as an object."""

from __future__ import annotations

import numpy as np
import torch

from anncoder.autoencoder import Array, Autoencoder
from anncoder.config import ActivationName, DispersionName, LikelihoodName, NormName, TransformName, arguments
from anncoder.errors import ConfigError
from anncoder.likelihoods.limits import LOG_THETA_RANGE
from anncoder.models.count import CountConfig
from anncoder.refusals import refuse_no_dropout
from anncoder.sources import Data
from anncoder.types import Batch


class CountAutoencoder(Autoencoder):
    """Fitted to the likelihood of the raw counts themselves.

    The decoder gives the mean ``mu = size_factor * exp(decoder(latent))``; size factors are library sizes over their
    median (Eraslan et al. 2019, doi 10.1038/s41467-018-07931-2).

    Parameters
    ----------
    likelihood
        ``"nb"`` (molecule counts), ``"zinb"`` (more zeros than that), ``"poisson"`` (no extra variance), or
        ``"gaussian"`` (log-normalised expression).
    dispersion
        Inverse dispersion theta, Var = mu + mu^2 / theta: ``"gene"`` one a gene, ``"gene-cell"`` one an entry,
        ``"shared"`` one a cell. For ``"gaussian"`` it is the standard deviation.
    ridge_pi
        Penalty on the squared dropout probability of ``"zinb"``.
    n_latent, n_hidden, activation, norm, linear_decoder, dropout_rate
        As in :class:`UndercompleteAutoencoder`.
    transform, standardize, natural_axes, l1, l2, warmup_steps
        As in :class:`UndercompleteAutoencoder`.
    """

    name = "count"
    gene_results = ("theta",)
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
        dispersion: DispersionName = "gene",
        ridge_pi: float = 0.0,
        transform: TransformName = "log1p",
        standardize: bool = False,
        natural_axes: bool = True,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(CountConfig(**arguments(locals())))

    def of_genes(self) -> dict[str, Array]:
        """Return ``theta``, (n_vars,), where the dispersion is one a gene."""
        has_theta = self.config.dispersion == "gene" and self.config.likelihood in ("nb", "zinb")
        return {"theta": self.dispersion()} if has_theta else {}

    def dispersion(self, data: Data | None = None, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return theta, the inverse dispersion: Var = mu + mu^2 / theta.

        Parameters
        ----------
        data, layer, allow_missing
            As in :meth:`embed`; the data are needed unless ``dispersion="gene"``.

        Returns
        -------
        Array
            (n_vars,) for ``"gene"``, (n_obs, 1) for ``"shared"``, (n_obs, n_vars) for ``"gene-cell"``.

        Raises
        ------
        ConfigError
            The likelihood has no dispersion, or the data are missing.
        """
        network = self._network()
        if self.config.likelihood == "poisson":
            raise ConfigError("a Poisson model has no dispersion", code="no-dispersion", remedy="use likelihood='nb'")
        if self.config.dispersion == "gene":
            gene_theta: Array = network.heads.gene_log_theta.detach().clamp(*LOG_THETA_RANGE).exp().cpu().numpy()
            return gene_theta
        if data is None:
            raise ConfigError(
                f"dispersion={self.config.dispersion!r} differs between cells",
                code="no-data",
                remedy="give the data: model.dispersion(adata)",
            )

        def theta(batch: Batch) -> torch.Tensor:
            log_theta: torch.Tensor = network.parameters_of(batch).log_theta
            return log_theta.exp()

        return np.concatenate(list(self._blocks(self._source(data, layer, allow_missing), theta)))

    def dropout_probability(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the probability that an entry is zero for technical reasons, (n_obs, n_vars); ``"zinb"`` only.

        Raises
        ------
        ConfigError
            The likelihood has no zero inflation.
        """
        network = self._network()
        refuse_no_dropout(self.config.likelihood)

        def pi(batch: Batch) -> torch.Tensor:
            logits: torch.Tensor = network.parameters_of(batch).pi_logits
            return logits.sigmoid()

        return np.concatenate(list(self._blocks(self._source(data, layer, allow_missing), pi)))
