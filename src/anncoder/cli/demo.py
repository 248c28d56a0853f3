"""``anncoder demo`` and ``simulate``: data to try the package on, real and simulated."""

from __future__ import annotations

import time
from pathlib import Path

import anndata
import h5py
import pandas as pd
import typer
from anndata.io import read_elem

from anncoder.cli.inspect import print_settings
from anncoder.cli.settings import parse_assignments, set_in
from anncoder.cli.train import TrainRequest, run_train
from anncoder.datasets import SplatParameters, pbmc68k_counts, simulate_to_file
from anncoder.errors import ConfigError, FileError
from anncoder.evaluation.clusters import leiden
from anncoder.io.atomic import atomic_path, locked, writable_folder
from anncoder.io.h5ad_write import read_input, write_output
from anncoder.io.output_paths import refuse_output
from anncoder.models.base import Autoencoder
from anncoder.training.progress import announce, bar

LABELS = "bulk_labels"
GENES = ("CD3D", "CD3E")  # two parts of one receptor: T cells have both, whatever was counted
# 700 cells are five minibatches of the default 128, and ten cell types need no more units
SETTINGS = ("n_latent=10", "batch_size=64", "learning_rate=0.003")


def run_demo(folder: Path, *, seed: int, threads: int | None) -> None:
    """Check, train, embed, denoise, cluster, embed in two dimensions and draw 700 blood cells with published labels."""
    from anncoder.models.loading import load

    began = time.perf_counter()
    if not folder.exists():
        folder.mkdir(parents=True)
    writable_folder(folder)
    counts, output, cells = folder / "demo_counts.h5ad", folder / "demo.h5ad", pbmc68k_counts()
    for path in (counts, output):
        _refuse_others(path, cells.var_names)
    write_output(cells, counts, wrote=())
    run_train(
        TrainRequest([counts], output, settings=SETTINGS, seed=seed, threads=threads, denoise=True, labels=LABELS)
    )
    adata = read_input(output)
    add_layout(adata, seed=seed)
    write_output(adata, output, wrote=("obsm/X_ae",))
    draw(adata, load(output.with_suffix(".anncoder") / "model"), folder)
    announce(
        f"demo_counts.h5ad, demo.h5ad, demo.anncoder/ and three pictures are in {folder.resolve()} "
        f"({time.perf_counter() - began:.0f} s)"
    )


def _refuse_others(path: Path, genes: pd.Index) -> None:
    # a demo may be run again; a file of this name that has other genes is not of a demo
    try:
        with h5py.File(path, "r") as file:
            ours = read_elem(file["var"]).index.equals(genes)
    except FileNotFoundError:
        return
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        ours = False
    if not ours:
        what = f"{str(path)!r} exists and was not written by anncoder demo"
        raise FileError("not-ours", what, str(path), "choose another folder (-o), or move it away first")


def add_layout(adata: anndata.AnnData, *, seed: int) -> None:
    """Add Leiden clusters and a t-SNE of the latent, and a t-SNE of PCA of the same width."""
    import scanpy as sc

    from anncoder.pl.layout import tsne

    logs = anndata.AnnData(adata.X.copy())
    sc.pp.normalize_total(logs)
    sc.pp.log1p(logs)
    sc.pp.pca(logs, n_comps=adata.obsm["X_ae"].shape[1], random_state=seed)
    adata.obsm["X_pca"] = logs.obsm["X_pca"]
    for name in ("pca", "ae"):
        adata.obsm[f"X_tsne_{name}"] = tsne(adata.obsm[f"X_{name}"], seed=seed)
    # not sc.pp.neighbors and sc.tl.umap: umap-learn compiles itself anew in every process
    adata.obs["leiden"] = pd.Categorical(leiden(adata.obsm["X_ae"], (0.5,), seed)[0])


def draw(adata: anndata.AnnData, model: Autoencoder, folder: Path) -> None:
    """Draw the training curve, the latent beside PCA, and a gene pair before and after."""
    from matplotlib import pyplot as plt

    from anncoder import pl

    plt.switch_backend("agg")  # a command needs no window, and may have no display
    panels = {"autoencoder, t-SNE of the latent": "X_tsne_ae", "t-SNE of as many principal components": "X_tsne_pca"}
    figures = {
        "demo_training.png": pl.history(model).figure,
        "demo_tsne.png": pl.embeddings(adata, panels, color=LABELS)[0].figure,
        "demo_genes.png": pl.gene_pair(adata, *GENES, color=LABELS)[0].figure,
    }
    for name, figure in figures.items():
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, dpi=150)
        plt.close(figure)
        typer.echo(f"drew {folder / name}")


def run_simulate(output: Path, assignments: tuple[str, ...], *, seed: int | None, keep_means: bool) -> None:
    """Simulate and write a file; the parameters are those of :class:`SplatParameters`."""
    refuse_output(output)
    parameters = parameters_of(assignments, seed=seed)
    shown = bar(parameters.n_obs, "cell", unit_scale=True)
    with locked(output), shown:  # of two at once the one that ends last would win
        simulate_to_file(output, keep_means=keep_means, progress=shown.update, **dict(parameters))
    announce(f"wrote {output}: {parameters.n_obs:,} cells x {parameters.n_vars:,} genes")


def parameters_of(assignments: tuple[str, ...], *, seed: int | None = None) -> SplatParameters:
    """Return the parameters that ``key=value`` words give; an error says where they are listed.

    A seed that is given beats them, as in ``train``.
    """
    values = parse_assignments(assignments) | ({} if seed is None else {"seed": seed})
    try:
        with set_in({"--set": values}):
            return SplatParameters(**values)
    except ConfigError as error:
        error.where = error.where.replace("SplatParameters", "--set")
        error.remedy = f"{error.remedy}; see: anncoder config --simulate"
        raise


def run_config_of_simulate(assignments: tuple[str, ...]) -> None:
    """Print every parameter of ``anncoder simulate``, with what it means."""
    print_settings("anncoder simulate --set", parameters_of(assignments))
