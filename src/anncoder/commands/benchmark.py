"""``anncoder benchmark``: the machine, then every comparison, as a table and as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anncoder.benchmark.choice import chosen
from anncoder.benchmark.comparisons import Bench, Result, quiet
from anncoder.benchmark.machine import description, rates
from anncoder.commands.run import write_json
from anncoder.data.adata import open_data, read_matrix
from anncoder.datasets import simulate
from anncoder.device import threads_set
from anncoder.files import writable_folder


class BenchmarkRequest(NamedTuple):
    """What was asked for on the command line."""

    data: Path | None
    output: Path | None
    only: tuple[str, ...]
    cells: int
    epochs: int
    repeats: int
    threads: int | None


def run_benchmark(request: BenchmarkRequest) -> None:
    """Measure, print as it goes, and write everything as JSON if asked."""
    comparisons = chosen(request.only)
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
