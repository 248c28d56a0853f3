"""Device (CPU, CUDA, MPS), number of threads, free memory."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from anncoder.errors import ConfigError, ResourceError, out_of_memory

CGROUP = Path("/sys/fs/cgroup")  # of this container, where there is one
SCHEDULED = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "LSB_DJOB_NUMPROC")  # CPUs for a process, by their givers
RESIDENT_SHARE = 0.4  # of the free memory of a GPU, for the data


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is a CUDA GPU if there is one, else the CPU.

    ``"gpu"`` is what GPU there is: CUDA, or Apple's. Each of several processes on a machine gets a GPU of its own, with
    ``"auto"``, ``"gpu"`` and ``"cuda"``. Apple's ``mps`` has to be asked for: some operations there are wrong or
    missing.

    Raises
    ------
    ConfigError
        There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "gpu":
        name = "mps" if torch.backends.mps.is_available() and not torch.cuda.is_available() else "cuda"
    name = own_gpu() if name == "cuda" else name
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        what = f"device {name!r} cannot be used here: {_why_not(name, error)}"
        remedy = "device='cpu' or device='auto' (--device cpu, --device auto)"
        raise ConfigError("no-device", what, "device", remedy) from error
    return device


def _why_not(name: str, error: Exception) -> str:
    # torch's own reasons are pages, or name thirty devices
    kind = name.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        built = "no CUDA GPU is found" if torch.version.cuda else "this build of PyTorch is for CPUs only"
        return f"{built}"
    if kind == "cuda":
        return f"there are {torch.cuda.device_count()} CUDA GPUs, counted from 0"
    if kind == "mps":
        return "it is the GPU of Apple's processors, and none is found"
    if kind not in ("cpu", "xpu"):
        return "devices are auto, cpu, gpu, cuda, cuda:1, mps"
    return str(error).splitlines()[0].partition(". ")[0][:200]


def own_gpu() -> str:
    """Return the GPU of this process: under torchrun by its local rank (unless it sees but one), else torch's own."""
    alone = "LOCAL_RANK" not in os.environ or torch.cuda.device_count() == 1
    return "cuda" if alone else f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Set the CPU threads of torch and the kernels for the time of a block.

    None leaves torch's number, but takes no more than this process may use (:func:`usable_cpus`).
    """
    before = torch.get_num_threads()
    wanted = min(before, usable_cpus()) if threads is None else threads
    if wanted != before:
        torch.set_num_threads(wanted)
    if wanted > 1:
        wait_without_spinning()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:  # other packages, too, set it: numba's first parallel loop does
            torch.set_num_threads(before)


def usable_cpus() -> int:
    """Return how many CPUs this process may use at once.

    The least of the cores of the machine, the affinity of the process, the quota of its control group (version 1 or 2),
    and what a scheduler gave: ``SLURM_CPUS_PER_TASK``, ``LSB_DJOB_NUMPROC`` and, as torch, ``OMP_NUM_THREADS``.
    """
    limits = [getattr(os, "process_cpu_count", os.cpu_count)() or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    limits += [int(text) for name in SCHEDULED if (text := os.environ.get(name, "").partition(",")[0]).isdigit()]
    if (quota := _quota()) is not None:
        limits.append(math.ceil(quota))
    return max(1, min(limits))


def _quota() -> float | None:
    """Return the CPUs that the control group lets its processes use, or None for any number."""
    v2, v1 = CGROUP / "cpu.max", CGROUP / "cpu"
    try:
        if v2.exists():
            quota, period = v2.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (v1 / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip() for name in ("quota", "period")
            )
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _room_for(n_threads: int) -> bool:
    """Return whether the control group lets this process start so many threads, with as many to spare."""
    try:
        most = (CGROUP / "pids.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "pids.current").read_text(encoding="ascii"))
        return most == "max" or int(most) - used >= 2 * n_threads
    except (OSError, ValueError):  # no control group, or none with a limit
        return True


@cache
def wait_without_spinning() -> None:
    """Let the threads of torch's OpenMP sleep, not spin, while they wait for each other.

    After every operation each thread waits for the others, some hundred times a training step. A spinning one keeps its
    core from the thread that it waits for, where other programs use the machine: beside one busy process two threads
    were 38 times slower than one; sleeping, they are a tenth to a quarter slower, and on an idle machine no slower
    (docs/benchmarks.md). Only the environment sets this for good, before torch is loaded, so the runtime's own rule
    is used: GNU's spins but a moment once there are more threads than cores, and a second team, asleep from its first
    moment to the end of the process, makes them more. LLVM's and Intel's runtimes have a function for it.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ) or not library.exists():
        return
    openmp = ctypes.CDLL(str(library))
    if hasattr(openmp, "kmp_set_blocktime"):
        openmp.kmp_set_blocktime(0)
        return
    run = getattr(openmp, "GOMP_parallel", None)
    if run is None:
        return
    n_threads = (os.cpu_count() or 1) + 1
    if not _room_for(n_threads):  # the runtime ends the process where it may not start a thread
        return
    started, nothing = threading.Event(), ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) is nothing

    def team() -> None:
        run(nothing, None, ctypes.c_uint(n_threads), ctypes.c_uint(0))
        started.set()
        threading.Event().wait()  # a team ends with the thread that started it

    threading.Thread(target=team, name="anncoder-asleep", daemon=True).start()
    started.wait()


