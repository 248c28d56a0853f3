"""Pictures of population dynamics and balance."""

from __future__ import annotations

from collections.abc import Iterator

import anndata
import numpy as np
import pandas as pd
import pytest
from benchmarks.population_dynamics import population, tree
from matplotlib import pyplot as plt

import anncoder as ac
from anncoder.errors import AnncoderError


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted() -> anndata.AnnData:
    """Return cells with fitted dynamics; not to be changed."""
    data = population(0, n=100)
    obs = {"day": np.repeat(data.times, 100), "s": np.concatenate(data.coordinates)}
    adata = anndata.AnnData(obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(500)]))
    sizes = dict(zip(data.times, 1e5 * np.exp(data.log_sizes), strict=True))
    ac.tl.dynamics(adata, "day", "s", sizes=sizes, n_grid=60, smoothness=1.0)
    return adata


def test_dynamics_draws_what_was_fitted(fitted: anndata.AnnData) -> None:
    axes = ac.pl.dynamics(fitted)
    assert axes.shape == (2, 2)
    found = fitted.uns["dynamics"]
    np.testing.assert_array_equal(axes[1, 0].lines[0].get_ydata(), found["v"])
    np.testing.assert_array_equal(axes[1, 1].lines[0].get_ydata(), found["g"])
    assert len(axes[0, 0].lines) == 10  # measured and fitted, of five times
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == ["0", "2", "4", "6", "8"]
    assert axes[0, 1].get_yscale() == "log"
    size = found["sizes"]["size"]
    assert axes[0, 1].get_ylim()[0] < size.min() < size.max() < axes[0, 1].get_ylim()[1]
    assert "D = " in axes[1, 0].get_title()
    axes[0, 0].figure.canvas.draw()
    assert any("," in tick.get_text() for tick in axes[0, 1].get_yticklabels())


def test_balance_draws_the_potential_and_each_fate() -> None:
    one = tree(400, 0)
    label = np.select([one.entry, one.tips[:, 0], one.tips[:, 1]], ["HSC", "Ery", "Mono"], "rest")
    obs = pd.DataFrame({"type": label}, index=[f"c{i}" for i in range(400)])
    adata = anndata.AnnData(obs=obs, obsm={"X_ae": one.points, "X_one": one.points[:, :1]})
    ac.tl.balance(adata, labels="type", entry="HSC", exits=["Ery", "Mono"])
    axes = ac.pl.balance(adata, basis="X_ae")
    assert [ax.get_title() for ax in axes] == ["potential", "fate: Ery", "fate: Mono"]
    drawn = np.sort(axes[1].collections[0].get_array())
    np.testing.assert_allclose(drawn, np.sort(adata.obsm["balance_fates"][:, 0]))
    for basis, code in (("X_umap", "unknown-key"), ("X_one", "bad-coordinates")):
        with pytest.raises(AnncoderError) as refused:
            ac.pl.balance(adata, basis=basis)
        assert refused.value.code == code


def test_without_results_there_is_a_remedy(fitted: anndata.AnnData) -> None:
    for draw in (ac.pl.balance, ac.pl.dynamics):
        with pytest.raises(AnncoderError, match="nothing") as refused:
            draw(anndata.AnnData(obs=fitted.obs))
        assert refused.value.code == "no-results"
        assert "ac.tl" in refused.value.remedy
