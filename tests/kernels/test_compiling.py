"""Compilation of the kernels: once, ahead of their use, and kept; and no other compiler in a fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import anncoder as ac
from anncoder.kernels.cpu import adam, ahead, nb, poisson, sparse, threads, zinb


def test_a_kernel_is_compiled_once_though_two_threads_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = threads._compiled, []

    def slow(function: Any) -> Any:
        asked.append(function)
        time.sleep(0.05)
        return real(function)

    monkeypatch.setattr(threads, "_compiled", slow)
    again = threads.Kernel(sparse.log_normalize.function, sparse.log_normalize.dtypes)
    both = [Thread(target=again.compile) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(asked) == 1


@pytest.mark.parametrize(("likelihood", "loss"), [("nb", nb.nb), ("gaussian", poisson.squared), (None, None)])
def test_what_a_fit_needs_is_compiled_ahead(likelihood: str | None, loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[threads.Kernel] = []
    monkeypatch.setattr(threads.Kernel, "compile", lambda self: compiled.append(self))
    done: list[int] = []
    ahead.begin("compiling", likelihood, lambda: done.append(1))
    ahead.finish()
    losses = {nb.nb, poisson.squared, poisson.poisson, zinb.zinb}
    assert {sparse.take_rows, sparse.transposed_matmul, adam.adam} < set(compiled)
    assert losses & set(compiled) == ({loss} if loss else set())
    assert done == [1]


def test_the_cache_survives_a_package_that_is_only_read_and_several_processes_at_once(tmp_path: Path) -> None:
    package = tmp_path / "site" / "anncoder"
    shutil.copytree(Path(ac.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "kernels" / "cpu" / "__pycache__").write_text("no folder can be made here")
    code = """
from anncoder.kernels.cpu import adam
adam.sum_squares.compile()
print(adam.__file__, adam.sum_squares._compiled.cache_hits)
"""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(package.parent), "XDG_CACHE_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    ended = [(process.communicate()[0].split(), process.returncode) for process in started]
    assert [code for _, code in ended] == [0, 0]
    later = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert later.stdout.split() == [str(package / "kernels" / "cpu" / "adam.py"), "1"]  # read, not compiled
    assert any(tmp_path.rglob("*.nbi"))


def test_a_fit_imports_no_other_compiler(tmp_path: Path) -> None:
    """torch's optimizers, meta tensors and gradients import torch's own, and sympy: two seconds of every process."""
    code = f"""
import sys
import anncoder as ac
cells = ac.datasets.simulate(n_obs=60, n_vars=30, seed=0, lib_loc=6.0)
model = ac.CountAutoencoder(n_latent=2).fit(cells, max_epochs=1, progress=False, checkpoint={str(tmp_path / "kept")!r})
model.save({str(tmp_path / "model")!r})
ac.load({str(tmp_path / "model")!r}).denoise(cells)
print(*({{"sympy", "torch._dynamo", "umap", "pynndescent"}} & set(sys.modules)), "end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["end"]
