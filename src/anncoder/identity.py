"""What makes a run the same run: model, settings, and the data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.order import Split
from anncoder.preparation import Prepared
from anncoder.sources import Source

HASHED = ("gene names", "library sizes", "gene means", "batch codes", "coordinates to fit to", "cells held out")
ELSEWHERE = ("device", "threads", "cuda_graph")  # settings that say where and how to compute, not what


def run_of(
    model: str, config: NetworkConfig, training: TrainingConfig, source: Source, split: Split, data: Prepared
) -> dict[str, Any]:
    """Return what makes a run this run, by name; of the data what is known of them by now."""
    settings = config.model_dump(mode="json") | training.model_dump(mode="json")
    return {
        "model": model,
        **{name: value for name, value in settings.items() if name not in ELSEWHERE},
        "number of cells": source.n_obs,
        "number of genes": len(source.var_names),
        "gene names": _hashed(_bytes(source.var_names)),
        "library sizes": _hashed(np.asarray(source.sizes, dtype="<f4")),
        "gene means": _hashed(_gene_means(source, data)),
        "batch codes": _hashed(_bytes(data.batches), np.asarray([] if data.codes is None else data.codes, dtype="<i8")),
        "coordinates to fit to": _hashed(b"" if data.summary.target is None else data.summary.target.numpy()),
        "cells held out": _hashed(np.asarray(split.valid, dtype="<i8")),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return in what two runs differ, in words; none if they are the same."""
    other = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    plain = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in other if name not in HASHED]
    return plain or [f"other {name}" for name in other]  # with another seed, other cells are held out


def _hashed(*parts: Any) -> str:
    seen = hashlib.sha256()
    for part in parts:
        seen.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return seen.hexdigest()


def _bytes(names: Any) -> bytes:
    return "\n".join(names).encode("utf-8", "surrogatepass")


def _gene_means(source: Source, data: Prepared) -> np.ndarray[Any, Any]:
    # values that are no counts have no library sizes. Cells that come in another order in each pass have other last
    # digits of their sums: of these, 12 bits are left out
    means = data.summary.gene_mean.numpy().astype("<f4")
    return means if source.in_order else means.view("<u4") >> 12
