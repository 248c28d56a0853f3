"""The pictures: what is in them, what they refuse, and that they leave matplotlib as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from scipy.sparse import csr_matrix

import anncoder as ac
from anncoder import pl
from anncoder.errors import ConfigError, InputError
from anncoder.pl.autoencoders import JITTER
from anncoder.pl.groups import PALETTE, UNKNOWN

QUICK: dict[str, Any] = {"n_latent": 4, "n_hidden": (16,), "max_epochs": 5, "threads": 1, "progress": False}


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Draw without a window, and close what was drawn; matplotlib's settings must be what they were."""
    plt.switch_backend("agg")
    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def model(simulated: anndata.AnnData) -> ac.CountAutoencoder:
    fit_settings = {k: v for k, v in QUICK.items() if k not in ("n_latent", "n_hidden")}
    return ac.CountAutoencoder(n_latent=4, n_hidden=(16,)).fit(simulated, **fit_settings)


@pytest.fixture
def drawn(counts: anndata.AnnData, model: ac.CountAutoencoder) -> anndata.AnnData:
    """Return cells with everything that can be drawn."""
    ac.tl.embed(counts, model)
    ac.tl.denoise(counts, model)
    counts.obsm["X_pca"] = np.random.default_rng(0).normal(size=(counts.n_obs, 5))
    return counts


def points(ax: Axes) -> np.ndarray[Any, Any]:
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def inside(figure: Any) -> bool:
    """Tell whether nothing of a figure is cut at its edge, and no two of its parts overlap."""
    figure.canvas.draw()
    boxes = [part.get_tightbbox() for part in [*figure.axes, *figure.legends]]
    fits = all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 + 1 and b.y0 >= 0 for b in boxes)
    return fits and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_history_of_a_model(model: ac.CountAutoencoder) -> None:
    ax = pl.history(model)
    assert isinstance(ax, Axes)
    assert ax.get_title()
    assert ax.get_xlabel() == "epoch"
    assert "loss" in ax.get_ylabel()
    train, valid, best = ax.get_lines()
    np.testing.assert_allclose(train.get_ydata(), model.history_["train_loss"])
    np.testing.assert_allclose(valid.get_ydata(), model.history_["valid_loss"])
    np.testing.assert_array_equal(train.get_xdata(), [1, 2, 3, 4, 5])
    assert list(best.get_xdata()) == [model.best_epoch_ + 1]
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["training", "validation", f"best epoch: {model.best_epoch_ + 1}"]
    assert inside(ax.figure)


def test_history_from_the_data_and_from_a_file(
    drawn: anndata.AnnData, model: ac.CountAutoencoder, tmp_path: Path
) -> None:
    drawn.write_h5ad(tmp_path / "it.h5ad")
    for source in (drawn, anndata.read_h5ad(tmp_path / "it.h5ad")):
        np.testing.assert_allclose(pl.history(source).get_lines()[0].get_ydata(), model.history_["train_loss"])


def test_history_into_given_axes_and_without_validation(counts: anndata.AnnData) -> None:
    ac.tl.autoencode(counts, key_added="it", valid_fraction=0, **QUICK)
    _, ax = plt.subplots()
    assert pl.history(counts, key="it", ax=ax) is ax
    assert len(plt.get_fignums()) == 1
    assert len(ax.get_lines()) == 2


def test_history_marks_the_epoch_whose_weights_the_model_has(counts: anndata.AnnData) -> None:
    model = ac.tl.autoencode(counts, keep_best=False, **QUICK)
    for losses in (model.history_, counts.uns["ae"]["history"]):
        losses["valid_loss"] = [3.0, 1.0, 2.0, 2.0, 2.0]
    for source in (model, counts):
        ax = pl.history(source)
        assert list(ax.get_lines()[-1].get_xdata()) == [5]
        assert ax.get_legend().get_texts()[-1].get_text() == "weights are of epoch: 5"


