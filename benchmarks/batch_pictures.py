"""Pictures of docs/how-to/batches.md: batches corrected, and two ways in which that goes wrong.

    python -m benchmarks.batch_pictures docs/images

Splatter's simulation, 1,500 cells x 600 genes; count autoencoder, default settings; UMAP by scanpy.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc

import anncoder as ac
from anncoder.evaluation.clusters import cluster_scores
from anncoder.evaluation.mixing import mixing_scores

SMALL = {"figure.dpi": 110, "font.size": 8, "axes.titlesize": 8}


def cells_of(n_batches: int, strength: float) -> anndata.AnnData:
    """Return cells of six groups."""
    return ac.datasets.simulate(
        n_obs=1500,
        n_vars=600,
        n_groups=6,
        n_batches=n_batches,
        batch_fac_loc=strength,
        batch_fac_scale=strength,
        de_prob=0.15,
        lib_loc=7.5,
        seed=1,
    )


def latent_of(cells: anndata.AnnData, key: str | None) -> Any:
    """Return the latent of a count autoencoder."""
    return ac.CountAutoencoder().fit(cells, batch_key=key, progress=False).embed(cells)


def drawn(axes: Any, latent: Any, cells: anndata.AnnData, title: str) -> None:
    """Draw two maps of a latent, by batch and by cell type, under their scores."""
    shown = anndata.AnnData(obs=cells.obs[["batch", "group"]].copy(), obsm={"X_ae": latent})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(shown, use_rep="X_ae")
        sc.tl.umap(shown, random_state=0)
    labels, batches = (cells.obs[key].astype(str).to_numpy() for key in ("group", "batch"))
    found = cluster_scores(latent, labels, 0) | mixing_scores(latent, batches, labels, 0)
    mixing = "mixing undefined" if np.isnan(found["mixing"]) else f"mixing {found['mixing']:.2f}"
    for ax, names, what in zip(axes, (batches, labels), (mixing, f"ARI {found['leiden_ari']:.2f}"), strict=True):
        for i, name in enumerate(np.unique(names)):
            here = shown.obsm["X_umap"][names == name]
            ax.scatter(*here.T, s=2, linewidths=0, color=plt.cm.tab10.colors[i], label=name)
        ax.set(xticks=[], yticks=[], title=f"{title}: {what}")
        ax.legend(markerscale=3, fontsize=6, loc="best", frameon=False, handletextpad=0.1)


def pictured(path: Path, cells: anndata.AnnData) -> None:
    """Draw the latent without and with batch_key, and write the picture."""
    with plt.rc_context(SMALL):
        figure, axes = plt.subplots(2, 2, figsize=(6.4, 5.6), layout="constrained")
        drawn(axes[0], latent_of(cells, None), cells, "without batch_key")
        drawn(axes[1], latent_of(cells, "batch"), cells, "with batch_key")
        figure.savefig(path)
        plt.close(figure)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    logging.getLogger("anncoder").setLevel(logging.ERROR)
    pictured(folder / "batches_corrected.png", cells_of(3, 0.3))
    cells = cells_of(2, 0.3)
    own = cells.obs["group"].isin(["Group1", "Group2", "Group3"]) == (cells.obs["batch"] == "Batch1")
    pictured(folder / "batches_confounded.png", cells[own].copy())
    # a treatment, measured in a batch of its own: its effect goes with the batch's
    one = cells_of(1, 0.0)
    rng = np.random.default_rng(0)
    treated = rng.random(one.n_obs) < 0.5
    effect = np.where(rng.random(one.n_vars) < 0.1, rng.normal(0, 0.8, one.n_vars), 0)
    kept = np.where(treated[:, None], np.minimum(0.5 * np.exp(effect), 1), 0.5)
    one.X = rng.binomial(one.X.toarray().astype(int), kept).astype(np.float32)
    one.obs["batch"] = pd.Categorical(np.where(treated, "treated", "control"))
    pictured(folder / "batches_treatment.png", one)


if __name__ == "__main__":
    main()
