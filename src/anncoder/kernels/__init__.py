"""Fused CPU passes, compiled by numba at first use and cached.

Each stands beside an exact reference: the likelihoods' eager torch forms and their float64 textbook forms, and torch's
own sparse products. :func:`fused` says whether the kernels serve some tensors; the environment variable
``ANNCODER_KERNELS=torch`` and :func:`use` switch them off.
"""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["numba", "torch"]

_backend: Backend = "torch" if os.environ.get("ANNCODER_KERNELS") == "torch" else "numba"


def use(backend: Backend) -> Backend:
    """Choose ``"numba"`` or ``"torch"`` from here on; return what it was before."""
    global _backend
    before, _backend = _backend, backend
    return before


def fused(*tensors: Tensor | None) -> bool:
    """Tell whether the kernels serve these tensors: float32, on the CPU, and not switched off."""
    return _backend == "numba" and all(
        t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors
    )
