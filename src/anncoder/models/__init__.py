"""Autoencoders, one file each: configuration, network and estimator, ending with ``MODEL = ...``.

The name of a model is that of its file; :func:`find` imports that one file. docs/own-model.md builds one step by step.

A network is built from ``(config, shape, noise)`` and offers

- ``forward(batch) -> Loss``: the objective, and the only place where it is put together;
- ``encode(batch) -> (b, k)``: the latent, deterministic in evaluation;
- ``denoise(batch) -> (b, g)``: expected expression at the median library size; with zero inflation, before it, and then
  ``observed(batch) -> (b, g)`` is the same with what it takes away;
- ``start_from(summary, cells)`` and ``finish(batch)``: set what one pass over the data can set before training (or more
  passes of its own, over the loader ``cells``), and what a sample of the cells can set after it.

What the rest relies on:

- A loaded model is built on the ``meta`` device, where nothing has a value, and takes its values from the file: no
  ``__init__`` may read a number out of a tensor. ``noise.on(device)`` works there.
- What must be kept is a parameter or a persistent buffer under one name, finite, and of a shape that ``config`` and
  ``shape`` decide. All else is lost in saving and when an unfinished fit is resumed; ``save`` refuses what it can see.
- ``cells`` yields minibatches on the CPU, also where the network is on a GPU.
- ``start_from`` runs with gradients on unless it turns them off (``torch.no_grad``).
- No term of the loss is called ``"loss"``: the history has the sum under this name.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def names() -> list[str]:
    """Return the names of all models: those of the files here."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "base")


def find(name: str, where: str = "model") -> type[Any]:
    """Return the :class:`anncoder.models.base.Autoencoder` of a name; the error says ``where`` it was asked for.

    Raises
    ------
    ConfigError
        There is none; the nearest known one is named.
    """
    if name not in names():
        from anncoder.config import unknown_key

        raise unknown_key(name, names(), where=where)
    found: type[Any] = import_module(f"anncoder.models.{name}").MODEL
    return found
