"""Experimental batches in the count, denoising and undercomplete autoencoders."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score

import anncoder as ac
from anncoder.datasets import simulate
from anncoder.errors import ConfigError
from anncoder.evaluation.clusters import RESOLUTIONS, leiden
from anncoder.evaluation.graph import nearest
from anncoder.models import find

MODELS = ("count", "denoising", "undercomplete")
SMALL: dict[str, Any] = {"n_latent": 6, "n_hidden": (32,)}
EPOCHS = {"count": 12, "denoising": 40, "undercomplete": 12}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Return 900 cells of four groups in three batches with strong effects, one group missing from the first."""
    found = simulate(
        n_obs=900, n_vars=300, n_groups=4, n_batches=3, batch_fac_loc=0.2, batch_fac_scale=0.4, lib_loc=6.9, seed=3
    )
    return found[~((found.obs["batch"] == "Batch1") & (found.obs["group"] == "Group1"))].copy()


@pytest.fixture(scope="module")
def models(cells: anndata.AnnData) -> dict[str, Any]:
    """Return the models, fitted with the batch; not to be changed."""
    return {
        name: find(name)(**SMALL).fit(cells, batch_key="batch", max_epochs=EPOCHS[name], progress=False)
        for name in MODELS
    }


def foreign_share(latent: np.ndarray, cells: anndata.AnnData, k: int = 15) -> float:
    """Return the share of neighbours of other batches over chance among the cells of the same group."""
    batch, group = (cells.obs[key].to_numpy() for key in ("batch", "group"))
    ratios = []
    for name in np.unique(group):
        here = group == name
        shares = pd.Series(batch[here]).value_counts(normalize=True)
        around = batch[here][nearest(latent[here], k)[1]]
        ratios.append((around != batch[here][:, None]).mean() / (1 - np.square(shares).sum()))
    return float(np.mean(ratios))


def agreement(latent: np.ndarray, cells: anndata.AnnData) -> float:
    return max(adjusted_rand_score(cells.obs["group"], found) for found in leiden(latent, RESOLUTIONS, 0))


@pytest.mark.parametrize("name", MODELS)
def test_batches_are_mixed_and_groups_kept(name: str, cells: anndata.AnnData, models: dict[str, Any]) -> None:
    plain = find(name)(**SMALL).fit(cells, max_epochs=EPOCHS[name], progress=False).embed(cells)
    latent = models[name].embed(cells)
    assert foreign_share(plain, cells) < 0.4
    assert foreign_share(latent, cells) > 0.85
    assert agreement(latent, cells) > 0.95  # the missing group included


@pytest.mark.parametrize("name", MODELS)
def test_effects_that_differ_between_types_are_shifted_in_each(name: str) -> None:
    cells = simulate(n_obs=2000, n_vars=300, n_groups=4, lib_loc=7.5, de_prob=0.3, seed=3)
    rng = np.random.default_rng(0)
    group, second = cells.obs["group"].cat.codes.to_numpy(), rng.random(2000) < 0.5
    factors = np.exp(0.5 * rng.standard_normal(300) + 0.2 * rng.standard_normal((4, 300)))
    kept = np.where(second[:, None], np.minimum(0.5 * factors, 1)[group], 1.0)
    cells.X = sp.csr_matrix(rng.binomial(cells.X.toarray().astype(int), kept).astype(np.float32))
    cells.obs["batch"] = np.where(second, "second", "first")
    model = find(name)(**SMALL).fit(cells, batch_key="batch", max_epochs=EPOCHS[name], progress=False)
    latent = model.embed(cells)
    for some in (rng.permutation(2000), np.arange(0, 2000, 3)):  # whatever cells are beside it
        np.testing.assert_array_equal(model.embed(cells[some].copy()), latent[some])
    model.network_.shifts.of_groups.zero_()
    common = model.embed(cells)
    # 0.76, 0.82, 0.73 of chance, and 0.52, 0.71, 0.69 with the common shifts alone
    more = {"count": 0.1, "denoising": 0.05, "undercomplete": 0.01}[name]
    assert foreign_share(latent, cells) > foreign_share(common, cells) + more
    assert agreement(latent, cells) > 0.99


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_they_have_the_same_bits(
    name: str, cells: anndata.AnnData, models: dict[str, Any], tmp_path: Path
) -> None:
    models[name].save(tmp_path / "model")
    again = ac.load(tmp_path / "model")
    assert again.batches_ == ["Batch1", "Batch2", "Batch3"]
    assert again.network_.shifts.of_groups.abs().max() > 0.01
    np.testing.assert_array_equal(again.embed(cells), models[name].embed(cells))
    for batch in (None, "Batch2", "mean"):
        np.testing.assert_array_equal(again.denoise(cells, batch=batch), models[name].denoise(cells, batch=batch))


@pytest.mark.parametrize("name", MODELS)
def test_cells_are_decoded_as_of_a_batch(name: str, cells: anndata.AnnData, models: dict[str, Any]) -> None:
    own = models[name].denoise(cells, scale="normalized")
    as_second = models[name].denoise(cells, scale="normalized", batch="Batch2")
    here = (cells.obs["batch"] == "Batch2").to_numpy()
    np.testing.assert_allclose(as_second[here], own[here], rtol=1e-5, atol=1e-6)
    # the true factors of the batches (genes with molecules enough), of cells of the first as of the second
    first = (cells.obs["batch"] == "Batch1").to_numpy()
    truth = np.log(cells.var["batch_factor_Batch2"] / cells.var["batch_factor_Batch1"])
    known = np.asarray(cells.X.mean(axis=0)).ravel() > 0.3
    ratio = np.log(as_second[first][:, known].mean(axis=0) / own[first][:, known].mean(axis=0))
    assert np.corrcoef(ratio, truth[known])[0, 1] > 0.9
    mean = models[name].denoise(cells, scale="normalized", batch="mean")
    assert np.isfinite(mean).all()
    with pytest.raises(ConfigError, match="did you mean 'Batch2'"):
        models[name].denoise(cells, batch="batch2")


