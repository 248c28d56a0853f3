"""``anncoder dynamics`` and ``anncoder balance``: files, options, exit codes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from benchmarks.population_dynamics import population, tree
from scipy.sparse import random as random_sparse

QUICK = ("--set", "n_grid=60", "--set", "smoothness=1.0")
FLOWS = ("--labels", "type", "--entry", "HSC", "--exits", "Ery=0.7", "--exits", "Mono=0.3")


@pytest.fixture
def times_file(tmp_path: Path) -> Path:
    """Return a file of 400 cells with counts and times, and beside it sizes.csv."""
    data = population(0, n=80)
    obs = {"day": np.repeat(data.times, 80), "s": np.concatenate(data.coordinates), "note": ["a", "b"] * 200}
    counts = random_sparse(400, 30, 0.2, "csr", np.float32, np.random.default_rng(0))
    adata = anndata.AnnData(counts, obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(400)]))
    adata.layers["counts"] = counts.copy()
    adata.write_h5ad(tmp_path / "in.h5ad")
    pd.DataFrame({"time": data.times, "size": np.exp(data.log_sizes)}).to_csv(tmp_path / "sizes.csv", index=False)
    return tmp_path / "in.h5ad"


@pytest.fixture
def tree_file(tmp_path: Path) -> Path:
    """Return a file of 600 cells of a tree with counts and a latent."""
    one = tree(600, 0)
    label = np.select([one.entry, one.tips[:, 0], one.tips[:, 1]], ["HSC", "Ery", "Mono"], "rest")
    counts = random_sparse(600, 20, 0.2, "csr", np.float32, np.random.default_rng(0))
    obs = pd.DataFrame(
        {"type": label, "rate": one.entries - one.exits.sum(axis=1)}, index=[f"c{i}" for i in range(600)]
    )
    adata = anndata.AnnData(counts, obs=obs, obsm={"X_ae": one.points, "X_umap": one.points[:, :2].copy()})
    adata.write_h5ad(tmp_path / "tree.h5ad")
    return tmp_path / "tree.h5ad"


def same_but(found: anndata.AnnData, before: anndata.AnnData) -> None:
    """Hold that matrices and old columns are as they were."""
    np.testing.assert_array_equal(found.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(found.obs[list(before.obs)], before.obs)
    for name in before.layers:
        np.testing.assert_array_equal(found.layers[name].toarray(), before.layers[name].toarray())


def test_dynamics_of_a_file(times_file: Path, anncoder: Callable[..., Any]) -> None:
    folder = times_file.parent
    fixed = ("--time-key", "day", "--coordinate", "s", "--sizes", folder / "sizes.csv", *QUICK)
    done = anncoder("dynamics", times_file, "-o", folder / "out.h5ad", *fixed)
    assert done.exit_code == 0, done.output
    found, before = anndata.read_h5ad(folder / "out.h5ad"), anndata.read_h5ad(times_file)
    same_but(found, before)
    assert found.uns["dynamics"]["v"].shape == (60,)
    run = folder / "out.anncoder"
    assert {path.name for path in run.iterdir()} == {"dynamics.csv", "dynamics.json", "dynamics.png", "run.log"}
    numbers = json.loads((run / "dynamics.json").read_text())
    np.testing.assert_allclose(numbers["D"], found.uns["dynamics"]["D"])
    assert numbers["left_out"]["time"] == [2, 4, 6]
    assert len(pd.read_csv(run / "dynamics.csv")) == 60
    again = anncoder("dynamics", folder / "out.h5ad", "-o", folder / "out.h5ad", "--in-place", *fixed)
    assert again.exit_code == 0, again.output
    twice = anndata.read_h5ad(folder / "out.h5ad")
    same_but(twice, before)
    np.testing.assert_array_equal(twice.uns["dynamics"]["theta"], found.uns["dynamics"]["theta"])


def test_balance_of_a_file(tree_file: Path, anncoder: Callable[..., Any]) -> None:
    folder = tree_file.parent
    done = anncoder("balance", tree_file, "-o", folder / "out.h5ad", *FLOWS, "--set", "D=0.1")
    assert done.exit_code == 0, done.output
    found, before = anndata.read_h5ad(folder / "out.h5ad"), anndata.read_h5ad(tree_file)
    same_but(found, before)
    assert list(found.obs) == [*before.obs, "balance_V"]
    np.testing.assert_allclose(found.obsm["balance_fates"].sum(axis=1), 1)
    assert found.uns["balance"]["D"] == 0.1
    run = folder / "out.anncoder"
    assert {path.name for path in run.iterdir()} == {"balance.csv", "balance.json", "balance.png", "run.log"}
    table = pd.read_csv(run / "balance.csv").set_index("label")
    assert table.loc["HSC", "fate_Ery"] == pytest.approx(0.7, abs=0.08)
    assert table["n_obs"].sum() == 600
    by_rates = ("--labels", "type", "--rates", "rate", "--set", "D=0.1", "--key-added", "second", "--use-rep", "X_ae")
    again = anncoder("balance", folder / "out.h5ad", "-o", folder / "more.h5ad", *by_rates, "--basis", "X_none")
    assert again.exit_code == 0, again.output
    more = anndata.read_h5ad(folder / "more.h5ad")
    np.testing.assert_allclose(more.obsm["second_fates"], found.obsm["balance_fates"], atol=1e-8)
    np.testing.assert_array_equal(more.obs["balance_V"], found.obs["balance_V"])
    assert not (folder / "more.anncoder" / "balance.png").exists()


def test_of_a_zarr_folder(tree_file: Path, anncoder: Callable[..., Any]) -> None:
    folder = tree_file.parent
    before = anndata.read_h5ad(tree_file)
    with warnings.catch_warnings(action="ignore"):  # on formats to come
        before.write_zarr(folder / "tree.zarr")
    done = anncoder("balance", folder / "tree.zarr", "-o", folder / "out.h5ad", *FLOWS, "--basis", "none")
    assert done.exit_code == 0, done.output
    same_but(anndata.read_h5ad(folder / "out.h5ad"), before)


def test_a_dry_run_writes_nothing(times_file: Path, tree_file: Path, anncoder: Callable[..., Any]) -> None:
    folder = times_file.parent
    before = sorted(folder.iterdir())
    fixed = ("-o", folder / "out.h5ad", "--dry-run")
    for words in (
        ("dynamics", times_file, "--time-key", "day", "--coordinate", "s", *fixed),
        ("balance", tree_file, *FLOWS, *fixed),
    ):
        done = anncoder(*words)
        assert done.exit_code == 0, done.output
        assert "cells" in done.output
        assert "MiB" in done.output
        assert "nothing was written" in done.output
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("--time-key", "dya", "--coordinate", "s", "--sizes", "sizes.csv"), "unknown-key", 2),
        (("--time-key", "note", "--coordinate", "s", "--sizes", "sizes.csv"), "bad-times", 4),
        (("--time-key", "day", "--coordinate", "day", "--sizes", "sizes.csv"), "bad-coordinates", 4),
        (("--time-key", "day", "--coordinate", "s"), "no-sizes", 2),
        (("--time-key", "day", "--coordinate", "s", "--sizes", "none.csv"), "no-file", 3),
        (("--time-key", "day", "--coordinate", "s", "--sizes", "empty.csv"), "unreadable", 3),
        (("--time-key", "day", "--coordinate", "s", "--sizes", "few.csv"), "bad-sizes", 4),
        (("--time-key", "day", "--coordinate", "s", "--sizes", "sizes.csv", "--set", "n_gird=9"), "unknown-key", 2),
        (("--time-key", "day", "--coordinate", "s", "--sizes", "sizes.csv", "--set", "n_grid=9"), "bad-value", 2),
    ],
)
def test_dynamics_refuses(
    times_file: Path,
    anncoder: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    words: Any,
    code: str,
    exit_code: int,
) -> None:
    folder = times_file.parent
    monkeypatch.chdir(folder)
    (folder / "empty.csv").write_text("")
    (folder / "few.csv").write_text("time,size\n0,1\n2,2\n")
    before = sorted(folder.iterdir())
    done = anncoder("dynamics", times_file, "-o", "out.h5ad", *words)
    assert done.exit_code == exit_code, done.output
    assert f"[{code}]" in done.output
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("--labels", "type", "--entry", "HSC", "--exits", "Ery=x"), "bad-assignment", 2),
        (("--labels", "type", "--entry", "HSC", "--exits", "Ery=0"), "bad-value", 2),
        (("--labels", "type", "--entry", "HCS", "--exits", "Ery"), "unknown-key", 2),
        (("--labels", "type"), "bad-value", 2),
        (("--labels", "type", "--rates", "type"), "bad-rates", 4),
        ((*FLOWS, "--key", "pca"), "unknown-key", 2),
        ((*FLOWS, "--set", "D=-1"), "bad-value", 2),
        ((*FLOWS, "--set", "neighbors_key=neighbors"), "unknown-key", 2),
    ],
)
def test_balance_refuses(tree_file: Path, anncoder: Callable[..., Any], words: Any, code: str, exit_code: int) -> None:
    folder = tree_file.parent
    before = sorted(folder.iterdir())
    done = anncoder("balance", tree_file, "-o", folder / "out.h5ad", *words)
    assert done.exit_code == exit_code, done.output
    assert f"[{code}]" in done.output
    assert sorted(folder.iterdir()) == before


def test_outputs_are_refused_before_any_work(tree_file: Path, anncoder: Callable[..., Any]) -> None:
    for output, code, exit_code in (
        (tree_file, "output-is-input", 2),
        (tree_file.with_suffix(".csv"), "bad-output", 2),
        (tree_file.parent / "none" / "out.h5ad", "no-folder", 6),
    ):
        done = anncoder("balance", tree_file, "-o", output, *FLOWS)
        assert (done.exit_code, f"[{code}]" in done.output) == (exit_code, True), done.output
    done = anncoder("balance", tree_file.parent / "none.h5ad", "-o", tree_file.parent / "out.h5ad", *FLOWS)
    assert done.exit_code == 3
    own = anndata.read_h5ad(tree_file)
    own.uns["balance"] = {"mine": 1}
    own.write_h5ad(tree_file)
    done = anncoder("balance", tree_file, "-o", tree_file, "--in-place", *FLOWS)
    assert "[key-taken]" in done.output


def test_results_in_obs_that_are_the_users_stay(tree_file: Path, anncoder: Callable[..., Any]) -> None:
    own = anndata.read_h5ad(tree_file)
    own.obsm["balance_fates"] = np.ones((600, 2))
    own.write_h5ad(tree_file)
    done = anncoder("balance", tree_file, "-o", tree_file.parent / "out.h5ad", *FLOWS)
    assert "[key-taken]" in done.output
