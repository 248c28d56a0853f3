"""The models as objects: hyper-parameters in the constructor, data in ``fit``, arrays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from anncoder import checkpoint
from anncoder.autoencoder import Array, Autoencoder
from anncoder.config import (
    ActivationName,
    CorruptionName,
    DispersionName,
    LikelihoodName,
    NormName,
    TrainingConfig,
    TransformName,
    unknown_key,
)
from anncoder.errors import ConfigError
from anncoder.likelihoods.limits import LOG_THETA_RANGE
from anncoder.models import MODELS
from anncoder.models.count import CountConfig
from anncoder.models.denoising import DenoisingConfig
from anncoder.models.undercomplete import UndercompleteConfig
from anncoder.sources import Data
from anncoder.types import Batch, Noise


class UndercompleteAutoencoder(Autoencoder):
    """Fewer latent units than genes, fitted to reconstruct log-normalised expression.

    With ``activation="linear"`` and squared error its latent spans the principal subspace: it *is* PCA, up to a
    rotation (Baldi & Hornik 1989, doi 10.1016/0893-6080(89)90014-2).

    Parameters
    ----------
    n_latent
        Number of latent units, below the number of genes.
    n_hidden
        Widths of the encoder's hidden layers; the decoder mirrors them; ``()`` for none.
    activation
        Activation of the hidden layers; the latent and the output are linear.
    norm
        ``"batch"``, ``"layer"`` or ``"none"``: normalisation of the hidden layers.
    linear_decoder
        Decode without hidden layers.
    dropout_rate
        Share of hidden units dropped in training.
    error
        ``"squared"`` or ``"absolute"`` reconstruction error.
    tied
        Use the encoder's weights, transposed, in the decoder (with ``norm="none"``).
    transform
        ``"log1p"``: the data are raw counts and are log-normalised here. ``"none"``: they are expression values.
    standardize
        z-score the genes of the network input.
    natural_axes
        After training, turn and scale the latent so that its distances are those of the output distribution and its
        axes are principal, largest first (:mod:`anncoder.nn.basis`); for a linear model the latent then *is* PCA's.
    l1, l2
        Penalties on the weights.
    warmup_steps
        Training steps over which the penalties rise to full strength.
    """

    name = "undercomplete"

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
        natural_axes: bool = True,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(UndercompleteConfig(**_arguments(locals())))


class DenoisingAutoencoder(Autoencoder):
    """Reconstructs clean expression from a corrupted input.

    The default is scMAE's objective (Fang et al. 2024, doi 10.1093/bioinformatics/btae020): values swapped between
    cells, changed entries weighted 0.75, and a head that predicts from the latent which entries were changed.

    Parameters
    ----------
    corruption
        ``"swap"`` (another cell's value of the same gene), ``"mask"`` (zero), ``"dropout"`` (zero, the rest scaled up),
        ``"gaussian"`` (added noise), ``"thinning"`` (molecules removed at random), ``"none"``. Only in training.
    strength
        Probability of a change, or the standard deviation of the gaussian.
    masked_weight
        Weight of changed entries in the squared error; the others have ``1 - masked_weight``.
    mask_predictor
        Predict the changed entries from the latent with a linear head, and hand its output to the decoder too. The
        decoder then has n_vars x n_vars weights: meant for a few thousand genes.
    mask_loss_weight
        Weight of that prediction's cross-entropy; the reconstruction has 1 minus it.
    n_latent, n_hidden, activation, norm, linear_decoder, dropout_rate
        As in :class:`UndercompleteAutoencoder`.
    transform, standardize, natural_axes, l1, l2, warmup_steps
        As in :class:`UndercompleteAutoencoder`.
    """

    name = "denoising"

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
        natural_axes: bool = True,
        l1: float = 0.0,
        l2: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(DenoisingConfig(**_arguments(locals())))


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
        super().__init__(CountConfig(**_arguments(locals())))

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
        if self.config.likelihood != "zinb":
            raise ConfigError(
                f"likelihood={self.config.likelihood!r} has no dropout probability",
                code="no-dropout",
                remedy="use likelihood='zinb'",
            )

        def pi(batch: Batch) -> torch.Tensor:
            logits: torch.Tensor = network.parameters_of(batch).pi_logits
            return logits.sigmoid()

        return np.concatenate(list(self._blocks(self._source(data, layer, allow_missing), pi)))


ESTIMATORS: dict[str, type[Any]] = {
    cls.name: cls for cls in (CountAutoencoder, DenoisingAutoencoder, UndercompleteAutoencoder)
}


def load(folder: str | Path) -> Autoencoder:
    """Open a model that :meth:`Autoencoder.save` wrote; it embeds and denoises to the same bits.

    Opening a model runs no code from it; files that were changed, cut or swapped are refused.

    Raises
    ------
    FileError
        The folder is no model, or is damaged, or was written by a newer version.
    """
    stored = checkpoint.read_stored(folder)
    try:
        return _restore(stored, Path(folder))
    except ConfigError as error:
        raise checkpoint.broken(Path(folder), error.what) from error


def _restore(stored: checkpoint.Stored, folder: Path) -> Autoencoder:
    config = stored.config
    if config.model not in ESTIMATORS:
        raise unknown_key(config.model, sorted(ESTIMATORS), where="model")
    hyperparameters = MODELS[config.model].config(**config.hyperparameters)
    model: Autoencoder = ESTIMATORS[config.model](**dict(hyperparameters))
    with torch.device("meta"):  # shapes only: nothing is allocated before the file is known to fit
        network = model._build(len(stored.genes), Noise(0))
    checkpoint.read_weights(folder, network)
    model.network_ = network.eval()
    model.training_ = TrainingConfig(**config.training)
    model.layer_, model.library_size_ = config.layer, config.library_size
    model.best_epoch_, model.stopped_ = config.best_epoch, config.stopped
    model.history_ = pd.DataFrame(config.history)
    model.var_names_ = pd.Index(stored.genes, dtype=object)
    model.valid_obs_ = pd.Index(config.valid_obs, dtype=object)
    return model


def _arguments(local: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in local.items() if name not in ("self", "__class__")}
