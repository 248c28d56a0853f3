"""``anncoder demo``: the main job on real cells, in under a minute, with nothing to download."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import anndata
import typer

from anncoder.autoencoder import Autoencoder
from anncoder.commands.train import TrainRequest, run_train
from anncoder.files import atomic_path, writable_folder
from anncoder.progress import announce

LABELS = "bulk_labels"
GENES = (
    "CD79A",
    "CD79B",
)  # the two halves of one receptor: they go together in the cell, rarely in its counts


def run_demo(folder: Path, *, seed: int, threads: int | None) -> None:
    """Check, train, embed, denoise, cluster, lay out and draw 700 blood cells with published labels."""
    from anncoder.datasets import pbmc68k_counts
    from anncoder.estimators import load

    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    writable_folder(folder)
    counts, output = folder / "demo_counts.h5ad", folder / "demo.h5ad"
    with atomic_path(counts) as temporary:
        pbmc68k_counts().write_h5ad(temporary, compression="gzip")
    flags = {"seed": seed} | ({} if threads is None else {"threads": threads})
    run_train(
        TrainRequest(data=counts, output=output, settings=("batch_size=64",), flags=flags, denoise=True, labels=LABELS)
    )
    adata = anndata.read_h5ad(output)
    lay_out(adata, seed=seed)
    with atomic_path(output) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    draw(adata, load(output.with_suffix(".anncoder") / "model"), folder)
    announce(
        f"demo.h5ad, demo.anncoder/ and three pictures are in {folder.resolve()} ({time.perf_counter() - began:.0f} s)"
    )


def lay_out(adata: anndata.AnnData, *, seed: int) -> None:
    """Add Leiden clusters and a UMAP of the latent, and a UMAP of PCA, with scanpy."""
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of umap, about its own random state
        logs = adata.copy()
        sc.pp.normalize_total(logs)
        sc.pp.log1p(logs)
        sc.pp.pca(logs, n_comps=adata.obsm["X_ae"].shape[1], random_state=seed)
        adata.obsm["X_pca"] = logs.obsm["X_pca"]
        for slot, key in (("X_pca", "pca"), ("X_ae", "ae_graph")):
            sc.pp.neighbors(adata, use_rep=slot, key_added=key, random_state=seed)
            sc.tl.umap(adata, neighbors_key=key, key_added=f"X_umap_{slot.removeprefix('X_')}", random_state=seed)
        sc.tl.leiden(
            adata,
            0.5,
            neighbors_key="ae_graph",
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=seed,
        )


def draw(adata: anndata.AnnData, model: Autoencoder, folder: Path) -> None:
    """Draw the training curve, the latent beside PCA, and a gene pair before and after."""
    import matplotlib as mpl

    from anncoder import pl

    with mpl.rc_context({"backend": "agg"}):
        figures = {
            "demo_training.png": pl.history(model).figure,
            "demo_umap.png": pl.embeddings(
                adata, {"latent (UMAP)": "X_umap_ae", "PCA (UMAP)": "X_umap_pca"}, color=LABELS
            )[0].figure,
            "demo_genes.png": pl.gene_pair(adata, *GENES, color=LABELS)[0].figure,
        }
        for name, figure in figures.items():
            with atomic_path(folder / name) as temporary:
                figure.savefig(temporary, dpi=150)
            typer.echo(f"drew {folder / name}")
