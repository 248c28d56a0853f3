"""The machine as it is seen: how much memory is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from anncoder import device
from anncoder.device import available_memory

MIB = 2**20


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the control group of a container with 96 MiB, 90 of them taken."""
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{96 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{90 * MIB}\n")
    return tmp_path


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say")
class TestMemory:
    def test_a_file_that_was_read_takes_none(self, container: Path) -> None:
        assert available_memory() == 6 * MIB
        (container / "memory.stat").write_text(f"anon {20 * MIB}\nfile {70 * MIB}\ninactive_file {60 * MIB}\n")
        assert available_memory() == 66 * MIB

    def test_a_container_without_a_limit_has_what_the_machine_has(self, container: Path) -> None:
        (container / "memory.max").write_text("max\n")
        free = available_memory()
        assert free is not None
        assert free > 96 * MIB
