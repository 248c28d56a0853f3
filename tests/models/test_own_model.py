"""docs/own-model.md: a model as one file, in the package or outside of it, trains, saves, loads and is applied."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import anncoder as ac
from anncoder import models
from anncoder.errors import FileError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
CODE, USE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the names in the page's model file, as a module of somebody's own."""
    (tmp_path / "my_models.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return vars(import_module("my_models"))


def test_it_is_short() -> None:
    assert CODE.count("\n") < 60


def test_a_class_from_outside(
    written: dict[str, Any], counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(USE, {**written, "adata": counts})  # as it stands on the page
    own = written["PoissonFactors"]
    model, again = own(n_latent=5).fit(counts, seed=0, progress=False), ac.load("factors.ac", model=own)
    assert type(again) is own
    np.testing.assert_array_equal(again.embed(counts), model.embed(counts))
    assert counts.obsm["X_factors"].shape == (counts.n_obs, 5)
    assert model.history_["valid_loss"].min() < model.history_["valid_loss"].iloc[0]
    assert (model.denoise(counts) > 0).all()
    with pytest.raises(FileError, match="of the kind 'factors'"):
        ac.load("factors.ac")


def test_a_file_in_models_is_a_model_of_the_command_line(counts: anndata.AnnData, tmp_path: Path) -> None:
    package = tmp_path / "src" / "anncoder"
    shutil.copytree(ROOT / "src" / "anncoder", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "models" / "factors.py").write_text(CODE, encoding="utf-8")
    counts.write_h5ad(tmp_path / "cells.h5ad")

    def run(*words: str) -> str:
        # without the kernels, which the copy would have to compile once more
        environment = {**os.environ, "PYTHONPATH": str(package.parent), "ANNCODER_KERNELS": "torch"}
        command = [sys.executable, "-m", "anncoder", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    settings = ("--model", "factors", "--set", "n_latent=3", "--set", "max_epochs=2", "--no-evaluation")
    run("train", "cells.h5ad", "-o", "out.h5ad", *settings)
    run("embed", "out.anncoder/model", "cells.h5ad", "-o", "again.h5ad")
    latents = [anndata.read_h5ad(tmp_path / name).obsm["X_ae"] for name in ("out.h5ad", "again.h5ad")]
    np.testing.assert_array_equal(*latents)
    assert "n_latent: 8" in run("config", "--model", "factors")


@pytest.mark.parametrize("name", models.names())
def test_a_file_is_called_as_its_model_is(name: str) -> None:
    assert models.find(name).name == name
