"""Distributed training (torchrun): averaged gradients, summed losses.

Every process has the whole network and its own share of each minibatch. Gradients are averaged by
``DistributedDataParallel``; every number that decides anything is summed over all processes, so all decide alike.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from anncoder.errors import ResourceError
from anncoder.types import SINGLE, Rank

PATIENCE = timedelta(minutes=10)  # how long to wait for another process


@contextmanager
def processes(device: str = "auto") -> Iterator[Rank]:
    """Join the other processes, if ``torchrun`` started any, for the time of a block.

    Parameters
    ----------
    device
        Where they will compute, as for ``fit``: NCCL sends nothing that is on the CPU.

    Raises
    ------
    ResourceError
        Another process has died.
    """
    ours = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    try:
        with _gone():
            if ours:
                store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
                on_gpu = torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))
                store = PrefixStore(_meeting(store, rank, size), store)
                distributed.init_process_group(
                    "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE
                )
            yield Rank(distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else SINGLE
    finally:
        if ours and distributed.is_initialized():
            distributed.destroy_process_group()


def wrapped(network: nn.Module, process: Rank) -> nn.Module:
    """Return the network with gradients averaged over all processes."""
    if process.size == 1:
        return network
    # all parameters have a gradient in every step, and running statistics are averaged once an epoch instead
    with warnings.catch_warnings():  # torch 2.13 has another name for it, which earlier ones do not know
        warnings.filterwarnings("ignore", r"`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network itself."""
    inner: nn.Module = network.module if isinstance(network, DistributedDataParallel) else network
    return inner


def summed(values: Tensor, process: Rank) -> Tensor:
    """Return the sum over all processes."""
    if process.size > 1:
        distributed.all_reduce(values)
    return values


def average_buffers(network: nn.Module, process: Rank) -> None:
    """Replace running statistics by their mean over the processes."""
    if process.size == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= process.size


def sent(content: bytes, process: Rank, device: torch.device) -> bytes:
    """Return the content that the first process has."""
    if process.size == 1:
        return content
    length = torch.tensor([len(content)], device=device)
    distributed.broadcast(length, 0)
    values = torch.empty(int(length), dtype=torch.uint8)
    if process.rank == 0:
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else values
    values = values.to(device)
    distributed.broadcast(values, 0)
    return values.cpu().numpy().tobytes()


def gathered(value: Tensor, process: Rank, device: torch.device) -> list[Tensor]:
    """Return the tensors of all processes, of one shape and dtype, on the CPU."""
    if process.size == 1:
        return [value.cpu()]
    parts = [torch.empty_like(value, device=device) for _ in range(process.size)]
    distributed.all_gather(parts, value.to(device))
    return [part.cpu() for part in parts]


def names_of_all(names: list[str], process: Rank, device: torch.device) -> list[str]:
    """Return the names that any process has, in the same order everywhere."""
    if process.size == 1:
        return names
    content = "\n".join(names).encode()
    lengths = [int(length) for length in gathered(torch.tensor([len(content)]), process, device)]
    if not any(lengths):
        return []
    padded = bytearray(content.ljust(max(lengths), b"\n"))
    texts = gathered(torch.frombuffer(padded, dtype=torch.uint8), process, device)
    found = [name for text in texts for name in text.numpy().tobytes().decode().split("\n") if name]
    return list(dict.fromkeys(found))


def _meeting(store: Store, rank: int, size: int) -> str:
    """Return a name on which the living processes have agreed.

    torchrun gives restarted processes the store of their predecessors, with the addresses of the dead in it (torch
    2.13). Each process asks the first one under a fresh name, so that no old answer can pass for a new one.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", own)
        name = store.get(f"answer/{own}").decode()
        store.set(f"heard/{name}/{rank}", "")
        return str(name)
    for other in range(1, size):
        # an older question may be of a dead process: the living one asks anew
        while not store.check([f"heard/{own}/{other}"]):
            store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)
            time.sleep(0.01)
    return own


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        signs = ("connection closed", "connection reset", "connection refused", "timed out", "nccl", "gloo", "tcpstore")
        if not any(sign in text.lower() for sign in signs):
            raise
        what = f"another process of the run has gone: {text.splitlines()[0][:200]}"
        remedy = "look at the other processes' messages; torchrun --max-restarts starts all of them again"
        raise ResourceError("rank-lost", what, "torch.distributed", remedy) from error