_one_at_a_time = threading.Lock()


def one_thread_here() -> None:
    """Make torch single-threaded in the calling thread; others, and later ones, keep their number of threads."""
    with _one_at_a_time:
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        # this also is the start of new threads; another thread sets that back
        other = threading.Thread(target=torch.set_num_threads, args=(n_threads,))
        other.start()
        other.join()


@contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute matrix products on a CUDA GPU in this precision for the time of a block.

    TF32 rounds the factors to 11 bits and adds up in float32. With ``"float32"``, and on other devices, torch's setting
    stays.
    """
    if precision == "float32" or device.type != "cuda":
        yield
        return
    with _tf32:
        yield


class _ProcessSetting:
    """A setting of the process for the time of a block; of blocks that overlap in threads, the last restores it."""

    def __init__(self, wanted: Any, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
        self.wanted, self.get, self.put = wanted, get, put
        self.lock, self.n_inside, self.before = threading.Lock(), 0, wanted

    def __enter__(self) -> None:
        with self.lock:
            if self.n_inside == 0:
                self.before = self.get()
                self.put(self.wanted)
            self.n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.n_inside -= 1
            if self.n_inside == 0 and self.before != self.wanted:
                self.put(self.before)


_tf32 = _ProcessSetting("high", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
_float32 = _ProcessSetting(torch.float32, torch.get_default_dtype, torch.set_default_dtype)


@contextmanager
def usual_torch() -> Iterator[None]:
    """Set torch to its defaults for the time of a block: gradients on, float32, CPU.

    Networks and kernels are float32, also if ``fit`` is called under other settings.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type not in ("cpu", "meta"):  # the mode costs time at every operation
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32)
        yield


def available_memory() -> int | None:
    """Return the bytes of free memory, or None where the system does not report it."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        free = min(free, int(text) - int(used.read_text(encoding="ascii")) + _reclaimable())
    return free


def _reclaimable() -> int:
    # the cache of files counts as used, but the kernel frees it on demand
    stat = CGROUP / "memory.stat"
    lines = stat.read_text(encoding="ascii").splitlines() if stat.exists() else []
    return int(dict(line.split(maxsplit=1) for line in lines).get("inactive_file", "0"))


def fits(n_bytes: int, device: torch.device) -> bool:
    """Return whether data of this size fit on a CUDA GPU, leaving most of its free memory to the network."""
    return device.type == "cuda" and n_bytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def refuse_size(n_bytes: int) -> None:
    """Raise a ResourceError if a dense result of this size does not fit into memory."""
    available = available_memory()
    if available is not None and n_bytes > 0.8 * available:
        what = f"the denoised matrix needs {n_bytes / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free"
        remedy = "denoise fewer genes (genes=[...]) or fewer cells at a time"
        raise ResourceError("too-large-for-memory", what, "denoise", remedy)


@contextmanager
def memory_errors(where: str) -> Iterator[None]:
    """Turn running out of memory, on the CPU or a GPU, into a ResourceError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        what = f"out of memory: {str(error).splitlines()[0] if str(error) else 'allocation failed'}"
        remedy = "use a smaller batch_size, fewer genes or narrower layers"
        raise ResourceError("out-of-memory", what, where, remedy) from error
