"""The machine as it is seen: which GPU is whose, and how much memory is free."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

import anncoder as ac
from anncoder import device
from anncoder.device import available_memory, choose_device
from anncoder.errors import ConfigError

MIB = 2**20


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the control group of a container with 96 MiB, 90 of them taken."""
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{96 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{90 * MIB}\n")
    return tmp_path


class TestOwnGPU:
    @pytest.mark.parametrize(
        ("rank", "visible", "name", "chosen"),
        [
            ("1", 2, "cuda", "cuda:1"),
            ("1", 2, "auto", "cuda:1"),
            ("1", 2, "cuda:0", "cuda:0"),
            ("1", 2, "cpu", "cpu"),
            ("1", 1, "cuda", "cuda"),
            (None, 2, "cuda", "cuda"),
        ],
    )
    def test_each_process_has_its_own(  # of a machine with GPUs, which this one need not be
        self, rank: str | None, visible: int, name: str, chosen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
        assert choose_device(name) == torch.device(chosen)

    def test_one_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "99")
        with pytest.raises(ConfigError, match="cannot be used here"):
            choose_device("cuda")


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


class TestNames:
    def test_gpu_is_what_gpu_there_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
        for cuda, mps, chosen in ((True, False, "cuda"), (True, True, "cuda"), (False, True, "mps")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
            monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
            assert choose_device("gpu").type == chosen

    @pytest.mark.parametrize("name", ["gpu", "cuda:7", "mps", "tpu", "", "cuda:x"])
    def test_one_that_is_not_there_is_refused_in_one_short_sentence(self, name: str) -> None:
        if name in ("gpu", "mps") and (torch.cuda.is_available() or torch.backends.mps.is_available()):
            pytest.skip("this machine has a GPU")
        with pytest.raises(ConfigError, match="no-device") as caught:
            choose_device(name)
        assert len(caught.value.what) < 120
        assert "--device cpu" in caught.value.remedy


def test_a_loaded_model_is_where_it_was_asked_for(counts: anndata.AnnData, tmp_path: Path) -> None:
    model = ac.CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, threads=1, progress=False)
    model.save(tmp_path / "model")
    again = ac.load(tmp_path / "model", device="cpu").to("auto")
    np.testing.assert_allclose(again.embed(counts), model.embed(counts), rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="no-device"):
        ac.load(tmp_path / "model", device="abacus")
    with pytest.raises(ConfigError, match="not-fitted"):
        ac.CountAutoencoder().to("cpu")
