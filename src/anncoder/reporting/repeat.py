"""Commands that repeat a fit and its report, in a shell and in Python."""

from __future__ import annotations

import json
import shlex
from typing import Any, NamedTuple

import yaml

from anncoder.config import TrainingConfig
from anncoder.models import names
from anncoder.models.base import Autoencoder


class Asked(NamedTuple):
    """What a report was asked for, as far as it must be repeated."""

    data: str | None = None  # path; None for an AnnData in memory
    labels: str | None = None
    key: str = "ae"
    layer: str | None = None
    guard: bool = False
    seeds: int = 0  # of fits; 0 for none
    root: str | None = None
    seed: int = 0


def changed_settings(model: Autoencoder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the network, and those of the fit, that are not the default.

    ``mask_var`` and ``threads`` are always among them: what ``auto`` and None stand for depends on data and machine.
    """
    fields = type(model.config).model_fields
    network = {k: v for k, v in model.config.model_dump(mode="json").items() if v != _plain(fields[k].default)}
    usual = TrainingConfig().with_defaults_of(model.config).model_dump(mode="json")
    fit = {k: v for k, v in model.training_.model_dump(mode="json").items() if v != usual.get(k)}
    return network, fit


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def shell_lines(model: Autoencoder, asked: Asked) -> list[str]:
    """Return the two commands, or none for a model from outside of this package."""
    if model.name not in names():
        return []
    network, fit = changed_settings(model)
    data, again = asked.data or "in.h5ad", "again.h5ad"
    train = ["anncoder", "train", data, "-o", again, "--model", model.name, *_flags("key", asked.key, "ae")]
    train += _flags("layer", model.layer_, None)
    for name, value in (network | fit).items():
        train += ["--set", f"{name}={_yaml(value)}"]
    report = ["anncoder", "report", again, "-o", "report.html", *_flags("labels", asked.labels, None)]
    report += _flags("key", asked.key, "ae") + _flags("layer", asked.layer, None)
    report += ["--guard"] * asked.guard + _flags("seeds", asked.seeds, 0) + _flags("root", asked.root, None)
    report += _flags("seed", asked.seed, 0)
    return [shlex.join(train), shlex.join(report)]


def python_lines(model: Autoencoder, asked: Asked) -> list[str]:
    """Return the lines of Python."""
    network, fit = changed_settings(model)
    layer = {} if model.layer_ is None else {"layer": model.layer_}
    made = f"{type(model).__name__}({_arguments(network)})"
    read = "adata = ..." if asked.data is None else f"adata = sc.read_h5ad({asked.data!r})"
    key = {} if asked.key == "ae" else {"key_added": asked.key}
    line = f"model = ac.tl.autoencode(adata, {', '.join(filter(None, [made, _arguments(key | layer | fit)]))})"
    own = {k: v for k, v in asked._asdict().items() if k != "data"}
    usual = Asked()._asdict()
    changed = _arguments({k: v for k, v in own.items() if v != usual[k]} | {"output": "report.html"})
    ours = f"from anncoder import {type(model).__name__}" if model.name in names() else ""
    return [
        *filter(None, ["import anncoder as ac, scanpy as sc", ours]),
        read,
        line,
        f"ac.report(adata, model, {changed})",
    ]


def _flags(name: str, value: Any, usual: Any) -> list[str]:
    return [] if value == usual else [f"--{name}", str(value)]


def _arguments(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _yaml(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if yaml.safe_load(text) == value else json.dumps(value)
