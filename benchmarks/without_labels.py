"""How well scores without labels order methods on cells with known truth: Spearman correlations, a set a line.

    python -m benchmarks.without_labels DIR/pbmc_10x_4k.h5ad DIR/worm_neuron.h5ad --labels cell_type
    python -m benchmarks.without_labels DIR/rnamix_celseq2.h5ad --labels mix --order H2228_prop

The methods are those of ``anncoder.recommend``. Truth: the best Leiden ARI over resolutions 0.1, 0.2 ... 2.0, the ARI
of k-means with the true number of groups, and with ``--order`` the rank correlation of diffusion pseudotime (from the
cell with the largest value of that column) with the column.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import anndata
import pandas as pd
from benchmarks.quality import best_leiden, kmeans, pseudotime
from scipy.stats import spearmanr

from anncoder.config import TrainingConfig
from anncoder.evaluation.baselines import Cells
from anncoder.evaluation.selection.recommend import N_GENES, candidates, method_of, scene_of, scores_of

SCORES = {"heldout_nll": -1, "neighbor_consistency": 1}  # and whether more is better


def compare(path: Path, labels: str, order: str | None, seed: int, threads: int) -> pd.DataFrame:
    """Return the scores and the truth of every method on a file."""
    adata = anndata.read_h5ad(path)
    adata.var_names_make_unique()
    adata.obs_names_make_unique()
    training = TrainingConfig(seed=seed, threads=threads, valid_fraction=0.1)
    scene = scene_of(adata, None, N_GENES, adata.n_obs, training)
    known = adata[scene.adata.obs_names].obs
    groups = known[labels].astype(str).to_numpy()
    shape = (int(scene.fitted.sum()), scene.adata.n_vars)
    rows: dict[str, dict[str, float]] = {}
    for candidate in candidates(("count", "denoising", "variational"), (10, 32), N_GENES, shape):
        method = method_of(candidate, scene, training)
        found = scores_of(method, candidate, scene)
        rows[candidate.name] = row = {name: found[name] for name in SCORES}
        latent = method.latent(Cells(scene.adata.X[:, scene.genes(candidate)]))
        row |= {"leiden": best_leiden(latent, groups, seed), "kmeans": kmeans(latent, groups, seed)}
        if order is not None:
            row["pseudotime"] = pseudotime(latent, known[order].to_numpy())
    return pd.DataFrame(rows).T


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--labels", default="cell_type")
    parser.add_argument("--order")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append every table here, a line each")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for path in arguments.data:
        for seed in range(arguments.seeds):
            table = compare(path, arguments.labels, arguments.order, seed, arguments.threads)
            print(f"\n{path.name}, seed {seed}\n{table.to_string(float_format='%.3f')}")
            for score, sign in SCORES.items():
                of = {
                    name: spearmanr(sign * table[score].astype(float), table[name]).statistic
                    for name in ("leiden", "kmeans", "pseudotime")
                    if name in table
                }
                print(f"  {score:<21}", "  ".join(f"{name} {value:+.2f}" for name, value in of.items()), flush=True)
            if arguments.json is not None:
                with arguments.json.open("a") as file:
                    file.write(json.dumps({"file": path.name, "seed": seed} | json.loads(table.to_json())) + "\n")


if __name__ == "__main__":
    main()
