"""What each published system must show, one file a system; ``python -m benchmarks.systems`` runs them.

A file has ``measure(seed) -> Row``, the numbers of one seed with those of the trivial baselines among them, and
``CLAIMS``, what must hold for the rows of several seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Row = dict[str, float]


class Claim(NamedTuple):
    """Something that must hold, and how it is decided."""

    text: str
    holds: Callable[[list[Row]], bool]  # given the rows of all seeds


def values(rows: list[Row], name: str) -> list[float]:
    """Return one number of every seed."""
    return [row[name] for row in rows]
