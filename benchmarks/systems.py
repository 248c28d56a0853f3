"""Hold the published systems to their numbers: median and range over seeds, the trivial baseline beside each.

``python -m benchmarks.systems [NAME ...] [--seeds 5] [--first-seed 0] [-o FILE.json [--resume]]``

Each seed is printed, and kept in the file, as it is done. With ``--resume`` the seeds that the file has are not
measured again: a run that was cut off goes on. It is for the one who asks to know that the code is still the same.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.published import Row

from benchmarks import published

NAMES = sorted(module.name for module in pkgutil.iter_modules(published.__path__))
Found = dict[str, dict[str, Any]]  # by system: its rows by seed; the claims, and of which seeds


class Kept:
    """What has been measured, in a file if there is one.

    Parameters
    ----------
    path
        JSON file; None to keep nothing.
    resume
        Whether what is in the file counts.
    """

    def __init__(self, path: Path | None, *, resume: bool) -> None:
        self.path = path
        self.found: Found = {}
        if path is not None and resume and path.exists():
            self.found = json.loads(path.read_text(encoding="utf-8"))

    def rows(self, name: str) -> dict[str, Row]:
        """Return the rows of a system by seed, to be added to."""
        rows: dict[str, Row] = self.found.setdefault(name, {"rows": {}})["rows"]
        return rows

    def save(self) -> None:
        """Write the file anew."""
        if self.path is not None:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found, indent=2), encoding="utf-8")
            part.replace(self.path)


def run(name: str, seeds: Sequence[int], kept: Kept) -> None:
    """Measure one system, print its numbers and whether its claims hold, and keep all of it."""
    system = import_module(f"benchmarks.published.{name}")
    rows = kept.rows(name)
    for seed in seeds:
        began = time.perf_counter()
        if str(seed) not in rows:
            rows[str(seed)] = system.measure(seed)
            kept.save()
        said = ", ".join(f"{column} {number:.4g}" for column, number in rows[str(seed)].items())
        print(f"{name}, seed {seed} ({time.perf_counter() - began:.0f} s): {said}", flush=True)
    asked = [rows[str(seed)] for seed in seeds]
    print(f"\n{name}: seeds {seeds[0]} to {seeds[-1]}, median (range)")
    for column in asked[0]:
        numbers = [row[column] for row in asked]
        print(f"  {column:<44} {median(numbers):>10.4g}   ({min(numbers):.4g} - {max(numbers):.4g})")
    claims = {claim.text: bool(claim.holds(asked)) for claim in system.CLAIMS}
    for text, holds in claims.items():
        print(f"  {'holds' if holds else 'FAILS'}: {text}", flush=True)
    kept.found[name] |= {"claims": claims, "seeds": list(seeds)}
    kept.save()


def main() -> None:
    """Run the systems that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all if none is given")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON file with the numbers of each seed")
    parser.add_argument("--resume", action="store_true", help="do not measure again what the file has")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    if chosen.seeds < 1 or chosen.first_seed < 0 or (chosen.resume and chosen.output is None):
        parser.error("--seeds is at least 1, --first-seed at least 0, and --resume needs --output")
    kept = Kept(chosen.output, resume=chosen.resume)
    for name in chosen.names or NAMES:
        run(name, range(chosen.first_seed, chosen.first_seed + chosen.seeds), kept)


if __name__ == "__main__":
    main()
