"""``anncoder adapt``: a saved model that knows new experimental batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from anncoder import CountAutoencoder, load

Run = Callable[..., Any]


@pytest.fixture
def files(counts: anndata.AnnData, tmp_path: Path) -> tuple[Path, Path]:
    """Return a model of two batches, and a file of cells of a third."""
    counts.obs["plate"] = np.resize(["p1", "p2", "p3"], counts.n_obs)
    model = CountAutoencoder(n_latent=3, n_hidden=(8,))
    known = counts[counts.obs["plate"] != "p3"].copy()
    model.fit(known, batch_key="plate", max_epochs=2, progress=False).save(tmp_path / "model")
    counts[counts.obs["plate"] == "p3"].copy().write_h5ad(tmp_path / "new.h5ad")
    return tmp_path / "model", tmp_path / "new.h5ad"


def test_an_adapted_model_is_saved_and_the_next_line_works(
    anncoder: Run, files: tuple[Path, Path], tmp_path: Path
) -> None:
    model, new = files
    result = anncoder("adapt", model, new, "-o", tmp_path / "adapted", "--batch-key", "plate")
    assert result.exit_code == 0, result.output
    assert "learned 1 new batch ('p3')" in result.output
    line = result.output.partition("next: anncoder ")[2].split()
    assert line[:3] == ["embed", str(tmp_path / "adapted"), str(new)]
    assert load(tmp_path / "adapted").batches_ == ["p1", "p2", "p3"]
    assert load(model).batches_ == ["p1", "p2"]
    embedded = anncoder(*line[:-1], tmp_path / "out.h5ad")
    assert embedded.exit_code == 0, embedded.output
    assert "unknown to the model" not in embedded.output
    latent = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_ae"]
    np.testing.assert_array_equal(latent, load(tmp_path / "adapted").embed(new))


def test_what_cannot_be_adapted_is_refused(
    anncoder: Run, files: tuple[Path, Path], model_folder: Path, tmp_path: Path
) -> None:
    model, new = files
    for words, code, said in (
        ((model, new, "-o", model), 2, "output-is-input"),
        ((model, new, "-o", tmp_path / "out", "--batch-key", "plates"), 2, "bad-value"),
        ((model_folder, new, "-o", tmp_path / "out"), 2, "batches-unused"),
        ((model, tmp_path / "none.h5ad", "-o", tmp_path / "out"), 3, "no-file"),
        ((model, new, "-o", new), 3, "not-ours"),
    ):
        result = anncoder("adapt", *words)
        assert (result.exit_code, said in result.output) == (code, True), result.output
        assert not (tmp_path / "out").exists()
    assert load(model).batches_ == ["p1", "p2"]