def test_history_says_what_the_loss_is_measured_in(counts: anndata.AnnData, model: ac.CountAutoencoder) -> None:
    other = ac.tl.autoencode(counts, "variational", max_epochs=1, progress=False)
    assert pl.history(model).get_ylabel() == "loss, mean of cells and genes"
    assert pl.history(other).get_ylabel() == pl.history(counts).get_ylabel() == "loss, nats a cell"
    mapped = ac.NetSNE().fit(counts, max_epochs=1, progress=False)
    assert pl.history(mapped).get_ylabel() == "loss"


def test_history_of_nothing(counts: anndata.AnnData) -> None:
    counts.uns["other"] = 3
    for key in ("ae", "other"):
        with pytest.raises(InputError) as error:
            pl.history(counts, key=key)
        assert error.value.code == "no-results"
    assert not plt.get_fignums()


def test_embeddings(drawn: anndata.AnnData) -> None:
    axes = pl.embeddings(drawn, {"latent": "X_ae", "PCA": "X_pca"}, color="group")
    assert [ax.get_title() for ax in axes] == ["latent", "PCA"]
    for ax, slot in zip(axes, ("X_ae", "X_pca"), strict=True):
        expected = drawn.obsm[slot][:, :2]
        np.testing.assert_allclose(np.sort(points(ax), axis=0), np.sort(expected, axis=0), rtol=1e-6)
        colors = {to_hex(color) for c in ax.collections for color in c.get_facecolors()}
        assert colors == set(PALETTE[:3])
    figure = axes[0].figure
    assert legend(figure) == list(drawn.obs["group"].cat.categories)
    assert inside(figure)
    sizes = {tuple(np.round(ax.get_position().size * figure.get_size_inches(), 3)) for ax in axes}
    assert len(sizes) == 1  # equal panels
    assert abs(np.diff(next(iter(sizes)))[0]) < 0.01  # and square


def test_a_cell_has_the_colour_of_its_group(drawn: anndata.AnnData) -> None:
    (ax,) = pl.embeddings(drawn, {"latent": "X_ae"}, color="group")
    groups = drawn.obs["group"].cat
    where = {tuple(np.float32(p)): code for p, code in zip(drawn.obsm["X_ae"][:, :2], groups.codes, strict=True)}
    for collection in ax.collections:
        for point, color in zip(collection.get_offsets(), collection.get_facecolors(), strict=True):
            assert to_hex(color) == PALETTE[where[tuple(np.float32(point))]]


def test_the_colours_of_scanpy_are_kept(drawn: anndata.AnnData) -> None:
    drawn.uns["group_colors"] = np.array(["#111111", "#222222", "#333333"])
    (ax,) = pl.embeddings(drawn, {"latent": "X_ae"}, color="group")
    assert {to_hex(c) for c in ax.collections[0].get_facecolors()} == set(drawn.uns["group_colors"])
    drawn.uns["group_colors"] = ["#111111"]  # of an older set of categories
    (ax,) = pl.embeddings(drawn, {"latent": "X_ae"}, color="group")
    assert {to_hex(c) for c in ax.collections[0].get_facecolors()} == set(PALETTE[:3])


@pytest.mark.parametrize("n_groups", [1, 10, 11, 45, 100])
def test_many_groups_are_told_apart_and_named(drawn: anndata.AnnData, n_groups: int) -> None:
    drawn.obs["many"] = [f"a type of cell {i % n_groups:03}" for i in range(drawn.n_obs)]
    axes = pl.embeddings(drawn, {"latent": "X_ae", "PCA": "X_pca"}, color="many")
    figure = axes[0].figure
    looks = {(h.get_color(), h.get_marker()) for h in figure.legends[0].legend_handles}
    assert len(looks) == n_groups == len(legend(figure))
    assert len(points(axes[0])) == drawn.n_obs
    assert inside(figure)


def test_cells_without_a_group_are_grey_and_named(drawn: anndata.AnnData) -> None:
    drawn.obs.loc[drawn.obs_names[:10], "group"] = np.nan
    (ax,) = pl.embeddings(drawn, {"latent": "X_ae"}, color="group")
    colors = [to_hex(c) for collection in ax.collections for c in collection.get_facecolors()]
    assert colors.count(UNKNOWN) == 10
    assert legend(ax.figure)[-1] == "no label"


