"""The machine: which device to compute on, how many threads, how much memory is free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from anncoder.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is a CUDA GPU if there is one, else the CPU.

    Apple's ``mps`` is used only where it is asked for: some operations there are wrong or missing.

    Raises
    ------
    ConfigError
        There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}",
            code="no-device",
            where="device",
            remedy="device='auto' or device='cpu'",
        ) from error
    return device


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Set torch's CPU threads for the time of a block; None leaves them as they are."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)


def available_memory() -> int | None:
    """Return the bytes of memory that can still be taken, or None where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, int(text) - int(used.read_text(encoding="ascii")))
    return free
