"""Several processes on one or more machines; ``torchrun`` starts them, ``torch.distributed`` connects them.

Every process has the whole road and its own share of each minibatch. Gradients are averaged by
``DistributedDataParallel``, and every number that decides anything is a sum over all of them, so that all decide alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from anncoder.errors import ResourceError

PATIENCE = timedelta(minutes=10)  # how long to wait for another process


class Share(NamedTuple):
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1


ALONE = Share()


@contextmanager
def processes() -> Iterator[Share]:
    """Join the other processes, if ``torchrun`` started any, for the time of a block.

    Raises
    ------
    ResourceError
        Another process has gone.
    """
    ours = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if ours:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        with _gone():
            yield Share(distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else ALONE
    finally:
        if ours:
            distributed.destroy_process_group()


def own_gpu() -> str:
    """Return the GPU of this process: one each of those that torchrun started on a machine, else torch's current."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def wrapped(network: nn.Module, share: Share) -> nn.Module:
    """Return the network whose gradients are averaged over all processes."""
    if share.size == 1:
        return network
    # all parameters have a gradient in every step, and running statistics are averaged once an epoch instead
    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network itself."""
    inner: nn.Module = network.module if isinstance(network, DistributedDataParallel) else network
    return inner


def summed(values: Tensor, share: Share) -> Tensor:
    """Return the sum over all processes."""
    if share.size > 1:
        distributed.all_reduce(values)
    return values


def average_buffers(network: nn.Module, share: Share) -> None:
    """Give running statistics, of which each process has its own, their mean."""
    if share.size == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= share.size


def sent(content: bytes, share: Share, device: torch.device) -> bytes:
    """Return what the first process has."""
    if share.size == 1:
        return content
    length = torch.tensor([len(content)], device=device)
    distributed.broadcast(length, 0)
    values = torch.empty(int(length), dtype=torch.uint8)
    if share.rank == 0:
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else values
    values = values.to(device)
    distributed.broadcast(values, 0)
    return values.cpu().numpy().tobytes()


def gathered(value: Tensor, share: Share, device: torch.device) -> list[Tensor]:
    """Return what each process has, on the CPU; all have the same shape and dtype."""
    if share.size == 1:
        return [value.cpu()]
    parts = [torch.empty_like(value, device=device) for _ in range(share.size)]
    distributed.all_gather(parts, value.to(device))
    return [part.cpu() for part in parts]


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign in text for sign in ("Connection closed", "Connection reset", "Timed out", "NCCL", "gloo")):
            raise
        raise ResourceError(
            f"another process of the run has gone: {text.splitlines()[0][:200]}",
            code="rank-lost",
            where="torch.distributed",
            remedy="look at the other processes' messages; torchrun --max-restarts starts all of them again",
        ) from error