def test_embeddings_refuse_what_is_not_there(drawn: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="did you mean 'group'"):
        pl.embeddings(drawn, {"latent": "X_ae"}, color="groups")
    with pytest.raises(ConfigError, match="did you mean 'X_ae'"):
        pl.embeddings(drawn, {"latent": "X_a"}, color="group")
    drawn.obs["cell"] = drawn.obs_names
    with pytest.raises(ConfigError) as error:
        pl.embeddings(drawn, {"latent": "X_ae"}, color="cell")
    assert error.value.code == "too-many-groups"
    assert not plt.get_fignums()


def test_no_cells_and_columns_that_are_none_are_refused(drawn: anndata.AnnData) -> None:
    with pytest.raises(InputError) as nothing:
        pl.embeddings(drawn[:0], "X_ae", color="group")
    assert nothing.value.code == "too-few-cells"
    with pytest.raises(ConfigError, match="did you mean 'group'"):
        pl.embeddings(drawn, "X_ae", color=["group", "grup"])
    with pytest.raises(ConfigError, match="nothing to colour by"):
        pl.embeddings(drawn, "X_ae", color=[])


def test_embeddings_take_slots_without_titles_and_sparse_ones(drawn: anndata.AnnData) -> None:
    drawn.obsm["X_sparse"] = csr_matrix(drawn.obsm["X_pca"])
    axes = pl.embeddings(drawn, ["X_pca", "X_sparse"], color="group")
    assert [ax.get_title() for ax in axes] == ["X_pca", "X_sparse"]
    np.testing.assert_array_equal(points(axes[0]), points(axes[1]))
    (ax,) = pl.embeddings(drawn, "X_pca", color="group")
    assert ax.get_title() == "X_pca"


def test_embeddings_refuse_an_array_in_place_of_its_name(drawn: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="got ndarray") as caught:
        pl.embeddings(drawn, {"mine": drawn.obsm["X_ae"]}, color="group")
    assert "obsm" in caught.value.remedy


def test_embeddings_refuse_a_slot_of_one_column(drawn: anndata.AnnData) -> None:
    drawn.obsm["X_one"] = drawn.obsm["X_pca"][:, :1]
    drawn.obsm["X_sparse"] = csr_matrix(drawn.obsm["X_one"])
    for slot in ("X_one", "X_sparse"):
        with pytest.raises(InputError) as error:
            pl.embeddings(drawn, slot, color="group")
        assert error.value.code == "bad-coordinates"
    with pytest.raises(ConfigError):
        pl.embeddings(drawn, [], color="group")
    assert not plt.get_fignums()


def test_a_gene_pair(drawn: anndata.AnnData) -> None:
    x, y = drawn.var_names[[4, 9]]
    raw, denoised = axes = pl.gene_pair(drawn, x, y, color="group")
    assert [ax.get_title() for ax in axes] == ["measured counts", "denoised counts"]
    assert all(ax.get_xlabel().startswith(x) for ax in axes)
    assert raw.get_ylabel().startswith(y)
    assert raw.get_xlim() == denoised.get_xlim()
    assert raw.get_ylim() == denoised.get_ylim()
    expected = np.log1p(drawn.layers["ae_denoised"][:, [4, 9]])
    np.testing.assert_allclose(np.sort(points(denoised), axis=0), np.sort(expected, axis=0), rtol=1e-5)
    exact = np.sort(np.log1p(drawn.X[:, [4, 9]].toarray()), axis=0)
    assert np.abs(np.sort(points(raw), axis=0) - exact).max() <= JITTER + 1e-6
    assert legend(raw.figure) == list(drawn.obs["group"].cat.categories)
    assert inside(raw.figure)


