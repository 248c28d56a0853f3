"""Default models beside PCA, DCA and SCVI on real cells: held-out molecules, clusters, pseudotime, processor time.

    python -m benchmarks.quality DIR/pbmc_10x_4k.h5ad DIR/worm_neuron.h5ad DIR/mouse_bladder.h5ad demo --seeds 5
    python -m benchmarks.quality DIR/rnamix_celseq2.h5ad --labels mix --order H2228_prop --methods pca-16 count
    python -m benchmarks.quality ... --journal quality.jsonl   # a line a fit; a run that was stopped goes on with it

One table a data set, and the means over the sets; medians over the seeds, which also draw the cells held out, the
molecules set aside and the starts of the clusterings. All methods are fitted to the same cells, with their defaults,
on the 2,000 most variable genes (``demo``: the 700 blood cells that scanpy carries, all 765 genes), one thread.

``molecules``: Poisson negative log-likelihood of the molecules set aside in cells held out, nats a cell, the
``heldout_nll`` of ``ac.evaluate``. ``leiden``: best ARI over resolutions 0.1, 0.2 ... 2.0. ``leiden at k``: at a
resolution that gives as many clusters as there are labels. ``kmeans``: with that number. ``pseudotime``: rank
correlation of diffusion pseudotime with the column ``--order``. ``seconds``: processor time of the fit.
SCVI (``scvi-tools``, where it is installed) has its defaults, NB, and stops early, by the cells held out; its
expectation is that of the posterior mean.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import anncoder as ac
from anncoder.config import TrainingConfig
from anncoder.data.summary import library_sizes
from anncoder.evaluation.baselines import Array, Cells, Method, Trained, blocks
from anncoder.evaluation.clusters import leiden
from anncoder.evaluation.heldout import nll_of_cells
from anncoder.evaluation.selection.recommend import Candidate, Scene, method_of, scene_of
from anncoder.models import find

RESOLUTIONS = tuple(round(0.1 * i, 1) for i in range(1, 21))
N_GENES = 2000
HALVINGS = 10  # of the interval of resolutions, in the search for a number of clusters
PCA = {
    "pca-16": Candidate("pca", 16, N_GENES),
    "pca-50": Candidate("pca", 50, N_GENES),
    "pca-50-scaled": Candidate("pca", 50, N_GENES, unit_variance=True),
}
METHODS = (*PCA, "count", "denoising", "variational", "dca", "scvi")
COLUMNS = ("molecules", "leiden", "leiden at k", "kmeans", "pseudotime", "seconds")
Scores = dict[str, float]


class Given(NamedTuple):
    """Cells with known truth."""

    name: str
    adata: anndata.AnnData  # raw counts in X
    labels: str  # column of obs
    order: str | None


class Scvi:
    """scvi-tools' SCVI with its defaults, NB, fitted to some cells; the others stop it."""

    def __init__(self, adata: anndata.AnnData, fitted: Any, seed: int) -> None:
        import scvi

        scvi.settings.seed, scvi.settings.verbosity = seed, logging.ERROR
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        adata = adata.copy()
        scvi.model.SCVI.setup_anndata(adata)
        self.model = scvi.model.SCVI(adata, gene_likelihood="nb")
        split = [np.flatnonzero(fitted), np.flatnonzero(~fitted), np.empty(0, dtype=np.int64)]
        self.model.train(
            accelerator="cpu",
            early_stopping=True,
            enable_progress_bar=False,
            logger=None,
            datasplitter_kwargs={"external_indexing": split},
        )
        self.library_size = float(np.median(library_sizes(adata.X[fitted])))

    def latent(self, cells: Cells) -> Array:
        """Return the posterior means, (n, k)."""
        return np.concatenate([self._posterior(counts)[0] for counts in self._blocks(cells)])

    def expected(self, cells: Cells) -> Iterator[Array]:
        """Yield expected counts at the median library size, block of cells by block."""
        for counts in self._blocks(cells):
            yield self._posterior(counts)[1] * self.library_size

    reconstructed = expected

    def _blocks(self, cells: Cells) -> Iterator[Any]:
        import torch

        for rows in blocks(cells.matrix.shape[0]):
            yield torch.from_numpy(cells.matrix[rows].toarray().astype(np.float32))

    def _posterior(self, x: Any) -> tuple[Array, Array]:
        # the latent and the share of each gene
        import torch

        module, batch = self.model.module.eval(), torch.zeros(len(x), 1)
        with torch.no_grad():
            mean = module.inference(x, batch)["qz"].loc
            share = module.generative(mean, x.sum(1, keepdim=True).log(), batch)["px"].scale
        return mean.numpy(), share.numpy()


