"""Encoders that start from principal components, against scikit-learn's PCA."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA

from anncoder.config import Layers
from anncoder.nn.inputs import LogNormalize, Standardize
from anncoder.nn.layers import Encoder
from anncoder.nn.principal import FEWEST, principal_axes, start_from_components
from anncoder.types import CSR, Batch, Noise, Summary

N, G, K = 300, 40, 4


def cells(n: int = N) -> Batch:
    """Return expression, dense and low-dimensional but for noise: its components are well apart."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(n, K, generator=generator) * torch.tensor([8.0, 4.0, 2.0, 1.0])
    values = scores @ torch.randn(K, G, generator=generator) + 0.01 * torch.randn(n, G, generator=generator) + 30
    indptr = torch.arange(0, G * n + 1, G)
    return Batch(CSR(indptr, torch.arange(G).repeat(n), values.ravel(), G), torch.ones(n), torch.arange(n))


def started(batch: Batch, layers: Layers, *, scaled: bool = False) -> tuple[Encoder, Standardize]:
    x, noise = batch.counts.to_dense(), Noise(0)
    standardize = Standardize(G, scaled=scaled)
    summary = Summary(len(x), 0.0, 1.0, x.mean(0), x.var(0), x.mean(0), x.std(0), sample=batch)
    standardize.start_from(summary)
    encoder = Encoder(layers, G, K, noise)
    start_from_components(encoder, LogNormalize("none"), standardize, summary, noise)
    return encoder, standardize


def test_the_axes_and_deviations_are_those_of_pca() -> None:
    batch = cells()
    x = batch.counts.to_dense()
    axes, deviations = principal_axes(batch.counts, K)
    pca = PCA(K, svd_solver="full").fit(x.double().numpy())
    assert scipy.linalg.subspace_angles(axes.numpy(), pca.components_.T).max() < 1e-3
    np.testing.assert_allclose(deviations, np.sqrt(pca.explained_variance_), rtol=1e-3)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("layers", "least"),
    # a second hidden layer is random, and passes less on
    [(Layers((64,)), 0.6), (Layers((64,), norm="layer"), 0.6), (Layers((64, 32)), 0.2)],
)
def test_the_latent_starts_in_the_plane_of_the_components(layers: Layers, least: float, scaled: bool) -> None:
    batch = cells()
    encoder, standardize = started(batch, layers, scaled=scaled)
    x = ((batch.counts.to_dense() - standardize.mean) / (1 if standardize.scale is None else standardize.scale)).numpy()
    scores = PCA(K, svd_solver="full", whiten=True).fit_transform(x.astype(np.float64))

    def linear_share(encoder: Encoder) -> float:
        encoder.train()  # batch normalisation by the statistics of these cells
        latent = encoder(batch.counts, standardize.mean, standardize.scale).detach().double().numpy()
        design = np.column_stack([latent, np.ones(N)])
        rest = scores - design @ np.linalg.lstsq(design, scores, rcond=None)[0]
        return float((1 - rest.var(0) / scores.var(0)).min())  # of the score that is known least

    share, of_random_weights = linear_share(encoder), linear_share(Encoder(layers, G, K, Noise(0)))
    assert share > max(least, of_random_weights + 0.05)


def test_few_cells_and_no_hidden_layer_leave_the_encoder_as_it_is() -> None:
    for batch, layers in ((cells(FEWEST - 1), Layers((16,))), (cells(), Layers(()))):
        encoder, _ = started(batch, layers)
        random = Encoder(layers, G, K, Noise(0))
        assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), random.parameters(), strict=True))


def test_the_start_does_not_depend_on_the_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes of another sign and, where variances are equal, another rotation, give the same encoder."""
    from anncoder.nn import principal

    found = principal.principal_axes
    batch = cells()
    encoder, _ = started(batch, Layers((16,)))

    def others(x: CSR, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        axes, deviations = found(x, k)
        return axes * torch.tensor([-1.0, 1.0]).repeat(axes.shape[1])[: axes.shape[1]], deviations

    monkeypatch.setattr(principal, "principal_axes", others)
    again, _ = started(batch, Layers((16,)))
    torch.testing.assert_close(encoder.first.weight, again.first.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(encoder.last.weight, again.last.weight, rtol=1e-2, atol=1e-3)
