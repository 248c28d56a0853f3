"""Compilation of kernels in a thread of its own, while the data are read and checked.

numba's cache is in the package's ``__pycache__``; where that cannot be written to, in the user's cache folder; or where
``NUMBA_CACHE_DIR`` says. Entries are written under other names first and then moved, so several processes may compile
at once. The key has the processor, so a home that several kinds of machine share is fine too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from anncoder.kernels.cpu.threads import Kernel

_thread: threading.Thread | None = None


def begin(name: str, likelihood: str | None, after: Callable[[], None]) -> None:
    """Begin to compile, or to read from the cache, what training needs; without effect while another such thread works.

    Parameters
    ----------
    name
        Of the thread.
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"`` or ``"gaussian"``; None for none of these.
    after
        Called when it is done.
    """
    global _thread
    if _thread is not None and _thread.is_alive():
        after()
        return

    def work() -> None:
        try:
            for one in _needed(likelihood):
                if not threading.main_thread().is_alive():  # the process wants to end, and waits for this thread
                    break
                one.compile()
        finally:
            after()

    _thread = threading.Thread(target=work, name=name)
    _thread.start()


def finish() -> None:
    """Wait until nothing is compiled ahead."""
    if _thread is not None:
        _thread.join()


def _needed(likelihood: str | None) -> list[Kernel]:
    # in the order in which a fit calls them
    from anncoder.kernels.cpu import adam, nb, poisson, sparse, zinb

    losses = {"nb": nb.nb, "zinb": zinb.zinb, "poisson": poisson.poisson, "gaussian": poisson.squared}
    first = [sparse.take_rows, sparse.log_normalize, sparse.transposed_matmul, sparse.rows_fit]
    return [*first, *([losses[likelihood]] if likelihood in losses else []), adam.sum_squares, adam.adam]


# a child of a fork has no such thread, but would have numba's lock as the thread held it
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=finish)
