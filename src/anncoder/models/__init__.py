"""Autoencoders, one file each: configuration, network and estimator, ending with ``MODEL = ...``.

The name of a model is that of its file, here (ours) or in ``published/`` (the published systems); :func:`find` imports
that one file. docs/own-model.md builds one step by step.

A network is built from ``(config, shape, noise)`` and offers

- ``forward(batch) -> Loss``: the objective, and the only place where it is put together;
- ``encode(batch) -> (b, k)``: the latent, deterministic in evaluation;
- ``denoise(batch) -> (b, g)``: expected expression at the median library size, before zero inflation; a model with zero
  inflation also has ``observed(batch) -> (b, g)``, the expectation after it;
- ``start_from(summary, cells)``: initial values from the summary of the fitted cells, or from passes over ``cells``;
- ``finish(batch)``: settings after training, from a sample of the fitted cells;
- ``hidden(batch)``, where it wants: all but the output layer, for the statistics of batch normalisation;
- ``gradients(batch) -> Loss | None``, where it wants: the loss, with all gradients set, as ``forward`` and
  ``backward`` do, to the same bits, but without a graph (:mod:`anncoder.nn.chain`); None takes the readable form.

The contract:

- A loaded model is built on the ``meta`` device, where nothing has a value, and filled from the file: no ``__init__``
  may read a number out of a tensor. ``noise.on(device)`` works there.
- All state is in parameters and persistent buffers, each under one name, finite, and of a shape that ``config`` and
  ``shape`` decide. Anything else is lost in saving and in resuming; ``save`` refuses what it can detect.
- ``cells`` yields minibatches on the CPU, also where the network is on a GPU.
- ``start_from`` runs with gradients on unless it turns them off (``torch.no_grad``).
- No term of the loss is called ``"loss"``, the name of their sum in the history.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

SHARED = ("adapting", "base", "card", "fitted", "installed", "loading", "scikit_learn")  # files of all models


def homes() -> dict[str, str]:
    """Return the module of each model by the model's name: the files of this folder and of ``published/``."""
    folders = {f"{__name__}.": __path__, f"{__name__}.published.": [f"{path}/published" for path in __path__]}
    found = {
        module.name: prefix + module.name
        for prefix, paths in folders.items()
        for module in iter_modules(paths)
        if not module.ispkg and module.name not in SHARED
    }
    return dict(sorted(found.items()))


def names() -> list[str]:
    """Return the names of all models of this package."""
    return list(homes())


def known() -> list[str]:
    """Return the names of all models of this package, and of those of installed ones (:mod:`.installed`)."""
    from anncoder.models.installed import installed

    return [*names(), *(name for name in installed() if name not in names())]


# what others call our models, and the setting that makes it so
OTHER_NAMES: dict[str, tuple[str, str]] = {
    "scvi": ("variational", ""),
    "vae": ("variational", ""),
    "ldvae": ("variational", "linear_decoder=True"),
    "linearscvi": ("variational", "linear_decoder=True"),
    "nb": ("count", "likelihood='nb'"),
    "zinb": ("count", "likelihood='zinb'"),
    "poisson": ("count", "likelihood='poisson'"),
    "linear": ("undercomplete", "n_hidden=()"),
    "pca": ("undercomplete", "n_hidden=()"),
    "ae": ("undercomplete", ""),
    "autoencoder": ("undercomplete", ""),
    "dae": ("denoising", ""),
    "scmae": ("denoising", ""),
    "net-sne": ("netsne", ""),
}


def find(name: str, where: str = "model") -> type[Any]:
    """Return the class of a model by its name; a ConfigError at ``where`` names the one that is meant.

    A model of this package goes before one of the same name of an installed package.
    """
    if name in homes():
        found: type[Any] = import_module(homes()[name]).MODEL
        return found
    from anncoder.models.installed import installed_model

    other = installed_model(name, where)
    if other is None:
        raise _unknown(name, where)
    return other


def _unknown(name: object, where: str) -> Exception:
    from anncoder.config import unknown_key

    plain = str(name).lower()
    as_class = plain.removesuffix("autoencoder")
    meant, setting = OTHER_NAMES.get(plain, (as_class if as_class in names() else "", ""))
    error = unknown_key(name, known(), where=where)
    if meant:
        option = setting.replace("()", "[]").replace("'", "").replace("True", "true")
        also = f" with {setting} (--set {option})" if setting else ""
        error.remedy = f"did you mean {meant!r}{also}?"
    return error
