"""Experimental batches: clusters and mixing of simulated batches, with batch_key, beside PCA.

    python -m benchmarks.batches
    python -m benchmarks.batches --seeds 5 --cells 5000

Splatter's simulation, default settings of the models; one thread. Medians and ranges over seeds.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict

import numpy as np

import anncoder as ac

STRENGTHS = (0.0, 0.2, 0.4)  # location and scale of the batches' log-normal factors


def scores(n_cells: int, strength: float, seed: int) -> dict[str, tuple[float, float]]:
    """Return Leiden ARI and mixing of two models and of PCA."""
    cells = ac.datasets.simulate(
        n_obs=n_cells,
        n_vars=1000,
        n_groups=6,
        n_batches=4,
        batch_fac_loc=strength,
        batch_fac_scale=strength,
        de_prob=0.15,
        lib_loc=7.5,
        seed=seed,
    )
    found = {}
    for name in ("count", "denoising"):
        key = "batch" if strength else None
        model = ac.tl.autoencode(cells, name, batch_key=key, progress=False, seed=seed, threads=1)
        table = ac.evaluate(model, cells, labels="group", batch_key="batch", seed=seed).table
        found[name], found["pca"] = (tuple(table.loc[row, ["leiden_ari", "mixing"]]) for row in ("model", "pca"))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=5000)
    given = parser.parse_args()
    logging.getLogger("anncoder").setLevel(logging.ERROR)
    print(f"{'strength':>8} {'method':>10}   Leiden ARI            mixing")
    for strength in STRENGTHS:
        rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for seed in range(given.seeds):
            for name, row in scores(given.cells, strength, seed).items():
                rows[name].append(row)
        for name, values in rows.items():
            middle, low, high = np.median(values, axis=0), np.min(values, axis=0), np.max(values, axis=0)
            shown = "   ".join(f"{m:.3f} ({a:.3f}-{b:.3f})" for m, a, b in zip(middle, low, high, strict=True))
            print(f"{strength:>8} {name:>10}   {shown}", flush=True)


if __name__ == "__main__":
    main()