@pytest.mark.parametrize("name", MODELS)
def test_cells_of_other_batches_are_embedded_without_a_correction(
    name: str, cells: anndata.AnnData, models: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, query = models[name], cells[:200].copy()
    del query.obs["batch"]
    with caplog.at_level(logging.WARNING, "anncoder"):
        without = model.embed(query)
    assert "no obs['batch']: embedded without a correction" in caplog.text
    query.obs["batch"] = ["new"] * 100 + [None] * 100
    caplog.clear()
    with caplog.at_level(logging.WARNING, "anncoder"):
        unknown = model.embed(query)
        decoded = model.denoise(query)
    assert "200 cells of a batch unknown to the model: 'new', 'unknown' in obs['batch']" in caplog.text
    np.testing.assert_array_equal(unknown, without)
    np.testing.assert_array_equal(decoded, model.denoise(query, batch="mean"))
    one_known = query.copy()
    one_known.obs["batch"] = ["Batch1", *["new"] * 199]
    np.testing.assert_array_equal(model.embed(one_known)[1:], unknown[1:])


@pytest.mark.parametrize("name", MODELS)
def test_files_give_what_memory_gives(
    name: str, cells: anndata.AnnData, models: dict[str, Any], tmp_path: Path
) -> None:
    cells[:400].write_h5ad(tmp_path / "a.h5ad")
    cells[400:].write_h5ad(tmp_path / "b.h5ad")
    files: Any = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    model = find(name)(**SMALL).fit(files, batch_key="batch", max_epochs=EPOCHS[name], progress=False)
    np.testing.assert_array_equal(model.embed(cells), models[name].embed(cells))


@pytest.mark.parametrize("name", MODELS)
def test_an_interrupted_fit_goes_on_to_the_same_bits(
    name: str, cells: anndata.AnnData, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find(name)(**SMALL)
    network, steps = model.network_class, []
    way = "gradients" if hasattr(network, "gradients") else "forward"  # of a training step
    forward = getattr(network, way)

    def stopping(self: Any, batch: Any) -> Any:
        steps.append(1)
        if len(steps) == 40:
            raise MemoryError("killed")
        return forward(self, batch)

    monkeypatch.setattr(network, way, stopping)
    settings: dict[str, Any] = {"batch_key": "batch", "max_epochs": EPOCHS[name], "progress": False}
    with pytest.raises(Exception, match="killed"):
        model.fit(cells, checkpoint=tmp_path / "state", **settings)
    model.fit(cells, checkpoint=tmp_path / "state", **settings)
    np.testing.assert_array_equal(model.embed(cells), models[name].embed(cells))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("count", {"likelihood": "zinb", "dispersion": "gene-cell"}),
        ("count", {"likelihood": "gaussian", "standardize": True}),
        ("count", {"linear_decoder": True, "n_hidden": ()}),
        ("undercomplete", {"n_hidden": ()}),
        ("undercomplete", {"error": "absolute", "linear_decoder": True}),
        ("denoising", {"linear_decoder": False, "corruption": "thinning"}),
        ("undercomplete", {"transform": "none"}),
    ],
)
def test_every_kind_of_network_reads_batches(name: str, options: dict[str, Any], cells: anndata.AnnData) -> None:
    model = find(name)(**SMALL | options).fit(cells, batch_key="batch", max_epochs=2, progress=False)
    latent = model.embed(cells)
    assert np.isfinite(latent).all()
    own, as_first = (model.denoise(cells, scale="normalized", batch=batch) for batch in (None, "Batch1"))
    assert np.isfinite(own).all()
    here = (cells.obs["batch"] == "Batch1").to_numpy()
    np.testing.assert_allclose(as_first[here], own[here], rtol=1e-4, atol=1e-5)
    assert not np.allclose(as_first[~here], own[~here], rtol=1e-3)


def test_a_tied_decoder_has_no_place_for_batches(cells: anndata.AnnData) -> None:
    with pytest.raises(ConfigError) as caught:
        find("undercomplete")(tied=True, norm="none").fit(cells, batch_key="batch", progress=False)
    assert caught.value.code == "batches-unused"
    assert "tied=False" in caught.value.remedy


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_one_cell_is_no_trouble(name: str, cells: anndata.AnnData) -> None:
    few = cells[:300].copy()
    few.obs["batch"] = ["alone", *["others"] * 299]
    assert np.isfinite(find(name)(**SMALL).fit(few, batch_key="batch", max_epochs=2, progress=False).embed(few)).all()


def test_plates_of_real_cells(shared_data: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its names repeat
        cells = anndata.read_h5ad(shared_data / "celseq2_5cl.h5ad")
    cells.obs_names_make_unique()
    genes = np.argsort(-np.asarray(cells.X.mean(axis=0)).ravel())[:1000]
    cells = cells[:, np.sort(genes)].copy()
    cells.obs["group"] = cells.obs["cell_line"]
    plain, with_plates = (
        ac.CountAutoencoder().fit(cells, batch_key=key, progress=False).embed(cells) for key in (None, "batch")
    )
    assert foreign_share(with_plates, cells) > foreign_share(plain, cells) + 0.05
    assert agreement(with_plates, cells) > 0.95
