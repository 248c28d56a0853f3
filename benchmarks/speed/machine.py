"""What the machine can do: matrix products, copies, special functions."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Return how long each of some calls took, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def rates(repeats: int) -> dict[str, float]:
    """Return the machine's rates, with the threads that torch has now."""
    a, b = torch.rand(256, 64), torch.rand(64, 2000)
    line = torch.rand(1 << 22)
    counts = torch.rand(1 << 18) * 5 + 0.1
    copy = torch.empty_like(line)

    def median(work: Callable[[], object]) -> float:
        return statistics.median(seconds(work, max(repeats, 5)))

    return {
        "matrix product 256x64x2000, GFLOP/s": 2 * 256 * 64 * 2000 / median(lambda: a @ b) / 1e9,
        "copy, GiB/s read and written": 2 * line.numel() * 4 / median(lambda: copy.copy_(line)) / 2**30,
        "exp, ns an element": median(counts.exp) / counts.numel() * 1e9,
        "lgamma, ns an element": median(counts.lgamma) / counts.numel() * 1e9,
        "digamma, ns an element": median(counts.digamma) / counts.numel() * 1e9,
    }


def peak_memory() -> float:
    """Return the most memory that this process has had, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss begins with the peak of the process that started this one
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def description() -> dict[str, Any]:
    """Return what the numbers belong to."""
    names = ("torch", "numpy", "numba", "anndata", "scipy")
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:  # noqa: PTH123 - not a file to manage
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
