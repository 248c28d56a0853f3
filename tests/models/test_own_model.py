"""docs/own-model.md: a model as one file, in the package or outside of it, trains, saves, loads and is applied."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from typer.testing import Result

import anncoder as ac
from anncoder import models
from anncoder.data.loaders.gpu import Resident, ResidentLoader
from anncoder.data.loaders.labels import LabelledLoader, labels_of
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.errors import AnncoderError, ConfigError, FileError
from anncoder.training.checkpoint import Checkpoint
from anncoder.types import SINGLE, Rank

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
CODE, USE, LABELLED, USE_LABELS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the names in the page's model file, as a module of somebody's own."""
    (tmp_path / "my_models.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return vars(import_module("my_models"))


@pytest.fixture
def labelled(written: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the names in the page's second model file."""
    (tmp_path / "my_labelled.py").write_text(LABELLED, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "my_labelled", raising=False)
    return vars(import_module("my_labelled"))


@pytest.fixture
def partly() -> anndata.AnnData:
    """Return counts of three groups, of which every third cell has a label."""
    groups: dict[str, Any] = {"n_groups": 3, "de_prob": 0.5, "de_fac_loc": 0.7}
    counts = ac.datasets.simulate(n_obs=200, n_vars=60, lib_loc=7.0, seed=1, **groups)
    known = np.arange(counts.n_obs) % 3 == 0
    counts.obs["cell_type"] = np.where(known, counts.obs["group"].astype(str), None)
    return counts


def test_it_is_short() -> None:
    assert CODE.count("\n") < 60
    assert LABELLED.count("\n") < 60


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


QUICK: dict[str, Any] = {"label_key": "cell_type", "max_epochs": 40, "threads": 1, "progress": False}


def test_labels_of_some_cells_tell_those_of_the_others(
    labelled: dict[str, Any], partly: anndata.AnnData, tmp_path: Path
) -> None:
    exec(USE_LABELS, {"ac": ac, **labelled, "adata": partly})  # as it stands on the page
    unknown = partly.obs["cell_type"].isna()
    right = partly.obs["told_label"].astype(str) == partly.obs["group"].astype(str)
    assert right[unknown].mean() > 0.9  # a third by chance
    kind = labelled["LabelledFactors"]
    model = kind().fit(partly, **QUICK)
    assert model.labels_ == sorted(partly.obs["group"].unique())
    assert {"train_labels", "valid_labels"} <= {*model.history_}
    model.save(tmp_path / "labelled.ac")
    again = ac.load(tmp_path / "labelled.ac", model=kind)
    assert again.labels_ == model.labels_
    assert (again.of_cells(partly)["label"] == model.of_cells(partly)["label"]).all()
    partly.write_h5ad(tmp_path / "cells.h5ad")
    on_disk = kind().fit(tmp_path / "cells.h5ad", **QUICK)
    np.testing.assert_array_equal(on_disk.embed(partly), model.embed(partly))


def test_a_fit_with_labels_goes_on_where_it_was_stopped_and_not_with_other_labels(
    labelled: dict[str, Any], partly: anndata.AnnData, tmp_path: Path
) -> None:
    kind, settings = labelled["LabelledFactors"], QUICK | {"max_epochs": 3}
    whole = kind().fit(partly, **settings).embed(partly)
    steps = iter(range(100))
    stopping = Checkpoint(tmp_path / "state", stops=lambda: next(steps) == 4)
    kind().fit(partly, checkpoint=stopping, **settings)
    other = partly.copy()
    other.obs["cell_type"] = other.obs["cell_type"].to_numpy()[::-1]
    with pytest.raises(ConfigError, match="other labels"):
        kind().fit(other, checkpoint=tmp_path / "state", **settings)
    resumed = kind().fit(partly, checkpoint=tmp_path / "state", **settings)
    np.testing.assert_array_equal(resumed.embed(partly), whole)


def test_labels_are_looked_up_by_row_in_every_loader() -> None:
    codes, names = labels_of(np.array(["b", None, "a", np.nan, "b", 1.0], dtype=object), "kind")
    assert (codes.tolist(), names) == ([2, -1, 1, -1, 2, 0], ["1", "a", "b"])
    stored = Stored.of(csr_matrix(np.eye(6, dtype=np.float32)))
    for rank in (SINGLE, Rank(1, 2)):
        loader = MemoryLoader(stored, np.ones(6), np.arange(6), batch_size=2, seed=0, process=rank)
        resident = ResidentLoader(loader, Resident(stored, torch.device("cpu")))
        for batches in (loader, resident):
            seen = list(LabelledLoader(batches, codes).epoch(0))
            assert len(seen) == len(batches)
            for batch in seen:
                assert batch.label is not None
                assert batch.label.tolist() == codes[batch.rows.numpy()].tolist()
                assert batch.to(torch.device("cpu")).head(1).label.tolist() == batch.label.tolist()[:1]


def test_labels_that_cannot_be_learned(labelled: dict[str, Any], partly: anndata.AnnData) -> None:
    kind = labelled["LabelledFactors"]
    partly.obs["nothing"] = np.full(partly.n_obs, None)
    for model, key, code in (
        (kind(), None, "no-label-key"),
        (kind(), "nothing", "no-labels"),
        (kind(), "cell_typ", "unknown-key"),
        (ac.CountAutoencoder(n_latent=2), "cell_type", "labels-unused"),
    ):
        with pytest.raises(AnncoderError) as error:
            model.fit(partly, **QUICK | {"label_key": key})
        assert error.value.code == code


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package of three models, one of which is broken and one of which has the name of one of ours."""
    site = tmp_path / "site"
    (site / "their_models-1.0.dist-info").mkdir(parents=True)
    (site / "their_models.py").write_text(CODE, encoding="utf-8")
    (site / "their_models-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: their-models\nVersion: 1\n"
    )
    points = (
        "factors = their_models:PoissonFactors\n"
        "broken = their_models:missing\n"
        "absent = no_such_module:Model\n"
        "other = their_models:PoissonFactors\n"
        "nothing = their_models:Loss\n"
        "count = their_models:missing\n"
    )
    (site / "their_models-1.0.dist-info" / "entry_points.txt").write_text(f"[anncoder.models]\n{points}")
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)


@pytest.mark.usefixtures("installed")
def test_models_of_installed_packages_are_found_by_name(
    counts: anndata.AnnData, tmp_path: Path, anncoder: Callable[..., Result]
) -> None:
    model = ac.tl.autoencode(counts, "factors", n_latent=3, max_epochs=2, progress=False)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(ac.load(tmp_path / "model").embed(counts), counts.obsm["X_ae"])
    counts.write_h5ad(tmp_path / "cells.h5ad")
    anncoder("embed", tmp_path / "model", tmp_path / "cells.h5ad", "-o", tmp_path / "out.h5ad")
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_ae"], counts.obsm["X_ae"])
    assert "n_latent: 8" in anncoder("config", "--model", "factors").output
    assert models.find("count") is ac.CountAutoencoder  # ours win


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", "AttributeError: module 'their_models' has no attribute 'missing'"),
        ("absent", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("other", "calls itself 'factors'"),
        ("nothing", "is no class of a model"),
    ],
)
def test_a_broken_model_of_an_installed_package_is_an_error_of_its_own_name(name: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        models.find(name)
    assert error.value.code == "broken-model"
    assert why in error.value.what
    assert "'their-models'" in error.value.what
    with pytest.raises(ConfigError) as unknown:
        models.find("factor")
    assert unknown.value.remedy == "did you mean 'factors'?"
