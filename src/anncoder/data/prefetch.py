"""Reading ahead: one thread makes the next item while the current one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T], depth: int = 1) -> Iterator[T]:
    """Yield the items of an iterator that runs in a thread of its own.

    Parameters
    ----------
    items
        Runs ahead; its exceptions come out here.
    depth
        How many finished items may wait; one more is in the making.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None, bool]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item, None, False)):
                    return
            put((None, None, True))
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits for it
            put((None, error, True))

    thread = threading.Thread(target=run, name="anncoder-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = waiting.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
            del item  # or it would be kept while the next one is made
    finally:
        stopped.set()
        thread.join()