def best_leiden(latent: Any, truth: Any, seed: int) -> float:
    """Return the best ARI over the resolutions."""
    clusterings = leiden(np.ascontiguousarray(latent, dtype=np.float32), RESOLUTIONS, seed)
    return max(adjusted_rand_score(truth, clusters) for clusters in clusterings)


def leiden_at(latent: Any, truth: Any, seed: int) -> float:
    """Return the ARI at a resolution that gives as many clusters as labels, or as near to it as halving finds."""
    latent, low, high, k = np.ascontiguousarray(latent, dtype=np.float32), 0.0, 4.0, len(set(truth))
    nearest, found = np.inf, 0.0
    for _ in range(HALVINGS):
        resolution = (low + high) / 2
        clusters = leiden(latent, (resolution,), seed)[0]
        n = len(set(clusters))
        if abs(n - k) < nearest:
            nearest, found = abs(n - k), float(adjusted_rand_score(truth, clusters))
        if n == k:
            break
        low, high = (resolution, high) if n < k else (low, resolution)
    return found


def kmeans(latent: Any, truth: Any, seed: int) -> float:
    """Return the ARI of k-means with the true number of groups."""
    clusters = KMeans(len(np.unique(truth)), n_init=10, random_state=seed).fit_predict(latent)
    return float(adjusted_rand_score(truth, clusters))


def pseudotime(latent: Any, truth: Any) -> float:
    """Return the rank correlation of diffusion pseudotime with a known order; cells apart from the root come last."""
    cells = anndata.AnnData(obs=pd.DataFrame(index=np.arange(len(latent)).astype(str)), obsm={"latent": latent})
    sc.pp.neighbors(cells, use_rep="latent")
    sc.tl.diffmap(cells)
    cells.uns["iroot"] = int(np.argmax(truth))
    sc.tl.dpt(cells)
    found = cells.obs["dpt_pseudotime"].to_numpy()
    return float(abs(spearmanr(np.where(np.isfinite(found), found, 1.1), truth).statistic))


def fitted(name: str, scene: Scene, training: TrainingConfig) -> Method:
    """Return a method with its defaults, fitted to the cells that are not held out."""
    if name in PCA:
        return method_of(PCA[name], scene, training)
    genes = np.sort(scene.order[:N_GENES])
    cells = scene.adata[:, genes].copy()
    if name == "scvi":
        return Scvi(cells, scene.fitted, training.seed)
    settings = training.model_dump() | {"mask_var": None}
    return Trained(find(name)().fit(cells, progress=False, **settings))


def scores(name: str, given: Given, scene: Scene, training: TrainingConfig) -> Scores:
    """Return the scores of a method by the names of the columns."""
    began = time.process_time()
    method = fitted(name, scene, training)
    found = {"seconds": time.process_time() - began}
    genes = np.sort(scene.order[:N_GENES])
    cells, kept = Cells(scene.adata.X[:, genes]), scene.kept._replace(matrix=scene.kept.matrix[:, genes])
    floor = np.asarray(cells.matrix.sum(axis=0, dtype=np.float64)).ravel()
    each = nll_of_cells(method, kept, scene.aside[:, genes], cells.take(scene.fitted), floor)
    latent, known = method.latent(cells), given.adata.obs.loc[scene.adata.obs_names]
    truth = known[given.labels].astype(str).to_numpy()
    found |= {"molecules": float(each.mean()), "kmeans": kmeans(latent, truth, training.seed)}
    found |= {"leiden": best_leiden(latent, truth, training.seed)}
    found |= {"leiden at k": leiden_at(latent, truth, training.seed)}
    if given.order is not None:
        found["pseudotime"] = pseudotime(latent, known[given.order].to_numpy())
    return found


