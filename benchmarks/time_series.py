"""Transport between time points: what is asked of it and what is measured, on simulated and real cells; its scale.

    python -m benchmarks.time_series
    python -m benchmarks.time_series --data DIR            # with larry_781.h5ad and reprogramming_250.h5ad
    python -m benchmarks.time_series --scale [--cells 5000 20000]

Simulated: :func:`anncoder.datasets.branching`. Real: clones of blood progenitors (Weinreb et al. 2020, doi
10.1126/science.aaw3381), of which an early cell's fate is what its sisters became; reprogramming (Schiebinger et al.
2019, doi 10.1016/j.cell.2019.01.006), whose middle time is held out. ``--scale`` prints seconds and the largest memory
of a process of its own, of a pair of time points in full and by metacells.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import scanpy as sc
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import anncoder as ac
from anncoder.dynamics.transport.cost import Cost, median_cost
from anncoder.dynamics.transport.metacells import solve_with_metacells
from anncoder.dynamics.transport.sinkhorn import solve

FATES = ("Monocyte", "Neutrophil", "Baso", "Mast", "Meg")
UNKNOWN = "withheld"  # clones without a name

Array = np.ndarray[Any, Any]


def line(what: str, asked: str, measured: str) -> None:
    """Print a row of the table."""
    print(f"{what:<58} {asked:>16} {measured:>22}")


def with_pca(adata: anndata.AnnData, n_comps: int = 20) -> anndata.AnnData:
    """Return a copy with principal components of log counts per 10,000."""
    cells = adata.copy()
    logs = sc.pp.log1p(sc.pp.normalize_total(cells, target_sum=1e4, copy=True), copy=True)
    sc.pp.pca(logs, n_comps=n_comps, random_state=0)
    cells.obsm["X_pca"] = logs.obsm["X_pca"]
    return cells


def simulated() -> None:
    """Growth, fates and held-out times of the branching population."""
    adata = ac.datasets.branching()
    when, label = adata.obs["time"].to_numpy(), adata.obs["label"].to_numpy()
    for prior in (None, "growth_true"):
        ac.tl.transport(adata, "time", use_rep="X_sim", growth_key=prior, progress=False)
        for t in (2, 3):
            here = when == t
            grown = adata.obs["transport_growth"].to_numpy()
            ratio = grown[here & (label == "A")].mean() / grown[here & (label == "B")].mean()
            correlation = np.corrcoef(np.log(grown[here]), np.log(adata.obs["growth_true"][here]))[0, 1]
            line(f"growth A/B, time {t}, prior {prior}", "1.84 +- 3 %", f"{ratio:.3f}")
            line("  correlation with the true rate, a cell", ">= 0.84", f"{correlation:.3f}")
        ac.tl.fates(adata, "label")
        found = adata.obsm["fates"][:, [str(x) for x in adata.uns["fates"]["names"]].index("A")]
        for t, asked in ((0, ">= 0.84"), (1, ">= 0.97")):
            correlation = np.corrcoef(found[when == t], adata.obs["fate_A"][when == t])[0, 1]
            line(f"fates of time {t}, correlation with the truth", asked, f"{correlation:.3f}")
        right = [((found > 0.5) == (label == "A"))[when == t].mean() for t in (2, 3)]
        line("fates of times 2 and 3, accuracy", "1.0", f"{min(right):.3f}")
    table = ac.tl.validate_transport(adata, progress=False)
    for triplet, asked in (("2, 3, 4", "win"), ("1, 2, 3", "tie"), ("0, 1, 2", "loss")):
        row = table[(table["triplet"] == triplet) & (table["guess"] == "I")].iloc[0]
        line(f"held out {triplet}: W2, E", asked, f"{row['verdict']}, {row['W2']:.3f}, {row['E']:.4f}")


class Clones(NamedTuple):
    """Fates against clones."""

    auc: dict[str, float]  # of each fate
    nearest: dict[str, float]  # the same by the 20 nearest later cells
    same_clone: float  # mass within clones, over that expected by chance
    n_cells: int


def clones(adata: anndata.AnnData, use_rep: str) -> Clones:
    """Return how well fates of day-4 cells agree with what their sisters are at day 6, by area under the curve.

    Only clones with a name count, and cells with a sister of one of five differentiated types.
    """
    ac.tl.transport(adata, "time", use_rep=use_rep, growth_key=None, pairs=[(4, 6)], progress=False)
    ac.tl.fates(adata, "label")
    clone, label = adata.obs["clone"].astype(str).to_numpy(), adata.obs["label"].astype(str).to_numpy()
    early, late = adata.obs["time"].to_numpy() == 4, adata.obs["time"].to_numpy() == 6
    named = clone != UNKNOWN
    sisters = {c: set(label[late & (clone == c)]) & set(FATES) for c in np.unique(clone[early & named])}
    judged = np.array([bool(e and n and sisters[c]) for e, n, c in zip(early, named, clone, strict=True)])
    names = [str(name) for name in adata.uns["fates"]["names"]]
    x = adata.obsm[use_rep]
    near = NearestNeighbors(n_neighbors=20).fit(x[late]).kneighbors(x[judged], return_distance=False)
    auc, nearest = {}, {}
    for fate in FATES:
        truth = [fate in sisters[c] for c in clone[judged]]
        auc[fate] = float(roc_auc_score(truth, adata.obsm["fates"][judged, names.index(fate)]))
        nearest[fate] = float(roc_auc_score(truth, (label[late] == fate)[near].mean(axis=1)))
    plan = ac.tl.couple(adata, 4, 6).toarray()[named[early]][:, named[late]]
    same = clone[early & named][:, None] == clone[late & named]
    return Clones(auc, nearest, float((plan * same).sum() / plan.sum() / same.mean()), int(judged.sum()))


def real(folder: Path) -> None:
    """Clones of blood progenitors, on components and on a latent; the held-out day of reprogramming."""
    adata = with_pca(anndata.read_h5ad(folder / "larry_781.h5ad"))
    for model in ("count", "denoising"):
        ac.tl.autoencode(adata, model, n_latent=16, progress=False, seed=0, key_added=model)
    for use_rep in ("X_pca", "X_count", "X_denoising"):
        found = clones(adata, use_rep)
        each = " ".join(f"{value:.2f}" for value in found.auc.values())
        line(f"clones, {use_rep}, {found.n_cells} cells: mean AUC", ">= 0.80", f"{np.mean([*found.auc.values()]):.3f}")
        line(f"  {' '.join(FATES)}", "", each)
        line("  20 nearest later cells instead", "", f"{np.mean([*found.nearest.values()]):.3f}")
        line("  mass within clones over chance", ">= 3", f"{found.same_clone:.2f}")
    adata = with_pca(anndata.read_h5ad(folder / "reprogramming_250.h5ad"))
    ac.tl.transport(adata, "time", use_rep="X_pca", progress=False)
    print(ac.tl.validate_transport(adata, progress=False).round(3).to_string(index=False))


def one_pair(n: int, n_dims: int, max_cells: int, threads: int) -> None:
    """Solve a pair of two time points of the branching population, print seconds, memory and growth by branch."""
    torch.set_num_threads(threads)
    adata = ac.datasets.branching(n, n_times=4, n_dims=n_dims)
    when, label = adata.obs["time"].to_numpy(), adata.obs["label"].to_numpy()[adata.obs["time"] == 2]
    x, y = (adata.obsm["X_sim"][when == t] for t in (2, 3))
    del adata
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    scale = median_cost(x, y)
    if max_cells:
        solution = solve_with_metacells(x, y, scale, 0.05, max_cells=max_cells)
    else:
        solution = solve(Cost(x, y, scale, 0.05))
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    grown = " ".join(f"{branch} {solution.growth[label == branch].mean():.5f}" for branch in "AB")
    how = f"{max_cells:,} metacells" if max_cells else "in full"
    print(
        f"{n:,} x {n:,}, {n_dims} dimensions, {how}, threads {threads}: {seconds:.1f} s, {solution.iterations} "
        f"iterations, error {solution.error:.0e}, {memory:,.0f} MiB in all ({before:,.0f} before), growth {grown}"
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--scale", action="store_true", help="seconds and memory of large pairs instead")
    parser.add_argument("--cells", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--dims", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", type=int, nargs=2, metavar=("CELLS", "METACELLS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_pair(arguments.one[0], arguments.dims, arguments.one[1], arguments.threads)
        return
    if not arguments.scale:
        simulated()
        if arguments.data is not None:
            real(arguments.data)
        return
    for n in arguments.cells:
        for max_cells in (0, min(n // 4, 5000)):
            words = [
                "--one",
                str(n),
                str(max_cells),
                "--dims",
                str(arguments.dims),
                "--threads",
                str(arguments.threads),
            ]
            subprocess.run([sys.executable, "-m", "benchmarks.time_series", *words], check=True)


if __name__ == "__main__":
    main()
