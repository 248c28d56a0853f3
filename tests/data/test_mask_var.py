"""Fits on the genes that a column of var chooses: in memory, from disk, on the command line; NaN for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import anncoder as ac
from anncoder import CountAutoencoder
from anncoder.errors import AnncoderError

SMALL: dict[str, Any] = {"n_latent": 3, "n_hidden": (8,)}
FIT: dict[str, Any] = {"max_epochs": 2, "progress": False}


@pytest.fixture
def flagged(counts: anndata.AnnData) -> anndata.AnnData:
    """Return the simulated counts with every second gene called variable."""
    counts.var["highly_variable"] = np.arange(counts.n_vars) % 2 == 0
    counts.var["odd"] = ~counts.var["highly_variable"]
    return counts


def test_the_default_is_scanpys_flag_where_there_is_one(
    flagged: anndata.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = CountAutoencoder(**SMALL).fit(flagged, **FIT)
    half = flagged[:, flagged.var["highly_variable"]].copy()
    assert list(chosen.var_names_) == list(half.var_names)
    assert chosen.training_.mask_var == "highly_variable"
    assert "30 of 60 genes that var['highly_variable'] chooses" in caplog.text
    alone = CountAutoencoder(**SMALL).fit(half, **FIT)
    np.testing.assert_array_equal(chosen.embed(flagged), alone.embed(half))
    assert alone.training_.mask_var is None


def test_other_columns_and_all_genes(flagged: anndata.AnnData) -> None:
    of_odd = CountAutoencoder(**SMALL).fit(flagged, mask_var="odd", **FIT)
    assert list(of_odd.var_names_) == list(flagged.var_names[1::2])
    whole = CountAutoencoder(**SMALL).fit(flagged, mask_var=None, **FIT)
    assert len(whole.var_names_) == flagged.n_vars
    del flagged.var["highly_variable"], flagged.var["odd"]
    unflagged = CountAutoencoder(**SMALL).fit(flagged, **FIT)
    np.testing.assert_array_equal(whole.embed(flagged), unflagged.embed(flagged))


def test_results_are_of_the_whole_anndata(flagged: anndata.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    before = flagged.X.copy()
    model = ac.tl.autoencode(flagged, "count", denoise=True, **SMALL, **FIT)
    layer, known = flagged.layers["ae_denoised"], flagged.var["highly_variable"].to_numpy()
    assert np.isnan(layer[:, ~known]).all()
    np.testing.assert_array_equal(layer[:, known], model.denoise(flagged))
    assert (flagged.var["ae_theta"].isna() == ~known).all()
    assert "NaN in 30 of 60 genes" in caplog.text
    assert (before != flagged.X).nnz == 0
    with pytest.raises(AnncoderError, match="fitted without it") as error:
        ac.pl.gene_pair(flagged, *flagged.var_names[:2])
    assert error.value.code == "not-denoised"


def test_files_have_the_same_results_as_memory(flagged: anndata.AnnData, tmp_path: Path) -> None:
    flagged.write_h5ad(tmp_path / "in.h5ad")
    model = ac.tl.autoencode(flagged, "count", denoise=True, **SMALL, **FIT)
    settings = {"output": tmp_path / "out.h5ad", "denoise": True, **SMALL, **FIT}
    ac.tl.autoencode(tmp_path / "in.h5ad", "count", **settings)
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    for slot in ("layers", "obsm"):
        for name, values in getattr(flagged, slot).items():
            np.testing.assert_array_equal(getattr(out, slot)[name], values)
    model.save(tmp_path / "model")
    again = ac.load(tmp_path / "model")
    assert again.training_.mask_var == "highly_variable"
    ac.tl.denoise(tmp_path / "in.h5ad", again, output=tmp_path / "later.h5ad")
    later = anndata.read_h5ad(tmp_path / "later.h5ad")
    np.testing.assert_array_equal(later.layers["ae_denoised"], flagged.layers["ae_denoised"])


def test_the_command_line(flagged: anndata.AnnData, tmp_path: Path, anncoder: Any) -> None:
    flagged.write_h5ad(tmp_path / "in.h5ad")
    sets = ["--set", "n_latent=3", "--set", "n_hidden=[8]", "--set", "max_epochs=2", "--no-evaluation", "--denoise"]
    for mask, n_genes in (("odd", 30), ("none", 60)):
        out = tmp_path / f"{mask}.h5ad"
        done = anncoder("train", str(tmp_path / "in.h5ad"), "-o", str(out), "--mask-var", mask, *sets)
        assert done.exit_code == 0, done.output
        assert (~np.isnan(anndata.read_h5ad(out).layers["ae_denoised"]).any(axis=0)).sum() == n_genes


@pytest.mark.parametrize(
    ("column", "values", "code"),
    [
        ("nowhere", None, "unknown-key"),
        ("text", ["True"] * 60, "bad-mask"),
        ("numbers", np.ones(60), "bad-mask"),
        ("none", np.zeros(60, dtype=bool), "bad-mask"),
        ("gaps", [True, None] * 30, "bad-mask"),
    ],
)
def test_columns_that_choose_nothing(counts: anndata.AnnData, column: str, values: Any, code: str) -> None:
    if values is not None:
        counts.var[column] = values
    with pytest.raises(AnncoderError) as error:
        CountAutoencoder(**SMALL).fit(counts, mask_var=column, **FIT)
    assert error.value.code == code
    assert error.value.remedy


def test_a_flag_of_no_use_is_no_default(counts: anndata.AnnData) -> None:
    for values in (np.zeros(60, dtype=bool), np.ones(60, dtype=bool), np.full(60, "yes")):
        counts.var["highly_variable"] = values
        assert len(CountAutoencoder(**SMALL).fit(counts, **FIT).var_names_) == 60


def test_a_reader_has_no_var(counts: anndata.AnnData) -> None:
    def make_blocks() -> Any:
        yield counts.X, np.arange(counts.n_obs)

    source = ac.IterableSource(make_blocks, counts.var_names, counts.n_obs)
    with pytest.raises(AnncoderError, match="no var"):
        CountAutoencoder(**SMALL).fit(source, mask_var="odd", **FIT)
    assert len(CountAutoencoder(**SMALL).fit(source, **FIT).var_names_) == 60
