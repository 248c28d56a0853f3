"""The variational autoencoder: its objective against float64 and against scvi-tools, batches, loadings, slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

import anncoder
from anncoder import VariationalAutoencoder, load, tl
from anncoder.config import Layers
from anncoder.data.loaders.memory import Stored
from anncoder.datasets import simulate
from anncoder.errors import AnncoderError, ConfigError
from anncoder.likelihoods.reference import nb_reference, poisson_reference, zinb_reference
from anncoder.models.variational import VariationalConfig, VariationalNetwork, divergence
from anncoder.nn.layers import ConditionalLayers
from anncoder.nn.penalties import EpochWarmUp
from anncoder.training.results import observed
from anncoder.types import Batch, Noise, Shape, Summary

SMALL: dict[str, Any] = {"n_latent": 3, "n_hidden": (12,)}
LIBRARY = 150.0


def summary_of(x: Tensor, n_steps: int = 5) -> Summary:
    mean, var = x.mean(0), x.var(0)
    return Summary(len(x), 0.0, LIBRARY, mean + 0.01, var, mean, var.sqrt(), n_steps)


def network_and_batch(counts: anndata.AnnData, n_batches: int = 0, **options: Any) -> tuple[Any, Batch, Tensor]:
    network = VariationalNetwork(VariationalConfig(**(SMALL | options)), Shape(counts.n_vars, n_batches), Noise(0))
    csr = Stored.of(csr_matrix(counts.X)).take(np.arange(30))
    x = csr.to_dense()
    network.start_from(summary_of(x), None)  # type: ignore[arg-type]
    code = torch.arange(30) % n_batches if n_batches else None
    return network, Batch(csr, x.sum(1) / LIBRARY, torch.arange(30), code), x.double()


def test_the_divergence_is_that_of_torch() -> None:
    mean, variance = torch.randn(7, 4, dtype=torch.float64), torch.rand(7, 4, dtype=torch.float64) + 1e-4
    prior = torch.distributions.Normal(torch.zeros(4, dtype=torch.float64), 1.0)
    posterior = torch.distributions.Normal(mean, variance.sqrt())
    expected = torch.distributions.kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(divergence(mean, variance), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_the_loss_is_the_published_bound(counts: Any, likelihood: str) -> None:
    """``mu = softmax(.) * library``, nats a cell, full weight of the divergence in evaluation."""
    network, batch, x = network_and_batch(counts, likelihood=likelihood, faithful=True)
    network.eval()
    with torch.no_grad():
        mean, variance = network.posterior(batch)
        normal = torch.empty_like(mean).normal_(generator=torch.Generator().manual_seed(0))
        hidden = network.decoder(mean + variance.sqrt() * normal, None)
        outputs = {name: head(hidden, None).double() for name, head in network.heads.items()}
        mu = torch.softmax(outputs["scale"], 1) * x.sum(1, keepdim=True)
        if likelihood == "poisson":
            nll = poisson_reference(x, mu)
        else:
            theta = network.log_theta.double().exp()
            nll = nb_reference(x, mu, theta)
            if likelihood == "zinb":
                nll = zinb_reference(x, mu, theta, outputs["pi"].sigmoid())
        loss = network(batch)
    torch.testing.assert_close(loss.terms["nll"].double(), nll.sum(1).mean(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.terms["kl"], divergence(mean, variance).mean())


@pytest.mark.parametrize("linear", [False, True])
def test_each_batch_has_its_dispersion_and_its_decoder(counts: Any, *, linear: bool) -> None:
    options = {"likelihood": "nb", "dispersion": "gene-batch", "linear_decoder": linear, "norm": "none"}
    network, batch, x = network_and_batch(counts, 2, **options)
    network.eval()
    with torch.no_grad():
        network.log_theta.copy_(torch.tensor([[-1.0], [2.0]]).expand_as(network.log_theta))
        latent = network.encode(batch)
        found = network.nll(batch, latent)
        mu = network.decode(latent, batch.batch_code).log_mean.double().exp() * batch.size_factor.unsqueeze(1)
        theta = torch.where(batch.batch_code == 0, -1.0, 2.0).double().exp().unsqueeze(1).expand_as(mu)
        torch.testing.assert_close(found.double(), nb_reference(x, mu, theta).sum(1), rtol=1e-4, atol=1e-3)
        other = network.decode(latent, 1 - batch.batch_code).log_mean
    assert not torch.allclose(other, network.decode(latent, batch.batch_code).log_mean, atol=1e-3)


def test_genes_start_at_their_means_and_without_zero_inflation(counts: Any) -> None:
    network, batch, x = network_and_batch(counts)
    network.eval()
    with torch.no_grad():
        for head in network.heads.values():
            head.products[0].weight.zero_()
        mean = x.mean(0) + 0.01
        torch.testing.assert_close(network.denoise(batch)[0].double(), mean / mean.sum() * LIBRARY, rtol=1e-4, atol=0)
        kept = network.observed(batch) / network.denoise(batch)
    np.testing.assert_allclose(kept, 1 / (1 + np.exp(-2)), rtol=1e-5)


def test_the_encoder_reads_plain_counts_and_has_the_published_variance(counts: Any) -> None:
    network, batch, x = network_and_batch(counts)
    network.eval()
    with torch.no_grad():
        hidden = network.encoder(torch.log1p(x.float()), None)
        mean, log_variance = network.posterior_head(hidden).chunk(2, dim=1)
        found = network.posterior(batch)
    torch.testing.assert_close(found[0], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], log_variance.exp() + 1e-4, rtol=1e-4, atol=1e-5)


def test_the_weight_of_the_divergence_rises_over_epochs(counts: Any) -> None:
    warm_up = EpochWarmUp(4)
    warm_up.start_from(summary_of(torch.ones(2, 2), n_steps=5))
    weights = [float(warm_up()) for _ in range(25)]
    assert weights[0] == 0
    np.testing.assert_allclose(weights, np.minimum(np.arange(25) / 20, 1), rtol=1e-6)
    assert float(warm_up.eval()()) == 1
    model = VariationalAutoencoder(**SMALL, warmup_epochs=2).fit(counts, batch_size=32, max_epochs=3, progress=False)
    assert int(model.network_.warm_up.steps_per_epoch) == 4  # type: ignore[union-attr] # 108 cells in 32s
    assert model.history_["train_kl"].iloc[0] < 0.6 * model.history_["valid_kl"].iloc[0]


def test_layers_that_see_the_batch_are_products_with_a_one_hot_code() -> None:
    layers = ConditionalLayers(Layers((6, 5), "relu", "none"), 4, 3, Noise(0))
    x, code = torch.randn(8, 4), torch.arange(8) % 3
    one_hot = torch.nn.functional.one_hot(code, 3).float()
    hidden = x
    for product, of_batch in zip(layers.products, layers.of_batch, strict=True):
        weight = torch.cat([product.weight, of_batch.T], dim=1)  # type: ignore[list-item]
        hidden = torch.relu(torch.cat([hidden, one_hot], dim=1) @ weight.T + product.bias)  # type: ignore[operator]
    torch.testing.assert_close(layers(x, code), hidden)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_loadings_are_what_a_latent_unit_adds_to_the_log_expression(counts: Any, norm: Any) -> None:
    model = VariationalAutoencoder(n_latent=3, n_hidden=(12,), linear_decoder=True, norm=norm, likelihood="nb")
    model.fit(counts, max_epochs=3, progress=False)
    network: Any = model.network_
    with torch.no_grad():
        at_zero = network.decode(torch.zeros(1, 3), None).log_mean[0]
        for unit in range(3):
            moved = network.decode(torch.eye(3)[unit : unit + 1], None).log_mean[0] - at_zero
            added = torch.from_numpy(model.loadings()[:, unit])
            torch.testing.assert_close(moved - moved.mean(), added - added.mean(), rtol=1e-3, atol=1e-5)


def test_the_bound_of_a_cell_does_not_depend_on_its_place(counts: Any) -> None:
    model = VariationalAutoencoder(**SMALL).fit(counts, max_epochs=5, progress=False)
    bounds = model.elbo(counts)
    np.testing.assert_allclose(model.elbo(counts[::-1].copy())[::-1], bounds, rtol=1e-4)
    held_out = counts.obs_names.isin(model.valid_obs_)
    best = model.history_["valid_loss"].iloc[model.best_epoch_]
    assert -model.elbo(counts[held_out].copy(), n_samples=200).mean() == pytest.approx(best, rel=0.02)


def with_batches(seed: int = 0) -> anndata.AnnData:
    """Three groups of cells in two batches; half of the genes are seen three times as often in the second."""
    adata = simulate(n_obs=500, n_vars=60, n_groups=3, de_prob=0.5, de_fac_loc=0.1, lib_loc=6.5, seed=seed)
    random = np.random.default_rng(seed)
    second, genes = random.random(500) < 0.5, random.random(60) < 0.5
    keep = np.where(second[:, None] ^ genes[None, :], 1 / 3, 1.0)
    adata.X = csr_matrix(random.binomial(adata.X.toarray().astype(int), keep).astype(np.float32))
    adata.obs["plate"] = np.where(second, "b", "a")
    return adata


def mixing(latent: Any, batch: Any, n_neighbors: int = 30) -> float:
    """Return the share of neighbours from another batch over the expected share."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(latent).kneighbors(latent)[1][:, 1:]
    expected = np.mean([np.mean(batch != b) for b in batch])
    return float((batch[near] != batch[:, None]).mean() / expected)


