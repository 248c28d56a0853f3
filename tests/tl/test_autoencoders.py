"""What ``anncoder.tl.autoencoders`` writes into an AnnData, and that it touches nothing else."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix, issparse

import anncoder as ac
from anncoder import tl
from anncoder.errors import ConfigError, InputError
from anncoder.models.base import Autoencoder

QUICK: dict[str, Any] = {"n_latent": 4, "n_hidden": (16,), "max_epochs": 3, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def fitted(simulated: anndata.AnnData) -> Autoencoder:
    """Return a count model of the simulated cells; not to be changed."""
    model: Autoencoder = ac.CountAutoencoder(n_latent=4, n_hidden=(16,))
    return model.fit(simulated, max_epochs=3, threads=1, progress=False)


@pytest.fixture
def crowded(counts: anndata.AnnData) -> anndata.AnnData:
    """Return counts with something in every slot, and with ``raw``."""
    rng = np.random.default_rng(0)
    counts.raw = counts.copy()
    counts.layers["logs"] = counts.X.log1p()
    counts.layers["dense"] = counts.X.toarray()
    counts.obsm["X_pca"] = rng.normal(size=(counts.n_obs, 2))
    counts.varm["PCs"] = rng.normal(size=(counts.n_vars, 2))
    counts.obsp["distances"] = csr_matrix(np.eye(counts.n_obs))
    counts.obs["text"] = "a"
    counts.uns["mine"] = {"a": np.arange(3), "b": "text"}
    return counts


def arrays(value: Any, name: str = "") -> dict[str, str]:
    """Return a hash of the bytes of every array in an AnnData, by its place."""
    if isinstance(value, anndata.AnnData):
        slots = ("X", "obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns")
        found: dict[str, str] = {}
        for slot in slots:
            found |= arrays(getattr(value, slot), slot)
        if value.raw is not None:
            found |= arrays(value.raw.X, "raw.X") | arrays(value.raw.var, "raw.var")
        return found
    if issparse(value):
        parts = (value.data, value.indices, value.indptr)
        return {k: v for i, part in enumerate(parts) for k, v in arrays(part, f"{name}.{i}").items()}
    if isinstance(value, pd.DataFrame):
        found = arrays(value.index.to_numpy(), f"{name}.index")
        return found | {k: v for c in value for k, v in arrays(value[c].to_numpy(), f"{name}.{c}").items()}
    if hasattr(value, "items"):
        return {k: v for key, item in value.items() for k, v in arrays(item, f"{name}.{key}").items()}
    array = np.asarray(value)
    content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return {name: hashlib.sha256(f"{array.dtype}{array.shape}".encode() + content).hexdigest()}


OURS = ("obsm.X_ae", "layers.ae_denoised", "var.ae_theta", "uns.ae")


def untouched(before: dict[str, str], after: dict[str, str]) -> bool:
    theirs = {name: value for name, value in after.items() if not name.startswith(OURS)}
    return theirs == before


@pytest.mark.parametrize("copy", [False, True], ids=["in place", "copy"])
@pytest.mark.parametrize("verb", ["autoencode", "embed", "denoise"])
def test_what_is_the_users_stays_byte_for_byte(
    crowded: anndata.AnnData, fitted: Autoencoder, verb: str, copy: bool
) -> None:
    before, identities = arrays(crowded), (id(crowded.X), id(crowded.raw), id(crowded.layers["dense"]))
    if verb == "autoencode":
        returned = tl.autoencode(crowded, denoise=True, copy=copy, **QUICK)
    else:
        returned = getattr(tl, verb)(crowded, fitted, copy=copy)
    assert (id(crowded.X), id(crowded.raw), id(crowded.layers["dense"])) == identities
    if copy:
        assert arrays(crowded) == before
        assert isinstance(returned, anndata.AnnData)
        assert returned is not crowded
        assert untouched(before, arrays(returned))
    else:
        assert untouched(before, arrays(crowded))
        assert arrays(crowded) != before
        assert isinstance(returned, Autoencoder) if verb == "autoencode" else returned is None


def test_unsorted_counts_and_counts_in_other_types_stay_as_they_are(counts: anndata.AnnData) -> None:
    matrix = counts.X.copy()
    for row in range(matrix.shape[0]):  # each row backwards
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        matrix.indices[span], matrix.data[span] = matrix.indices[span][::-1].copy(), matrix.data[span][::-1].copy()
    counts.X = csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    counts.layers["ints"] = counts.X.toarray().astype(np.int16)
    before = arrays(counts)
    model = tl.autoencode(counts, denoise=True, **QUICK)
    assert untouched(before, arrays(counts))
    np.testing.assert_array_equal(model.embed(counts, layer="ints"), counts.obsm["X_ae"])


def test_the_slots_are_as_documented(counts: anndata.AnnData) -> None:
    model = tl.autoencode(counts, denoise=True, key_added="it", **QUICK)
    latent, denoised, theta = counts.obsm["X_it"], counts.layers["it_denoised"], counts.var["it_theta"].to_numpy()
    assert latent.shape == (counts.n_obs, 4)
    assert denoised.shape == counts.shape
    for array in (latent, denoised):
        assert type(array) is np.ndarray
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()
    assert theta.dtype == np.float32
    assert (theta > 0).all()
    np.testing.assert_array_equal(latent, model.embed(counts))
    np.testing.assert_array_equal(denoised, model.denoise(counts))
    np.testing.assert_array_equal(theta, model.dispersion())
    record = counts.uns["it"]
    names = {
        "params_json",
        "history",
        "valid_obs",
        "schema",
        "version",
        "latent_fingerprint",
        "slots",
        "denoised_scale",
        "n_genes",
    }
    assert set(record) == names
    assert record["n_genes"] == counts.n_vars
    assert record["denoised_scale"] == "counts"
    params = json.loads(record["params_json"])
    assert (params["model"], params["layer"]) == ("count", None)
    assert params["hyperparameters"]["n_latent"] == 4
    assert params["training"]["max_epochs"] == 3
    assert len(record["history"]) == 3
    assert set(record["valid_obs"]) < set(counts.obs_names)
    assert record["version"] == ac.__version__


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:.*zarr v2")  # of anndata 0.12, on its own default format
def test_every_slot_survives_writing_and_reading(counts: anndata.AnnData, tmp_path: Path, suffix: str) -> None:
    tl.autoencode(counts, denoise=True, layer=None, **QUICK)
    path = tmp_path / f"it.{suffix}"
    if suffix == "h5ad":
        counts.write_h5ad(path)
        back = anndata.read_h5ad(path)
    else:
        counts.write_zarr(path)
        back = anndata.read_zarr(path)
    np.testing.assert_array_equal(back.obsm["X_ae"], counts.obsm["X_ae"])
    np.testing.assert_array_equal(back.layers["ae_denoised"], counts.layers["ae_denoised"])
    np.testing.assert_array_equal(back.var["ae_theta"], counts.var["ae_theta"])
    pd.testing.assert_frame_equal(back.uns["ae"]["history"], counts.uns["ae"]["history"], check_index_type=False)
    assert json.loads(back.uns["ae"]["params_json"]) == json.loads(counts.uns["ae"]["params_json"])
    assert list(back.uns["ae"]["valid_obs"]) == list(counts.uns["ae"]["valid_obs"])
    tl.autoencode(back, **QUICK)  # what was read back is known to be ours


def test_a_fit_without_validation_cells_can_be_written(counts: anndata.AnnData, tmp_path: Path) -> None:
    tl.autoencode(counts, valid_fraction=0, **QUICK)
    counts.write_h5ad(tmp_path / "it.h5ad")
    assert len(anndata.read_h5ad(tmp_path / "it.h5ad").uns["ae"]["valid_obs"]) == 0


def test_a_view_becomes_an_object_and_its_parent_stays(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    before = arrays(counts)
    for verb in (lambda v: tl.autoencode(v, **QUICK), lambda v: tl.embed(v, fitted), lambda v: tl.denoise(v, fitted)):
        view = counts[::2]
        verb(view)
        assert not view.is_view
        assert view.n_obs == 60
        assert "ae" in view.uns
        assert arrays(counts) == before
    view = counts[::2]
    copy = tl.embed(view, fitted, copy=True)
    assert copy is not None
    assert view.is_view
    assert copy.obsm["X_ae"].shape == (60, 4)


def test_a_backed_file_is_not_changed(counts: anndata.AnnData, fitted: Autoencoder, tmp_path: Path) -> None:
    counts.write_h5ad(tmp_path / "it.h5ad")
    content = (tmp_path / "it.h5ad").read_bytes()
    backed = anndata.read_h5ad(tmp_path / "it.h5ad", backed="r")
    copy = tl.embed(backed, fitted, copy=True)
    assert copy is not None
    assert not copy.isbacked
    assert "X_ae" not in backed.obsm
    tl.embed(backed, fitted)
    np.testing.assert_array_equal(backed.obsm["X_ae"], copy.obsm["X_ae"])
    half = backed[::2]
    tl.embed(half, fitted)
    np.testing.assert_allclose(half.obsm["X_ae"], copy.obsm["X_ae"][::2], atol=1e-5)
    backed.file.close()
    assert (tmp_path / "it.h5ad").read_bytes() == content


def test_a_view_of_a_backed_file(counts: anndata.AnnData, fitted: Autoencoder, tmp_path: Path) -> None:
    counts.layers["logs"] = counts.X.log1p()
    counts.raw = counts.copy()
    counts.write_h5ad(tmp_path / "it.h5ad")
    view = anndata.read_h5ad(tmp_path / "it.h5ad", backed="r")[:80]
    assert ac.check(view).slots == ac.check(counts[:80]).slots
    np.testing.assert_array_equal(fitted.embed(view), fitted.embed(counts[:80].copy()))
    found, wanted = (
        ac.CountAutoencoder(n_latent=2).fit(data, max_epochs=1, progress=False).embed(data)
        for data in (view, counts[:80].copy())
    )
    np.testing.assert_array_equal(found, wanted)
    assert ac.evaluate(fitted, view, max_cells=60).n_obs == 60
    view.file.close()


def test_counts_in_a_layer(counts: anndata.AnnData) -> None:
    plain = tl.autoencode(counts, copy=True, **QUICK)
    counts.layers["counts"] = counts.X.copy()
    counts.X = counts.X.log1p()
    tl.autoencode(counts, layer="counts", denoise=True, **QUICK)
    np.testing.assert_array_equal(counts.obsm["X_ae"], plain.obsm["X_ae"])
    assert json.loads(counts.uns["ae"]["params_json"])["layer"] == "counts"


def test_layer_at_embed(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    reference = fitted.embed(counts)
    counts.layers["counts"] = counts.X.copy()
    counts.X = counts.X.log1p()
    tl.embed(counts, fitted, layer="counts")
    np.testing.assert_array_equal(counts.obsm["X_ae"], reference)
    with pytest.raises(InputError) as error:
        tl.embed(counts, fitted, layer="X")
    assert error.value.code == "not-integer"
    with pytest.raises(InputError) as error:
        tl.denoise(counts, fitted, layer="nowhere")
    assert error.value.code == "missing-layer"


def test_x_as_a_layer_means_x_in_every_verb(counts: anndata.AnnData, tmp_path: Path) -> None:
    model = tl.autoencode(counts, layer="X", **QUICK)
    assert model.layer_ is None
    np.testing.assert_array_equal(model.embed(counts, layer="X"), counts.obsm["X_ae"])
    assert ac.check(counts, layer="X").ok
    counts.layers["X"] = counts.X.copy()  # which one is meant?
    path = tmp_path / "it.h5ad"
    counts.write_h5ad(path)
    for data in (counts, path, anndata.read_h5ad(path, backed="r")):
        for verb in (ac.check, ac.CountAutoencoder().fit, model.embed, model.denoise, partial(ac.evaluate, model)):
            with pytest.raises(InputError) as error:
                verb(data, layer="X")
            assert error.value.code == "ambiguous-layer"


def test_several_models_stand_beside_each_other(counts: anndata.AnnData) -> None:
    tl.autoencode(counts, key_added="a", **QUICK)
    first = counts.obsm["X_a"].copy()
    tl.autoencode(counts, "undercomplete", key_added="b", **QUICK)
    tl.autoencode(counts, "denoising", key_added="c", **QUICK)
    assert {"X_a", "X_b", "X_c"} <= set(counts.obsm)
    assert "b_theta" not in counts.var
    np.testing.assert_array_equal(counts.obsm["X_a"], first)


def test_another_model_under_the_same_key_replaces_all_of_the_first(counts: anndata.AnnData) -> None:
    tl.autoencode(counts, denoise=True, **QUICK)
    tl.autoencode(counts, likelihood="poisson", **QUICK)
    assert "ae_theta" not in counts.var
    assert "ae_denoised" not in counts.layers
    assert json.loads(counts.uns["ae"]["params_json"])["hyperparameters"]["likelihood"] == "poisson"


def test_the_same_model_adds_to_what_it_wrote(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    tl.denoise(counts, fitted)
    tl.denoise(counts, fitted, scale="normalized")  # its own layer it may replace
    tl.embed(counts, fitted)
    assert "ae_denoised" in counts.layers
    tl.denoise(counts, fitted)
    assert "X_ae" in counts.obsm
    np.testing.assert_array_equal(counts.layers["ae_denoised"], fitted.denoise(counts))


@pytest.mark.parametrize(
    ("slot", "name"), [("obsm", "X_ae"), ("uns", "ae"), ("layers", "ae_denoised"), ("var", "ae_theta")]
)
def test_a_key_that_the_user_took_is_refused(
    counts: anndata.AnnData, fitted: Autoencoder, slot: str, name: str
) -> None:
    values = {"obsm": np.ones((120, 2)), "uns": 3, "layers": np.ones((120, 60)), "var": np.ones(60)}
    getattr(counts, slot)[name] = values[slot]
    before = arrays(counts)
    for verb in (lambda: tl.autoencode(counts, **QUICK), lambda: tl.embed(counts, fitted)):
        with pytest.raises(ConfigError) as error:
            verb()
        assert error.value.code == "key-taken"
        assert name in error.value.what
    with pytest.raises(ConfigError):
        tl.denoise(counts, fitted)
    assert arrays(counts) == before
    tl.embed(counts, fitted, key_added="other")


def test_results_that_lost_their_record_are_called_that(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    tl.embed(counts, fitted)
    both = anndata.concat({"a": counts, "b": counts}, index_unique="-")  # uns is dropped
    with pytest.raises(ConfigError, match=r"uns\['ae'\] is missing") as error:
        tl.embed(both, fitted)
    assert error.value.code == "key-taken"
    assert "del adata.obsm['X_ae']" in error.value.remedy
    del both.obsm["X_ae"]
    tl.embed(both, fitted)


@pytest.mark.parametrize("key", ["", "a/b", 3, None])
def test_a_key_that_cannot_be_written_is_refused(counts: anndata.AnnData, key: Any) -> None:
    with pytest.raises(ConfigError) as error:
        tl.autoencode(counts, key_added=key, **QUICK)
    assert error.value.code == "bad-key"


def test_a_layer_is_a_single_name(counts: anndata.AnnData, fitted: Autoencoder, tmp_path: Path) -> None:
    counts.write_h5ad(tmp_path / "in.h5ad")
    wrong: Any = ["counts"]
    for data in (counts, tmp_path / "in.h5ad"):
        for call in (fitted.embed, ac.check, ac.CountAutoencoder().fit, partial(ac.evaluate, fitted)):
            with pytest.raises(ConfigError, match=r"layer = \['counts'\] is not the name of a layer"):
                call(data, layer=wrong)


@pytest.mark.parametrize("model", [ac.CountAutoencoder, None, 3])
def test_a_model_is_a_name_or_an_object(counts: anndata.AnnData, model: Any) -> None:
    with pytest.raises(ConfigError, match=r"model is (a class|neither)") as caught:
        tl.autoencode(counts, model)
    assert "'count'" in caught.value.remedy
    assert not counts.obsm


def test_a_model_as_an_object_is_fitted_and_returned(counts: anndata.AnnData) -> None:
    model, settings = ac.CountAutoencoder(n_latent=3), {"max_epochs": 1, "seed": 4, "progress": False}
    assert tl.autoencode(counts, model, key_added="object", **settings) is model
    tl.autoencode(counts, "count", n_latent=3, key_added="name", **settings)
    np.testing.assert_array_equal(counts.obsm["X_object"], counts.obsm["X_name"])
    with pytest.raises(ConfigError, match="unknown key 'n_latent'"):
        tl.autoencode(counts, model, n_latent=4)


def test_unknown_names_are_met_with_the_nearest_known(counts: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="did you mean 'count'"):
        tl.autoencode(counts, "counts")
    with pytest.raises(ConfigError, match="did you mean 'n_latent'"):
        tl.autoencode(counts, n_latents=4)
    with pytest.raises(ConfigError, match="did you mean 'max_epochs'"):
        tl.autoencode(counts, max_epoch=4)
    assert not counts.obsm
    assert not set(counts.uns) & {"ae"}


def test_genes_are_matched_by_name(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    tl.embed(counts, fitted)
    shuffled = counts[:, np.random.default_rng(0).permutation(counts.n_vars)].copy()
    del shuffled.obsm["X_ae"]
    tl.embed(shuffled, fitted)
    np.testing.assert_array_equal(shuffled.obsm["X_ae"], counts.obsm["X_ae"])
    pd.testing.assert_series_equal(shuffled.var["ae_theta"][counts.var_names], counts.var["ae_theta"])


def test_extra_genes_are_ignored_and_have_no_theta(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    extra = counts[:, :7].copy()
    extra.var_names = [f"extra{i}" for i in range(7)]
    wide = anndata.concat([extra, counts], axis=1)
    tl.embed(wide, fitted)
    np.testing.assert_array_equal(wide.obsm["X_ae"], fitted.embed(counts))
    assert wide.var["ae_theta"].isna().tolist() == [True] * 7 + [False] * 60
    with pytest.raises(InputError) as error:
        tl.denoise(wide, fitted)
    assert error.value.code == "unknown-genes"
    assert "ae_denoised" not in wide.layers


def test_missing_genes_are_refused_unless_allowed(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    missing = counts.var_names[[0, 5]]
    narrow = counts[:, ~counts.var_names.isin(missing)].copy()
    with pytest.raises(InputError) as error:
        tl.embed(narrow, fitted)
    assert error.value.code == "missing-genes"
    assert all(name in error.value.what for name in missing)
    assert "X_ae" not in narrow.obsm
    tl.embed(narrow, fitted, allow_missing=0.05)
    filled = counts.copy()
    filled.X = csr_matrix(np.where(filled.var_names.isin(missing), 0, filled.X.toarray()).astype(np.float32))
    np.testing.assert_array_equal(narrow.obsm["X_ae"], fitted.embed(filled))


def test_the_remedy_for_missing_genes_works_or_is_not_given(
    counts: anndata.AnnData, fitted: Autoencoder, tmp_path: Path
) -> None:
    narrow = counts[:, 7:].copy()  # 7 of 60 are 0.1167
    path, output = tmp_path / "it.h5ad", tmp_path / "out.h5ad"
    narrow.write_h5ad(path)
    for verb in (lambda **s: tl.denoise(narrow, fitted, **s), lambda **s: tl.denoise(path, fitted, output=output, **s)):
        with pytest.raises(InputError) as error:
            verb()
        assert "allow_missing=0.12 " in error.value.remedy
        verb(allow_missing=0.12)
    expected = fitted.denoise(narrow, allow_missing=0.12)[:, 7:]
    np.testing.assert_array_equal(narrow.layers["ae_denoised"], expected)
    np.testing.assert_allclose(anndata.read_h5ad(output).layers["ae_denoised"], expected, rtol=1e-5)
    with pytest.raises(InputError) as error:
        fitted.embed(counts[:, 20:].copy())
    assert "allow_missing" not in error.value.remedy


@pytest.mark.parametrize("layer", [None, "counts"])
def test_the_remedy_for_cells_without_counts_in_the_models_genes(counts: anndata.AnnData, layer: str | None) -> None:
    some = counts[:, :40].copy()
    model = ac.CountAutoencoder(n_latent=2).fit(some, max_epochs=1, progress=False, empty_cells="error")
    matrix = counts.X.toarray()
    matrix[3, :40] = 0  # this cell has counts in other genes only
    counts.X = csr_matrix(matrix)
    counts.layers["counts"] = counts.X.copy()
    with pytest.raises(InputError) as error:
        model.embed(counts, layer=layer)
    assert error.value.code == "empty-cells"
    names = {"adata": counts, "model": model, "np": np}
    exec(error.value.remedy.removeprefix("remove them: ").split(", or --")[0], names)
    assert model.embed(names["adata"], layer=layer).shape[0] == counts.n_obs - 1


def test_the_denoised_layer_is_in_the_order_of_these_genes(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    order = np.random.default_rng(0).permutation(counts.n_vars)
    shuffled = counts[:, order].copy()
    tl.denoise(counts, fitted)
    tl.denoise(shuffled, fitted)
    np.testing.assert_array_equal(shuffled.layers["ae_denoised"], counts.layers["ae_denoised"][:, order])
    assert shuffled.layers["ae_denoised"].flags.c_contiguous


def test_both_scales_of_the_denoised_layer(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    tl.denoise(counts, fitted)
    tl.denoise(counts, fitted, scale="normalized", key_added="flat")
    factors = counts.X.sum(axis=1).A1 / fitted.library_size_
    expected = counts.layers["flat_denoised"] * factors[:, None]
    np.testing.assert_allclose(counts.layers["ae_denoised"], expected, rtol=1e-5)


def test_the_scale_of_the_denoised_layer_is_recorded(
    counts: anndata.AnnData, fitted: Autoencoder, tmp_path: Path
) -> None:
    tl.embed(counts, fitted)
    assert "denoised_scale" not in counts.uns["ae"]
    tl.denoise(counts, fitted, scale="normalized")
    counts.write_h5ad(tmp_path / "it.h5ad")
    tl.embed(counts, fitted)  # leaves the layer, and what is known of it
    tl.embed(tmp_path / "it.h5ad", fitted, output=tmp_path / "embedded.h5ad")
    tl.denoise(tmp_path / "it.h5ad", fitted, output=tmp_path / "denoised.h5ad")
    files = [anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("it", "embedded", "denoised")]
    found = [adata.uns["ae"]["denoised_scale"] for adata in (counts, *files)]
    assert found == ["normalized", "normalized", "normalized", "counts"]
    other = ac.CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, progress=False)
    tl.embed(tmp_path / "it.h5ad", other, output=tmp_path / "other.h5ad")
    tl.embed(counts, other)
    for adata in (counts, anndata.read_h5ad(tmp_path / "other.h5ad")):
        assert "denoised_scale" not in adata.uns["ae"]


def test_one_gene_is_denoised(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    one = fitted.denoise(counts, genes="Gene5")
    np.testing.assert_array_equal(one, fitted.denoise(counts, genes=["Gene5"]))


def test_a_model_of_expression_is_denoised_on_its_own_scale(counts: anndata.AnnData) -> None:
    counts.X = counts.X.log1p()
    model = tl.autoencode(counts, "undercomplete", transform="none", denoise=True, **QUICK)
    np.testing.assert_array_equal(counts.layers["ae_denoised"], model.denoise(counts, scale="normalized"))
    tl.denoise(counts, model)
    with pytest.raises(ConfigError):
        tl.denoise(counts, model, scale="counts")


@pytest.mark.parametrize("verb", ["autoencode", "embed", "denoise"])
def test_what_is_no_anndata_is_refused(counts: anndata.AnnData, fitted: Autoencoder, verb: str) -> None:
    arguments = () if verb == "autoencode" else (fitted,)
    for wrong in (counts.to_df(), counts.X):
        with pytest.raises(InputError) as error:
            getattr(tl, verb)(wrong, *arguments)
        assert error.value.code == "not-anndata"
    with pytest.raises(ConfigError) as unnamed:
        getattr(tl, verb)("pbmc.h5ad", *arguments)
    assert unnamed.value.code == "no-output"


@pytest.mark.parametrize("verb", ["autoencode", "embed", "denoise"])
def test_outputs_of_files_are_named_in_pythons_words(
    counts: anndata.AnnData, fitted: Autoencoder, verb: str, tmp_path: Path
) -> None:
    counts.write_h5ad(tmp_path / "a.h5ad")
    call = partial(getattr(tl, verb), tmp_path / "a.h5ad", *(() if verb == "autoencode" else (fitted,)))
    with pytest.raises(ConfigError, match=r"remedy: output='NAME\.h5ad'") as error:
        call(output=tmp_path / "zz.zarr")
    assert (error.value.code, error.value.where) == ("bad-output", "output")
    with pytest.raises(ConfigError, match="copy is for an AnnData"):
        call(output=tmp_path / "b.h5ad", copy=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


@pytest.mark.parametrize("verb", [tl.embed, tl.denoise, lambda _, m, **s: ac.pl.history(m)], ids=["embed", "d", "pl"])
def test_a_model_that_is_none_or_not_fitted(counts: anndata.AnnData, verb: Any, tmp_path: Path) -> None:
    for data, settings in ((counts, {}), (tmp_path / "it.h5ad", {"output": "out.h5ad"})):
        with pytest.raises(ConfigError) as error:
            verb(data, ac.CountAutoencoder(), **settings)
        assert error.value.code == "not-fitted"
        with pytest.raises(ConfigError, match=r"ac\.load\('m\.ac'\)"):
            verb(data, "m.ac", **settings)
        with pytest.raises(ConfigError) as error:
            verb(data, 3, **settings)
        assert error.value.code == "no-model"


def test_wrong_values_leave_the_data_as_they_were(counts: anndata.AnnData) -> None:
    counts.X = counts.X.log1p()
    before = arrays(counts)
    with pytest.raises(InputError):
        tl.autoencode(counts, **QUICK)
    assert arrays(counts) == before


def test_the_next_line_is_said_unless_silence_is_wanted(
    counts: anndata.AnnData, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tl.autoencode(counts, **QUICK)
    said = capsys.readouterr()
    assert said.out + said.err + caplog.text == ""
    with caplog.at_level(logging.INFO, logger="anncoder"):
        tl.autoencode(counts, **(QUICK | {"progress": None}))
    said = capsys.readouterr()
    assert "sc.pp.neighbors(adata, use_rep='X_ae')" in said.err + caplog.text
    assert said.out == ""


def test_a_latent_that_is_not_finite_is_refused(counts: anndata.AnnData, fitted: Autoencoder) -> None:
    class Broken(ac.CountAutoencoder):
        def embed(self, *arguments: Any, **settings: Any) -> Any:
            latent = fitted.embed(*arguments, **settings)
            latent[3, 1] = np.nan
            return latent

    broken = Broken()
    broken.__dict__ |= fitted.__dict__
    with pytest.raises(InputError) as error:
        tl.embed(counts, broken)
    assert error.value.code == "latent-not-finite"
    assert "X_ae" not in counts.obsm
    assert "ae" not in counts.uns


def test_dead_units_are_said(counts: anndata.AnnData, fitted: Autoencoder, caplog: pytest.LogCaptureFixture) -> None:
    for dead, said in ((slice(2, 3), "1 of 4 latent units are the same for"), (slice(4), "with a lower learning_rate")):

        class Collapsed(ac.CountAutoencoder):
            def embed(self, *arguments: Any, **settings: Any) -> Any:
                latent = fitted.embed(*arguments, **settings)
                latent[:, dead] = 1.5  # noqa: B023 - used at once
                return latent

        collapsed = Collapsed()
        collapsed.__dict__ |= fitted.__dict__
        caplog.clear()
        tl.embed(counts.copy(), collapsed)
        assert said in caplog.text


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_names_of_several_levels(axis: str, counts: anndata.AnnData, fitted: Autoencoder) -> None:
    frame = getattr(counts, axis)
    frame.index = pd.MultiIndex.from_arrays([["s"] * len(frame), list(frame.index)])
    for act in (lambda: ac.CountAutoencoder().fit(counts, max_epochs=1, progress=False), lambda: fitted.embed(counts)):
        with pytest.raises(InputError) as caught:
            act()
        assert caught.value.code in ("bad-name", "missing-genes")


def test_arguments_of_another_type(counts: anndata.AnnData, fitted: Autoencoder, tmp_path: Path) -> None:
    for act in (
        lambda: fitted.embed(counts, allow_missing="0.5"),  # type: ignore[arg-type]
        lambda: fitted.save(None),  # type: ignore[arg-type]
        lambda: ac.load(None),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            act()


@pytest.mark.parametrize("verb", [tl.autoencode, tl.embed, tl.denoise], ids=lambda f: f.__name__)
def test_the_contract_of_scanpys_functions(verb: Any) -> None:
    # the rules of scanpy's own tests/test_package_structure.py
    parameters = list(inspect.signature(verb).parameters.values())
    kinds = [parameter.kind for parameter in parameters]
    assert parameters[0].name == "adata"
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 3
    copy = inspect.signature(verb).parameters["copy"]
    assert copy.kind is inspect.Parameter.KEYWORD_ONLY
    assert copy.default is False
    documented = verb.__doc__
    assert all(parameter.name in documented for parameter in parameters)
    assert "Sets the following fields" in documented


def test_a_model_of_the_same_settings_and_other_data_is_another(counts: anndata.AnnData) -> None:
    """The median of log-normalised data is 1, whatever they are: genes and weights tell."""
    counts.X = counts.X.log1p()
    few = counts[:, :40].copy()
    settings: dict[str, Any] = {"transform": "none", "n_latent": 3, "max_epochs": 2, "progress": False}
    for cells in (counts, few):
        tl.autoencode(cells, "undercomplete", denoise=True, **settings)
    other = counts[:, :40].copy()
    assert "ae_denoised" in other.layers
    model = tl.autoencode(other, "undercomplete", **settings)
    assert "ae_denoised" not in other.layers
    tl.denoise(other, model)
    np.testing.assert_array_equal(other.layers["ae_denoised"], few.layers["ae_denoised"])


def test_the_number_of_threads_holds_for_the_whole_call(
    counts: anndata.AnnData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from anncoder.training import results

    seen, infer = [], results.infer

    def watched(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return infer(*arguments)

    monkeypatch.setattr(results, "infer", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settings: dict[str, Any] = {"n_latent": 2, "max_epochs": 1, "threads": 1, "progress": False}
        tl.autoencode(counts, "count", denoise=True, **settings)
        counts.write_h5ad(tmp_path / "it.h5ad")
        tl.autoencode(tmp_path / "it.h5ad", "count", output=tmp_path / "out.h5ad", **settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_the_aligned_matrix_is_a_copy(counts: anndata.AnnData) -> None:
    model = tl.autoencode(counts, "count", n_latent=2, max_epochs=1, progress=False)
    before = counts.X.copy()
    model.aligned_matrix(counts).data[:] = 7
    assert (before != counts.X).nnz == 0


def test_results_of_a_version_without_fingerprints_are_kept_by_their_model(counts: anndata.AnnData) -> None:
    model = tl.autoencode(counts, "count", denoise=True, n_latent=2, max_epochs=1, progress=False)
    params = json.loads(counts.uns["ae"]["params_json"])
    del params["fingerprint"]
    counts.uns["ae"]["params_json"] = json.dumps(params)
    tl.embed(counts, model)
    assert "ae_denoised" in counts.layers


def test_denoised_as_scanpy_plots_it(counts: anndata.AnnData) -> None:
    settings: dict[str, Any] = {"n_latent": 3, "n_hidden": (8,), "max_epochs": 2, "progress": False}
    model = tl.autoencode(counts, "count", denoise="log1p", **settings)
    expected = np.log1p(model.denoise(counts, scale="normalized"))
    np.testing.assert_allclose(counts.layers["ae_denoised"], expected, rtol=1e-6)
    assert counts.uns["ae"]["denoised_scale"] == "log1p"
    with pytest.raises(ConfigError, match="not 'normalized'"):
        tl.autoencode(counts, "undercomplete", transform="none", denoise="log1p", **settings)
    with pytest.raises(ConfigError, match="'counts', 'normalized' or 'log1p'"):
        tl.autoencode(counts, "count", denoise="log", **settings)
