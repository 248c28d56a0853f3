"""Gene relations: the golden table of kNN-DREMI, and seconds for one source against many genes.

    python -m benchmarks.gene_relations
    python -m benchmarks.gene_relations --cells 500 2000 5000 --genes 2000 --threads 2

The table was measured with scprep 1.2.3 (knnDREMI). The values that are timed are those of 20 components of as many
genes with noise; each gene has 20 shuffles. "beside" is the time with neighbour averages and their shuffles too. Where
other programs run, the CPU time tells more than that of the clock.
"""

from __future__ import annotations

import argparse
import time

import anndata
import numpy as np

import anncoder as ac
from anncoder.device import usable_cpus
from anncoder.dynamics.genes.dremi import Array, axis, dremi, joint_density, mutual_information, source_axis

GOLDEN = {
    "x": (1.124973, 1.160274, 1.112748),
    "sin(2 pi x)": (1.236634, 1.195699, 1.218029),
    "(2x - 1)^2": (0.752069, 0.747248, 0.760531),
    "1[x > 0.7]": (0.657430, 0.534763, 0.677121),
    "independent": (0.041973, 0.032066, 0.040088),
}


def curves() -> dict[str, tuple[Array, Array]]:
    """Return the pairs of the table: 500 cells, noise of 0.1, in the order in which they are drawn."""
    generator = np.random.default_rng(0)
    x = generator.random(500)
    means = (x, np.sin(2 * np.pi * x), (2 * x - 1) ** 2, (x > 0.7).astype(float), None)
    noise = (generator.standard_normal(500) for _ in means)
    return {
        name: (x, e if mean is None else mean + 0.1 * e) for name, mean, e in zip(GOLDEN, means, noise, strict=True)
    }


def print_table() -> None:
    """Print our numbers, and how far they are from the golden ones."""
    print(f"{'y':<12} {'x to y':>9} {'y to x':>9} {'MI':>9}  largest difference")
    for name, (x, y) in curves().items():
        found = (dremi(x, y), dremi(y, x), mutual_information(joint_density(source_axis(x), axis(y))))
        print(
            f"{name:<12} " + " ".join(f"{v:9.6f}" for v in found),
            f" {np.abs(np.subtract(found, GOLDEN[name])).max():.1e}",
        )


def cells(n_obs: int, n_vars: int) -> anndata.AnnData:
    """Return cells with counts, a smooth layer and a latent of 20 components."""
    generator = np.random.default_rng(n_obs)
    latent = generator.standard_normal((n_obs, 20))
    smooth = np.log1p(np.exp(latent @ generator.standard_normal((20, n_vars)) * 0.4))
    adata = anndata.AnnData(generator.poisson(smooth).astype(np.float32))
    adata.layers["smooth"] = smooth + 0.1 * generator.random(smooth.shape)
    adata.obsm["X_ae"] = latent
    return adata


def seconds(adata: anndata.AnnData, threads: int, n_neighbors: int | None) -> tuple[float, float]:
    """Return the wall time of one source against all other genes, and the CPU time of all threads."""
    began, cpu = time.perf_counter(), time.process_time()
    ac.tl.gene_relations(
        adata, adata.var_names[0], layer="smooth", n_neighbors=n_neighbors, threads=threads, progress=False
    )
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[500, 2000, 5000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    arguments = parser.parse_args()
    print_table()
    seconds(cells(100, 10), 1, 15)  # compiles
    print(f"\none source against {arguments.genes:,} genes, 20 shuffles each, {arguments.threads} threads")
    print(f"{'cells':>6} {'layer':>9} {'CPU':>9} {'beside':>9} {'CPU':>9}")
    for n_obs in arguments.cells:
        adata = cells(n_obs, arguments.genes)
        times = [value for n in (None, 15) for value in seconds(adata, arguments.threads, n)]
        print(f"{n_obs:>6,} " + " ".join(f"{value:>7.1f} s" for value in times), flush=True)


if __name__ == "__main__":
    main()
