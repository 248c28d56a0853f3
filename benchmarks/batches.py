"""Experimental batches: clusters, mixing and conservation, beside PCA, Harmony and SCVI.

    python -m benchmarks.batches
    python -m benchmarks.batches --seeds 5 --cells 5000 --strengths 0.1 0.2 0.4
    python -m benchmarks.batches --plates

Splatter's simulation, or the three plates of celseq2_5cl (folder of the environment variable ``ANNCODER_DATA``);
default settings of the models and of ``scvi.model.SCVI`` (its row needs scvi-tools); one thread. Medians and ranges
over seeds. ``overall`` is the mean of mixing, at most 1, and of conservation, which is the mean of Leiden ARI, cLISI
and graph connectivity.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import anndata
import numpy as np

import anncoder as ac
from anncoder.evaluation.clusters import cluster_scores
from anncoder.evaluation.mixing import mixing_scores

STRENGTHS = (0.1, 0.2, 0.4)  # location and scale of the batches' log-normal factors
MODELS = ("count", "denoising", "undercomplete", "variational")
SHOWN = ("leiden_ari", "mixing", "overall")


def simulated(n_cells: int, strength: float, seed: int) -> anndata.AnnData:
    """Return cells of six groups in four batches."""
    return ac.datasets.simulate(
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


def plates() -> anndata.AnnData:
    """Return five cell lines on three plates."""
    cells = anndata.read_h5ad(Path(os.environ["ANNCODER_DATA"]) / "celseq2_5cl.h5ad")
    cells.obs_names_make_unique()
    cells.obs = cells.obs.rename(columns={"cell_line": "group"})
    return cells


def row_of(found: dict[str, float]) -> tuple[float, ...]:
    """Return Leiden ARI, mixing and the mean of mixing and conservation."""
    kept = np.mean([found["leiden_ari"], found["clisi"], found["graph_connectivity"]])
    return found["leiden_ari"], found["mixing"], float((min(found["mixing"], 1) + kept) / 2)


def scores(cells: anndata.AnnData, key: str | None, models: list[str], seed: int) -> dict[str, tuple[float, ...]]:
    """Return the scores of models, of PCA, Harmony and SCVI; ``key`` is the batch that they are to correct for."""
    found = {}
    for name in models:
        model = ac.tl.autoencode(cells, name, batch_key=key, progress=False, seed=seed, threads=1)
        table = ac.evaluate(model, cells, labels="group", batch_key="batch", seed=seed).table
        found[name] = row_of(table.loc["model"])
        for other in ("pca", "harmony"):
            if other in table.index:
                found[other] = row_of(table.loc[other])
    if (latent := scvi_latent(cells, key, seed)) is not None:
        labels, batches = cells.obs["group"].to_numpy(), cells.obs["batch"].astype(str).to_numpy()
        measured = mixing_scores(latent, batches, labels, seed) | cluster_scores(latent, labels, seed)
        found["SCVI"] = row_of(measured)
    return found


def scvi_latent(cells: anndata.AnnData, key: str | None, seed: int) -> Any:
    """Return the latent of ``scvi.model.SCVI`` with its defaults, (n_obs, 10); None where it is not installed."""
    try:
        import scvi
    except ImportError:
        return None
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed = seed
    scvi.settings.verbosity = logging.ERROR
    copy = anndata.AnnData(cells.X.copy(), obs=cells.obs[["batch"]].astype(str).copy())
    scvi.model.SCVI.setup_anndata(copy, batch_key=key)
    model = scvi.model.SCVI(copy)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False, enable_checkpointing=False)
    return model.get_latent_representation().astype(np.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--strengths", type=float, nargs="*", default=STRENGTHS)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--plates", action="store_true", help="the plates of celseq2_5cl, not Splatter")
    given = parser.parse_args()
    logging.getLogger("anncoder").setLevel(logging.ERROR)
    print(f"{'data':>8} {'method':>13}   Leiden ARI            mixing                overall")
    for data in ("plates",) if given.plates else given.strengths:
        rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        for seed in range(given.seeds):
            cells = plates() if given.plates else simulated(given.cells, data, seed)
            key = "batch" if given.plates or data else None
            for name, row in scores(cells, key, given.models, seed).items():
                rows[name].append(row)
        for name, values in rows.items():
            middle, low, high = np.median(values, axis=0), np.min(values, axis=0), np.max(values, axis=0)
            shown = "   ".join(f"{m:.3f} ({a:.3f}-{b:.3f})" for m, a, b in zip(middle, low, high, strict=True))
            print(f"{data:>8} {name:>13}   {shown}", flush=True)


if __name__ == "__main__":
    main()