@pytest.mark.parametrize("backed", [False, True])
def test_a_gene_pair_of_normalized_expression(
    drawn: anndata.AnnData, model: ac.CountAutoencoder, backed: bool, tmp_path: Path
) -> None:
    ac.tl.denoise(drawn, model, scale="normalized")
    exact = drawn.X[:, [4, 9]].toarray() * (model.library_size_ / drawn.X.sum(axis=1).A1)[:, None]
    expected = np.log1p(drawn.layers["ae_denoised"][:, [4, 9]])
    if backed:
        drawn.write_h5ad(tmp_path / "it.h5ad")
        drawn = anndata.read_h5ad(tmp_path / "it.h5ad", backed="r")
    raw, denoised = axes = pl.gene_pair(drawn, *drawn.var_names[[4, 9]])
    assert [ax.get_title() for ax in axes] == ["measured normalized counts", "denoised normalized counts"]
    assert raw.get_xlabel().endswith(", log(1 + normalized counts)")
    assert np.abs(np.sort(points(raw), axis=0) - np.sort(np.log1p(exact), axis=0)).max() <= JITTER + 1e-5
    np.testing.assert_allclose(np.sort(points(denoised), axis=0), np.sort(expected, axis=0), rtol=1e-5)


def test_a_gene_pair_from_a_backed_dense_file(drawn: anndata.AnnData, tmp_path: Path) -> None:
    dense = drawn.copy()
    dense.X = dense.X.toarray()
    dense.write_h5ad(tmp_path / "it.h5ad")
    backed = anndata.read_h5ad(tmp_path / "it.h5ad", backed="r")
    for pair in ([9, 4], [4, 4]):  # HDF5 takes no columns in this order, nor one twice
        shown, wanted = (points(pl.gene_pair(adata, *drawn.var_names[pair])[0]) for adata in (backed, drawn))
        np.testing.assert_allclose(shown, wanted, rtol=1e-6)
    backed.file.close()


@pytest.mark.parametrize("scale", ["counts", "normalized", "log1p"])
def test_expression_measured_beside_denoised(
    drawn: anndata.AnnData, model: ac.CountAutoencoder, scale: ac.models.base.Scale
) -> None:
    ac.tl.denoise(drawn, model, scale=scale)
    genes = list(drawn.var_names[[4, 9]])
    axes = pl.expression(drawn, genes, basis="X_pca")
    assert axes.shape == (2, 2)
    assert [ax.get_title() for ax in axes[1]] == [f"{genes[1]}, measured", f"{genes[1]}, denoised"]
    to_median = (model.library_size_ / drawn.X.sum(axis=1).A1)[:, None]
    measured = np.log1p(drawn.X[:, [4, 9]].toarray() * to_median)
    denoised = np.log1p(model.denoise(drawn, scale="normalized", genes=genes))
    for row, *exact in zip(axes, measured.T, denoised.T, strict=True):
        for ax, values in zip(row, exact, strict=True):
            (points_drawn,) = ax.collections
            np.testing.assert_allclose(np.sort(points_drawn.get_array()), np.sort(values), rtol=1e-5, atol=1e-6)
        assert row[0].collections[0].get_clim() == row[1].collections[0].get_clim()
    assert len(pl.expression(drawn, genes[0], basis="X_pca")) == 1
    if scale != "counts":  # the pair shows both at the median library size, in logarithms
        pair = pl.gene_pair(drawn, *genes)
        np.testing.assert_allclose(np.sort(points(pair[1]), axis=0), np.sort(denoised, axis=0), rtol=1e-5, atol=1e-6)


def test_the_table_of_an_evaluation(counts: anndata.AnnData, model: ac.CountAutoencoder) -> None:
    found = ac.evaluate(model, counts, labels="group")
    axes = pl.evaluation(found)
    table = found.table.dropna(axis=1, how="all")
    assert len(axes) == table.shape[1]
    for ax, name in zip(axes, table, strict=True):
        (dots,) = ax.collections
        np.testing.assert_allclose(np.asarray(dots.get_offsets())[::-1, 0], table[name])
        filled = [to_hex(color) != "#ffffff" for color in dots.get_facecolors()][::-1]
        best = table[name].min() if name in ("heldout_nll", "reconstruction_mse") else table[name].max()
        assert filled == list(table[name] == best)
    assert [text.get_text() for text in axes[0].get_yticklabels()] == list(table.index[::-1])
    with pytest.raises(ConfigError, match="not an evaluation"):
        pl.evaluation(table)


