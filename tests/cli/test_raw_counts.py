"""Counts in ``raw.X`` from the shell: ``--layer raw.X`` is an option of every command that reads counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

Run = Callable[..., Any]
QUICK = ("--set", "max_epochs=1", "--set", "n_hidden=[8]", "--set", "n_latent=3", "--no-evaluation")


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")  # anndata's own
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_counts_of_raw_are_a_layer_of_every_command(
    anncoder: Run, counts: anndata.AnnData, tmp_path: Path, suffix: str
) -> None:
    counts.raw = counts.copy()
    counts = counts[:, ::2].copy()
    counts.X = counts.X.log1p() / 1.1
    data, out, model = tmp_path / f"in{suffix}", tmp_path / "out.h5ad", tmp_path / "out.anncoder" / "model"
    counts.write_zarr(data) if suffix == ".zarr" else counts.write_h5ad(data)
    for words in (
        ("check", data),
        ("train", data, "-o", out),
        ("dca", data, tmp_path / "dca"),
        ("search", data, "-o", out),
    ):
        refused = anncoder(*words)
        assert refused.exit_code == 4, words
        assert "--layer raw.X" in refused.output
        assert not out.exists()
    assert anncoder("check", data, "--layer", "raw.X").exit_code == 0
    result = anncoder("train", data, "-o", out, "--layer", "raw.X", "--denoise", *QUICK)
    assert result.exit_code == 0, result.output
    assert anndata.read_h5ad(out).layers["ae_denoised"].shape == (120, 30)
    for words in (("embed", model, data, "-o", out), ("denoise", model, data, "-o", out, "--layer", "raw.X")):
        result = anncoder(*words)
        assert result.exit_code == 0, result.output
        assert list(anndata.read_h5ad(out).var_names) == list(counts.var_names)
    result = anncoder("dca", data, tmp_path / "dca", "--layer", "raw.X", "-e", 1, "-s", "4,2,4")
    assert result.exit_code == 0, result.output
    assert "dca.h5ad has the counts of raw.X in X" in result.stderr
    assert anndata.read_h5ad(tmp_path / "dca" / "dca.h5ad").n_vars == np.count_nonzero(counts.raw.X.sum(axis=0))
