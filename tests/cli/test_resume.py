"""The command line goes on by itself: after SIGKILL, after SIGTERM, and when torchrun starts its processes again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from anncoder import load
from anncoder.training import loop
from anncoder.training.checkpoint import NAME
from anncoder.training.progress import TrainingReport

Run = Callable[..., Any]

# checkpoints after every minibatch: what a long run writes in hours, in seconds
DRIVER = (
    "from anncoder.training import checkpoint\n"
    "checkpoint.EVERY, checkpoint.COST = 0.0, float('inf')\n"
    "from anncoder.cli.app import main\n"
    "main()\n"
)
RUN_FOLDER = ["history.csv", "metrics.json", "model", "resolved.yaml", "run.log"]
NOISY = {"n_latent": 3, "n_hidden": "[8]", "dropout_rate": 0.2, "warmup_steps": 60, "l1": 1e-4}


def words(**settings: Any) -> list[str]:
    """Return settings as the command line has them."""
    return ["--no-evaluation", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def wait_for(log: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Wait until a log says something."""
    deadline = time.monotonic() + 120
    while not (log.exists() and text in log.read_text(encoding="utf-8")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same(left: Path, right: Path, **tolerance: float) -> None:
    """Compare two outputs and what is in their run folders: latent, weights and history."""
    folders = left.with_suffix(".anncoder"), right.with_suffix(".anncoder")
    assert [path.name for path in sorted(folders[1].iterdir())] == RUN_FOLDER
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in folders]
    latents = [anndata.read_h5ad(path).obsm["X_ae"] for path in (left, right)]
    if tolerance:
        pd.testing.assert_frame_equal(*histories, **tolerance)
        np.testing.assert_allclose(*latents, **tolerance)
    else:
        pd.testing.assert_frame_equal(*histories, check_exact=True)
        np.testing.assert_array_equal(*latents)
        weights = [(folder / "model" / "weights.safetensors").read_bytes() for folder in folders]
        assert weights[0] == weights[1]


@pytest.fixture
def counts_path(counts: anndata.AnnData, tmp_path: Path) -> Path:
    counts.write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


@pytest.mark.slow
def test_a_killed_command_goes_on(anncoder: Run, counts_path: Path, tmp_path: Path) -> None:
    settings = words(**NOISY, model="denoising", max_epochs=20, batch_size=16, early_stopping="false", threads=1)
    whole, out = tmp_path / "whole.h5ad", tmp_path / "out.h5ad"
    assert anncoder("train", counts_path, "-o", whole, *settings).exit_code == 0
    for last_seen in (3, 9):
        command = [sys.executable, "-c", DRIVER, "train", str(counts_path), "-o", str(out), *settings]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            wait_for(tmp_path / "out.anncoder" / "unfinished" / "run.log", f"epoch {last_seen}/", process)
            process.kill()
        assert not out.exists()
        assert not (tmp_path / "out.anncoder" / "model").exists()
    result = anncoder("train", counts_path, "-o", out, *settings)
    assert result.exit_code == 0, result.output
    assert "going on after epoch " in result.stderr
    assert "epoch 8/" not in result.stderr
    assert_same(whole, out)