def test_a_decoder_that_sees_the_batch_leaves_it_out_of_the_latent() -> None:
    """PCA does not mix these batches at all, and neither does the model that is not told of them."""
    adata = with_batches()
    batch = adata.obs["plate"].to_numpy()
    model = VariationalAutoencoder(n_latent=4, n_hidden=(32,), likelihood="nb", warmup_epochs=5)
    settings: dict[str, Any] = {"max_epochs": 60, "learning_rate": 5e-3, "early_stopping": False, "progress": False}
    blind = mixing(model.fit(adata, **settings).embed(adata), batch)
    told = mixing(model.fit(adata, batch_key="plate", **settings).embed(adata), batch)
    assert blind < 0.4
    assert told > 0.7


def test_the_bound_is_better_than_that_of_the_average_cell() -> None:
    from benchmarks.published.variational import average_cell

    adata = simulate(n_obs=600, n_vars=200, n_groups=3, de_prob=0.5, lib_loc=8.0, seed=0)
    model = VariationalAutoencoder(n_latent=4, n_hidden=(32,), likelihood="nb", warmup_epochs=5)
    model.fit(adata, max_epochs=40, learning_rate=5e-3, progress=False)
    held_out = adata.obs_names.isin(model.valid_obs_)
    assert model.history_["valid_loss"].min() < average_cell(adata, held_out) - 5