def measured(given: Given, seed: int, names: list[str], journal: Path | None) -> dict[str, Scores]:
    """Return the scores of the methods on a data set, those of the journal as they are."""
    known = journal_of(journal)
    training, rows, scene = TrainingConfig(seed=seed, threads=1, valid_fraction=0.1, device="cpu"), {}, None
    for name in names:
        key = (given.name, seed, name)
        if key not in known:
            if scene is None:
                scene = scene_of(given.adata, None, (N_GENES,), given.adata.n_obs, training)
            known[key] = scores(name, given, scene, training)
            if journal is not None:
                with journal.open("a") as file:
                    file.write(json.dumps({"key": key, "scores": known[key]}) + "\n")
        rows[name] = known[key]
    return rows


def journal_of(path: Path | None) -> dict[tuple[str, int, str], Scores]:
    """Return the scores that a journal has, by data set, seed and method."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {tuple(line["key"]): line["scores"] for line in lines}


def table(of_seeds: list[dict[str, Scores]]) -> pd.DataFrame:
    """Return the medians over seeds, a row a method."""
    stacked = pd.concat([pd.DataFrame(rows).T for rows in of_seeds])
    medians = stacked.groupby(level=0, sort=False).median()
    return medians[[name for name in COLUMNS if name in medians]]


def ranges(of_seeds: list[dict[str, Scores]]) -> pd.DataFrame:
    """Return least and largest values over seeds, a row a method, as text."""
    stacked = pd.concat([pd.DataFrame(rows).T for rows in of_seeds])
    grouped = stacked[[name for name in COLUMNS if name in stacked]].groupby(level=0, sort=False)
    least, largest = grouped.min(), grouped.max()
    return least.map("{:.3f}-".format) + largest.map("{:.3f}".format)


def read(place: str, labels: str, order: str | None) -> Given:
    """Return the cells of a file, or those of the demo."""
    if place == "demo":
        return Given("demo", ac.datasets.pbmc68k_counts(), "bulk_labels", None)
    adata = anndata.read_h5ad(place)
    adata.var_names_make_unique()
    adata.obs_names_make_unique()
    return Given(Path(place).stem, adata, labels, order)


def commit() -> str:
    """Return the commit of the working tree that this file is in."""
    folder = Path(__file__).resolve().parent
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def installed(names: list[str]) -> list[str]:
    """Return the methods without SCVI where it is not installed."""
    try:
        import scvi  # noqa: F401
    except ImportError:
        print("scvi-tools is not installed: no row of SCVI")
        return [name for name in names if name != "scvi"]
    return names


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="files with raw counts in X, or demo")
    parser.add_argument("--labels", default="cell_type")
    parser.add_argument("--order", help="column whose largest value is the root of pseudotime, and its true order")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--journal", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("anncoder").setLevel(logging.ERROR)
    names = installed(list(asked.methods)) if "scvi" in asked.methods else list(asked.methods)
    print(f"commit {commit()}, seeds 0 to {asked.seeds - 1}, medians")
    of_sets = []
    for place in asked.data:
        given = read(place, asked.labels, asked.order)
        of_seeds = [measured(given, seed, names, asked.journal) for seed in range(asked.seeds)]
        of_sets.append(table(of_seeds))
        print(f"\n{given.name}: {given.adata.n_obs:,} cells\n{of_sets[-1].to_string(float_format='%.3f')}", flush=True)
        if asked.seeds > 1:
            print(f"ranges\n{ranges(of_seeds).to_string()}", flush=True)
    if len(of_sets) > 1:
        means = pd.concat(of_sets).groupby(level=0, sort=False).mean()
        print(f"\nmeans over {len(of_sets)} sets\n{means.to_string(float_format='%.3f')}")


if __name__ == "__main__":
    main()