def test_expression_that_cannot_be_drawn(drawn: anndata.AnnData) -> None:
    gene = drawn.var_names[0]
    for arguments, code in (
        ({"genes": []}, "bad-value"),
        ({"genes": "nowhere"}, "unknown-key"),
        ({"genes": gene, "basis": "X_umap"}, "unknown-key"),
        ({"genes": gene, "key": "other"}, "not-denoised"),
    ):
        with pytest.raises(ac.AnncoderError) as error:
            pl.expression(drawn, **{"basis": "X_pca", **arguments})
        assert error.value.code == code


def test_a_gene_pair_without_colours(drawn: anndata.AnnData) -> None:
    axes = pl.gene_pair(drawn, *drawn.var_names[:2])
    assert not axes[0].figure.legends
    assert {to_hex(c) for c in axes[1].collections[0].get_facecolors()} == {PALETTE[0]}


def test_a_gene_pair_shows_the_counts_that_the_model_read(counts: anndata.AnnData) -> None:
    raw = counts.X.copy()
    counts.layers["counts"], counts.X = raw, counts.X * 0
    ac.tl.autoencode(counts, layer="counts", denoise=True, **QUICK)
    genes = list(counts.var_names[np.argsort(-raw.sum(0).A1)[:2]])
    shown = points(pl.gene_pair(counts, *genes)[0])
    assert shown.max() > 1
    np.testing.assert_array_equal(points(pl.gene_pair(counts, *genes, layer="counts")[0]), shown)
    assert points(pl.gene_pair(counts, *genes, layer="X")[0]).max() <= JITTER


def test_a_gene_pair_of_expression_is_shown_as_it_is(counts: anndata.AnnData) -> None:
    counts.X = counts.X.log1p()
    ac.tl.autoencode(counts, "undercomplete", transform="none", denoise=True, **QUICK)
    raw, denoised = pl.gene_pair(counts, *counts.var_names[:2])
    assert "counts" not in raw.get_title() + raw.get_xlabel() + raw.get_ylabel()
    exact = np.sort(counts.X[:, :2].toarray(), axis=0)
    np.testing.assert_allclose(np.sort(points(raw), axis=0), exact, rtol=1e-6)
    assert points(denoised).shape == (counts.n_obs, 2)


def test_a_gene_pair_of_counts_that_a_model_reads_without_a_logarithm(counts: anndata.AnnData) -> None:
    ac.tl.autoencode(counts, "scscope", denoise=True, n_latent=4, max_epochs=1, threads=1, progress=False)
    raw, denoised = pl.gene_pair(counts, *counts.var_names[:2])
    assert [ax.get_title() for ax in (raw, denoised)] == ["measured counts", "denoised counts"]
    exact = np.sort(np.log1p(counts.X[:, :2].toarray()), axis=0)
    assert np.abs(np.sort(points(raw), axis=0) - exact).max() <= JITTER + 1e-6


def test_a_gene_pair_refuses_what_is_not_there(counts: anndata.AnnData, drawn: anndata.AnnData) -> None:
    genes = list(drawn.var_names[:2])
    with pytest.raises(ConfigError, match="did you mean 'Gene1'"):
        pl.gene_pair(drawn, "gene1", "Gene2")
    with pytest.raises(ConfigError) as wrong:
        pl.gene_pair(drawn, *genes, layer="nowhere")
    assert wrong.value.code == "unknown-key"
    with pytest.raises(ConfigError):
        pl.gene_pair(drawn, *genes, color="nothing")
    with pytest.raises(InputError) as error:
        pl.gene_pair(drawn, *genes, key="other")
    assert error.value.code == "not-denoised"
    assert not plt.get_fignums()