def test_with_the_same_weights_scvi_tools_has_the_same_loss(counts: Any) -> None:
    scvi = pytest.importorskip("scvi")
    network, batch, x = network_and_batch(counts, n_batches=2, faithful=True)
    theirs = scvi.module.VAE(counts.n_vars, n_batch=2, n_hidden=12, n_latent=3).eval()
    network.eval()
    layer, normed = theirs.z_encoder.encoder.fc_layers[0][:2]
    decoded = theirs.decoder.px_decoder.fc_layers[0][0]
    with torch.no_grad():
        for target, source in [
            (layer.weight, network.encoder.products[0].weight.T),
            (layer.bias, network.encoder.products[0].bias),
            (theirs.z_encoder.mean_encoder.weight, network.posterior_head.weight.T[:3]),
            (theirs.z_encoder.mean_encoder.bias, network.posterior_head.bias[:3]),
            (theirs.z_encoder.var_encoder.weight, network.posterior_head.weight.T[3:]),
            (theirs.z_encoder.var_encoder.bias, network.posterior_head.bias[3:]),
            (decoded.weight, torch.cat([network.decoder.products[0].weight, network.decoder.of_batch[0].T], dim=1)),
            (decoded.bias, network.decoder.products[0].bias),
            (theirs.decoder.px_scale_decoder[0].weight, network.heads["scale"].products[0].weight),
            (theirs.decoder.px_scale_decoder[0].bias, network.heads["scale"].products[0].bias),
            (theirs.decoder.px_dropout_decoder.weight, network.heads["pi"].products[0].weight),
            (theirs.decoder.px_dropout_decoder.bias, network.heads["pi"].products[0].bias),
            (theirs.px_r, network.log_theta[0]),
        ]:
            target.copy_(source)
        assert normed.eps == 1e-3
        assert batch.batch_code is not None
        code = batch.batch_code.unsqueeze(1)
        inferred = theirs.inference(x.float(), code)
        torch.testing.assert_close(inferred["qz"].loc, network.posterior(batch)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(inferred["qz"].scale ** 2, network.posterior(batch)[1], rtol=1e-4, atol=1e-5)
        generated = theirs.generative(inferred["z"], inferred["library"], code)
        nll = -generated["px"].log_prob(x.float()).sum(1)
        torch.testing.assert_close(network.nll(batch, inferred["z"]), nll, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("fit", "code"),
    [
        (lambda a: VariationalAutoencoder(transform="none"), "bad-value"),
        (lambda a: VariationalAutoencoder(dispersion="gene-batch").fit(a, progress=False), "no-batch-key"),
        (lambda a: VariationalAutoencoder(batches_in_encoder=True).fit(a, progress=False), "no-batch-key"),
        (lambda a: VariationalAutoencoder().fit(a, batch_key="plates", progress=False), "unknown-key"),
        (lambda a: VariationalAutoencoder().fit(a, batch_key="only", progress=False), "one-batch"),
        (lambda a: VariationalAutoencoder(**SMALL).fit(a, max_epochs=1, progress=False).loadings(), "no-loadings"),
    ],
)
def test_mistakes_are_named(counts: Any, fit: Callable[[Any], Any], code: str) -> None:
    counts.obs["only"], counts.obs["plate"] = "a", np.where(np.arange(counts.n_obs) % 2, "a", "b")
    with pytest.raises(ConfigError) as caught:
        fit(counts)
    assert caught.value.code == code
    assert caught.value.remedy


def test_results_have_slots_and_a_saved_model_gives_the_same_bits(counts: Any, tmp_path: Path) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    settings = {**SMALL, "linear_decoder": True, "likelihood": "nb", "batch_key": "plate", "max_epochs": 2}
    model = tl.autoencode(counts, "variational", progress=False, **settings)
    assert counts.obsm["X_ae"].shape == (120, 3)
    assert counts.obs["ae_elbo"].lt(0).all()
    assert counts.var["ae_theta"].gt(0).all()
    assert counts.varm["ae_loadings"].shape == (60, 3)
    model.save(tmp_path / "m.ac")
    again = anncoder.load(tmp_path / "m.ac")
    np.testing.assert_array_equal(again.embed(counts), counts.obsm["X_ae"])
    np.testing.assert_array_equal(again.denoise(counts), model.denoise(counts))
    by_batch = VariationalAutoencoder(**SMALL, dispersion="gene-batch")
    by_batch.fit(counts, batch_key="plate", max_epochs=1, progress=False)
    assert by_batch.of_genes()["theta"].shape == (60, 2)


def test_a_loaded_model_gives_the_same_bound(counts: Any, tmp_path: Path) -> None:
    model = VariationalAutoencoder(**SMALL).fit(counts, seed=5, max_epochs=1, progress=False)
    model.save(tmp_path / "m.ac")
    np.testing.assert_allclose(anncoder.load(tmp_path / "m.ac").elbo(counts), model.elbo(counts), rtol=1e-6)


def test_only_an_encoder_that_sees_the_batch_asks_for_it(
    counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    settings = {**SMALL, "batch_key": "plate", "max_epochs": 1, "progress": False}
    model = tl.autoencode(counts, "variational", **settings)
    expected = counts.obsm["X_ae"].copy()
    none, new = counts.copy(), counts.copy()
    del none.obs["plate"]
    new.obs["plate"] = "c"
    seeing = VariationalAutoencoder(**SMALL, batches_in_encoder=True)
    seeing.fit(counts, batch_key="plate", max_epochs=1, progress=False)
    for adata, code in ((none, "unknown-key"), (new, "unknown-batch")):
        np.testing.assert_array_equal(model.embed(adata), expected)
        adata.write_h5ad(tmp_path / "it.h5ad")
        tl.embed(tmp_path / "it.h5ad", model, output=tmp_path / "out.h5ad")
        tl.embed(adata, model)
        assert "only the latent" in caplog.text
        for written in (adata, anndata.read_h5ad(tmp_path / "out.h5ad")):
            np.testing.assert_allclose(written.obsm["X_ae"], expected, rtol=1e-5)
            assert "ae_elbo" not in written.obs  # that of the first call has another batch
        for verb in (model.denoise, model.elbo, seeing.embed):
            with pytest.raises(AnncoderError) as caught:
                verb(adata)
            assert caught.value.code == code


def test_cells_are_decoded_as_of_a_chosen_batch(counts: Any, tmp_path: Path) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    for encodes in (False, True):
        model = VariationalAutoencoder(**SMALL, batches_in_encoder=encodes)
        model.fit(counts, batch_key="plate", max_epochs=2, progress=False)
        own, as_a = model.denoise(counts), model.denoise(counts, batch="a")
        of_a = counts.obs["plate"].to_numpy() == "a"
        np.testing.assert_array_equal(as_a[of_a], own[of_a])
        assert not np.allclose(as_a[~of_a], own[~of_a])
        new = counts.copy()
        new.obs["plate"] = "a"
        same = (model.denoise(new) == as_a).all(axis=1)  # an encoder that sees the batch is shown the own one
        assert list(same) == list(of_a | (not encodes))
    counts.write_h5ad(tmp_path / "it.h5ad")
    tl.denoise(tmp_path / "it.h5ad", model, batch="a", output=tmp_path / "out.h5ad")
    tl.denoise(counts, model, batch="a")
    for written in (counts, anndata.read_h5ad(tmp_path / "out.h5ad")):
        np.testing.assert_allclose(written.layers["ae_denoised"], as_a, rtol=1e-5)
        assert written.uns["ae"]["denoised_batch"] == "a"
    with pytest.raises(ConfigError, match="unknown key 'c'"):
        model.denoise(counts, batch="c")
    for other in (VariationalAutoencoder(**SMALL), anncoder.CountAutoencoder(n_latent=2)):
        with pytest.raises(ConfigError) as caught:
            other.fit(counts, max_epochs=1, progress=False).denoise(counts, batch="a")
        assert caught.value.code == "batches-unused"


def test_the_command_line_trains_it(counts: Any, anncoder: Any, tmp_path: Path) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    counts.write_h5ad(tmp_path / "in.h5ad")
    words = [
        "--model",
        "variational",
        "--set",
        "batch_key=plate",
        "--set",
        "max_epochs=2",
        "--set",
        "n_latent=3",
        "--no-evaluation",
    ]
    result = anncoder("train", tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad", *words)
    assert result.exit_code == 0, result.output
    assert np.isfinite(anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_ae"]).all()
    words = ["denoise", tmp_path / "out.anncoder/model", tmp_path / "in.h5ad", "-o", tmp_path / "as_b.h5ad"]
    assert anncoder(*words, "--batch", "b").exit_code == 0
    written = anndata.read_h5ad(tmp_path / "as_b.h5ad")
    model = load(tmp_path / "out.anncoder/model")
    np.testing.assert_allclose(written.layers["ae_denoised"], model.denoise(counts, batch="b"), rtol=1e-5)
    assert anncoder(*words, "--batch", "c", "--in-place").exit_code == 2


def test_the_probability_of_dropout_is_what_observed_expression_lacks(counts: Any) -> None:
    model = VariationalAutoencoder(**SMALL).fit(counts, max_epochs=2, progress=False)
    pi = model.dropout_probability(counts)
    assert pi.shape == counts.shape
    kept = observed(model, counts) / model.denoise(counts, scale="normalized")
    np.testing.assert_allclose(pi, 1 - kept, atol=1e-5)
    with pytest.raises(ConfigError, match="no dropout"):
        VariationalAutoencoder(**SMALL, likelihood="nb").fit(counts, max_epochs=1, progress=False).dropout_probability(
            counts
        )


def test_genes_beyond_what_a_mean_can_be_are_said(counts: Any, caplog: pytest.LogCaptureFixture) -> None:
    dense = counts.X.toarray()
    dense[:, 0] = 3_000_000
    counts.X = csr_matrix(dense)
    for model in (VariationalAutoencoder(**SMALL), anncoder.CountAutoencoder(n_latent=2), anncoder.DCA()):
        caplog.clear()
        model.fit(counts, max_epochs=1, progress=False)
        assert "1 genes have more than a million" in caplog.text
