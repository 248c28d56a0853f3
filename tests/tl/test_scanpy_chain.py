"""scanpy takes over from the latent: clusters, layout, abstraction and trajectories, on real and on many cells."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scanpy as sc
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

import anncoder as ac
from anncoder.errors import AnncoderError


@pytest.fixture(autouse=True)
def scanpys_own_warnings() -> Iterator[None]:
    """scanpy, umap and igraph warn of their own plans and random states; that is not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def walk(adata: anndata.AnnData, key: str, root: int) -> None:
    """The whole chain of the README, from the latent on."""
    sc.pp.neighbors(adata, use_rep=f"X_{key}")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)
    sc.tl.umap(adata)
    sc.tl.paga(adata, groups="leiden")
    adata.uns["iroot"] = root
    sc.tl.diffmap(adata)
    sc.tl.dpt(adata)


def test_the_whole_chain_on_blood_cells() -> None:
    adata = ac.datasets.pbmc68k_counts()
    ac.tl.autoencode(adata, "count", n_latent=10, batch_size=64, max_epochs=40, progress=False, threads=1)
    walk(adata, "ae", root=0)
    assert adata.obsm["X_umap"].shape == (700, 2)
    assert np.isfinite(adata.obsm["X_diffmap"]).all()
    assert adata.uns["paga"]["connectivities"].shape[0] == adata.obs["leiden"].nunique() > 3
    assert adata.obs["dpt_pseudotime"].between(0, 1).all()
    assert adjusted_rand_score(adata.obs["bulk_labels"], adata.obs["leiden"]) > 0.3


def test_scanpys_own_key_added_is_recognised(simulated: anndata.AnnData, tmp_path: Path) -> None:
    for step in (
        lambda a: sc.pp.neighbors(a, use_rep="X_ae", key_added="ae"),
        lambda a: (sc.pp.neighbors(a, use_rep="X_ae"), sc.tl.leiden(a, key_added="ae", flavor="igraph")),
    ):
        adata = simulated.copy()
        model = ac.tl.autoencode(adata, n_latent=3, max_epochs=1, progress=False)
        step(adata)
        adata.write_h5ad(tmp_path / "it.h5ad")
        out = {"output": tmp_path / "out.h5ad"}
        for call in (
            lambda a=adata, m=model: ac.tl.embed(a, m),
            lambda m=model, out=out: ac.tl.embed(tmp_path / "it.h5ad", m, **out),
            lambda a=adata: ac.pl.history(a),
        ):
            with pytest.raises(AnncoderError, match="scanpy") as error:
                call()
            assert error.value.code in ("key-taken", "no-results")
        ac.tl.embed(adata, model, key_added="other")


@pytest.mark.parametrize("model", ["count", "denoising", "undercomplete"])
def test_pseudotime_orders_known_mixtures(model: str, shared_data: Any) -> None:
    """RNA of three cell lines in known proportions: from pure H2228 to pure HCC827 is a known line."""
    adata = anndata.read_h5ad(shared_data / "rnamix_celseq2.h5ad")
    logs = adata.copy()
    sc.pp.normalize_total(logs)
    sc.pp.log1p(logs)
    sc.pp.highly_variable_genes(logs, n_top_genes=500)
    adata = adata[:, logs.var["highly_variable"]].copy()
    ac.tl.autoencode(adata, model, n_latent=10, batch_size=32, max_epochs=40, progress=False, threads=1)
    sc.pp.neighbors(adata, use_rep="X_ae")
    adata.uns["iroot"] = int(np.flatnonzero(adata.obs["H2228_prop"] == 1)[0])
    sc.tl.diffmap(adata)
    sc.tl.dpt(adata)
    # the mixtures on the way between the two: the third line (pure, or the larger part) lies off it
    line = adata.obs[adata.obs["H1975_prop"] < 0.5]
    assert sorted(line["HCC827_prop"].unique()) == [0, 0.16, 0.33, 0.68, 1]
    assert abs(spearmanr(line["dpt_pseudotime"], line["HCC827_prop"]).statistic) >= 0.9


@pytest.mark.slow
def test_the_chain_holds_above_8192_cells() -> None:
    """Where scanpy changes to approximate neighbours; pynndescent 0.7 breaks scanpy 1.11 there."""
    adata = ac.datasets.simulate(n_obs=8_500, n_vars=60, n_groups=4, de_prob=0.4, de_fac_loc=0.1, lib_loc=6.5, seed=0)
    ac.tl.autoencode(
        adata, "count", n_latent=5, n_hidden=(32,), max_epochs=4, batch_size=256, progress=False, threads=1
    )
    sc.pp.neighbors(adata, use_rep="X_ae")
    sc.tl.leiden(adata, 0.3, flavor="igraph", n_iterations=2, directed=False)
    sc.tl.paga(adata, groups="leiden")
    adata.uns["iroot"] = 0
    sc.tl.diffmap(adata)
    sc.tl.dpt(adata)
    assert adjusted_rand_score(adata.obs["group"], adata.obs["leiden"]) > 0.5
    assert np.isfinite(adata.obs["dpt_pseudotime"]).all()


def test_the_installation_keeps_the_neighbours_that_scanpy_can_use() -> None:
    assert tuple(map(int, version("pynndescent").split(".")[:2])) < (0, 7)
