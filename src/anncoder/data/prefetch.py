"""Reading ahead: one thread makes the next item while the current one is used."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakSet

logger = logging.getLogger("anncoder")

T = TypeVar("T")
PATIENCE = 120.0  # seconds without anything read, after which it is said which file it is
AT_EXIT = 10.0  # seconds that the end of the interpreter waits for a read
READER = "anncoder-reader"  # name of the threads

_running: WeakSet[Any] = WeakSet()


class prefetched(Generic[T]):
    """Iterate over the items of an iterator that runs in a thread of its own.

    Two items exist at most: the one that was taken last, and the next one, made or in the making.

    Parameters
    ----------
    items
        Runs ahead; its exceptions come out here.
    where
        What it reads, for a message when nothing comes for two minutes.
    """

    def __init__(self, items: Iterator[T], where: str = "the data") -> None:
        self._items, self._where = items, where
        self._next: T | None = None
        self._error: BaseException | None = None
        self._over = self._stopped = False
        self._taken, self._made = threading.Semaphore(1), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=READER, daemon=True)
        self._thread.start()
        _running.add(self)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        while not self._made.acquire(timeout=PATIENCE):
            logger.warning(
                "nothing has come from %s for %.0f s: is its disk, or the network to it, still there?",
                self._where,
                PATIENCE,
            )
        if self._error is not None:
            self._over = True
            raise self._error
        if self._over:
            raise StopIteration
        item, self._next = self._next, None
        self._taken.release()
        return item  # type: ignore[return-value]

    def stop(self) -> None:
        """Tell the thread to end, and do not wait for it."""
        self._over = self._stopped = True
        self._taken.release()

    def close(self, timeout: float | None = None) -> None:
        """End the thread; wait for what it reads, or so many seconds."""
        self.stop()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while True:
                self._taken.acquire()
                if self._stopped:
                    return
                self._next = next(self._items)
                self._made.release()
        except StopIteration:
            self._over = True
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits for it
            self._error = error
        self._made.release()


@atexit.register
def close_all() -> None:
    """End all threads, while that can be done: one that the interpreter kills while it reads keeps the lock of HDF5.

    Whoever closes a file after that would wait for ever - as after a read that takes longer than ``AT_EXIT``.
    """
    until = time.monotonic() + AT_EXIT
    for items in list(_running):
        items.stop()
    # by their name: one that has read everything is none that runs, and may still be closing its file
    for thread in threading.enumerate():
        if thread.name == READER:
            thread.join(max(until - time.monotonic(), 0))
