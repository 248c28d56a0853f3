"""Hold the published systems to their numbers: median and range over seeds, the trivial baseline beside each.

``python -m benchmarks.systems [NAME ...] [--seeds 5] [-o FILE.json]``
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import time
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import published
from benchmarks.published import Row

NAMES = sorted(module.name for module in pkgutil.iter_modules(published.__path__))


def run(name: str, n_seeds: int) -> dict[str, Any]:
    """Measure one system, print its numbers and whether its claims hold, and return all of it."""
    system = import_module(f"benchmarks.published.{name}")
    began = time.perf_counter()
    rows: list[Row] = [system.measure(seed) for seed in range(n_seeds)]
    print(f"\n{name}: {n_seeds} seeds, {time.perf_counter() - began:.0f} s")
    for column in rows[0]:
        numbers = [row[column] for row in rows]
        print(f"  {column:<44} {median(numbers):>10.4g}   ({min(numbers):.4g} - {max(numbers):.4g})")
    claims = {claim.text: bool(claim.holds(rows)) for claim in system.CLAIMS}
    for text, holds in claims.items():
        print(f"  {'holds' if holds else 'FAILS'}: {text}")
    return {"rows": rows, "claims": claims}


def main() -> None:
    """Run the systems that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    found = {name: run(name, chosen.seeds) for name in chosen.names or NAMES}
    if chosen.output:
        chosen.output.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
