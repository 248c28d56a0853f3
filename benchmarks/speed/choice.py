"""The one table of comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.speed.comparisons import (
    Bench,
    Result,
    against_floor,
    against_scvi,
    against_textbook,
    disk,
    losses,
    start,
)
from benchmarks.speed.scale import all_genes, entropy, memory, processes

from anncoder.errors import ConfigError

COMPARISONS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "losses": losses,
    "floor": against_floor,
    "textbook": against_textbook,
    "scvi": against_scvi,
    "disk": disk,
    "start": start,
    "genes": all_genes,
    "entropy": entropy,
    "processes": processes,
    "memory": memory,
}


def chosen(names: tuple[str, ...]) -> list[Callable[[Bench], Iterator[Result]]]:
    """Return comparisons by name, all for none.

    Raises
    ------
    ConfigError
        There is no such comparison.
    """
    for name in names:
        if name not in COMPARISONS:
            raise ConfigError(
                "bad-value", f"there is no comparison {name!r}", "--only", f"one of {', '.join(COMPARISONS)}"
            )
    return [COMPARISONS[name] for name in names or COMPARISONS]
