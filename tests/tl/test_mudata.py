"""Modalities of a MuData: read and written in place of an AnnData, whether mudata is installed or not."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

from anncoder import tl
from anncoder.errors import AnncoderError


class MuData:
    """What mudata's class has of that name, for where it is not installed."""

    def __init__(self, mod: dict[str, anndata.AnnData]) -> None:
        self.mod = mod

    def copy(self) -> MuData:
        return MuData({name: adata.copy() for name, adata in self.mod.items()})


def of_mudata(parts: dict[str, anndata.AnnData]) -> Any:
    if find_spec("mudata") is None:
        return MuData(parts)
    import mudata

    with warnings.catch_warnings(action="ignore"):  # its own, of what comes in its next version
        return mudata.MuData(parts)


@pytest.mark.filterwarnings("ignore")
def test_a_modality_of_a_mudata(counts: anndata.AnnData) -> None:
    adt = anndata.AnnData(np.ones((counts.n_obs, 3), np.float32), obs=counts.obs[[]].copy())
    mdata = of_mudata({"rna": counts.copy(), "adt": adt})
    settings: dict[str, Any] = {"n_latent": 3, "max_epochs": 2, "progress": False}
    copied = tl.autoencode(mdata, mod="rna", copy=True, **settings)
    assert type(copied) is type(mdata)
    assert "X_ae" not in mdata.mod["rna"].obsm
    model = tl.autoencode(mdata, mod="rna", **settings)
    wanted = tl.autoencode(counts, **settings).embed(counts)
    for found in (copied, mdata):
        np.testing.assert_array_equal(found.mod["rna"].obsm["X_ae"], wanted)
        assert "X_ae" not in found.mod["adt"].obsm
    tl.embed(mdata, model, mod="rna", key_added="again")
    np.testing.assert_array_equal(mdata.mod["rna"].obsm["X_again"], wanted)
    tl.denoise(mdata, model, mod="rna")
    assert mdata.mod["rna"].layers["ae_denoised"].shape == counts.shape


@pytest.mark.filterwarnings("ignore")
def test_modalities_that_are_not_there(counts: anndata.AnnData, tmp_path: Path) -> None:
    mdata = of_mudata({"rna": counts})
    for data, options, code, remedy in (
        (mdata, {}, "not-anndata", "mod='rna'"),
        (mdata, {"mod": "rnaa"}, "unknown-key", "did you mean 'rna'?"),
        (counts, {"mod": "rna"}, "bad-value", "leave mod out"),
        (counts.X, {"mod": "rna"}, "not-anndata", "AnnData"),
        (tmp_path / "a.h5ad", {"mod": "rna", "output": "b.h5ad"}, "bad-value", "leave mod out"),
    ):
        with pytest.raises(AnncoderError) as error:
            tl.autoencode(data, **options)
        assert error.value.code == code
        assert remedy in error.value.remedy
