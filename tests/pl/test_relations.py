"""Pictures of gene relations and drivers: what is in them, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anndata
import numpy as np
import pytest
from matplotlib import pyplot as plt

import anncoder as ac
from anncoder.dynamics.genes.dremi import axis, dremi, drevi, joint_density, source_axis
from anncoder.errors import AnncoderError


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Draw without a window, and close what was drawn."""
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def cells() -> anndata.AnnData:
    """Return 90 cells with counts and a smooth layer, in which gene 1 is a function of gene 0."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(2.0, (90, 12)).astype(np.float32))
    adata.layers["smooth"] = rng.random((90, 12))
    adata.layers["smooth"][:, 1] = adata.layers["smooth"][:, 0] ** 2
    adata.obs["left"] = rng.random(90)
    return adata


def inside(figure: Any) -> bool:
    """Tell whether nothing is cut at the edge of a figure."""
    figure.canvas.draw()
    boxes = [part.get_tightbbox() for part in figure.axes]
    return all(b.x0 >= 0 and b.x1 <= figure.bbox.x1 + 1 and b.y0 >= 0 and b.y1 <= figure.bbox.y1 + 1 for b in boxes)


def test_drevi_shows_the_cells_and_both_densities(cells: anndata.AnnData) -> None:
    axes = ac.pl.drevi(cells, "0", "1", layer="smooth", n_shuffles=6)
    x, y = cells.layers["smooth"][:, :2].T
    joint = joint_density(source_axis(x), axis(y))
    assert len(axes[0].collections[0].get_offsets()) == 90
    np.testing.assert_allclose(axes[1].images[0].get_array(), joint.T)
    shown = axes[2].images[0].get_array()
    np.testing.assert_allclose(shown.max(axis=0), 1)  # each level of the source by its highest
    np.testing.assert_allclose(shown / shown.sum(axis=0), drevi(joint).T)
    at, means = axes[2].get_lines()[-1].get_data()
    np.testing.assert_allclose(at, np.linspace(x.min(), x.max(), 41)[1::2])
    assert np.abs(means - at**2).max() < 0.35  # a density of ten neighbours blurs 90 cells at the ends of the range
    assert f"DREMI {dremi(x, y):.2f} bits" in axes[2].get_title()
    assert "shuffled 0." in axes[2].get_title()
    assert [ax.get_xlabel() for ax in axes] == ["0"] * 3
    assert inside(axes[0].figure)
    assert not cells.uns


def test_drivers_shows_the_first_genes_of_both_sides(cells: anndata.AnnData) -> None:
    table = ac.tl.drivers(cells, "left")
    ax = ac.pl.drivers(cells, n_genes=6)
    up, down = (table["t"] > 0).sum(), (table["t"] <= 0).sum()
    n_up = min(up, max(3, 6 - down))
    expected = [*table.index[:n_up], *table.index[len(table) - (6 - n_up) :]]
    assert [label.get_text() for label in ax.get_yticklabels()][::-1] == expected
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches][::-1], table.loc[expected, "t"])
    assert "left" in ax.get_title()
    assert inside(ax.figure)
    _, other = plt.subplots()
    assert ac.pl.drivers(cells, n_genes=100, ax=other) is other
    assert len(other.patches) == table["t"].notna().sum()


def without_tests(adata: anndata.AnnData) -> Any:
    adata.X = np.ones_like(adata.X)
    ac.tl.drivers(adata, "left")
    return ac.pl.drivers(adata)


@pytest.mark.parametrize(
    ("draw", "code"),
    [
        (lambda a: ac.pl.drevi(a, "0", "gone", layer="smooth"), "unknown-key"),
        (lambda a: ac.pl.drevi(a, "gone", "0", layer="smooth"), "unknown-key"),
        (lambda a: ac.pl.drevi(a, "0", "1", layer="gone"), "unknown-key"),
        (lambda a: ac.pl.drevi(a, "0", "1"), "not-denoised"),
        (lambda a: ac.pl.drevi(a, "0", "1", layer="X"), "tied-values"),
        (lambda a: ac.pl.drevi(a[:40].copy(), "0", "1", layer="smooth"), "too-few-cells"),
        (lambda a: ac.pl.drevi(a.X, "0", "1", layer="smooth"), "not-anndata"),
        (lambda a: ac.pl.drivers(a), "no-results"),
        (lambda a: ac.pl.drivers(a, n_genes=0), "bad-value"),
        (without_tests, "no-results"),
    ],
)
def test_mistakes_are_named(cells: anndata.AnnData, draw: Callable[[Any], Any], code: str) -> None:
    with pytest.raises(AnncoderError) as caught:
        draw(cells)
    assert caught.value.code == code
    assert caught.value.remedy
