"""``anncoder relations``: the table that it writes, and the codes it ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

import anncoder as ac

Run = Callable[..., Any]


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Return a file of 60 cells with a smooth layer and a latent."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(3.0, (60, 8)).astype(np.float32))
    adata.layers["smooth"] = rng.random((60, 8))
    adata.layers["smooth"][:, 3] = np.sin(6 * adata.layers["smooth"][:, 0])
    adata.obsm["X_ae"] = rng.random((60, 2))
    adata.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


def test_the_table_is_that_of_the_function(anncoder: Run, cells: Path, tmp_path: Path) -> None:
    before = cells.read_bytes()
    words = ["--source", "0", "--layer", "smooth", "--set", "n_shuffles=6", "--set", "n_neighbors=7", "--seed", 3]
    result = anncoder("relations", cells, "-o", tmp_path / "out.csv", *words)
    assert result.exit_code == 0, result.output
    found = pd.read_csv(tmp_path / "out.csv", index_col=0, dtype={"gene": str})
    expected = ac.tl.gene_relations(
        anndata.read_h5ad(cells), "0", layer="smooth", n_shuffles=6, n_neighbors=7, seed=3, progress=False
    )
    assert found.index[0] == "3"
    pd.testing.assert_frame_equal(found.drop(columns="reason"), expected.drop(columns="reason"), check_index_type=False)
    assert "7 genes against 0" in result.output
    assert cells.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "out.csv"]


def test_single_targets_and_the_layer_alone(anncoder: Run, cells: Path, tmp_path: Path) -> None:
    words = ["--source", "0", "--layer", "smooth", "--target", "3", "--target", "5", "--set", "n_neighbors=null"]
    assert anncoder("relations", cells, "-o", tmp_path / "out.csv", *words).exit_code == 0
    found = pd.read_csv(tmp_path / "out.csv", index_col=0)
    assert sorted(found.index) == [3, 5]
    assert "smoothed" not in found


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--source", "gone", "--layer", "smooth"], 2, "unknown key 'gone'"),
        (["--source", "0", "--layer", "smoth"], 2, "did you mean 'smooth'?"),
        (["--source", "0", "--layer", "smooth", "--set", "n_shuffle=9"], 2, "did you mean 'n_shuffles'?"),
        (["--source", "0", "--layer", "smooth", "--set", "n_shuffles=2"], 2, "--set: n_shuffles"),
        (["--source", "0", "--layer", "X"], 4, "[tied-values]"),
        (["--source", "0"], 4, "[not-denoised]"),
        (["--source", "0", "--layer", "smooth", "-o", "out.txt"], 2, "does not end in .csv"),
        (["--layer", "smooth"], 2, "--source"),
    ],
)
def test_mistakes_have_codes_and_leave_nothing(
    anncoder: Run, cells: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    result = anncoder("relations", cells, "-o", tmp_path / "out.csv", *words)
    assert result.exit_code == code, result.output
    assert said in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5ad"]


def test_a_missing_file(anncoder: Run, tmp_path: Path) -> None:
    assert anncoder("relations", tmp_path / "no.h5ad", "-o", tmp_path / "out.csv", "--source", "0").exit_code == 3
