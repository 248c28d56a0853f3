"""``anncoder demo``: the main job on real cells, from the counts to the pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib import pyplot as plt

import anncoder as ac
from anncoder.cli import demo
from anncoder.datasets import pbmc68k_counts
from anncoder.errors import FileError, ResourceError


class Ran(NamedTuple):
    folder: Path
    printed: str
    seconds: float

    @property
    def adata(self) -> anndata.AnnData:
        return anndata.read_h5ad(self.folder / "demo.h5ad")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("demo") / "new"
    began = time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("typer.echo", lambda message="", **_: lines.append(str(message)))
        demo.run_demo(folder, seed=0, threads=1)
    return Ran(folder, "\n".join(lines), time.process_time() - began)


def test_it_is_soon_over(ran: Ran) -> None:
    # of the CPU, a third of them numba's compiler where the cache is new. `.ci/run` tells the time on an idle machine;
    # here others may compute
    assert ran.seconds < 100


def test_the_file_has_our_slots_and_scanpys(ran: Ran) -> None:
    adata, counts = ran.adata, pbmc68k_counts()
    assert adata.shape == (700, 765)
    assert (adata.X != counts.X).nnz == 0
    assert list(adata.obs_names) == list(counts.obs_names)
    n_latent = adata.obsm["X_ae"].shape[1]
    widths = {"X_ae": n_latent, "X_pca": n_latent, "X_tsne_ae": 2, "X_tsne_pca": 2}
    assert {slot: adata.obsm[slot].shape for slot in widths} == {slot: (700, width) for slot, width in widths.items()}
    assert adata.obsm["X_ae"].dtype == np.float32
    for slot in widths:
        assert np.isfinite(adata.obsm[slot]).all()
    assert adata.layers["ae_denoised"].shape == (700, 765)
    assert (adata.layers["ae_denoised"] > 0).all()
    assert (adata.var["ae_theta"] > 0).all()
    assert 4 <= adata.obs["leiden"].nunique() <= 20
    assert set(demo.GENES) <= set(adata.var_names)


def test_the_run_folder_has_what_a_reader_may_ask_for(ran: Ran) -> None:
    run = ran.folder / "demo.anncoder"
    assert {"model", "history.csv", "metrics.json", "resolved.yaml", "run.log"} <= {p.name for p in run.iterdir()}
    model, adata = ac.load(run / "model"), ran.adata
    np.testing.assert_array_equal(model.embed(adata), adata.obsm["X_ae"])
    history = pd.read_csv(run / "history.csv")
    assert len(history) == len(adata.uns["ae"]["history"])
    assert history["valid_loss"].min() < history["valid_loss"].iloc[0]
    assert model.stopped_ == "early"  # there was time enough


def test_it_says_how_the_latent_compares_with_pca(ran: Ran) -> None:
    metrics = json.loads((ran.folder / "demo.anncoder" / "metrics.json").read_text())
    found = metrics["evaluation"]
    assert found["labels"] == demo.LABELS
    assert set(found["methods"]) == {"model", "pca", "pca_50", "gene_mean"}
    model, pca, mean = (found["methods"][name] for name in ("model", "pca", "gene_mean"))
    for row in (model, pca):
        for score in ("leiden_ari", "leiden_nmi", "kmeans_ari", "kmeans_nmi"):
            assert f"{row[score]:.4g}" in ran.printed
    for word in ("model", "pca", "gene_mean", "leiden_ari", "leiden_nmi"):
        assert word in ran.printed
    assert model["leiden_ari"] > pca["leiden_ari"] - 0.05
    assert model["leiden_ari"] > 0.48
    assert model["heldout_nll"] < mean["heldout_nll"] - 10


def test_the_three_pictures(ran: Ran) -> None:
    for name in ("demo_training.png", "demo_tsne.png", "demo_genes.png"):
        picture = plt.imread(ran.folder / name)
        height, width, _ = picture.shape
        assert width > height > 400
        assert picture.reshape(-1, picture.shape[2]).std(axis=0).max() > 0.05  # something is drawn
        assert name in ran.printed
    assert not plt.get_fignums()


def test_denoising_shows_what_the_picture_is_to_show(ran: Ran) -> None:
    # two parts of the T cell's receptor: T cells have both, B cells and monocytes neither
    adata = ran.adata
    t_cell = adata.obs[demo.LABELS].str.startswith(("CD4+", "CD8+")).to_numpy()
    other = adata.obs[demo.LABELS].isin(["CD19+ B", "CD34+"]).to_numpy()
    pairs = [sc.get.obs_df(adata, list(demo.GENES), layer=layer) for layer in (None, "ae_denoised")]
    assert pairs[0][t_cell].min().min() == 0
    for gene in demo.GENES:
        raw, denoised = (pair[gene].to_numpy() for pair in pairs)
        assert np.median(denoised[t_cell]) > 4 * np.median(denoised[other])
        assert denoised[t_cell].std() < raw[t_cell].std()
        assert denoised.sum() == pytest.approx(raw.sum(), rel=0.1)  # no molecules are invented


def test_it_can_be_run_again(ran: Ran, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "SETTINGS", (*demo.SETTINGS, "max_epochs=1"))
    monkeypatch.setattr(demo, "add_layout", lambda adata, seed: None)
    monkeypatch.setattr(demo, "draw", lambda adata, model, folder: None)
    for _ in range(2):
        demo.run_demo(tmp_path, seed=0, threads=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.anncoder", "demo.h5ad", "demo_counts.h5ad"]


@pytest.mark.parametrize("name", ["demo.h5ad", "demo_counts.h5ad"])
def test_it_leaves_others_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for write in (pbmc68k_counts()[:, ::-1].copy().write_h5ad, lambda path: path.write_text("precious")):
        write(path)
        before = path.read_bytes()
        with pytest.raises(FileError, match="was not written by anncoder demo"):
            demo.run_demo(tmp_path, seed=0, threads=1)
        assert [p.name for p in tmp_path.iterdir()] == [name]
        assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        demo.run_demo(tmp_path / "file", seed=0, threads=1)
