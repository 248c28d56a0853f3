"""Pictures of the latent and its loadings, of stability, and the names that are offered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

import anncoder as ac
from anncoder import pl
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation.comparison import evaluate
from anncoder.evaluation.stability import BETWEEN, Question, Stability, compared
from anncoder.pl import latent_units
from anncoder.pl.groups import PALETTE

FIT: dict[str, Any] = {"max_epochs": 2, "threads": 1, "progress": False}


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def linear(simulated: anndata.AnnData) -> ac.CountAutoencoder:
    return ac.CountAutoencoder(n_latent=5, n_hidden=(8,), linear_decoder=True).fit(simulated, **FIT)


def test_the_latent_in_order_of_the_groups(counts: anndata.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    counts.obsm["X_ae"] = np.random.default_rng(0).normal([0, 5, 0], [1, 3, 2], (120, 3))
    counts.obs.loc[counts.obs_names[:10], "group"] = np.nan
    ax = pl.latent(counts, groupby="group")
    drawn = np.asarray(ax.get_images()[0].get_array())
    assert drawn.shape == (120, 3)
    centred = counts.obsm["X_ae"] - counts.obsm["X_ae"].mean(axis=0)
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(centred, axis=0))
    codes = counts.obs["group"].cat.codes.to_numpy()
    sizes = [int((codes == code).sum()) for code in (0, 1, 2, -1)]
    start = 0
    for code, size in zip((0, 1, 2, -1), sizes, strict=True):
        part = drawn[start : start + size]
        np.testing.assert_allclose(part[:, 1], np.sort(centred[codes == code, 1]))  # by the widest unit
        start += size
    (strip,) = ax.child_axes
    expected = [*counts.obs["group"].cat.categories, "no label"]
    assert [label.get_text() for label in strip.get_yticklabels()] == expected
    monkeypatch.setattr(latent_units, "MOST_CELLS", 50)
    assert "50 of 120 cells" in pl.latent(counts).get_title()
    with pytest.raises(ConfigError, match="unknown key"):
        pl.latent(counts, key="nothing")


def test_loadings_are_the_largest_of_each_unit(linear: ac.CountAutoencoder, counts: anndata.AnnData) -> None:
    weights = linear.of_genes()["loadings"]
    ac.tl.embed(counts, linear)
    for source in (linear, counts):
        axes = pl.loadings(source, units=[0, 3], n_genes=4)
        assert [ax.get_title() for ax in axes] == ["unit 0", "unit 3"]
        for ax, unit in zip(axes, (0, 3), strict=True):
            largest = np.argsort(-np.abs(weights[:, unit]), kind="stable")[:4]
            names = [label.get_text() for label in ax.get_yticklabels()]
            assert set(names) == set(counts.var_names[largest])
            widths = [bar.get_width() for bar in ax.patches]
            np.testing.assert_allclose(widths, np.sort(weights[largest, unit]), rtol=1e-6)
    assert len(pl.loadings(linear)) == 5
    assert len(pl.loadings(linear, units=2)) == 1


def test_what_has_no_loadings(linear: ac.CountAutoencoder, counts: anndata.AnnData, fitted: Any) -> None:
    with pytest.raises(ConfigError, match="linear_decoder=True") as error:
        pl.loadings(fitted)
    assert error.value.code == "no-loadings"
    with pytest.raises(InputError, match="linear_decoder=True"):
        pl.loadings(counts)
    for options in ({"units": 5}, {"units": [-1]}, {"units": []}, {"units": 0.5}, {"n_genes": 0}, {"n_genes": "3"}):
        with pytest.raises(ConfigError) as error:
            pl.loadings(linear, **options)
        assert error.value.code == "bad-value"
    assert not plt.get_fignums()


def test_stability_has_a_dot_a_pair(fitted: Any, simulated: anndata.AnnData) -> None:
    random = np.random.default_rng(0)
    latents = {seed: random.normal(size=(60, 2)).astype(np.float32) for seed in range(4)}
    pairs, facts = compared(latents, latents[0], Question(None, None), 0)

    rows = {name: {"stopped": "" if name == "pca" else "early"} | row for name, row in facts.items()}
    moved = Stability(pairs, pd.DataFrame.from_dict(rows, orient="index"), 60, None, own=True)
    axes = pl.stability(moved)
    assert len(axes) == 3  # no pseudotime without a root
    between = next(c for c in axes[0].collections[::2] if np.allclose(c.get_facecolor()[0, :3], to_rgb(PALETTE[0])))
    np.testing.assert_allclose(
        np.sort(np.asarray(between.get_offsets())[:, 0]),
        np.sort(pairs.loc[pairs["compared"] == BETWEEN, "leiden_ari"]),
    )
    assert [label.get_text() for label in axes[0].get_yticklabels()][-1] == BETWEEN
    found = evaluate(fitted, simulated)
    assert len(pl.stability(replace(found, stability=moved))) == 3
    for wrong in (found, 3):
        with pytest.raises(ConfigError, match="seeds=5"):
            pl.stability(wrong)  # type: ignore[arg-type]


def test_only_our_functions_are_offered() -> None:
    for module in (ac.pl, ac.tl):
        assert dir(module) == sorted(module.__all__)
        assert all(callable(getattr(module, name)) for name in dir(module))