class TestInterrupted:
    """A run that got SIGTERM in its fourth epoch."""

    @pytest.fixture
    def settings(self) -> list[str]:
        return words(**NOISY, max_epochs=6, batch_size=16, threads=1)

    @pytest.fixture
    def out(
        self,
        anncoder: Run,
        counts_path: Path,
        tmp_path: Path,
        settings: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> Path:
        def stop(self: object, record: dict[str, float]) -> None:
            if record["epoch"] == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patched:
            patched.setattr(TrainingReport, "epoch", stop)
            result = anncoder("train", counts_path, "-o", tmp_path / "out.h5ad", *settings)
        assert result.exit_code == 143
        assert "the same command again goes on after epoch 4\n" in result.stderr
        assert (tmp_path / "out.anncoder" / "unfinished" / NAME).exists()
        assert not (tmp_path / "out.h5ad").exists()
        return tmp_path / "out.h5ad"

    @pytest.mark.parametrize("option", [(), ("--resume",)])
    def test_the_same_command_goes_on(
        self, anncoder: Run, counts_path: Path, out: Path, settings: list[str], option: tuple[str, ...]
    ) -> None:
        whole = out.with_name("whole.h5ad")
        assert anncoder("train", counts_path, "-o", whole, *settings).exit_code == 0
        result = anncoder("train", counts_path, "-o", out, *settings, *option)
        assert result.exit_code == 0, result.output
        assert "going on after epoch 4\n" in result.stderr
        assert_same(whole, out)

    def test_what_it_has_until_then_is_said_to_be_unfinished(self, out: Path) -> None:
        folder = out.with_suffix(".anncoder")
        assert [path.name for path in folder.iterdir()] == ["unfinished"]
        names = sorted(path.name for path in (folder / "unfinished").iterdir())
        assert names == [NAME, "history.csv", "model", "resolved.yaml", "run.log"]
        assert load(folder / "unfinished" / "model").stopped_ == "interrupted"
        assert len(pd.read_csv(folder / "unfinished" / "history.csv")) == 4

    def test_another_seed_starts_anew_and_says_so(
        self, anncoder: Run, counts_path: Path, out: Path, settings: list[str]
    ) -> None:
        result = anncoder("train", counts_path, "-o", out, *settings, "--seed", "7")
        assert result.exit_code == 0, result.output
        assert "another one (seed was 0, is 7); starting anew" in result.stderr
        assert "going on" not in result.stderr
        whole = out.with_name("whole.h5ad")
        assert anncoder("train", counts_path, "-o", whole, *settings, "--seed", "7").exit_code == 0
        assert_same(whole, out)

    def test_it_is_refused_where_going_on_was_asked_for(
        self, anncoder: Run, counts_path: Path, out: Path, settings: list[str]
    ) -> None:
        result = anncoder("train", counts_path, "-o", out, *settings, "--seed", "7", "--resume")
        assert result.exit_code == 2
        assert "seed was 0, is 7 [other-run]" in result.stderr
        assert "--no-resume" in result.stderr
        assert (out.with_suffix(".anncoder") / "unfinished" / NAME).exists()

    def test_it_is_left_where_that_was_asked_for(
        self, anncoder: Run, counts_path: Path, out: Path, settings: list[str]
    ) -> None:
        result = anncoder("train", counts_path, "-o", out, *settings, "--no-resume")
        assert result.exit_code == 0, result.output
        assert "going on" not in result.stderr
        assert "epoch 1 " in result.stderr
        assert not (out.with_suffix(".anncoder") / "unfinished" / NAME).exists()

    def test_a_damaged_checkpoint_does_not_stop_a_run(
        self, anncoder: Run, counts_path: Path, out: Path, settings: list[str]
    ) -> None:
        path = out.with_suffix(".anncoder") / "unfinished" / NAME
        path.write_bytes(path.read_bytes()[:-1])
        refused = anncoder("train", counts_path, "-o", out, *settings, "--resume")
        assert refused.exit_code == 3
        assert "bad-checkpoint" in refused.stderr
        result = anncoder("train", counts_path, "-o", out, *settings)
        assert result.exit_code == 0, result.output
        assert "cannot be used" in result.stderr
        assert "epoch 1 " in result.stderr


def test_an_interrupted_run_leaves_older_results_as_they_were(
    anncoder: Run, counts_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, mine = tmp_path / "out.h5ad", tmp_path / "mine"
    command = ("train", counts_path, "-o", out, "--save", mine)
    assert anncoder(*command, *words(max_epochs=2)).exit_code == 0

    def everything() -> dict[str, bytes]:
        files = [out, *mine.rglob("*"), *out.with_suffix(".anncoder").rglob("*")]
        return {str(path): path.read_bytes() for path in files if path.is_file()}

    older = everything()
    with monkeypatch.context() as patched:
        patched.setattr(TrainingReport, "epoch", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        result = anncoder(*command, *words(max_epochs=5))
    assert (result.exit_code, "goes on after epoch 1\n" in result.stderr) == (143, True)
    now = everything()
    assert {path: now.get(path) for path in older} == older
    assert anncoder(*command, *words(max_epochs=5)).exit_code == 0
    assert sorted(path.name for path in out.with_suffix(".anncoder").iterdir()) == RUN_FOLDER
    assert len(load(mine).history_) == 5


@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_within_an_epoch(
    anncoder: Run, counts_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, twice: bool
) -> None:
    """The first waits for the end of the minibatch, whose state is kept; the second does not."""
    whole, out = tmp_path / "whole.h5ad", tmp_path / "out.h5ad"
    settings = words(**NOISY, model="denoising", max_epochs=4, batch_size=16, early_stopping="false", threads=1)
    descend, steps = loop.descend, []

    def interrupted(*given: Any) -> Any:
        steps.append(1)
        if len(steps) == 10:  # of seven an epoch
            for _ in range(1 + twice):
                os.kill(os.getpid(), signal.SIGINT)
        return descend(*given)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "descend", interrupted)
        result = anncoder("train", counts_path, "-o", out, *settings)
    place = "epoch 1" if twice else "epoch 1 and 3 minibatches"
    assert result.exit_code == 130
    assert f"the same command again goes on after {place}\n" in result.stderr
    result = anncoder("train", counts_path, "-o", out, *settings)
    assert f"going on after {place}\n" in result.stderr
    assert anncoder("train", counts_path, "-o", whole, *settings).exit_code == 0
    assert_same(whole, out)


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
# several hundred steps, dropout: the random streams of both processes must go on where they were
TOGETHER = words(**NOISY, max_epochs=60, batch_size=9, early_stopping="false", threads=1)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def undisturbed(simulated: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    simulated.write_h5ad(folder / "counts.h5ad")
    done = subprocess.run(
        [*TORCHRUN, "2", "--standalone", *train_command(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=quiet(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out.h5ad"


def train_command(folder: Path) -> list[str]:
    """Return what torchrun runs to train on counts.h5ad in a folder."""
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    return [str(folder / "driver.py"), "train", str(folder / "counts.h5ad"), "-o", str(folder / "out.h5ad"), *TOGETHER]


def quiet() -> dict[str, str]:
    return os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(number) for number in text.split()]


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_had_been(
    undisturbed: Path, simulated: anndata.AnnData, tmp_path: Path
) -> None:
    simulated.write_h5ad(tmp_path / "counts.h5ad")
    command = [*TORCHRUN, "2", "--standalone", "--max-restarts", "1", *train_command(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=quiet(), start_new_session=True) as run:
        try:
            wait_for(tmp_path / "out.anncoder" / "unfinished" / "run.log", "epoch 5/", run)
            os.kill(_children(run.pid)[1], signal.SIGKILL)
            _, said = run.communicate(timeout=200)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 0, said[-3000:]
    assert "going on after epoch" in said
    assert_same(undisturbed, tmp_path / "out.h5ad", **CLOSE)


@pytest.fixture
def two_nodes() -> Iterator[tuple[list[str], list[str]]]:
    """Return what to put before a command to run it on either of two machines that a wire connects."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two network namespaces need root and iproute2")
    ends = [(f"ac{os.getpid()}{end}", f"10.231.7.{number}") for number, end in enumerate("ab", start=1)]
    try:
        for name, _ in ends:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
        (one, address_one), (two, address_two) = ends
        wire = f"ip link add wire netns {one} type veth peer name wire netns {two}"
        made = subprocess.run(wire.split(), capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no virtual wire can be made here: {made.stderr.strip()}")
        for name, address in ((one, address_one), (two, address_two)):
            inside = ["ip", "netns", "exec", name, "ip"]
            for line in (f"addr add {address}/24 dev wire", "link set wire up", "link set lo up"):
                subprocess.run([*inside, *line.split()], check=True)
        yield tuple(
            ["ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=wire", f"NODE_ADDRESS={address}"]
            for name, address in ends
        )  # type: ignore[misc]
    finally:
        for name, _ in ends:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
def test_two_machines_of_which_one_loses_its_process(
    undisturbed: Path, simulated: anndata.AnnData, tmp_path: Path, two_nodes: tuple[list[str], list[str]]
) -> None:
    simulated.write_h5ad(tmp_path / "counts.h5ad")
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", "10.231.7.1:29517"]
    together = ["--nnodes", "2", "--max-restarts", "1", *meeting]
    runs = []
    for number, node in enumerate(two_nodes):
        own = ["--local-addr", node[-1].split("=")[1], "--rdzv-conf", f"is_host={number == 0}"]
        command = [*node, *TORCHRUN, "1", *together, *own, *train_command(tmp_path)]
        runs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=quiet(), start_new_session=True))
    try:
        wait_for(tmp_path / "out.anncoder" / "unfinished" / "run.log", "epoch 5/", runs[0])
        os.kill(_children(runs[1].pid)[0], signal.SIGKILL)
        said = "".join(run.communicate(timeout=200)[1] for run in runs)
    finally:
        for run in runs:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
    assert [run.returncode for run in runs] == [0, 0], said[-3000:]
    assert "going on after epoch" in said
    assert_same(undisturbed, tmp_path / "out.h5ad", **CLOSE)
