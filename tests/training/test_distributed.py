"""Several processes: the loss curve of one, every row once, equal steps, and one that disappears is named."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse as sp

from anncoder import CountAutoencoder
from anncoder.data.loaders.disk import DiskLoader
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.data.loaders.order import minibatches
from anncoder.data.opening import open_stores
from anncoder.data.stores import Stores
from anncoder.errors import ConfigError, ResourceError
from anncoder.training import distributed
from anncoder.types import Noise, Rank

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


FIT = """
import json, os, sys
from pathlib import Path
import anndata, torch
from anncoder import CountAutoencoder

kept, seen = torch.Tensor.bernoulli_, []

def bernoulli_(self, *arguments, **options):
    seen.append(kept(self, *arguments, **options).flatten()[:64].tolist())
    return self

torch.Tensor.bernoulli_ = bernoulli_
model = CountAutoencoder(n_latent=2, n_hidden=(8,), dropout_rate=0.5, norm="layer")
model.fit(anndata.read_h5ad(sys.argv[1]), max_epochs=2, batch_size=8, valid_fraction=0.01, progress=False)
weights = {name: value.tolist() for name, value in model.network_.state_dict().items()}
found = {"masks": seen, "weights": weights, "losses": model.history_["valid_loss"].tolist()}
Path(sys.argv[2], os.environ["RANK"] + ".json").write_text(json.dumps(found))
"""


@pytest.fixture
def written(counts: anndata.AnnData, tmp_path: Path) -> Path:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 3, "a", "b")
    counts.write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


@pytest.mark.slow
@pytest.mark.parametrize("batch_key", [None, "plate"])
def test_two_processes_give_the_loss_curve_of_one(
    counts: anndata.AnnData, written: Path, tmp_path: Path, batch_key: str | None
) -> None:
    """Two with batch 9 are one with batch 18: 108 cells are fitted on, so that every minibatch is whole."""
    settings = {"n_latent": 4, "norm": "layer", "max_epochs": 3, "early_stopping": "false", "batch_size": 9}
    settings["corruption"] = "none"  # each process has noise of its own
    if batch_key is not None:
        settings["batch_key"] = batch_key
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [
            *TORCHRUN,
            "-m",
            "anncoder",
            "train",
            str(written),
            "-o",
            str(tmp_path / "out.h5ad"),
            "--no-evaluation",
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("next: sc.pp.neighbors") == 1  # the first process writes, and it alone
    assert "FutureWarning" not in done.stderr
    two = pd.read_csv(tmp_path / "out.anncoder" / "history.csv")
    latent = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_ae"]
    one = CountAutoencoder(n_latent=4, norm="layer", corruption="none").fit(
        counts, batch_key=batch_key, batch_size=18, max_epochs=3, early_stopping=False, progress=False, threads=1
    )
    for name in ("train_loss", "valid_loss", "learning_rate"):
        np.testing.assert_allclose(two[name], one.history_[name], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(np.abs(latent), np.abs(one.embed(counts)), rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_a_process_that_disappears_is_named_and_nothing_hangs(written: Path, tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    endless = ["--set", "max_epochs=100000", "--set", "early_stopping=false", "--set", "batch_size=9"]
    with subprocess.Popen(
        [*TORCHRUN, "-m", "anncoder", "train", str(written), "-o", str(tmp_path / "out.h5ad"), *endless],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as run:
        try:
            log = tmp_path / "out.anncoder" / "unfinished" / "run.log"
            deadline = time.monotonic() + 120
            while not (log.exists() and "epoch 3/" in log.read_text()) and time.monotonic() < deadline:
                time.sleep(0.2)
            workers = _children(run.pid)
            os.kill(workers[1], signal.SIGKILL)
            _, errors = run.communicate(timeout=120)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode != 0
    assert "rank-lost" in errors or "SIGKILL" in errors or "Signal 9" in errors, errors[-3000:]


@pytest.mark.parametrize("said", ["[gloo/pair.cc] Connection closed by peer", "Socket Timed out", "NCCL error"])
def test_what_says_that_a_process_has_gone_is_known(said: str) -> None:
    """Above, torchrun may end the others before they notice."""
    with pytest.raises(ResourceError, match=re.escape(said)) as caught, distributed.processes():
        raise RuntimeError(f"{said}\nException raised from somewhere")
    assert (caught.value.code, caught.value.exit_code) == ("rank-lost", 6)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), distributed.processes():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_processes_have_the_same_weights_and_each_its_own_noise(written: Path, tmp_path: Path) -> None:
    """With a single cell held out, which only one of the two has."""
    (tmp_path / "fit.py").write_text(FIT)
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "fit.py"), str(written), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["weights"] == second["weights"]
    assert first["losses"] == second["losses"]
    assert len(first["masks"]) == len(second["masks"]) > 2
    assert not any(a == b for a, b in zip(first["masks"], second["masks"], strict=True))


def test_the_noise_of_the_first_process_is_that_of_one_alone() -> None:
    def draws(rank: int) -> tuple[list[float], list[float]]:
        noise = Noise(5)
        weights = torch.rand(4, generator=noise.on(torch.device("cpu")))
        noise.seed_for_rank(rank)
        return weights.tolist(), torch.rand(4, generator=noise.on(torch.device("cpu"))).tolist()

    alone = torch.rand(8, generator=torch.Generator().manual_seed(5)).tolist()
    found = [draws(rank) for rank in range(3)]
    assert all(weights == alone[:4] for weights, _ in found)
    assert found[0][1] == alone[4:]
    assert len({tuple(noise) for _, noise in found}) == 3


def test_a_process_that_would_have_nothing_to_fit_on_is_refused(tmp_path: Path) -> None:
    matrix = sp.csr_matrix(np.ones((65, 1), dtype=np.float32))
    anndata.AnnData(matrix).write_h5ad(tmp_path / "it.h5ad")
    shards = open_stores(str(tmp_path / "it.h5ad"), None)
    assert shards is not None

    def on_disk(n: int, size: int, seed: int | None) -> DiskLoader:
        chosen = np.arange(65) < n
        return DiskLoader(
            Stores(shards), np.ones(65, np.float32), chosen, batch_size=8, seed=seed, process=Rank(0, size), block=32
        )

    def in_memory(n: int, size: int, seed: int | None) -> MemoryLoader:
        rows = np.arange(n)
        return MemoryLoader(Stored.of(matrix), np.ones(65), rows, batch_size=8, seed=seed, process=Rank(0, size))

    # three blocks, the last of one cell
    for make, n, size in ((on_disk, 65, 3), (on_disk, 64, 3), (in_memory, 5, 3), (in_memory, 2, 3)):
        with pytest.raises(ConfigError, match=f"of {size} processes, one would have [01] cells"):
            make(n, size, 0)
        make(n, size, None)  # none to hold out is no harm
    assert len(on_disk(64, 2, 0)) == 4
    assert len(in_memory(6, 3, 0)) == 1


def test_no_rows_are_no_minibatches() -> None:
    assert list(minibatches(np.arange(0), 4)) == []


@pytest.mark.parametrize(
    ("there", "device", "backend"),
    [
        (True, "auto", "nccl"),
        (True, "cuda", "nccl"),
        (True, "cuda:1", "nccl"),
        (True, "cpu", "gloo"),
        (False, "auto", "gloo"),
        (False, "cpu", "gloo"),
    ],
)
def test_the_backend_is_that_of_the_device(
    there: bool, device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 0, 2)]))
    monkeypatch.setattr(distributed, "_meeting", lambda *_: "here")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **_: asked.append(name))
    with distributed.processes(device):
        assert asked == [backend]


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(number) for number in text.split()]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(4, 90), batch_size=st.integers(2, 20), size=st.integers(1, 4), epoch=st.integers(0, 3))
def test_shares_of_an_epoch_in_memory(n: int, batch_size: int, size: int, epoch: int) -> None:
    if n < 2 * size:
        return
    matrix = sp.csr_matrix(np.ones((n, 1), dtype=np.float32))

    def epoch_of(rank: int, seed: int | None) -> list[list[int]]:
        loader = MemoryLoader(
            Stored.of(matrix), np.ones(n), np.arange(n), batch_size=batch_size, seed=seed, process=Rank(rank, size)
        )
        batches = [b.rows.tolist() for b in loader.epoch(epoch)]
        assert len(batches) == len(loader)
        return batches

    shares = [epoch_of(rank, 0) for rank in range(size)]
    assert len({tuple(map(len, process)) for process in shares}) == 1  # equal steps, equally large
    assert all(len(batch) >= 2 for batch in shares[0])
    rows = sorted(row for process in shares for batch in process for row in batch)
    assert len(set(rows)) == len(rows) == n - n % size
    held_out = sorted(row for rank in range(size) for batch in epoch_of(rank, None) for row in batch)
    assert held_out == list(range(n))


def test_shares_of_an_epoch_on_disk(tmp_path: Path) -> None:
    anndata.AnnData(sp.csr_matrix(np.ones((500, 1), dtype=np.float32))).write_h5ad(tmp_path / "it.h5ad")
    shards = open_stores(str(tmp_path / "it.h5ad"), None)
    assert shards is not None
    chosen = np.random.default_rng(0).random(500) < 0.9
    options: dict[str, Any] = {"batch_size": 16, "block": 10, "pool": 60}
    seen: set[int] = set()
    for epoch in range(4):
        shares = []
        for rank in range(3):
            loader = DiskLoader(
                Stores(shards), np.ones(500, np.float32), chosen, seed=1, process=Rank(rank, 3), **options
            )
            shares.append([b.rows for b in loader.epoch(epoch)])
        assert len({len(process) for process in shares}) == 1
        rows = torch.cat([batch for process in shares for batch in process]).tolist()
        assert len(set(rows)) == len(rows)
        assert len(rows) > 0.8 * chosen.sum()
        seen |= set(rows)
    assert seen == set(np.flatnonzero(chosen).tolist())
