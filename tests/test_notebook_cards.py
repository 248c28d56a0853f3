"""What a notebook shows of reports, models and tables when they are the last line of a cell."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pytest

import anncoder as ac


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return ac.datasets.simulate(n_obs=120, n_vars=60, n_groups=3, de_prob=0.5, lib_loc=6.0, seed=1)


@pytest.fixture(scope="module")
def model(cells: anndata.AnnData) -> Any:
    return ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(
        cells, max_epochs=3, valid_fraction=0.2, threads=1, progress=False
    )


def test_an_evaluation_is_its_table_with_the_best_in_bold(cells: anndata.AnnData, model: Any) -> None:
    found = ac.evaluate(model, cells, labels="group")
    html = found._repr_html_()
    for name in found.table.columns.drop("depth_agreement"):  # of deep cells only
        best = found.table[name].min() if name in ("heldout_nll", "reconstruction_mse") else found.table[name].max()
        assert f"<b>{best:.4g}</b>" in html, name
        assert f"{name} {'↓' if name in ('heldout_nll', 'reconstruction_mse') else '↑'}" in html
    assert "depth_agreement" not in html
    assert all(f"<th>{row}</th>" in html for row in found.table.index)
    assert "24 of 120 cells scored" in html


def test_a_model_is_a_card(cells: anndata.AnnData, model: Any) -> None:
    html = model._repr_html_()
    for text in (
        repr(model).partition("  #")[0],
        "3 epochs",
        "1 thread",
        "24 cells",
        "ac.evaluate",
        "from X",
    ):
        assert text in html, text
    best = model.history_["valid_loss"].min()
    assert f"{best:.5g}" in html
    assert "model.fit(adata)" in ac.DenoisingAutoencoder()._repr_html_()
    without = ac.UndercompleteAutoencoder(n_latent=2).fit(
        cells, max_epochs=1, valid_fraction=0, threads=1, progress=False
    )
    assert "train_loss" in without._repr_html_()


def test_a_report_is_its_tables_whatever_genes_are_called(cells: anndata.AnnData) -> None:
    bad = cells.copy()
    bad.X = bad.X * np.float32(1.37)
    bad.var_names = ["<script>alert(1)</script>", *bad.var_names[1:]]
    html = ac.check(bad)._repr_html_()
    assert "<script>" not in html
    assert "not-integer" in html
    assert ac.check(bad).problems[0].remedy[:40] in html
    sound = cells[:, cells.X.sum(axis=0).A1 > 0].copy()
    assert "no problems" in ac.check(sound)._repr_html_()


def test_a_recommendation_is_table_and_advice(cells: anndata.AnnData) -> None:
    found = ac.recommend(cells, models=["count"], widths=[3], max_epochs=2, threads=1, progress=False)
    html = found._repr_html_()
    assert all(name in html for name in found.table.index)
    for advice in (found.denoising, found.trajectories, found.clusters):
        assert advice.why[-60:].replace(">", "&gt;") in html
    assert "<code>" in html
