"""What the default models reach on real data, PCA beside them: medians and ranges over seeds.

    python benchmarks/quality.py count --data DIR/pbmc_10x_4k.h5ad
    python benchmarks/quality.py denoising --data DIR/pbmc_10x_4k.h5ad DIR/worm_neuron.h5ad

``count``: best Leiden ARI over resolutions 0.1, 0.2 ... 2.0 of the default count autoencoder on all genes, and of PCA
of the same width and of 50 components. ``denoising``: k-means ARI of the default denoising autoencoder on 1,000
variable genes, log-normalised, and of PCA-50 of the same matrix.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from anncoder import CountAutoencoder, DenoisingAutoencoder
from anncoder.evaluation.clusters import leiden

RESOLUTIONS = tuple(round(0.1 * i, 1) for i in range(1, 21))


def line(name: str, values: list[float], seconds: list[float] | None = None) -> None:
    """Print a median and a range."""
    took = f"  {np.median(seconds):.0f} s ({min(seconds):.0f}-{max(seconds):.0f})" if seconds else ""
    print(f"  {name:<28} {np.median(values):.3f}  ({min(values):.3f}-{max(values):.3f}){took}", flush=True)


def log_normalized(adata: anndata.AnnData) -> anndata.AnnData:
    """Return a copy, normalised to the median library size and logged."""
    logs = adata.copy()
    sc.pp.normalize_total(logs)
    sc.pp.log1p(logs)
    return logs


def best_leiden(latent: Any, truth: Any, seed: int) -> float:
    """Return the best ARI over the resolutions."""
    clusterings = leiden(np.ascontiguousarray(latent, dtype=np.float32), RESOLUTIONS, seed)
    return max(adjusted_rand_score(truth, clusters) for clusters in clusterings)


def kmeans(latent: Any, truth: Any, seed: int) -> float:
    """Return the ARI of k-means with the true number of groups."""
    clusters = KMeans(len(np.unique(truth)), n_init=10, random_state=seed).fit_predict(latent)
    return float(adjusted_rand_score(truth, clusters))


def count(path: Path, labels: str, seeds: range, threads: int) -> None:
    """Compare the default count autoencoder with PCA."""
    adata = anndata.read_h5ad(path)
    truth = adata.obs[labels].astype(str).to_numpy()
    x = np.asarray(log_normalized(adata).X.todense())
    print(f"{path.name}: {adata.n_obs:,} x {adata.n_vars:,}; Leiden ARI, best of {len(RESOLUTIONS)} resolutions")
    for width in (CountAutoencoder().config.n_latent, 50):
        line(
            f"PCA-{width}",
            [best_leiden(PCA(width, random_state=s).fit_transform(x), truth, s) for s in seeds],
        )
    scores, seconds = [], []
    for seed in seeds:
        began = time.perf_counter()
        model = CountAutoencoder().fit(adata, seed=seed, threads=threads, progress=False)
        seconds.append(time.perf_counter() - began)
        scores.append(best_leiden(model.embed(adata), truth, seed))
        print(f"    seed {seed}: {len(model.history_)} epochs, stopped: {model.stopped_}, ARI {scores[-1]:.3f}")
    line("count autoencoder", scores, seconds)


def denoising(path: Path, labels: str, seeds: range, threads: int) -> None:
    """Compare the default denoising autoencoder with PCA."""
    logs = log_normalized(anndata.read_h5ad(path))
    sc.pp.highly_variable_genes(logs, n_top_genes=1000, flavor="cell_ranger")
    logs = logs[:, logs.var["highly_variable"]].copy()
    truth, x = logs.obs[labels].astype(str).to_numpy(), np.asarray(logs.X.todense())
    print(f"{path.name}: {logs.n_obs:,} x {logs.n_vars:,}; k-means ARI")
    line("PCA-50", [kmeans(PCA(50, random_state=s).fit_transform(x), truth, s) for s in seeds])
    scores, seconds = [], []
    for seed in seeds:
        began = time.perf_counter()
        model = DenoisingAutoencoder(transform="none").fit(logs, seed=seed, threads=threads, progress=False)
        seconds.append(time.perf_counter() - began)
        scores.append(kmeans(model.embed(logs), truth, seed))
        print(f"    seed {seed}: {len(model.history_)} epochs, stopped: {model.stopped_}, ARI {scores[-1]:.3f}")
    line("denoising autoencoder", scores, seconds)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["count", "denoising"])
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--labels", default="cell_type")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for path in arguments.data:
        {"count": count, "denoising": denoising}[arguments.what](
            path, arguments.labels, range(arguments.seeds), arguments.threads
        )


if __name__ == "__main__":
    main()
