"""Models that earlier versions saved are loaded and do what they did."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import anncoder as ac

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "version-0.1.0"
STORED = np.load(FOLDER / "cells.npz")


@pytest.fixture
def cells() -> anndata.AnnData:
    """Return the cells that the stored models were fitted on."""
    return anndata.AnnData(
        csr_matrix(STORED["counts"].astype(np.float32)),
        obs=pd.DataFrame({"batch": STORED["batch"]}, index=[f"Cell{i}" for i in range(len(STORED["counts"]))]),
        var=pd.DataFrame(index=STORED["genes"]),
    )


@pytest.mark.parametrize("name", ["count", "variational"])
def test_a_model_of_version_0_1_0_has_its_latent_and_can_be_saved_again(
    name: str, cells: anndata.AnnData, tmp_path: Path
) -> None:
    model = ac.load(FOLDER / name)
    assert model.name == name
    np.testing.assert_allclose(model.embed(cells), STORED[name], rtol=1e-4, atol=1e-5)
    assert np.isfinite(model.denoise(cells)).all()
    assert {"train_loss", "valid_loss"} <= set(model.history_)
    model.save(tmp_path / "again")
    np.testing.assert_array_equal(ac.load(tmp_path / "again").embed(cells), model.embed(cells))


def test_slots_that_version_0_1_0_wrote_are_known_as_ours(cells: anndata.AnnData) -> None:
    """Its record in uns did not list them: another model's results under the same key replace all of them."""
    ac.tl.embed(cells, ac.load(FOLDER / "variational"))
    del cells.uns["ae"]["slots"]
    assert "ae_elbo" in cells.obs
    ac.tl.autoencode(cells, "undercomplete", n_latent=2, n_hidden=(4,), max_epochs=1, progress=False)
    assert "ae_elbo" not in cells.obs
    assert "ae_theta" not in cells.var
