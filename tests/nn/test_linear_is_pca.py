"""A linear autoencoder is PCA: on real data, by training, against scikit-learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import anndata
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
from sklearn.decomposition import PCA

from anncoder import UndercompleteAutoencoder
from anncoder.evaluation.baselines import input_of

K = 3  # the fourth component of these data is well apart from the third


class Fit(NamedTuple):
    model: UndercompleteAutoencoder
    adata: anndata.AnnData
    x: np.ndarray[Any, Any]  # network input of the cells
    pca: PCA  # of all of it, exact: eigenvectors of the covariance


@pytest.fixture(scope="module")
def fitted(shared_data: Any) -> Fit:
    adata = anndata.read_h5ad(shared_data / "pbmc_10x_4k.h5ad")
    model = UndercompleteAutoencoder(n_latent=K, n_hidden=(), activation="linear", norm="none", start="random")
    model.fit(
        adata,
        valid_fraction=0,
        max_epochs=100,
        learning_rate=5e-3,
        batch_size=512,
        beta1=0.9,
        beta2=0.999,
        averaging=False,
        patience=15,
        reduce_lr_patience=4,
        min_delta=1e-6,
        progress=False,
        threads=1,
    )
    x = input_of(model, sp.csr_matrix(adata.X)).toarray().astype(np.float64)
    return Fit(model, adata, x, PCA(K, svd_solver="covariance_eigh").fit(x))


def test_it_spans_the_principal_subspace(fitted: Fit) -> None:
    model, adata, x, pca = fitted
    latent = model.embed(adata).astype(np.float64)
    scores = scipy.linalg.subspace_angles(latent - latent.mean(0), pca.transform(x))
    loadings = scipy.linalg.subspace_angles(model.network_.output.weight.detach().numpy(), pca.components_.T)
    assert scores.max() < 1e-2
    assert loadings.max() < 1e-2


@pytest.mark.parametrize(
    ("name", "k", "tied"),
    [
        ("pbmc_10x_4k", 10, False),
        ("pbmc_10x_4k", 5, True),
        pytest.param("worm_neuron", 10, False, marks=pytest.mark.slow),  # 13,488 genes
    ],
)
def test_with_default_settings_it_is_pca_with_any_number_of_units(
    name: str, k: int, tied: bool, shared_data: Any
) -> None:
    adata = anndata.read_h5ad(shared_data / f"{name}.h5ad")
    model = UndercompleteAutoencoder(n_latent=k, n_hidden=(), tied=tied, norm="none" if tied else "batch")
    model.fit(adata, progress=False, threads=1)
    fitted = ~adata.obs_names.isin(model.valid_obs_)
    x = input_of(model, sp.csr_matrix(adata.X))[fitted]
    pca = PCA(k, svd_solver="arpack", random_state=0).fit(x)
    latent = model.embed(adata)[fitted].astype(np.float64)
    network = model.network_
    weights = network.encoder.first.weight if tied else network.output.weight
    assert scipy.linalg.subspace_angles(latent - latent.mean(0), pca.transform(x)).max() < 1e-2
    assert scipy.linalg.subspace_angles(weights.detach().numpy(), pca.components_.T).max() < 1e-2
    assert len(model.history_) > 1  # it was trained


def test_its_reconstruction_error_is_that_of_pca(fitted: Fit) -> None:
    model, adata, x, pca = fitted
    optimum = np.square(x - pca.inverse_transform(pca.transform(x))).mean()
    ours = np.square(x - np.log1p(model.denoise(adata, scale="normalized"))).mean()
    decoded = float(model.history_["train_loss"][model.best_epoch_])
    assert decoded == pytest.approx(optimum, rel=1e-3)
    assert ours <= optimum * 1.001  # negative expectations are cut off at zero, which can only help


def test_in_natural_axes_its_latent_is_pca_itself(fitted: Fit) -> None:
    model, adata, x, pca = fitted
    scores = pca.transform(x)
    latent = model.embed(adata)
    for ours, theirs in zip(latent.T, scores.T, strict=True):
        assert abs(np.corrcoef(ours, theirs)[0, 1]) > 0.999
        assert ours.std() == pytest.approx(theirs.std(), rel=0.01)
