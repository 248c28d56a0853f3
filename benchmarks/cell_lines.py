"""Every model on one real data set with a known truth: five cell lines on three plates, trained from the command line.

``python -m benchmarks.cell_lines celseq2_5cl.h5ad [--seeds 3] [-o FILE.json]``

CEL-seq2 of five lung cancer lines (Tian et al. 2019, doi 10.1038/s41592-019-0425-8; GSE118767), told apart by genotype.
The 2,000 most variable genes. Columns: adjusted Rand index of Leiden (best of eleven resolutions) and k-means (5) with
the lines; mixing of the plates (share of the 30 nearest neighbours that are of another plate, over what chance gives:
1 is mixed, 0 apart; plates have different lines in different numbers, so that 1 is not wanted at any price); seconds of
processor time of the whole command, which other work on the machine changes less than the time on the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import numpy as np
import scanpy as sc
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from anncoder.evaluation.clusters import RESOLUTIONS, kmeans, leiden

PCAS = ("PCA-16", "PCA-50")
# the model, and the settings in which it differs from its defaults: the plates, where it corrects for them
MODELS: dict[str, tuple[str, ...]] = {
    "count": (),
    "denoising": (),
    "undercomplete": (),
    "dca": (),
    "saucie": (),
    "saucie, plates": ("lambda_b=0.1", "batch_key=batch"),
    "scvis": (),
    "netsne": (),
    "scscope": (),
    "scscope, plates": ("batch_key=batch",),
    "autoimpute": (),
    "variational": (),
    "variational, plates": ("batch_key=batch",),
}


def mixing(latent: Any, batch: Any, n_neighbors: int = 30) -> float:
    """Return the share of neighbours of another batch over that expected by chance."""
    near = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(latent).kneighbors(return_distance=False)[:, :n_neighbors]
    shares = {name: float((batch != name).mean()) for name in set(batch)}
    return float(np.mean([(batch[row] != own).mean() / shares[own] for row, own in zip(near, batch, strict=True)]))


def scores(latent: Any, adata: anndata.AnnData, seed: int) -> dict[str, float]:
    """Return the columns of the table for one latent."""
    truth = adata.obs["cell_line"].astype(str).to_numpy()
    found = leiden(np.asarray(latent, dtype=np.float32), RESOLUTIONS, seed)
    return {
        "leiden": max(adjusted_rand_score(truth, clusters) for clusters in found),
        "kmeans": adjusted_rand_score(truth, kmeans(latent, 5, seed)),
        "mixing": mixing(latent, adata.obs["batch"].astype(str).to_numpy()),
    }


def trained(name: str, path: Path, seed: int) -> dict[str, float]:
    """Train a model from the command line and score what it wrote."""
    output = path.with_name("out.h5ad")
    words = [sys.executable, "-m", "anncoder", "train", str(path), "-o", str(output), "--model", name.split(",")[0]]
    words += ["--seed", str(seed), "--no-evaluation", "--quiet"]
    for setting in MODELS[name]:
        words += ["--set", setting]
    began = _of_children()
    subprocess.run(words, check=True)
    seconds = _of_children() - began
    adata = anndata.read_h5ad(output)
    return {**scores(adata.obsm["X_ae"], adata, seed), "seconds": seconds}


def principal(path: Path, n: int, seed: int) -> dict[str, float]:
    """Score PCA of log-normalised counts."""
    adata = anndata.read_h5ad(path)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    began = time.process_time()
    latent = PCA(n, random_state=seed).fit_transform(adata.X.toarray())
    return {**scores(latent, adata, seed), "seconds": time.process_time() - began}


def _of_children() -> float:
    used = os.times()
    return used.children_user + used.children_system


def _cells(found: list[dict[str, float]]) -> Iterator[str]:
    for column in ("leiden", "kmeans", "mixing", "seconds"):
        numbers = [row[column] for row in found]
        yield f"{median(numbers):.3g} ({min(numbers):.3g}-{max(numbers):.3g})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[*PCAS, *MODELS])
    parser.add_argument("-o", "--output", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.h5ad"
        adata = anndata.read_h5ad(chosen.data)
        logged = sc.pp.log1p(sc.pp.normalize_total(adata, copy=True), copy=True)
        sc.pp.highly_variable_genes(logged, n_top_genes=2000)
        adata[:, logged.var["highly_variable"].to_numpy()].copy().write_h5ad(path)
        print("| model | Leiden ARI | k-means ARI | mixing of plates | CPU seconds |\n|---|---|---|---|---|")
        rows = {}
        for name in chosen.only:
            fit = partial(principal, path, int(name[4:])) if name.startswith("PCA-") else partial(trained, name, path)
            rows[name] = [fit(seed) for seed in range(chosen.seeds)]
            print(f"| {name} | {' | '.join(_cells(rows[name]))} |", flush=True)
            if chosen.output:
                chosen.output.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
