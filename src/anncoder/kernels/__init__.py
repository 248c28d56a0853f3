"""Fused passes: on the CPU compiled by numba at first use and cached, on CUDA GPUs by Triton.

Each stands beside an exact reference: the likelihoods' eager torch forms and their float64 textbook forms, and torch's
own sparse products. :func:`fused` and :func:`on_gpu` say whether the kernels serve some tensors; the environment
variable ``ANNCODER_KERNELS=torch`` and :func:`use` switch them off.
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
    """Choose the kernels from here on; return what it was before.

    ``"numba"``, the default, is numba on the CPU and Triton on CUDA GPUs. ``"torch"`` is neither. ``"triton"`` is
    Triton on the CPU too, which is for its interpreter (``TRITON_INTERPRET=1``) and very slow.
    """
    global _backend
    before, _backend = _backend, backend
    return before


def fused(*tensors: Tensor | tuple[Tensor, ...] | None) -> bool:
    """Tell whether the numba kernels serve these tensors: float32, on the CPU, and not switched off."""
    return _backend == "numba" and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in _each(tensors))


def on_gpu(*tensors: Tensor | tuple[Tensor, ...] | None) -> bool:
    """Tell whether the Triton kernels serve these tensors: float32, on a CUDA GPU, and not switched off."""
    return _backend != "torch" and all(
        t.dtype == torch.float32 and _has_kernels(t.device, interpreted=_backend == "triton") for t in _each(tensors)
    )


def constant(*tensors: Tensor | None) -> bool:
    """Tell whether nothing is differentiated by these tensors, for which the kernels have no gradient."""
    return not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors)


def empty_float32(*shape: int) -> Tensor:
    """Return memory for a kernel to write: float32, on the CPU, whatever torch makes by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _each(tensors: Iterable[Tensor | tuple[Tensor, ...] | None]) -> Iterator[Tensor]:
    for entry in tensors:
        if isinstance(entry, tuple):
            yield from entry
        elif entry is not None:
            yield entry


@cache
def _has_kernels(device: torch.device, *, interpreted: bool) -> bool:
    # kernels take tuples, which Triton knows since 3.4; CUDA builds of torch bring it since 2.8
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
