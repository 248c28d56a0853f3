"""Pictures of a transport: contents are the numbers, mistakes have remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

import anncoder as ac
from anncoder.datasets import branching
from anncoder.errors import AnncoderError
from anncoder.pl.groups import PALETTE, UNKNOWN


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def moved() -> anndata.AnnData:
    """Return a transport with prior, fates and validation; not to be changed."""
    adata = branching(60)
    ac.tl.growth(adata, rate="growth_true")
    ac.tl.transport(adata, "time", use_rep="X_sim", progress=False)
    ac.tl.fates(adata, "label")
    ac.tl.validate_transport(adata, n=60, n_seeds=2, progress=False)
    return adata


def test_flow_draws_masses(moved: anndata.AnnData) -> None:
    ax = ac.pl.flow(moved, "label")
    heights = {p.get_gid(): p.get_height() for p in ax.patches if hasattr(p, "get_height")}
    assert heights["0: P"] == pytest.approx(1)
    table = ac.tl.flows(moved, "label")
    total = 1.0
    for time, mass in table.groupby("time1")["mass"].sum().items():
        grown = total * mass
        drawn = {name: height for name, height in heights.items() if name.startswith(f"{time:g}:")}
        for name, height in drawn.items():
            here = (table["time1"] == time) & (table["label1"] == name.split(": ")[1])
            assert height == pytest.approx(table.loc[here, "mass"].sum() * total)
        assert sum(drawn.values()) == pytest.approx(grown)
        total = grown
    assert [text.get_text() for text in ax.texts][-1] == f"\u00d7{total:.2f}"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["P", "A", "B"]


def test_bands_leave_a_label_whole_and_arrive_with_their_mass(moved: anndata.AnnData) -> None:
    ax = ac.pl.flow(moved, "label")
    bands = [p for p in ax.patches if not hasattr(p, "get_height")]
    start = [p for p in bands if p.get_path().vertices[0, 0] < 0.5]
    leaves = sum(p.get_path().vertices[0, 1] - p.get_path().vertices[7, 1] for p in start)
    arrives = sum(p.get_path().vertices[3, 1] - p.get_path().vertices[4, 1] for p in start)
    assert leaves == pytest.approx(1)
    assert arrives == pytest.approx(moved.uns["transport"]["pairs"]["mass"].iloc[0])
    colors = {p.get_gid(): to_hex(p.get_facecolor()) for p in bands}
    assert colors["P to A"] == PALETTE[0]
    assert colors["A to A"] == PALETTE[1]


def test_flow_has_the_users_colours_and_cells_without_a_label(moved: anndata.AnnData) -> None:
    adata = moved.copy()
    adata.uns["label_colors"] = ["#111111", "#222222", "#333333"]
    adata.obs.loc[adata.obs_names[:30], "label"] = np.nan
    _, given = plt.subplots()
    ax = ac.pl.flow(adata, "label", ax=given)
    assert ax is given
    nodes = {p.get_gid(): (p.get_height(), to_hex(p.get_facecolor())) for p in ax.patches if hasattr(p, "get_height")}
    assert nodes["0: other"] == (pytest.approx(0.5), UNKNOWN)
    assert nodes["1: P"][1] == "#111111"


def test_more_labels_than_colours_are_told_apart(moved: anndata.AnnData) -> None:
    adata = moved.copy()
    adata.obs["many"] = pd.Categorical([f"L{i % 23:02d}" for i in range(adata.n_obs)])
    ax = ac.pl.flow(adata, "many")
    assert len({to_hex(p.get_facecolor()) for p in ax.get_legend().get_patches()}) == 23


def test_pairs_apart_begin_anew(moved: anndata.AnnData) -> None:
    adata = moved.copy()
    ac.tl.transport(adata, "time", use_rep="X_sim", pairs=[(0, 1), (3, 4)], progress=False)
    ax = ac.pl.flow(adata, "label")
    assert ax.get_title() == "population, relative to time 0 or 3"
    heights = {p.get_gid(): p.get_height() for p in ax.patches if hasattr(p, "get_height")}
    assert heights["3: A"] + heights["3: B"] == pytest.approx(1)
    assert not any(name.startswith("2") for name in heights)


def test_growth_draws_means(moved: anndata.AnnData) -> None:
    axes = ac.pl.growth(moved, "label")
    assert [ax.get_title() for ax in axes] == ["growth, prior", "growth, learned"]
    for ax, column in zip(axes, ("growth", "transport_growth"), strict=True):
        for line in ax.lines[:3]:
            label = moved.obs[moved.obs["label"] == line.get_label()]
            wanted = label.groupby("time")[column].mean().dropna()
            np.testing.assert_allclose(line.get_ydata(), wanted)
            assert np.abs(line.get_xdata() - wanted.index).max() < 0.2
    plain = branching(30, n_times=3)
    ac.tl.transport(plain, "time", use_rep="X_sim", progress=False)
    assert [ax.get_title() for ax in ac.pl.growth(plain, "label")] == ["growth, learned"]


def test_fates_on_an_embedding(moved: anndata.AnnData) -> None:
    axes = ac.pl.fates(moved, basis="X_sim")
    assert [ax.get_title() for ax in axes] == ["A", "B"]
    for k, ax in enumerate(axes):
        np.testing.assert_array_equal(np.sort(ax.collections[1].get_array()), np.sort(moved.obsm["fates"][:, k]))
    flat = moved.copy()
    flat.obsm["X_umap"] = flat.obsm["X_sim"][:, :2]
    ac.tl.fates(flat, "label", at=3, key_added="middle")
    (only,) = ac.pl.fates(flat, "A", key="middle")
    assert len(only.collections[0].get_offsets()) == 60  # cells of the last time, grey
    assert len(only.collections[1].get_offsets()) == 240


def test_fates_by_label_and_time(moved: anndata.AnnData) -> None:
    axes = ac.pl.fates(moved)  # there is no embedding of two columns
    before = moved.obs[moved.obs["time"] < 4]
    for k, ax in enumerate(axes):
        for line in ax.lines:
            here = before["label"] == line.get_label()
            values = pd.Series(moved.obsm["fates"][moved.obs["time"] < 4, k], before.index)[here]
            np.testing.assert_allclose(line.get_ydata(), values.groupby(before["time"][here]).mean())
    assert len(axes[0].lines) == 3


def test_trends_draw_means_and_standard_errors(moved: anndata.AnnData) -> None:
    axes = ac.pl.trends(moved, ["Dim1", "Dim3"])
    assert [ax.get_title() for ax in axes] == ["Dim1", "Dim3"]
    for ax, gene in zip(axes, ("Dim1", "Dim3"), strict=True):
        for line, band, fate in zip(ax.lines, ax.collections, "AB", strict=True):
            rows = ac.tl.trends(moved, fate, gene)
            np.testing.assert_allclose(line.get_ydata(), rows["mean"])
            upper = (rows["mean"] + rows["sd"] / np.sqrt(rows["n_eff"])).max()
            assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(upper)
    assert len(ac.pl.trends(moved, "Dim1", "B")[0].lines) == 1


def test_pictures_of_a_file_are_the_same(moved: anndata.AnnData, tmp_path: Path) -> None:
    moved.write_h5ad(tmp_path / "moved.h5ad")
    again = anndata.read_h5ad(tmp_path / "moved.h5ad")
    for draw in (ac.pl.fates, ac.pl.validation, lambda a: ac.pl.growth(a, "label"), lambda a: [ac.pl.flow(a, "label")]):
        first, second = (np.ravel(draw(adata)) for adata in (moved, again))
        assert [ax.get_title() for ax in first] == [ax.get_title() for ax in second]
        assert [len(ax.get_children()) for ax in first] == [len(ax.get_children()) for ax in second]


def test_validation_draws_the_table(moved: anndata.AnnData) -> None:
    axes = ac.pl.validation(moved)
    table = moved.uns["transport_validation"]["table"]
    assert axes.shape == (2, 3)
    for column, (name, rows) in zip(axes.T, table.groupby("triplet", sort=False), strict=True):
        assert column[0].get_title() == f"times {name}: {rows['verdict'].iloc[0]}"
        for ax, measure in zip(column, ("W2", "E"), strict=True):
            drawn = [container.lines[0].get_xdata()[0] for container in ax.containers]
            np.testing.assert_allclose(drawn, rows[measure])
            bars = [np.ptp(container.lines[2][0].get_segments()[0][:, 0]) / 2 for container in ax.containers]
            np.testing.assert_allclose(bars, rows[f"{measure}_sd"], atol=1e-12)
    assert axes[1, 0].get_yticklabels()[0].get_text() == "transport (I)"


NOTHING: dict[str, tuple[Callable[[anndata.AnnData], Any], str, str]] = {
    "flow": (lambda a: ac.pl.flow(a, "label"), "no-transport", "ac.tl.transport"),
    "growth": (lambda a: ac.pl.growth(a, "label"), "no-transport", "ac.tl.transport"),
    "fates": (ac.pl.fates, "no-results", "ac.tl.fates"),
    "trends": (lambda a: ac.pl.trends(a, "Dim0"), "no-results", "ac.tl.fates"),
    "validation": (ac.pl.validation, "no-results", "ac.tl.validate_transport"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_was_transported_yet(name: str) -> None:
    draw, code, remedy = NOTHING[name]
    with pytest.raises(AnncoderError) as refused:
        draw(branching(20))
    assert refused.value.code == code
    assert remedy in refused.value.remedy
    assert not plt.get_fignums()


WRONG: dict[str, Callable[[anndata.AnnData], Any]] = {
    "column of the flow": lambda a: ac.pl.flow(a, "lable"),
    "column of growth": lambda a: ac.pl.growth(a, "lable"),
    "gene": lambda a: ac.pl.trends(a, ["Dim0", "Dmi1"]),
    "no gene": lambda a: ac.pl.trends(a, []),
    "fate of a trend": lambda a: ac.pl.trends(a, "Dim0", ["A", "C"]),
    "fate": lambda a: ac.pl.fates(a, "C"),
    "no fate": lambda a: ac.pl.fates(a, []),
    "basis": lambda a: ac.pl.fates(a, basis="X_mua"),
}


@pytest.mark.parametrize("name", WRONG)
def test_unknown_names(moved: anndata.AnnData, name: str) -> None:
    with pytest.raises(AnncoderError) as refused:
        WRONG[name](moved)
    assert refused.value.code == "unknown-key"
    assert not plt.get_fignums()


def test_other_mistakes(moved: anndata.AnnData) -> None:
    adata = moved.copy()
    adata.obsm["X_one"] = adata.obsm["X_sim"][:, :1]
    with pytest.raises(AnncoderError) as refused:
        ac.pl.fates(adata, basis="X_one")
    assert refused.value.code == "bad-coordinates"
    del adata.uns["transport"]
    with pytest.raises(AnncoderError, match="the transport of the fates") as refused:
        ac.pl.fates(adata)
    assert refused.value.code == "no-results"
    adata = moved.copy()
    ac.tl.fates(adata, "label", at=0)
    with pytest.raises(AnncoderError, match="no cell before time 0") as refused:
        ac.pl.fates(adata)
    assert refused.value.code == "no-results"
    adata = moved[moved.obs["time"] > 0].copy()
    with pytest.raises(AnncoderError) as refused:
        ac.pl.flow(adata, "label")
    assert refused.value.code == "other-latent"


def test_pictures_of_blood_progenitors(shared_data: Path) -> None:
    adata = anndata.read_h5ad(shared_data / "larry_781.h5ad")
    ac.tl.transport(adata, "time", use_rep="X_spring", progress=False, max_iter=50)
    ac.tl.fates(adata, "label")
    ac.pl.flow(adata, "label").figure.canvas.draw()
    axes = ac.pl.fates(adata)  # on X_spring
    assert len(axes) == 8
    assert axes[0].figure.get_suptitle() == "8 fates of 12"
    ac.pl.growth(adata, "label")[0].figure.canvas.draw()
