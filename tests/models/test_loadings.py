"""Loadings of linear decoders: the change of decoded expression along the latent as it is written."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pytest

import anncoder as ac
from anncoder.models.base import Autoencoder

FIT: dict[str, Any] = {"max_epochs": 3, "batch_size": 32, "threads": 1, "progress": False}
LINEAR: list[Autoencoder] = [
    ac.CountAutoencoder(n_latent=3, n_hidden=(8,), linear_decoder=True),
    ac.CountAutoencoder(n_latent=3, n_hidden=(8,), linear_decoder=True, natural_axes=False, likelihood="zinb"),
    ac.UndercompleteAutoencoder(n_latent=3, n_hidden=(), start="random"),
    ac.UndercompleteAutoencoder(n_latent=3, n_hidden=(8,), linear_decoder=True, standardize=True),
    ac.UndercompleteAutoencoder(n_latent=3, n_hidden=(), tied=True, norm="none"),
    ac.DenoisingAutoencoder(n_latent=3, n_hidden=(8,)),
]


@pytest.mark.parametrize("model", LINEAR, ids=repr)
def test_the_latent_times_the_loadings_is_what_is_decoded(model: Autoencoder, simulated: anndata.AnnData) -> None:
    again = model.unfitted().fit(simulated, **FIT)
    latent, loadings = again.embed(simulated).astype(float), again.of_genes()["loadings"]
    assert loadings.shape == (simulated.n_vars, 3)
    expected = again.denoise(simulated, scale="normalized").astype(float)
    decoded = np.log(expected) if model.name == "count" else np.log1p(expected)
    free = (expected > 1e-6).all(axis=0)  # genes that are nowhere cut at zero
    assert free.sum() > 5
    left, right = decoded - decoded.mean(axis=0), (latent - latent.mean(axis=0)) @ loadings.T
    np.testing.assert_allclose(left[:, free], right[:, free], atol=2e-3)
    assert right.std() > 0.01


def test_batches_and_hidden_layers(simulated: anndata.AnnData) -> None:
    cells = simulated.copy()
    cells.obs["plate"] = np.where(np.arange(cells.n_obs) % 2, "a", "b")
    model = ac.tl.autoencode(cells, "count", linear_decoder=True, n_latent=3, batch_key="plate", **FIT)
    assert cells.varm["ae_loadings"].shape == (cells.n_vars, 3)
    np.testing.assert_array_equal(cells.varm["ae_loadings"], model.of_genes()["loadings"])
    assert "loadings" not in ac.CountAutoencoder(n_latent=3).fit(simulated, **FIT).of_genes()
