"""Counts in ``raw.X``, as in every download of CELLxGENE: used by name, everywhere, with the genes of ``raw.var``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.sparse import csr_matrix

import anncoder as ac
from anncoder.data.opening import open_stores
from anncoder.errors import InputError

QUICK: dict[str, Any] = {"max_epochs": 1, "threads": 1, "progress": False}
DISK: dict[str, Callable[[Path], Any]] = {
    ".h5ad": lambda path: path,
    ".zarr": lambda path: path,
    "backed": lambda path: anndata.read_h5ad(path, backed="r"),
}


@pytest.fixture
def kept_in_raw(counts: anndata.AnnData) -> anndata.AnnData:
    """Return logarithms of every second gene, in another order, with the counts of all genes in raw."""
    adata = counts.copy()
    adata.raw = adata
    adata = adata[:, ::-2].copy()
    adata.X = np.log1p(adata.X.toarray() / np.asarray(adata.raw.X.sum(axis=1))) / 1.1
    adata.layers["log"] = adata.X.copy()
    return adata


@pytest.fixture
def model(counts: anndata.AnnData) -> ac.CountAutoencoder:
    """Return a model of the same counts in X."""
    return ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, **QUICK)


def write(adata: anndata.AnnData, path: Path) -> Path:
    if path.suffix == ".zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anndata's, on zarr versions
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_where_x_is_no_counts_raw_is_named_as_it_can_be_used(
    kept_in_raw: anndata.AnnData, suffix: str, tmp_path: Path
) -> None:
    for data in (kept_in_raw, write(kept_in_raw, tmp_path / f"in{suffix}")):
        with pytest.raises(InputError) as caught:
            ac.CountAutoencoder().fit(data, **QUICK)
        assert caught.value.code == "not-integer"
        assert "layer='raw.X' (--layer raw.X)" in caught.value.remedy
        report = ac.check(data, layer="raw.X")
        assert (report.ok, report.where, report.n_vars) == (True, "raw.X", 60)
        assert report.slots == {"raw.X": "counts", "X": "log1p", "layers['log']": "log1p"}


def test_in_memory_the_model_is_that_of_the_counts_and_var_stays(
    kept_in_raw: anndata.AnnData, counts: anndata.AnnData, model: ac.CountAutoencoder, caplog: pytest.LogCaptureFixture
) -> None:
    before = kept_in_raw.copy()
    found = ac.tl.autoencode(kept_in_raw, "count", layer="raw.X", n_latent=3, n_hidden=(8,), denoise=True, **QUICK)
    assert list(found.var_names_) == list(counts.var_names)
    np.testing.assert_array_equal(kept_in_raw.obsm["X_ae"], model.embed(counts))
    here = counts.var_names.get_indexer(kept_in_raw.var_names)
    np.testing.assert_array_equal(kept_in_raw.layers["ae_denoised"], model.denoise(counts)[:, here])
    np.testing.assert_array_equal(kept_in_raw.var["ae_theta"], model.of_genes()["theta"][here])
    assert list(kept_in_raw.var_names) == list(before.var_names)
    assert (kept_in_raw.raw.X != before.raw.X).nnz == 0
    assert "the denoised layer has the 30 genes of var; 30 of raw.var are not in it: Gene1, Gene3" in caplog.text
    again = kept_in_raw[5:40]  # of a view, and of the layer of the fit
    np.testing.assert_array_equal(found.embed(again), kept_in_raw.obsm["X_ae"][5:40])
    ac.tl.denoise(kept_in_raw, found, key_added="other")
    np.testing.assert_array_equal(kept_in_raw.layers["other_denoised"], kept_in_raw.layers["ae_denoised"])
    ac.pl.gene_pair(kept_in_raw, *kept_in_raw.var_names[:2])
    plt.close("all")


@pytest.mark.parametrize("form", DISK)
def test_on_disk_it_is_the_same_as_in_memory(
    kept_in_raw: anndata.AnnData, model: ac.CountAutoencoder, form: str, tmp_path: Path
) -> None:
    path = write(kept_in_raw, tmp_path / f"in{'.zarr' if form == '.zarr' else '.h5ad'}")
    data = DISK[form](path)
    np.testing.assert_array_equal(model.embed(data, layer="raw.X"), model.embed(kept_in_raw, layer="raw.X"))
    found = ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(data, layer="raw.X", **QUICK)
    np.testing.assert_array_equal(found.embed(data), model.embed(kept_in_raw, layer="raw.X"))
    if form == "backed":
        np.testing.assert_array_equal(found.embed(data[5:40]), found.embed(kept_in_raw)[5:40])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_files_keep_their_own_genes(
    kept_in_raw: anndata.AnnData,
    model: ac.CountAutoencoder,
    suffix: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, out = write(kept_in_raw, tmp_path / f"in{suffix}"), tmp_path / "out.h5ad"
    settings = {"n_latent": 3, "n_hidden": (8,), "denoise": True, "output": out, **QUICK}
    ac.tl.autoencode(path, "count", layer="raw.X", **settings)
    written = anndata.read_h5ad(out)
    here = model.var_names_.get_indexer(kept_in_raw.var_names)
    np.testing.assert_array_equal(written.obsm["X_ae"], model.embed(kept_in_raw, layer="raw.X"))
    np.testing.assert_array_equal(written.layers["ae_denoised"], model.denoise(kept_in_raw, layer="raw.X")[:, here])
    np.testing.assert_array_equal(written.var["ae_theta"], model.of_genes()["theta"][here])
    assert (written.shape, written.raw.shape) == (kept_in_raw.shape, (120, 60))
    assert "30 of raw.var are not in it" in caplog.text
    ac.tl.denoise(path, model, layer="raw.X", output=out)
    np.testing.assert_array_equal(anndata.read_h5ad(out).layers["ae_denoised"], written.layers["ae_denoised"])


def test_genes_that_raw_lacks_are_refused_before_a_fit_that_is_to_denoise(
    kept_in_raw: anndata.AnnData, tmp_path: Path
) -> None:
    kept_in_raw.raw = kept_in_raw.raw.to_adata()[:, 10:]
    path = write(kept_in_raw, tmp_path / "in.h5ad")
    for data, output in ((kept_in_raw, None), (path, tmp_path / "out.h5ad")):
        with pytest.raises(InputError, match=r"5 of the genes of var are not in raw\.var") as caught:
            ac.tl.autoencode(data, layer="raw.X", denoise=True, output=output, max_epochs=10**6, n_latent=3)
    names = {"adata": kept_in_raw}
    exec(caught.value.remedy, names)
    ac.tl.autoencode(names["adata"], layer="raw.X", denoise=True, n_latent=3, **QUICK)
    assert names["adata"].layers["ae_denoised"].shape == (120, 25)


def test_evaluation_and_search_read_them_too(
    kept_in_raw: anndata.AnnData, counts: anndata.AnnData, model: ac.CountAutoencoder
) -> None:
    expected, found = ac.evaluate(model, counts), ac.evaluate(model, kept_in_raw, layer="raw.X")
    assert found.scored == expected.scored
    np.testing.assert_allclose(found.table["reconstruction_mse"], expected.table["reconstruction_mse"])
    with pytest.raises(InputError, match=r"not integers") as caught:
        ac.search(kept_in_raw, n_trials=1)
    assert "layer='raw.X'" in caught.value.remedy
    options: dict[str, Any] = {"space": {"n_latent": [2]}, "n_trials": 1, "max_epochs": 1, "threads": 1}
    trials = [ac.search(adata, layer=layer, **options) for adata, layer in ((counts, None), (kept_in_raw, "raw.X"))]
    assert trials[0][0].heldout_nll == trials[1][0].heldout_nll


def test_what_is_missing_or_may_be_either_is_said(
    kept_in_raw: anndata.AnnData, counts: anndata.AnnData, model: ac.CountAutoencoder, tmp_path: Path
) -> None:
    for data in (counts, write(counts, tmp_path / "none.h5ad")):
        with pytest.raises(InputError, match="has no raw") as caught:
            ac.CountAutoencoder().fit(data, layer="raw.X", **QUICK)
        assert caught.value.code == "missing-layer"
    of_raw = ac.CountAutoencoder(n_latent=3, n_hidden=()).fit(kept_in_raw, layer="raw.X", **QUICK)
    with pytest.raises(InputError, match=r"fitted on raw\.X, which these data do not have"):
        of_raw.embed(counts)
    assert of_raw.embed(counts, layer="X").shape == (120, 3)
    kept_in_raw.layers["raw.X"] = kept_in_raw.X.copy()
    for data in (kept_in_raw, write(kept_in_raw, tmp_path / "both.h5ad")):
        with pytest.raises(InputError) as caught:
            model.embed(data, layer="raw.X")
        assert caught.value.code == "ambiguous-layer"


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # that is the case
def test_names_of_raw_that_occur_twice_have_a_remedy_that_works(kept_in_raw: anndata.AnnData) -> None:
    raw = kept_in_raw.raw.to_adata()
    raw.var_names = ["Gene1", *raw.var_names[:-1]]
    kept_in_raw.raw = raw
    with pytest.raises(InputError) as caught:
        ac.CountAutoencoder().fit(kept_in_raw, layer="raw.X", **QUICK)
    assert caught.value.code == "duplicate-genes"
    names = {"adata": kept_in_raw}
    exec(caught.value.remedy, names)
    assert ac.check(names["adata"], layer="raw.X").ok


def test_files_of_before_anndata_0_7_have_it_at_their_top(tmp_path: Path) -> None:
    path = tmp_path / "old.h5ad"
    adata = anndata.AnnData(np.ones((3, 2), np.float32))
    adata.write_h5ad(path)
    genes = np.zeros(4, dtype=[("index", "S5"), ("n_cells", "i8")])
    genes["index"] = [b"A", b"B", b"C", b"D"]
    with h5py.File(path, "r+") as file:
        matrix = csr_matrix(np.arange(12, dtype=np.float32).reshape(3, 4))
        group = file.create_group("raw.X")
        group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": (3, 4)})
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        file["raw.var"] = genes
    (store,) = open_stores(path, "raw.X") or []
    assert list(store.var_names) == ["A", "B", "C", "D"]
    assert list(store.own_genes) == ["0", "1"]
    np.testing.assert_array_equal(store.read([(0, 3)]).toarray(), matrix.toarray())
