"""Fused passes: on the CPU compiled by numba at first use and cached, on CUDA GPUs by Triton.

Each has an exact reference: the likelihoods' eager torch forms and float64 textbook forms, and torch's own sparse
products. :func:`fused` and :func:`on_gpu` choose the kernels by tensor; the environment variable
``ANNCODER_KERNELS=torch`` and :func:`use` switch them off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["numba", "triton", "torch"]

_backend: Backend = "torch" if os.environ.get("ANNCODER_KERNELS") == "torch" else "numba"


def use(backend: Backend) -> Backend:
    """Set the backend of the kernels; return the previous one.

    ``"numba"``, the default, is numba on the CPU and Triton on CUDA GPUs; ``"torch"`` no kernels at all; ``"triton"``
    Triton on the CPU too, for its interpreter (``TRITON_INTERPRET=1``, very slow).
    """
    global _backend
    before, _backend = _backend, backend
    return before


def fused(*tensors: Tensor | tuple[Tensor, ...] | None) -> bool:
    """Return whether to use the numba kernels: float32 tensors on the CPU, and not switched off."""
    return _backend == "numba" and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in _each(tensors))


def on_gpu(*tensors: Tensor | tuple[Tensor, ...] | None) -> bool:
    """Return whether to use the Triton kernels: float32 tensors on a CUDA GPU, and not switched off."""
    return _backend != "torch" and all(
        t.dtype == torch.float32 and _has_kernels(t.device, interpreted=_backend == "triton") for t in _each(tensors)
    )


def constant(*tensors: Tensor | None) -> bool:
    """Return whether no gradient by these tensors is wanted; the kernels have none."""
    return not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors)


def empty_float32(*shape: int) -> Tensor:
    """Return memory for a kernel to write: float32 on the CPU, under any default of torch."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _each(tensors: Iterable[Tensor | tuple[Tensor, ...] | None]) -> Iterator[Tensor]:
    for entry in tensors:
        if isinstance(entry, tuple):
            yield from entry
        elif entry is not None:
            yield entry


@cache
def _has_kernels(device: torch.device, *, interpreted: bool) -> bool:
    # kernels have tuple arguments, which Triton has since 3.4; it comes with CUDA builds of torch since 2.8
    if device.type not in (("cuda", "cpu") if interpreted else ("cuda",)):
        return False
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < (7, 0)):
        return False
    try:
        import triton
    except ImportError:
        return False
    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor.split("+")[0])) >= (3, 4)
