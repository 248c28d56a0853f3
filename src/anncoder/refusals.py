"""What a model cannot do, said before it is tried."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from anncoder.checkpoint import DTYPES, finite, layout, misfits
from anncoder.config import NetworkConfig
from anncoder.errors import ConfigError, FileError


def refuse_no_model(model: Any) -> None:
    """Raise a ConfigError unless this is a fitted model: not the path of one, and not something else."""
    if not hasattr(model, "network_"):
        path = isinstance(model, str | PathLike)
        raise ConfigError(
            f"expected a fitted model, got {'the text or path ' + repr(str(model)) if path else type(model).__name__}",
            code="no-model",
            where="model",
            remedy=f"ac.load({str(model)!r}) reads a saved one" if path else "fit(adata), or anncoder.load(folder)",
        )
    refuse_unfitted(model.network_)


def refuse_unfitted(network: object | None) -> None:
    """Raise a ConfigError unless there is a fitted network."""
    if network is None:
        raise ConfigError("the model is not fitted", code="not-fitted", remedy="fit(adata), or anncoder.load(folder)")


def refuse_width(config: NetworkConfig, n_vars: int) -> None:
    """Raise a ConfigError unless the latent is narrower than the data, or need not be."""
    if config.compresses and config.n_latent >= n_vars:
        raise ConfigError(
            f"n_latent = {config.n_latent} is not below the number of genes, {n_vars}",
            code="latent-too-wide",
            where="n_latent",
            remedy=f"set n_latent below {n_vars}, or fit more genes",
        )


def refuse_few_cells(config: NetworkConfig, batch_size: int, n_fitted: int) -> None:
    """Raise a ConfigError unless the minibatches can be as large as the model needs."""
    fewest = config.fewest_cells
    if min(batch_size, n_fitted) < fewest:
        why = f"batch_size = {batch_size}" if batch_size < fewest else f"there are {n_fitted:,} cells to fit on"
        raise ConfigError(
            f"the model, as it is set, needs minibatches of {fewest:,} cells or more, and {why}",
            code="few-cells",
            where="batch_size" if batch_size < fewest else "n_obs",
            remedy="raise batch_size, fit more cells, or lower perplexity",
        )


def refuse_no_decoder(config: NetworkConfig) -> None:
    """Raise a ConfigError if the model cannot give expected expression."""
    if not config.decodes:
        raise ConfigError(
            "the model has no decoder: it gives a latent, not expected expression",
            code="no-decoder",
            where="denoise",
            remedy="use a model that reconstructs, such as CountAutoencoder",
        )


def refuse_no_dropout(likelihood: str) -> None:
    """Raise a ConfigError if a likelihood has no zero inflation."""
    if likelihood != "zinb":
        raise ConfigError(
            f"likelihood={likelihood!r} has no dropout probability",
            code="no-dropout",
            remedy="use likelihood='zinb'",
        )


def refuse_scale(config: NetworkConfig, scale: str) -> None:
    """Raise a ConfigError unless the model can give expected expression, and on this scale."""
    refuse_no_decoder(config)
    if scale not in ("counts", "normalized") or (scale == "counts" and not config.reads_counts):
        allowed = "'counts' or 'normalized'" if config.reads_counts else "'normalized' (transform='none')"
        raise ConfigError(
            f"scale = {scale!r} is not {allowed}",
            code="bad-value",
            where="scale",
            remedy=f"pass scale={allowed}",
        )


def refuse_no_name(model: object) -> None:
    """Raise a ConfigError for a model that is not given by its name, as where an estimator is."""
    if not isinstance(model, str):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise ConfigError(
            f"model is the name of one, not {kind}",
            code="bad-value",
            where="model",
            remedy="give name and settings: autoencode(adata, 'count', n_latent=16); an estimator has fit",
        )


def refuse_unloadable(model: Any, weights: dict[str, Any], network: nn.Module) -> None:
    """Raise a FileError in saving for what loading would refuse; now the fitted model is still there.

    Parameters
    ----------
    model
        It is made anew from its configuration.
    weights
        ``state_dict()`` of the network to be saved.
    network
        The network that they will be read into, of :func:`anncoder.checkpoint.shapes_only`.
    """
    from anncoder.estimators import ESTIMATORS  # which are made of what is refused here

    try:
        ESTIMATORS[model.name](**dict(model.config))
    except KeyError as error:
        raise _unsavable(f"there is no {model.name!r} in anncoder.estimators.ESTIMATORS", "enter it there") from error
    except TypeError as error:
        raise _unsavable(
            f"{ESTIMATORS[model.name].__name__} does not take every field of its configuration: {error}",
            "take every field of the configuration in __init__, by its name",
        ) from error
    names: dict[int, str] = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.dtype not in DTYPES:
            kind = f"{value.dtype} ({value.layout})" if isinstance(value, Tensor) else type(value).__name__
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise _unsavable(f"{name} is of type {kind}", f"keep it as a dense tensor of one of {known}")
        if not finite(value):
            raise _unsavable(f"{name} holds values that are not finite", "keep finite values in parameters and buffers")
        other = names.setdefault(value.data_ptr(), name) if value.numel() else name
        if other != name:
            raise _unsavable(f"{other} and {name} are the same tensor", "register a tensor under one name")
    wrong = misfits(layout(weights), layout(network.state_dict()))
    if wrong:
        raise _unsavable(
            f"built anew from its configuration it has other names, shapes or types: {wrong}",
            "register every parameter and buffer in __init__, with a shape that `config` and `shape` decide",
        )


def _unsavable(why: str, remedy: str) -> FileError:
    return FileError(f"the network cannot be saved: {why}", code="unsavable", where="state_dict", remedy=remedy)
