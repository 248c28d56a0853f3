"""Maps coloured by genes, numbers and several columns; one library size for measured and denoised values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anndata
import numpy as np
import pytest
from matplotlib import pyplot as plt

import anncoder as ac
from anncoder import pl
from anncoder.errors import ConfigError
from anncoder.tl.expression import given, measured

FIT: dict[str, Any] = {"n_latent": 3, "n_hidden": (8,), "max_epochs": 2, "threads": 1, "progress": False}


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted_cells(simulated: anndata.AnnData) -> anndata.AnnData:
    """Return cells with a model of half of their genes; not to be changed."""
    cells = simulated.copy()
    cells.var["highly_variable"] = np.arange(cells.n_vars) % 2 == 0
    ac.tl.autoencode(cells, denoise=True, **FIT)
    return cells


@pytest.fixture
def cells(fitted_cells: anndata.AnnData) -> anndata.AnnData:
    return fitted_cells.copy()


def shown(ax: Any) -> np.ndarray[Any, Any]:
    return np.sort(np.concatenate([np.asarray(c.get_array()) for c in ax.collections if c.get_array() is not None]))


def normalized(cells: anndata.AnnData) -> np.ndarray[Any, Any]:
    # by hand: sums over the genes of the fit, at the median of the cells that were fitted
    counts = cells.X.toarray().astype(float)
    sizes = counts[:, ::2].sum(axis=1)
    fitted = ~cells.obs_names.isin(cells.uns["ae"]["valid_obs"])
    return np.asarray(np.log1p(counts / sizes[:, None] * np.median(sizes[fitted])))


def test_a_list_of_groups_genes_and_numbers(cells: anndata.AnnData) -> None:
    cells.obs["depth"] = np.linspace(-1, 2, cells.n_obs)
    cells.obs.loc[cells.obs_names[0], "depth"] = np.nan
    gene = cells.var_names[4]
    cells.obsm["X_other"] = cells.obsm["X_ae"][:, 1:]
    axes = pl.embeddings(cells, {"one": "X_ae", "two": "X_other"}, color=["group", gene, "depth"])
    assert axes.shape == (3, 2)
    assert [ax.get_title() for ax in axes[:, 0]] == ["one: group", f"one: {gene}", "one: depth"]
    np.testing.assert_allclose(shown(axes[1, 1]), np.sort(normalized(cells)[:, 4]), rtol=1e-5)
    np.testing.assert_allclose(shown(axes[2, 0]), np.linspace(-1, 2, cells.n_obs)[1:])
    names = [text.get_text() for text in axes[0, 1].get_legend().get_texts()]
    assert names == list(cells.obs["group"].cat.categories)


def test_one_gene_of_other_layers_and_without_a_model(cells: anndata.AnnData) -> None:
    gene = cells.var_names[2]
    (ax,) = pl.embeddings(cells, "X_ae", color=gene, layer="ae_denoised")
    np.testing.assert_allclose(shown(ax), np.sort(cells.layers["ae_denoised"][:, 2]), rtol=1e-6)
    del cells.uns["ae"]
    (ax,) = pl.embeddings(cells, "X_ae", color=gene)
    np.testing.assert_allclose(shown(ax), np.sort(cells.X[:, 2].toarray().ravel()))
    with pytest.raises(ConfigError):
        pl.embeddings(cells, "X_ae", color=gene, layer="none")


@pytest.mark.parametrize("scale", ["counts", "normalized", "log1p"])
def test_pictures_and_relations_scale_to_one_library_size(cells: anndata.AnnData, scale: Any) -> None:
    model = ac.tl.autoencode(cells, **FIT)
    ac.tl.denoise(cells, model, scale=scale)
    genes = np.array([0, 4, 6])
    ours, smooth = measured(cells, None, "ae").columns(genes), given(cells, None, "ae").columns(genes)
    np.testing.assert_allclose(ours, normalized(cells)[:, genes], rtol=1e-5)
    np.testing.assert_allclose(smooth, model.denoise(cells, scale="log1p")[:, genes // 2], rtol=2e-5, atol=1e-6)
    cells.obsm["X_umap"] = cells.obsm["X_ae"][:, :2]
    axes = pl.expression(cells, list(cells.var_names[genes]))
    for row, raw, denoised in zip(axes, ours.T, smooth.T, strict=True):
        np.testing.assert_allclose(shown(row[0]), np.sort(raw), rtol=1e-6)
        np.testing.assert_allclose(shown(row[1]), np.sort(denoised), rtol=1e-6)


def test_of_a_part_of_the_genes_the_median_is_that_of_the_cells(cells: anndata.AnnData) -> None:
    part = cells[:, :10].copy()
    counts = part.X.toarray()[:, ::2].sum(axis=1)
    found = measured(part, None, "ae").factor
    assert found is not None
    there = counts > 0
    np.testing.assert_allclose(found[there], np.median(counts[there]) / counts[there])
