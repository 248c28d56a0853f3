"""Processor time until a held-out quality: our count autoencoder, and that of another commit.

    python -m benchmarks.time_to_quality DIR/pbmc_10x_4k.h5ad --seeds 3
    python -m benchmarks.time_to_quality DIR/pbmc_10x_4k.h5ad --before ../before/src   # a checkout of another commit

The quality is the NB negative log-likelihood of a cell, summed over all genes, mean over the same held-out cells (a
tenth, those of seed 0) for every run; the time is processor time of the whole fit in a process of its own, one thread,
kernels compiled before. With ``--before`` the two sides run in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

# runs in a process of its own, with the package of one commit; argv: file, seed
OURS = """
import json, logging, sys, time, warnings
import anndata
warnings.simplefilter("ignore")
logging.getLogger("anncoder").setLevel(logging.ERROR)
import anncoder
import anncoder.models.base as base
cells = anndata.read_h5ad(sys.argv[1])
split = base.split_cells
base.split_cells = lambda *given: split(*given[:-1], given[-1].model_copy(update={"seed": 0}))
anncoder.CountAutoencoder().fit(cells, max_epochs=1, threads=1, progress=False, device="cpu")  # kernels
began = time.process_time()
model = anncoder.CountAutoencoder().fit(cells, seed=int(sys.argv[2]), threads=1, progress=False, device="cpu")
took = time.process_time() - began
curve = (model.history_["valid_loss"] * cells.n_vars).tolist()
print(json.dumps({"seconds": took, "curve": curve, "times": model.history_["seconds"].cumsum().tolist()}))
"""


def run(script: str, data: Path, seed: int, source: Path | None = None) -> dict[str, Any]:
    """Return the result of one fit in a process of its own."""
    paths = [str(path) for path in (source, os.environ.get("PYTHONPATH")) if path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-c", script, str(data), str(seed)]
    printed = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def line(name: str, results: list[dict[str, Any]]) -> None:
    """Print medians and ranges of one side."""
    best = [min(result["curve"]) for result in results]
    seconds, epochs = [r["seconds"] for r in results], [len(r["curve"]) for r in results]
    print(
        f"{name:<10} NLL {np.median(best):8.2f} ({min(best):.2f}-{max(best):.2f})  "
        f"CPU {np.median(seconds):6.1f} s ({min(seconds):.1f}-{max(seconds):.1f})  epochs {sorted(epochs)}",
        flush=True,
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="src of a checkout of another commit")
    arguments = parser.parse_args()
    for data in arguments.data:
        print(data.name)
        ours, before = [], []
        for seed in range(arguments.seeds):
            ours.append(run(OURS, data, seed))
            if arguments.before is not None:
                before.append(run(OURS, data, seed, arguments.before))
        line("ours", ours)
        if before:
            line("before", before)
            ratios = [a["seconds"] / b["seconds"] for a, b in zip(ours, before, strict=True)]
            print(f"CPU time, ours / before: {np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        for result in ours:
            print("   ", " ".join(f"{value:.1f}" for value in result["curve"]))


if __name__ == "__main__":
    main()
