"""``anncoder transport``: files, tables, pictures, options, interruption, exit codes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import random as random_sparse

import anncoder as ac
from anncoder.datasets import branching
from anncoder.tl.time_series import transport_maps

Run = Callable[..., Any]


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Return a file of 160 cells of four times, with counts and a latent."""
    made = branching(40, n_times=4)
    counts = random_sparse(160, 30, 0.2, "csr", np.float32, np.random.default_rng(0))
    obs = made.obs.assign(note=np.where(np.arange(160) % 2, "odd", "even"), infinite=np.inf)
    obs["late"] = obs["label"].where(obs["time"] == 3)
    adata = anndata.AnnData(
        counts, obs=obs, obsm={"X_ae": made.X.astype(np.float32), "X_nan": np.full((160, 2), np.nan)}
    )
    adata.layers["counts"] = counts.copy()
    adata.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


def same_but(found: anndata.AnnData, before: anndata.AnnData) -> None:
    """Hold that matrices and old columns are as they were."""
    np.testing.assert_array_equal(found.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(found.layers["counts"].toarray(), before.layers["counts"].toarray())
    pd.testing.assert_frame_equal(found.obs[list(before.obs)], before.obs)


def test_the_file_is_that_of_the_functions(cells: Path, anncoder: Run) -> None:
    folder = cells.parent
    words = ("--labels", "label", "--growth-key", "growth_true", "--set", "epsilon=0.1", "--validate")
    done = anncoder("transport", cells, "-o", folder / "out.h5ad", "--time-key", "time", *words)
    assert done.exit_code == 0, done.output
    found, before = anndata.read_h5ad(folder / "out.h5ad"), anndata.read_h5ad(cells)
    same_but(found, before)
    wanted = before.copy()
    ac.tl.transport(wanted, "time", growth_key="growth_true", epsilon=0.1, progress=False)
    ac.tl.fates(wanted, "label")
    for name in ("f", "g", "growth"):
        np.testing.assert_array_equal(found.obs[f"transport_{name}"], wanted.obs[f"transport_{name}"])
    np.testing.assert_array_equal(found.obsm["fates"], wanted.obsm["fates"])
    assert list(found.uns["fates"]["names"]) == ["A", "B"]
    assert len(found.uns["transport_validation"]["table"]) == 12
    flows = ac.tl.flows(found, "label")  # of a file that was read again
    run = folder / "out.anncoder"
    names = {"pairs.csv", "growth.csv", "fates.csv", "flows.csv", "validation.csv", "transport.json", "run.log"}
    assert {path.name for path in run.iterdir()} == {*names, "flow.png", "validation.png"}
    pd.testing.assert_frame_equal(pd.read_csv(run / "flows.csv"), flows)
    grown = pd.read_csv(run / "growth.csv").set_index(["time", "label"])
    means = wanted.obs.groupby(["time", "label"], observed=True)["transport_growth"].mean()
    np.testing.assert_allclose(grown["learned"], means.loc[list(grown.index)])
    assert grown.loc[(2, "A"), "prior"] == pytest.approx(np.exp(0.6))
    chances = pd.read_csv(run / "fates.csv").set_index(["time", "label"])
    assert chances.loc[(3, "A"), "fate_A"] == 1
    np.testing.assert_allclose(chances[["fate_A", "fate_B"]].sum(axis=1), 1)
    assert chances["n_obs"].sum() == 160
    numbers = json.loads((run / "transport.json").read_text())
    assert numbers["settings"]["epsilon"] == 0.1
    assert numbers["pairs"]["t0"] == [0, 1, 2]
    assert len(numbers["validation"]["sentences"]) == 2
    assert '"t0": 2.0' in (run / "run.log").read_text()


def test_in_place_and_again_without_labels(cells: Path, anncoder: Run) -> None:
    before = anndata.read_h5ad(cells)
    words = ("-o", cells, "--in-place", "--time-key", "time", "--quiet")
    for more in ((), ("--set", "pairs=[[0, 1], [1, 3]]"), ("--labels", "late")):
        done = anncoder("transport", cells, *words, *more)
        assert done.exit_code == 0, done.output
    found, run = anndata.read_h5ad(cells), cells.with_suffix(".anncoder")
    same_but(found, before)
    assert found.uns["transport"]["pairs"]["t1"].tolist() == [1, 2, 3]
    assert found.obsm["fates"].shape == (160, 2)
    assert not (run / "flow.png").exists()  # only the last time has labels
    assert pd.read_csv(run / "growth.csv")["label"].unique().tolist() == ["other", "A", "B"]


def test_only_obs_and_named_slots_are_read(cells: Path, anncoder: Run) -> None:
    with h5py.File(cells, "a") as file:
        for name in ("X/data", "layers/counts/data"):  # what nobody should read as numbers
            file[name][...] = np.nan
    done = anncoder("transport", cells, "-o", cells.parent / "out.h5ad", "--time-key", "time")
    assert done.exit_code == 0, done.output
    assert np.isnan(anndata.read_h5ad(cells.parent / "out.h5ad").X.data).all()


def test_a_dry_run_writes_nothing(cells: Path, anncoder: Run) -> None:
    before = sorted(cells.parent.iterdir())
    words = ("-o", cells.parent / "out.h5ad", "--time-key", "time", "--dry-run", "--validate")
    done = anncoder("transport", cells, *words)
    assert done.exit_code == 0, done.output
    for said in ("transport 2 to 3: 40 x 40 cells", "160 cells, 3 pairs, latent of 10", "MiB, 14 s", "was written"):
        assert said in done.output
    assert "by 20 metacells" in anncoder("transport", cells, *words, "--set", "max_cells=20").output
    assert sorted(cells.parent.iterdir()) == before


@pytest.mark.parametrize("solved", [0, 2])
def test_a_signal_keeps_the_pairs_that_are_solved(
    cells: Path, anncoder: Run, monkeypatch: pytest.MonkeyPatch, solved: int
) -> None:
    original, seen = transport_maps._solve_pair, []

    def interrupted(*arguments: Any) -> Any:
        if len(seen) == solved:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(transport_maps, "_solve_pair", interrupted)
    words = ("--time-key", "time", "--labels", "label", "--validate")
    done = anncoder("transport", cells, "-o", cells.parent / "out.h5ad", *words)
    assert done.exit_code == 143, done.output
    if not solved:
        assert "nothing was written" in done.output
        assert [path.name for path in cells.parent.iterdir()] == ["in.h5ad"]
        return
    assert "2 of 3 pairs are solved" in done.output
    found = anndata.read_h5ad(cells.parent / "out.h5ad")
    assert found.uns["transport"]["pairs"]["t1"].tolist() == [1, 2]
    assert "fates" not in found.obsm
    assert len(pd.read_csv(cells.parent / "out.anncoder" / "pairs.csv")) == 2
    ac.tl.fates(found, "label")


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (("--time-key", "tiem"), "unknown-key", 2),
        (("--time-key", "note"), "bad-times", 4),
        (("--time-key", "time", "--key", "pca"), "unknown-key", 2),
        (("--time-key", "time", "--use-rep", "X_nan"), "bad-coordinates", 4),
        (("--time-key", "time", "--labels", "lable"), "unknown-key", 2),
        (("--time-key", "time", "--labels", "late", "--set", "pairs=[[0, 1]]"), "no-labels", 4),
        (("--time-key", "time", "--growth-key", "grwoth"), "unknown-key", 2),
        (("--time-key", "time", "--growth-key", "infinite"), "bad-growth", 4),
        (("--time-key", "time", "--set", "epsilon=1e-6"), "bad-value", 2),
        (("--time-key", "time", "--set", "epsilno=1"), "unknown-key", 2),
        (("--time-key", "time", "--set", "pairs=[[0, 7]]"), "bad-pairs", 2),
        (("--time-key", "time", "--set", "max_cells=few", "--dry-run"), "bad-value", 2),
    ],
)
def test_mistakes_have_codes_and_leave_nothing(
    cells: Path, anncoder: Run, words: Any, code: str, exit_code: int
) -> None:
    done = anncoder("transport", cells, "-o", cells.parent / "out.h5ad", *words)
    assert done.exit_code == exit_code, done.output
    assert f"[{code}]" in done.output
    assert [path.name for path in cells.parent.iterdir()] == ["in.h5ad"]


def test_slots_of_the_users_stay_and_two_times_are_not_validated(cells: Path, anncoder: Run) -> None:
    own = anndata.read_h5ad(cells)
    own.obsm["fates"] = np.ones((160, 2))
    own[own.obs["time"] < 2].write_h5ad(cells.with_name("two.h5ad"))
    words = ("-o", cells.parent / "out.h5ad", "--time-key", "time")
    assert "[key-taken]" in anncoder("transport", cells.with_name("two.h5ad"), *words, "--labels", "label").output
    done = anncoder("transport", cells.with_name("two.h5ad"), *words, "--validate")
    assert (done.exit_code, "[bad-times]" in done.output) == (4, True)
    assert anncoder("transport", cells, "-o", cells, "--time-key", "time").exit_code == 2
    assert anncoder("transport", cells.with_name("no.h5ad"), *words).exit_code == 3
