"""Fits with the default threads and with one, beside 0, 1, 2 and 4 busy processes: wall time, in turn, medians.

    python -m benchmarks.busy
    python -m benchmarks.busy --data DIR/pbmc_10x_4k.h5ad --repeats 5

Each busy process counts in a loop, in a session of its own. The ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np
import torch

import anncoder as ac
from anncoder.device import usable_cpus


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Run busy processes for the time of a block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(cells: anndata.AnnData, threads: int | None, batch_size: int) -> float:
    """Return the wall time of two epochs."""
    model = ac.CountAutoencoder()
    began = time.perf_counter()
    model.fit(cells, max_epochs=2, early_stopping=False, batch_size=batch_size, threads=threads, progress=False)
    return time.perf_counter() - began


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="counts; simulated without")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    arguments = parser.parse_args()
    if arguments.data is None:
        cells = ac.datasets.simulate(n_obs=4000, n_vars=2000, n_groups=5, seed=0)
    else:
        cells = anndata.read_h5ad(arguments.data)
    print(
        f"{cells.n_obs:,} x {cells.n_vars:,}; batch size {arguments.batch_size}; {usable_cpus()} CPUs; default threads:"
        f" {torch.get_num_threads()}"
    )
    seconds(cells, 1, arguments.batch_size)  # compiles
    print(f"{'busy':>4} {'one thread':>12} {'default':>12} {'ratio':>7}")
    for n in arguments.busy:
        with busy(n):
            pairs = np.array(
                [[seconds(cells, k, arguments.batch_size) for k in (1, None)] for _ in range(arguments.repeats)]
            )
        one, default = np.median(pairs, axis=0)
        spread = " ".join(f"{ratio:.2f}" for ratio in np.sort(pairs[:, 1] / pairs[:, 0])[[0, -1]])
        print(f"{n:>4} {one:>10.2f} s {default:>10.2f} s {default / one:>7.2f}  ({spread})", flush=True)


if __name__ == "__main__":
    main()
