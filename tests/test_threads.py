"""Threads: limits of the process are kept, and threads that wait leave their cores to others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import anncoder as ac
from anncoder import device
from anncoder.device import SCHEDULED, threads_set, usable_cpus


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Fake a machine of 64 cores and a control group without a limit; return its folder."""
    for name in SCHEDULED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 64),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "nonsense"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_the_quota_of_a_container_is_kept(many: Path, files: dict[str, str], cpus: int) -> None:
    for name, text in files.items():
        (many / name).parent.mkdir(exist_ok=True)
        (many / name).write_text(text)
    assert usable_cpus() == cpus


@pytest.mark.parametrize(("most", "room"), [("max", True), ("1000", True), ("110", False), ("", True)])
def test_no_thread_is_started_beyond_the_limit_of_the_container(many: Path, most: str, room: bool) -> None:
    if most:
        (many / "pids.max").write_text(f"{most}\n")
        (many / "pids.current").write_text("50\n")
    assert device._room_for(65) is room


@pytest.mark.parametrize("name", SCHEDULED)
def test_what_a_scheduler_gave_is_kept(many: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "3")
    assert usable_cpus() == 3
    monkeypatch.setenv(name, "5,2")  # OpenMP's levels
    assert usable_cpus() == 5
    monkeypatch.setenv(name, "many")
    assert usable_cpus() == 64


def test_affinity_and_pythons_own_count_are_kept(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 9}, raising=False)
    assert usable_cpus() == 3
    monkeypatch.setattr(os, "process_cpu_count", lambda: 2, raising=False)  # of Python 3.13, -X cpu_count
    assert usable_cpus() == 2


def test_a_fit_takes_no_more_threads_than_it_may(many: Path, monkeypatch: pytest.MonkeyPatch, counts: Any) -> None:
    (many / "cpu.max").write_text("200000 100000\n")
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        quick = {"max_epochs": 1, "progress": False}
        monkeypatch.setattr("anncoder.training.prepare.WORK_OF_A_THREAD", 1)
        assert ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(counts, **quick).training_.threads == 2
        assert torch.get_num_threads() == 5
        # what is asked for is taken
        assert ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(counts, threads=3, **quick).training_.threads == 3
        with threads_set(None):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    not (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").exists(), reason="torch has no libgomp"
)
@pytest.mark.skipif(
    len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) < 2, reason="one core has nobody to wait for"
)
def test_threads_that_wait_use_no_time() -> None:
    """Between products one thread sleeps: by default the other spins, which others' work would pay for."""
    code = """
import time, torch
torch.set_num_threads(2); x = torch.ones(400, 400); x @ x
from anncoder.device import wait_without_spinning
used = []
for _ in range(2):
    start = time.process_time()
    for _ in range(60):
        x @ x
        time.sleep(0.005)
    used.append(time.process_time() - start)
    wait_without_spinning()
print(*used)
"""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings)
    spinning, sleeping = map(float, done.stdout.split())
    assert sleeping < 0.6 * spinning


def test_the_users_own_policy_stays() -> None:
    code = (
        "import threading; from anncoder.device import wait_without_spinning; n = threading.active_count(); "
        "wait_without_spinning(); print(threading.active_count() - n)"
    )
    for name, started in (("OMP_WAIT_POLICY", 0), ("NOTHING", 1)):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {name: "active"}
        )
        if not (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").exists():
            started = 0
        assert int(done.stdout) == started
