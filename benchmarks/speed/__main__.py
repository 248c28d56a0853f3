"""``python -m benchmarks.speed``: the machine, then every comparison, as a table and as JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from benchmarks.speed.choice import COMPARISONS, chosen
from benchmarks.speed.comparisons import Bench, Result, quiet
from benchmarks.speed.machine import description, rates

from anncoder.cli.run_folder import write_json
from anncoder.data.adata import open_data, read_matrix
from anncoder.datasets import simulate
from anncoder.device import threads_set
from anncoder.io.atomic import writable_folder


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", help="counts to measure on; simulated ones if not given")
    parser.add_argument("--output", "-o", type=Path, help="write everything as JSON")
    more = "any number of times; all if not given (about an hour: memory alone writes a million cells)"
    parser.add_argument("--only", action="append", default=[], help=f"{', '.join(COMPARISONS)}; {more}")
    parser.add_argument("--cells", type=int, default=8192, help="simulated cells")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the whole fits")
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is timed")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args(words)


def run_benchmark(request: argparse.Namespace) -> None:
    """Measure, print as it goes, and write everything as JSON if asked."""
    comparisons = chosen(tuple(request.only))
    if request.output is not None:
        writable_folder(request.output.parent)
    if request.data is not None:
        counts = read_matrix(open_data(request.data), None)
    else:
        counts = read_matrix(simulate(n_obs=request.cells, n_vars=2000, lib_loc=6.0, seed=0), None)
    bench = Bench(counts, request.repeats, request.epochs)
    results: list[Result] = []
    with threads_set(request.threads):
        about, measured = description(), rates(request.repeats)
        _say(f"{about['processor']}, {about['threads']} threads, torch {about['versions']['torch']}")
        density = counts.nnz / np.prod(counts.shape)
        _say(f"{counts.shape[0]:,} cells x {counts.shape[1]:,} genes, {density:.1%} non-zero")
        for name, value in measured.items():
            _say(f"  {name:<45} {value:8.2f}")
        _say(f"\n{'':<62} {'ratio':>7}  {'range':<15} {'ours':>9} {'other':>9}")
        with quiet():
            for comparison in comparisons:
                for result in comparison(bench):
                    results.append(result)
                    _say(_line(result))
    if request.output is not None:
        write_json(
            request.output, {"about": about, "rates": measured, "results": [result._asdict() for result in results]}
        )


def _line(result: Result) -> str:
    spread = f"{result.lowest:.2f}-{result.highest:.2f}"
    line = f"{result.name:<62} {result.ratio:>7.2f}  {spread:<15} {result.ours:>8.4f}s {result.other:>8.4f}s"
    return f"{line}\n    {result.note}" if result.note else line


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_benchmark(parsed())
