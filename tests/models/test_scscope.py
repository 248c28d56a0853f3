"""scScope: the published objective, its masks, batch effects, what it fills in, and its slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from benchmarks.data import splat
from benchmarks.published.scscope import batches, clusters, filled_in, observed_mean
from scipy.sparse import csr_matrix
from torch import Tensor

import anncoder
from anncoder import ScScope, tl
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.data.summary import library_sizes, summarize
from anncoder.errors import ConfigError, InputError
from anncoder.models.published.scscope import ScScopeConfig, ScScopeNetwork, observed_error
from anncoder.types import Batch, Noise, Shape

SMALL: dict[str, Any] = {"n_latent": 4, "n_imputer": 8}


def csr(x: Any) -> Any:
    return Stored.of(csr_matrix(np.asarray(x, dtype=np.float32))).take(np.arange(len(x)))


def network_and_batch(counts: Any, n_batches: int = 0, **options: Any) -> tuple[Any, Batch]:
    config = ScScopeConfig(**(SMALL | options))
    network = ScScopeNetwork(config, Shape(counts.n_vars, n_batches), Noise(0))
    matrix = csr_matrix(counts.X)
    sizes = library_sizes(matrix) if config.transform != "none" else np.ones(counts.n_obs)
    code = np.arange(counts.n_obs) % n_batches if n_batches else None
    loader = MemoryLoader(
        Stored.of(matrix), sizes / np.median(sizes), np.arange(len(sizes)), batch_size=40, batch_code=code
    )
    summary = summarize([(matrix, sizes / np.median(sizes))], counts.n_vars, 1.0, transform=config.transform)
    network.start_from(summary, loader)
    return network.eval(), next(loader.epoch(0))


def test_the_published_value_of_the_loss() -> None:
    x = csr([[1, 0, 2], [0, 3, 0]])
    rounds = [[[0.5, 0.2, 1.5], [0.1, 2, 0.3]], [[0.9, 0.4, 1.9], [0.2, 2.9, 0.1]]]
    total = sum(float(observed_error(x, torch.tensor(y))) for y in rounds)
    assert total == pytest.approx(1.39795, abs=1e-5)


def test_an_error_of_nothing_has_a_gradient_of_nothing() -> None:
    decoded = torch.zeros(2, 3, requires_grad=True)
    observed_error(csr(np.zeros((2, 3))), decoded).backward()
    assert decoded.grad is not None
    assert not decoded.grad.any()


def dense_rounds(network: Any, x: Tensor, shift: Tensor, rounds: int) -> list[tuple[Tensor, Tensor]]:
    """The published recurrence, in float64 on dense arrays."""
    parameter = {name: value.double() for name, value in network.state_dict().items()}
    current, found = (x - shift).relu(), []
    for number in range(rounds):
        if number:
            y = found[-1][1]
            hidden = (y @ parameter["imputer.0.weight"].T + parameter["imputer.0.bias"]).relu()
            guess = hidden @ parameter["imputer.2.weight"].T + parameter["imputer.2.bias"]
            current = ((1 - x.sign()) * guess + x - shift).relu()
        latent = (current - parameter["center"]) @ parameter["encoder.first.weight"] + parameter["encoder.first.bias"]
        latent = latent.relu()
        y = latent @ parameter["output.weight"].T + parameter["output.bias"]
        found.append((latent, (y * parameter["gene_scale"]).relu()))
    return found


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("n_batches", [0, 3])
def test_rounds_and_loss_are_the_published_recurrence(counts: Any, n_batches: int, faithful: bool) -> None:
    network, batch = network_and_batch(counts, n_batches, n_rounds=3, faithful=faithful)
    x = (batch.counts.to_dense() / batch.size_factor.unsqueeze(1) / network.scale).double()
    shift = torch.zeros_like(x)
    with torch.no_grad():
        if n_batches:
            network.of_batch.add_(
                0.3 * torch.rand(n_batches, counts.n_vars, generator=torch.Generator().manual_seed(1))
            )
            effects = network.of_batch.double()
            if not faithful:
                effects = (effects - effects.mean(0)) * network.gene_scale
            shift = effects[batch.batch_code]
        expected = dense_rounds(network, x, shift, 3)
        mask = ((x - shift).relu() if faithful else x).sign()
        losses = [(mask * (y - (x - shift).relu())).norm() / x.numel() ** 0.5 for _, y in expected]
        loss = network(batch)
        torch.testing.assert_close(loss.total.double(), torch.stack(losses).sum(), rtol=1e-5, atol=1e-6)
        latent = torch.cat([latent for latent, _ in expected], dim=1)
        torch.testing.assert_close(network.encode(batch).double(), latent, rtol=1e-4, atol=1e-5)
        denoised = expected[-1][1] * network.scale
        torch.testing.assert_close(network.denoise(batch).double(), denoised, rtol=1e-4, atol=1e-5)


def test_the_published_start_is_a_cut_normal() -> None:
    network = ScScopeNetwork(ScScopeConfig(faithful=True), Shape(300, 2), Noise(0))
    weights = torch.cat([p.detach().ravel() for n, p in network.named_parameters() if n.endswith("weight")])
    assert weights.abs().max() <= 0.2
    assert weights.std() == pytest.approx(0.088, abs=1e-3)  # of a normal of 0.1, cut at two standard deviations
    assert network.of_batch is not None
    assert not network.of_batch.any()


def test_every_gene_starts_at_the_mean_of_its_observed_entries(counts: Any) -> None:
    network, batch = network_and_batch(counts, n_rounds=1)
    matrix = counts.X.toarray()
    sizes = matrix.sum(1, keepdims=True)
    expected = observed_mean(matrix / (sizes / np.median(sizes)))
    with torch.no_grad():
        network.output.weight.zero_()
        np.testing.assert_allclose(network.denoise(batch)[0], expected, rtol=1e-4)


def test_what_was_observed_can_be_kept(counts: Any) -> None:
    model = ScScope(**SMALL, keep_observed=True).fit(counts, max_epochs=2, progress=False)
    kept, observed = model.denoise(counts), counts.X.toarray()
    np.testing.assert_allclose(kept[observed > 0], observed[observed > 0], rtol=1e-4)
    assert (kept[observed == 0] > 0).mean() > 0.5


def test_readouts_are_of_the_rounds(counts: Any) -> None:
    latents = {}
    for readout in ("concat", "last", "mean"):
        network, batch = network_and_batch(counts, n_rounds=3, readout=readout)
        with torch.no_grad():
            latents[readout] = network.encode(batch)
    rounds = torch.stack(latents["concat"].chunk(3, dim=1))
    torch.testing.assert_close(latents["last"], rounds[-1])
    torch.testing.assert_close(latents["mean"], rounds.mean(0))


def test_dropout_is_filled_in_and_groups_are_found() -> None:
    """A fast form of what ``benchmarks/published/scscope.py`` measures."""
    data = splat(1, n_vars=200, n_obs=600, n_groups=3, mid=4.0)
    sizes = data.counts.sum(1, keepdims=True)
    x = data.counts / (sizes / np.median(sizes))
    adata = anndata.AnnData(csr_matrix(data.counts.astype(np.float32)))
    model = ScScope(n_latent=20).fit(adata, max_epochs=40, progress=False)
    by_gene_mean = filled_in(data, x.mean(0) * (sizes / np.median(sizes)))
    assert filled_in(data, model.denoise(adata)) < 0.7 * by_gene_mean
    assert clusters(model.embed(adata), data.group, 0) > 0.3


def test_the_batch_layer_mixes_batches() -> None:
    data = splat(0, n_vars=120, n_obs=400, n_groups=3, mid=4.0)
    sizes = data.counts.sum(1, keepdims=True)
    found = batches(data, data.counts / (sizes / np.median(sizes)), 0)
    assert found["mixing, PCA-50"] < 0.3
    assert found["mixing, T=2, no batch layer"] < 0.3
    assert found["mixing, T=2, batch layer"] > 0.7


@pytest.mark.parametrize(
    ("fit", "error", "code"),
    [
        (lambda a: ScScope(transform="none").fit(negative(a), progress=False), InputError, "negative"),
        (lambda a: ScScope().fit(negative(a), progress=False), InputError, "negative"),
        (lambda a: ScScope().fit(a, batch_key="plates", progress=False), ConfigError, "unknown-key"),
        (lambda a: ScScope().fit(a, batch_key="only", progress=False), ConfigError, "one-batch"),
        (lambda a: ScScope(n_latent=60).fit(a, progress=False), ConfigError, "latent-too-wide"),
        (lambda a: ScScope(n_rounds=0), ConfigError, "bad-value"),
    ],
)
def test_mistakes_are_named(counts: Any, fit: Callable[[Any], Any], error: Any, code: str) -> None:
    counts.obs["only"] = "a"
    with pytest.raises(error) as caught:
        fit(counts)
    assert caught.value.code == code
    assert caught.value.remedy


def negative(adata: anndata.AnnData) -> anndata.AnnData:
    adata.X = csr_matrix(adata.X.toarray() - 1)
    return adata


def test_results_have_slots_and_a_saved_model_gives_the_same_bits(counts: Any, tmp_path: Path) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    model = tl.autoencode(counts, "scscope", **SMALL, batch_key="plate", max_epochs=2, denoise=True, progress=False)
    assert counts.obsm["X_ae"].shape == (120, 8)
    assert counts.varm["ae_batch_effects"].shape == (60, 2)
    assert counts.layers["ae_denoised"].shape == (120, 60)
    model.save(tmp_path / "m.ac")
    again = anncoder.load(tmp_path / "m.ac")
    np.testing.assert_array_equal(again.embed(counts), counts.obsm["X_ae"])
    np.testing.assert_array_equal(again.denoise(counts), counts.layers["ae_denoised"])


def test_the_command_line_trains_it(counts: Any, anncoder: Any, tmp_path: Path) -> None:
    counts.write_h5ad(tmp_path / "in.h5ad")
    words = ["--model", "scscope", "--set", "max_epochs=2", "--set", "n_latent=3", "--no-evaluation"]
    result = anncoder("train", tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad", *words)
    assert result.exit_code == 0, result.output
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_ae"].shape == (120, 6)
