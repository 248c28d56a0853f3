"""Words of other packages are understood, and no message lists the data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import anncoder as ac
from anncoder.config import ALIASES, TrainingConfig
from anncoder.errors import AnncoderError, ConfigError, InputError, counted
from anncoder.models import OTHER_NAMES, find, names


def said(call: Any, *arguments: Any, **settings: Any) -> AnncoderError:
    with pytest.raises(AnncoderError) as caught:
        call(*arguments, **settings)
    return caught.value


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pca", "'undercomplete' with n_hidden=() (--set n_hidden=[])"),
        ("scvi", "'variational'"),
        ("SCVI", "'variational'"),
        ("ldvae", "'variational' with linear_decoder=True (--set linear_decoder=true)"),
        ("zinb", "'count' with likelihood='zinb' (--set likelihood=zinb)"),
        ("linear", "'undercomplete'"),
        ("CountAutoencoder", "'count'"),
        ("DCA", "'dca'"),
        ("scvi-tools", "'"),
        ("cuont", "'count'"),
    ],
)
def test_a_model_by_another_name(name: str, meant: str, counts: anndata.AnnData) -> None:
    assert f"did you mean {meant}" in said(ac.tl.autoencode, counts, name).remedy


def test_every_alias_leads_to_something_that_is_there() -> None:
    for meant, setting in OTHER_NAMES.values():
        assert meant in names()
        key = setting.partition("=")[0]
        assert not key or key in find(meant).config_class.model_fields
    settings = {*TrainingConfig.model_fields, *(f for n in names() for f in find(n).config_class.model_fields)}
    assert set(ALIASES.values()) <= settings
    assert not set(ALIASES) & settings


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "'learning_rate'"),
        ("random_state", "'seed'"),
        ("n_comps", "'n_latent'"),
        ("n_epochs", "'max_epochs'"),
        ("use_gpu", "'device'"),
        ("batch", "'batch_key'"),
        ("use_highly_variable", "mask_var='highly_variable'"),
        ("learningrate", "'learning_rate'"),
    ],
)
def test_a_setting_by_another_name(key: str, meant: str, counts: anndata.AnnData) -> None:
    assert meant in said(ac.tl.autoencode, counts, "count", **{key: 1}).remedy


def test_trials_are_those_of_a_search(counts: anndata.AnnData) -> None:
    assert "n_trials" in said(ac.search, counts, trials=2).remedy


def test_no_message_lists_more_than_ten_names_of_the_data(counts: anndata.AnnData) -> None:
    counts.obs = counts.obs.assign(**{f"column{i}": "a" for i in range(40)})
    for i in range(40):
        counts.layers[f"layer{i}"] = counts.X
        counts.obsm[f"X_{i}"] = np.zeros((counts.n_obs, 2))
    errors = [
        said(ac.pl.gene_pair, counts, "zzz", "yyy"),
        said(ac.pl.embeddings, counts, "zzz", color=None),
        said(ac.check, counts, layer="zzz"),
        said(ac.tl.autoencode, counts, "variational", batch_key="zzz", progress=False),
        said(ac.tl.autoencode, counts, "count", zzz=1),
        said(ac.tl.autoencode, counts, "zzz"),
    ]
    for error in errors:
        assert str(error).count(",") <= 10, error
        assert len(str(error)) < 500, error


def test_a_batch_key_of_no_use_names_the_models_that_use_one_but_first_the_column(counts: anndata.AnnData) -> None:
    assert said(ac.tl.autoencode, counts, "dca", batch_key="nowhere", progress=False).code == "unknown-key"
    error = said(ac.tl.autoencode, counts, "dca", batch_key="group", progress=False)
    assert error.code == "batches-unused"
    using = [n for n in names() if find(n).config_class().batches != "unused"]
    assert all(name in error.remedy for name in using)


class MuData:
    def __init__(self, **modalities: Any) -> None:
        self.mod = modalities


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (MuData(rna=1, atac=2), "mdata['rna']"),
        (np.ones((3, 3)), "anndata.AnnData(matrix)"),
        (None, "the path of an .h5ad file"),
    ],
)
def test_other_objects_than_an_anndata_are_told_the_way(data: Any, remedy: str) -> None:
    calls = [ac.check, ac.CountAutoencoder().fit, lambda found: ac.tl.autoencode(found, "count")]
    for call in (
        calls[::2] if isinstance(data, np.ndarray) else calls
    ):  # a fit takes arrays, and has nothing to write to
        error = said(call, data)
        assert error.code == "not-anndata"
        assert remedy in error.remedy


def test_a_class_is_not_a_model(counts: anndata.AnnData) -> None:
    assert (
        said(ac.tl.autoencode, counts, ac.CountAutoencoder).remedy == "write CountAutoencoder(), or its name, 'count'"
    )


def renamed(model: Any, counts: anndata.AnnData, rename: Any) -> str:
    other = counts.copy()
    other.var_names = [rename(name) for name in counts.var_names]
    return said(model.embed, other).remedy


def test_missing_genes_are_blamed_on_a_spelling_only_where_it_explains_them(counts: anndata.AnnData) -> None:
    counts.var_names = [f"ENSG{i:011d}" for i in range(counts.n_vars)]
    model = ac.CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, threads=1, progress=False)
    assert "allow_missing=0.05" in said(model.embed, counts[:, :-3]).remedy
    assert "version suffix" in renamed(model, counts, lambda name: f"{name}.12")
    counts.var_names = [f"Gene_{i}a" for i in range(counts.n_vars)]
    model = ac.CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, threads=1, progress=False)
    assert "capitals" in renamed(model, counts, str.upper)
    assert "'_', '-' and '.'" in renamed(model, counts, lambda name: name.replace("_", "-"))
    assert "suffix of a repeated name" in renamed(model, counts, lambda name: f"{name}-1")
    assert "too many" in renamed(model, counts, lambda name: f"other{name}")


def test_a_tilde_is_the_home_folder(
    counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    counts.write_h5ad(tmp_path / "in.h5ad")
    with caplog.at_level(logging.ERROR):
        model = ac.tl.autoencode("~/in.h5ad", "count", output="~/out.h5ad", max_epochs=1, threads=1, progress=False)
    model.save("~/model")
    assert ac.load("~/model").embed("~/in*.h5ad").shape == (counts.n_obs, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "model", "out.h5ad"]
    assert ac.check("~/in.h5ad").ok


def test_numbers_and_their_nouns() -> None:
    assert [counted(n, "cell") for n in (0, 1, 2000)] == ["0 cells", "1 cell", "2,000 cells"]
    assert counted(2, "is", "are") == "2 are"


def test_a_gene_is_no_group_of_cells(counts: anndata.AnnData) -> None:
    ac.tl.autoencode(counts, n_latent=2, n_hidden=(4,), max_epochs=1, progress=False, denoise=True)
    error = said(ac.pl.gene_pair, counts, *counts.var_names[:2], color=counts.var_names[3])
    assert isinstance(error, ConfigError)
    assert "sc.pl.umap" in error.remedy


def test_fractional_counts_are_told_of_the_model_that_takes_them(counts: anndata.AnnData) -> None:
    values = counts.X.toarray()
    values[::7] += 0.3 * (values[::7] > 0)  # as SoupX leaves them
    counts.X = values
    error = said(ac.tl.autoencode, counts, "count")
    assert isinstance(error, InputError)
    assert "DCA(check_counts=False)" in error.remedy
    assert "--nocheckcounts" in error.remedy
