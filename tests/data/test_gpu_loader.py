"""Minibatches made on the device are those of the loader in memory; when a step on them can be recorded.

Here the device is the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import random as random_sparse

from anncoder import CountAutoencoder, device
from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.loaders.gpu import Resident, ResidentLoader
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.errors import ConfigError
from anncoder.models.count import CountConfig
from anncoder.models.undercomplete import UndercompleteConfig
from anncoder.training import cuda_graph, prepare
from anncoder.types import CSR, Batch, Loader, Rank

CPU = torch.device("cpu")


def loader(n: int = 53, **settings) -> MemoryLoader:  # type: ignore[no-untyped-def]
    matrix = random_sparse(n, 19, 0.3, format="csr", dtype=np.float32, random_state=0)
    rows = np.arange(n)[np.arange(n) % 5 > 0]
    return MemoryLoader(Stored.of(matrix), np.random.default_rng(0).random(n), rows, batch_size=8, **settings)


def assert_same(one: Batch, other: Batch) -> None:
    for a, b in zip((*one.counts[:3], *one[1:]), (*other.counts[:3], *other[1:]), strict=True):
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b))
    assert one.counts.n_vars == other.counts.n_vars


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("process", [Rank(0, 1), Rank(1, 2)])
def test_the_minibatches_are_those_of_the_loader_in_memory(seed: int | None, process: Rank) -> None:
    codes = np.arange(53) % 3
    in_memory = loader(seed=seed, process=process, batch_code=codes)
    made = ResidentLoader(in_memory, Resident(in_memory.stored, CPU))
    assert (len(made), made.n_obs) == (len(in_memory), in_memory.n_obs)
    for epoch in range(2):
        pairs = list(zip(in_memory.epoch(epoch), made.epoch(epoch), strict=True))
        assert len(pairs) == len(in_memory)
        for one, other in pairs:
            assert_same(one, other)


def test_rows_without_values() -> None:
    empty = MemoryLoader(Stored.of(random_sparse(4, 3, 0, format="csr")), np.ones(4), np.arange(4), batch_size=3)
    for one, other in zip(empty.epoch(0), ResidentLoader(empty, Resident(empty.stored, CPU)).epoch(0), strict=True):
        assert_same(one, other)


def test_a_fit_from_the_device_is_that_from_memory(counts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    one, other = (CountAutoencoder(n_latent=3, n_hidden=(8,)) for _ in range(2))
    one.fit(counts, max_epochs=3, batch_size=32, progress=False)
    seen: list[type[Loader]] = []
    monkeypatch.setattr(prepare, "fits", lambda n_bytes, on: True)
    epoch = ResidentLoader.epoch
    monkeypatch.setattr(ResidentLoader, "epoch", lambda self, number: (seen.append(type(self)), epoch(self, number))[1])
    other.fit(counts, max_epochs=3, batch_size=32, progress=False)
    assert len(seen) == 6  # three epochs of cells to fit on, and as many of cells held out
    assert one.history_.drop(columns="seconds").equals(other.history_.drop(columns="seconds"))
    np.testing.assert_array_equal(one.embed(counts), other.embed(counts))


def test_only_a_matrix_that_fits_goes_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, in_memory = torch.device("cuda"), loader()
    n_bytes = sum(array.nbytes for array in in_memory.stored[:3])
    monkeypatch.setattr(prepare, "Resident", lambda stored, on: Resident(stored, CPU))
    for free, moved in ((n_bytes * 2, False), (n_bytes * 3, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda on, free=free: (free, 10**12))
        train, valid = prepare.on_device([in_memory, None], gpu)
        assert isinstance(train, ResidentLoader) == moved
        assert valid is None
    assert prepare.on_device([in_memory, None], CPU) == [in_memory, None]
    from_disk = object()
    assert prepare.on_device([from_disk], gpu) == [from_disk]
    assert not device.fits(0, CPU)


class Recording:
    """Stands for CUDA: counts what is recorded and replayed."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def plain_step(self, *_: object) -> tuple[str, torch.Tensor]:
        self.log.append("step")
        return f"loss {len(self.log)}", torch.tensor(True)

    @contextmanager
    def graph(self, graph: object, **_: object) -> Iterator[None]:
        self.log.append("record")
        yield

    def replay(self) -> None:
        self.log.append("replay")


def test_a_step_is_recorded_once_and_again_for_another_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Recording()
    monkeypatch.setattr(cuda_graph, "plain_step", cuda.plain_step)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "graph", cuda.graph)
    here, other = (Batch(CSR(*torch.zeros(3, 4), 5), torch.ones(3), torch.zeros(3)) for _ in range(2))
    network, optimizer = torch.nn.Linear(1, 1), torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    place: Any = SimpleNamespace(batch=here, fill=lambda: cuda.log.append("fill"))
    take = cuda_graph.RecordedStep(place)

    def steps(batch: Batch, n: int) -> list[str]:
        cuda.log.clear()
        for _ in range(n):
            take(network, batch, optimizer, TrainingConfig())
        return cuda.log

    assert steps(here, 3) == ["fill", "step"] * 3
    assert steps(here, 3) == ["record", "fill", "step", "replay", "replay", "replay"]
    assert steps(other, 1) == ["step"]
    assert steps(here, 1) == ["replay"]
    optimizer.param_groups[0]["lr"] = 0.01
    assert steps(here, 3) == ["fill", "step", "record", "fill", "step", "replay", "replay"]  # once it stays
    for rate in (0.02, 0.03):  # a warm-up is not recorded
        optimizer.param_groups[0]["lr"] = rate
        assert steps(here, 1) == ["fill", "step"]


def test_what_cannot_be_recorded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = loader()
    made = ResidentLoader(in_memory, Resident(in_memory.stored, CPU))
    small = ResidentLoader(loader(9), Resident(loader(9).stored, CPU))
    alone, count = Rank(0, 1), CountConfig(corruption="none")

    def taken(loader: Loader = made, config: NetworkConfig = count, process: Rank = alone, **settings: Any) -> Any:
        training = TrainingConfig(**{"cuda_graph": True, **settings}).with_defaults_of(config)
        return cuda_graph.recorded_step_or_none(loader, config, training, process)

    monkeypatch.setattr(cuda_graph, "on_gpu", lambda values: True)
    assert isinstance(taken(), cuda_graph.RecordedStep)
    assert isinstance(taken(cuda_graph=None), cuda_graph.RecordedStep)
    assert taken(cuda_graph=False) is None
    refused = [
        ({"config": CountConfig(dropout_rate=0.1, corruption="none")}, "does not do the same"),
        ({"config": CountConfig()}, "does not do the same"),  # of random numbers
        ({"config": UndercompleteConfig()}, "does not do the same"),
        ({"optimizer": "rmsprop"}, "Adam"),
        ({"clip_value": 1.0}, "Adam"),
        ({"process": Rank(0, 2)}, "several processes"),
        ({"loader": in_memory}, "CUDA GPU with Triton"),
        ({"loader": small}, "fewer cells"),
    ]
    for arguments, reason in refused:
        with pytest.raises(ConfigError, match=reason) as caught:
            taken(**arguments)  # type: ignore[arg-type]
        assert caught.value.code == "no-cuda-graph"
        assert taken(**arguments, cuda_graph=None) is None  # type: ignore[arg-type]


def test_a_fit_on_the_cpu_says_that_it_cannot_be_recorded(counts) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="CUDA GPU with Triton"):
        CountAutoencoder(n_latent=2, corruption="none").fit(counts, device="cpu", cuda_graph=True, progress=False)
