"""DCA as an object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from torch import Tensor

from anncoder.autoencoder import Array, Autoencoder
from anncoder.config import ActivationName, NormName, arguments
from anncoder.errors import ConfigError
from anncoder.models.dca import AeTypeName, DCAConfig, InitName
from anncoder.sources import Data
from anncoder.types import Batch


class DCA(Autoencoder):
    """The deep count autoencoder, which denoises counts under a likelihood of counts.

    Eraslan et al. 2019, doi 10.1038/s41467-018-07931-2. What it optimises, what is fixed against the published
    implementation and what it reaches: docs/models/dca.md. :func:`anncoder.tl.dca` takes the keywords of the function
    that scanpy had, and fills its slots.

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
        data, layer, allow_missing
            As in :meth:`embed`; the data are needed unless theta is one a gene.

        Returns
        -------
        Array
            (n_vars,) of ``"nb"`` and ``"zinb"``, (n_obs, 1) of the ``"-shared"`` types, (n_obs, n_vars) of the others.

        Raises
        ------
        ConfigError
            The likelihood has no dispersion, or the data are missing.
        """
        network = self._network()
        if self.config.parts.dispersion is None:
            raise self._without("dispersion", "no-dispersion", "nb-conddisp")
        if self.config.parts.dispersion == "gene":
            theta: Array = network.heads.log_theta().detach().exp().cpu().numpy()
            return theta
        if data is None:
            raise ConfigError(
                f"with ae_type={self.config.ae_type!r} the dispersion differs between cells",
                code="no-data",
                remedy="give the data: model.dispersion(adata)",
            )

        def of_batch(batch: Batch) -> Tensor:
            log_theta: Tensor = network.parameters_of(batch).log_theta
            return log_theta.exp()

        return self._of_cells(of_batch, data, layer, allow_missing)

    def dropout_probability(self, data: Data, *, layer: str | None = None, allow_missing: float = 0.0) -> Array:
        """Return the probability that an entry is zero for technical reasons; ``"zinb"`` types only.

        Parameters
        ----------
        data, layer, allow_missing
            As in :meth:`embed`.

        Returns
        -------
        Array
            (n_obs, n_vars), and (n_obs, 1) of ``"zinb-shared"``.

        Raises
        ------
        ConfigError
            The likelihood has no zero inflation.
        """
        network = self._network()
        if self.config.parts.likelihood != "zinb":
            raise self._without("dropout probability", "no-dropout", "zinb-conddisp")

        def of_batch(batch: Batch) -> Tensor:
            logits: Tensor = network.parameters_of(batch).pi_logits
            return logits.sigmoid()

        return self._of_cells(of_batch, data, layer, allow_missing)

    def _of_cells(
        self, of_batch: Callable[[Batch], Tensor], data: Data, layer: str | None, allow_missing: float
    ) -> Array:
        return np.concatenate(list(self._blocks(self._source(data, layer, allow_missing), of_batch)))

    def _without(self, what: str, code: str, other: AeTypeName) -> ConfigError:
        return ConfigError(f"ae_type={self.config.ae_type!r} has no {what}", code=code, remedy=f"use ae_type={other!r}")
