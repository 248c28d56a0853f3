"""Cells without counts in the genes chosen: left out of the fit, embedded, said once; an error on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

import anncoder as ac
from anncoder.errors import InputError

QUICK: dict[str, Any] = {"max_epochs": 1, "threads": 1, "progress": False}
EMPTY = [3, 50, 119]
SAID = "3 of 120 cells have no count in any of the 60 genes (Cell4, Cell51, Cell120)"


@pytest.fixture
def holed(counts: anndata.AnnData) -> anndata.AnnData:
    dense = counts.X.toarray()
    dense[EMPTY] = 0
    counts.X = csr_matrix(dense)
    return counts


def as_blocks(adata: anndata.AnnData, _: Path) -> Any:
    cells = [np.array([50, 119]), np.setdiff1d(np.arange(120), [50, 119])]  # a block without any count, and the others
    return ac.IterableSource(lambda: ((adata.X[rows], rows) for rows in cells), adata.var_names, 120, adata.obs)


def as_file(adata: anndata.AnnData, folder: Path) -> Any:
    adata.write_h5ad(folder / "in.h5ad")
    return folder / "in.h5ad"


def as_files(adata: anndata.AnnData, folder: Path) -> Any:
    adata[:119].write_h5ad(folder / "a.h5ad")
    adata[119:].write_h5ad(folder / "b.h5ad")  # all that is in it is a cell without counts
    return [folder / "a.h5ad", folder / "b.h5ad"]


FORMS: dict[str, Callable[[anndata.AnnData, Path], Any]] = {
    "memory": lambda adata, _: adata,
    "file": as_file,
    "files": as_files,
    "blocks": as_blocks,
}


@pytest.mark.parametrize("form", FORMS)
def test_they_are_left_out_of_the_fit_and_embedded(
    holed: anndata.AnnData, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = FORMS[form](holed, tmp_path)
    model = ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(data, **QUICK)
    assert caplog.text.count(SAID) == 1
    assert "left out of the fit" in caplog.text
    full = np.setdiff1d(np.arange(120), EMPTY)
    assert model.library_size_ > 0
    assert not set(holed.obs_names[EMPTY]) & set(model.valid_obs_)
    latent = model.embed(data)
    assert "their latent is that of a cell without counts" in caplog.text
    assert np.isfinite(latent).all()
    assert (latent[EMPTY] == latent[3]).all()
    np.testing.assert_array_equal(latent[full], model.embed(holed[full].copy()))
    expected, at_median = model.denoise(data), model.denoise(data, scale="normalized")
    assert np.isfinite(at_median).all()
    assert (at_median[EMPTY] > 0).all()
    assert (expected[EMPTY] == 0).all()  # at a library size of 0
    assert (expected[full] > 0).all()


def test_the_other_cells_are_fitted_as_if_they_were_alone(holed: anndata.AnnData) -> None:
    alone = holed[np.setdiff1d(np.arange(120), EMPTY)].copy()
    models = [
        ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(data, valid_fraction=0, **QUICK) for data in (alone, holed)
    ]
    assert models[0].library_size_ == models[1].library_size_
    # in another order: the epoch is one of other row numbers
    assert models[0].history_["train_loss"][0] == pytest.approx(models[1].history_["train_loss"][0], rel=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_they_are_an_error_on_request(holed: anndata.AnnData, form: str, tmp_path: Path) -> None:
    data = FORMS[form](holed, tmp_path)
    with pytest.raises(InputError) as caught:
        ac.CountAutoencoder(n_latent=3).fit(data, empty_cells="error", **QUICK)
    assert (caught.value.code, caught.value.what) == ("empty-cells", SAID)
    assert "empty_cells='leave-out' (--set empty_cells=leave-out)" in caught.value.remedy


def test_what_is_strict_in_the_fit_is_strict_after_it(counts: anndata.AnnData, holed: anndata.AnnData) -> None:
    full = holed[np.setdiff1d(np.arange(120), EMPTY)].copy()
    model = ac.CountAutoencoder(n_latent=3, n_hidden=()).fit(full, empty_cells="error", **QUICK)
    for verb in (model.embed, model.denoise):
        with pytest.raises(InputError) as caught:
            verb(holed)
        assert caught.value.code == "empty-cells"
    names = {"adata": holed, "model": model, "np": np}
    exec(caught.value.remedy.removeprefix("remove them: ").split(", or --")[0], names)
    assert model.embed(names["adata"]).shape == (117, 3)


@pytest.mark.parametrize("layer", ["counts", "raw.X"])
def test_the_remedy_in_a_fit_is_of_the_slot_that_was_read(holed: anndata.AnnData, layer: str) -> None:
    holed.layers["counts"], holed.raw = holed.X.copy(), holed.copy()
    with pytest.raises(InputError) as caught:
        ac.CountAutoencoder(n_latent=3).fit(holed, layer=layer, empty_cells="error", **QUICK)
    names = {"adata": holed, "np": np}
    exec(caught.value.remedy.removeprefix("remove them: ").split(", or --")[0], names)
    assert names["adata"].n_obs == 117


def test_where_no_cell_has_counts_there_is_nothing_to_embed(
    counts: anndata.AnnData, tmp_path: Path, fitted: ac.CountAutoencoder
) -> None:
    counts.X = csr_matrix(counts.shape, dtype=np.float32)
    for form in FORMS.values():
        data = form(counts, tmp_path)
        for verb in (fitted.embed, lambda cells: ac.CountAutoencoder(n_latent=2).fit(cells, **QUICK)):
            with pytest.raises(InputError) as caught:
                verb(data)
            assert caught.value.code in ("all-zero", "empty-cells")


def test_the_verbs_of_scanpy_say_it_once(holed: anndata.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    model = ac.tl.autoencode(holed, "variational", n_latent=3, n_hidden=(8,), denoise=True, **QUICK)
    assert caplog.text.count(SAID) == 1
    assert np.isfinite(holed.obs["ae_elbo"]).all()
    ac.tl.embed(holed, model)
    assert caplog.text.count(SAID) == 2


@pytest.mark.parametrize("name", ["dca", "undercomplete", "saucie", "scvis", "netsne", "scscope", "autoimpute"])
def test_every_model_gives_finite_values(holed: anndata.AnnData, name: str) -> None:
    settings = {"perplexity": 5} if name in ("scvis", "netsne") else {}
    model = ac.tl.autoencode(holed, name, n_latent=2, **settings, **QUICK)
    assert np.isfinite(holed.obsm["X_ae"]).all()
    assert all(np.isfinite(values).all() for values in model.of_cells(holed).values() if values.dtype.kind == "f")
    if model.config.decodes:
        assert np.isfinite(model.denoise(holed)).all()


def test_they_are_left_out_of_the_comparison(holed: anndata.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    model = ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(holed, valid_fraction=0.3, **QUICK)
    caplog.clear()
    found = ac.evaluate(model, holed)
    assert (found.n_obs, found.scored) == (117, "held-out")
    assert found.n_scored == len(model.valid_obs_)
    assert np.isfinite(found.table.loc["model", ["heldout_nll", "reconstruction_mse"]].astype(float)).all()
    assert caplog.text.count(SAID) == 1
    assert "left out of the comparison" in caplog.text


def test_a_file_with_them_goes_through_the_commands(
    anncoder: Callable[..., Any], holed: anndata.AnnData, tmp_path: Path
) -> None:
    holed.write_h5ad(tmp_path / "in.h5ad")
    out, quick = tmp_path / "out.h5ad", ("--set", "max_epochs=1", "--set", "n_latent=3", "--no-evaluation")
    assert anncoder("check", tmp_path / "in.h5ad").exit_code == 0
    result = anncoder("train", tmp_path / "in.h5ad", "-o", out, "--denoise", *quick)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("3 of 120 cells") == 1
    assert np.isfinite(anndata.read_h5ad(out).obsm["X_ae"]).all()
    for command in ("embed", "denoise"):
        result = anncoder(command, tmp_path / "out.anncoder" / "model", tmp_path / "in.h5ad", "-o", out)
        assert result.exit_code == 0, result.output
        assert result.stderr.count(SAID) == 1


def test_the_worm_with_a_thousand_variable_genes(shared_data: Path) -> None:
    import scanpy as sc

    adata = anndata.read_h5ad(shared_data / "worm_neuron.h5ad")
    logs = sc.pp.log1p(sc.pp.normalize_total(adata, copy=True), copy=True)
    sc.pp.highly_variable_genes(logs, n_top_genes=1000)
    adata = adata[:, logs.var["highly_variable"]].copy()
    assert (np.ravel(adata.X.sum(axis=1)) == 0).sum() == 2
    ac.tl.autoencode(adata, "count", n_latent=3, n_hidden=(8,), **QUICK)
    assert np.isfinite(adata.obsm["X_ae"]).all()
