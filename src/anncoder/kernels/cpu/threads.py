"""Threads of the CPU kernels: numba functions run on torch's own OpenMP threads.

numba has a second pool of OpenMP threads: after every operation one pool spins for a while and keeps the cores from the
other (measured: on two cores a training step was no faster than on one). So numba only compiles here, and torch's
OpenMP runs the compiled functions. A function reads its arrays from a table of addresses, and takes its work by
tickets, for any number of threads.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from anncoder.kernels.cpu.vector_math import EXACT, Scalar, Vector

ENTRY = 3  # a row of the table: address, and two lengths
DTYPES = {"f4": torch.float32, "f8": torch.float64, "i4": torch.int32, "i8": torch.int64}


class Kernel:
    """A compiled function, run by several threads together.

    Parameters
    ----------
    function
        Of the address of the table; see :func:`kernel`.
    dtypes
        Types of its arrays, in order.
    """

    def __init__(self, function: Callable[[Any], None], dtypes: tuple[str, ...]) -> None:
        self.function = function
        self.dtypes = dtypes
        self._types = [(np.dtype(name), DTYPES[name]) for name in dtypes]
        self._compiled: Any = None
        self._lock = Lock()

    def compile(self) -> None:
        """Compile the function, or read it from the cache, unless that is done; other threads wait for it."""
        with self._lock:
            if self._compiled is None:
                self._compiled = _compiled(self.function)

    def __call__(self, n_tickets: int, *arrays: Vector | Tensor) -> None:
        """Run the function with this number of tickets, on arrays and tensors of one or two dimensions.

        A TypeError for arrays of another type than compiled for, not contiguous, or not on the CPU.
        """
        if self._compiled is None:
            self.compile()
        ticket = array("q", [0])
        entries = array("q", [0, n_tickets, len(arrays) + 1, ticket.buffer_info()[0], 1, 1])
        for data, (dtype, of_tensor) in zip(arrays, self._types, strict=True):
            if isinstance(data, Tensor):
                fits, address = data.dtype is of_tensor and data.is_contiguous() and data.is_cpu, data.data_ptr()
            else:
                fits, address = data.dtype == dtype and data.flags.c_contiguous, data.__array_interface__["data"][0]
            if not fits:
                raise TypeError(f"{self.function.__name__}: expected contiguous {dtype} on the CPU, got {data.dtype}")
            size = data.shape
            entries.extend((address, size[0], size[1] if len(size) > 1 else 1))
        _in_parallel(self._compiled, entries.buffer_info()[0], min(torch.get_num_threads(), n_tickets))


def kernel(*dtypes: str) -> Callable[[Callable[[Any], None]], Kernel]:
    """Make a kernel of a function, compiled at its first call and cached; ``dtypes`` are the types of its arrays.

    The function begins with ``table = arguments(address)``, gets array k by ``f32(table, k)`` and the like, and works
    until ``take_ticket(table)`` is negative.
    """
    return lambda function: Kernel(function, dtypes)


@intrinsic
def pointer(_context: Any, _address: Any) -> Any:
    """Return an address, int64, as a pointer."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _next(_context: Any, _address: Any) -> Any:
    # atomic: no two threads get the same ticket
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        counter = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


@njit
def arguments(address: Scalar) -> Any:
    """Return the table of a kernel, (n, 3) int64."""
    head = carray(address, (ENTRY,), np.int64)
    return carray(address, (head[2] + 1, ENTRY), np.int64)


@njit
def take_ticket(table: Vector) -> Scalar:
    """Return the next ticket, or -1 at the end."""
    number = _next(table[1, 0])
    return number if number < table[0, 1] else -1


@njit
def f32(table: Vector, k: int) -> Any:
    """Return array k, float32 of two dimensions."""
    return carray(pointer(table[k + 2, 0]), (table[k + 2, 1], table[k + 2, 2]), np.float32)


@njit
def f32_line(table: Vector, k: int) -> Any:
    """Return array k, float32 of one dimension."""
    return carray(pointer(table[k + 2, 0]), (table[k + 2, 1],), np.float32)


@njit
def f64_line(table: Vector, k: int) -> Any:
    """Return array k, float64 of one dimension."""
    return carray(pointer(table[k + 2, 0]), (table[k + 2, 1],), np.float64)


@njit
def i64_line(table: Vector, k: int) -> Any:
    """Return array k, int64 of one dimension."""
    return carray(pointer(table[k + 2, 0]), (table[k + 2, 1],), np.int64)


@njit
def i64(table: Vector, k: int) -> Any:
    """Return array k, int64 of two dimensions."""
    return carray(pointer(table[k + 2, 0]), (table[k + 2, 1], table[k + 2, 2]), np.int64)


@njit
def i32_line(table: Vector, k: int) -> Any:
    """Return array k, int32 of one dimension."""
    return carray(pointer(table[k + 2, 0]), (table[k + 2, 1],), np.int32)


def _compiled(function: Callable[[Any], None]) -> Any:
    settings: dict[str, Any] = {"fastmath": EXACT, "error_model": "numpy"}
    try:
        return cfunc(types.void(types.voidptr), cache=True, **settings)(function)
    except RuntimeError as error:  # neither the package nor the home of the user is writable
        if "no locator" not in str(error):
            raise
        return cfunc(types.void(types.voidptr), **settings)(function)


def _in_parallel(compiled: Any, address: int, threads: int) -> None:
    if threads <= 1:
        compiled.ctypes(address)
    elif (openmp := _torch_openmp()) is not None:
        openmp(compiled.address, address, threads, 0)
    else:  # ctypes releases the interpreter lock
        list(_pool(threads).map(lambda _: compiled.ctypes(address), range(threads)))


@cache
def _torch_openmp() -> Any:
    # the GNU entry point, which LLVM's and Intel's runtimes have on Linux too; of the library that torch has loaded
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return None
    run = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
    if run is not None:
        run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return run


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="anncoder-kernel")
