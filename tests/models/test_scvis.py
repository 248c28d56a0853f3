"""scvis: its objective against published values, scipy and torch; pictures of new cells; outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from benchmarks.data import nine_dimensional
from benchmarks.published.scvis import ten_classes
from scipy import stats
from sklearn.metrics import roc_auc_score
from tests.nn.test_tsne import bisected
from typer.testing import Result

import anncoder as ac
from anncoder import SCVIS
from anncoder.errors import ConfigError
from anncoder.models.published.scvis import (
    Posterior,
    ScvisConfig,
    ScvisNetwork,
    kl_from_standard,
    student_t_log_density,
    tsne_term,
)
from anncoder.nn.tsne import affinities, squared_distances, without_self
from anncoder.types import CSR, Batch, Noise, Shape

X = torch.tensor([[0, 0], [0.1, 0], [0, 0.2], [1, 1], [1.1, 1], [1, 1.3]], dtype=torch.float64)
Z = torch.tensor([[0, 0], [0.5, 0], [0, 0.5], [3, 3], [3.5, 3], [3, 3.5]], dtype=torch.float64)
SHORT: dict[str, Any] = {"max_epochs": 2, "batch_size": 64, "progress": False}


@pytest.fixture(scope="module")
def model(simulated: anndata.AnnData) -> SCVIS:
    return SCVIS(n_hidden=(16,), n_decoder_hidden=(16,), n_pcs=20).fit(simulated, seed=3, **SHORT)


class TestObjective:
    def test_published_values(self) -> None:
        """Golden numbers of the published formulae: their search for the precisions stops at an error of 1e-4."""
        perplexity = ScvisConfig(perplexity=2, faithful=True).effective_perplexity
        theirs = torch.from_numpy(bisected(squared_distances(X).numpy(), perplexity, 1e-4))
        row, weights = [0, 0.46875, 0.45111, 0.03679, 0.02813, 0.01522], theirs.sum(dim=0)
        np.testing.assert_allclose(theirs[0], row, atol=1e-5)
        np.testing.assert_allclose(weights, [0.99463, 1.00264, 1.00081, 1.06553, 1.03149, 0.9049], atol=1e-5)
        assert tsne_term(Z, theirs, 1).item() == pytest.approx(1.103455, abs=1e-6)
        ours = affinities(without_self(squared_distances(X)), perplexity)  # to the end: within what that error allows
        np.testing.assert_allclose(ours, theirs, atol=3e-5)
        assert tsne_term(Z, ours, 1).item() == pytest.approx(1.103455, abs=1e-4)

    def test_a_perplexity_acts_as_it_is_called_unless_faithful(self) -> None:
        assert ScvisConfig(perplexity=10).effective_perplexity == 10
        for perplexity, published in ((10, 27.7), (30, 135.2)):
            config = ScvisConfig(perplexity=perplexity, faithful=True)
            assert config.effective_perplexity == pytest.approx(published, abs=0.05)
        p = affinities(without_self(squared_distances(torch.randn(100, 5, dtype=torch.float64))), 10)
        np.testing.assert_allclose(stats.entropy(p, axis=1), np.log(10), atol=1e-9)

    def test_densities_are_scipys(self) -> None:
        r = np.random.default_rng(0)
        x, mean, var, dof = r.normal(size=(7, 4)), r.normal(size=(7, 4)), r.gamma(1, size=(7, 4)), r.gamma(2, size=4)
        expected = stats.t.logpdf(x, dof, mean, np.sqrt(var)).sum(axis=1)
        found = student_t_log_density(*(torch.from_numpy(a) for a in (x, mean, var, dof)))
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        posterior = Posterior(torch.from_numpy(mean), torch.from_numpy(var))
        normal = torch.distributions.Normal(posterior.mean, posterior.var.sqrt())
        divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(dim=1)
        torch.testing.assert_close(kl_from_standard(posterior), divergence.double())

    def test_the_ramps_are_the_published_ones_and_over_in_evaluation(self) -> None:
        network = ScvisNetwork(ScvisConfig(transform="none"), Shape(20), Noise(0)).train()
        ramps = np.array([[float(value) for value in network.ramps()] for _ in range(250)])
        steps = np.arange(1, 251)
        np.testing.assert_allclose(ramps, np.stack([np.minimum(steps, 20), np.maximum(0.1, 20 / steps)], axis=1))
        assert [float(value) for value in network.eval().ramps()] == [20, pytest.approx(0.1)]
        assert int(network.steps) == 250

    def test_the_loss_is_the_published_one(self) -> None:
        """Cells that many others are near to count more; ramps are over, as they are in evaluation."""
        network = ScvisNetwork(
            ScvisConfig(n_latent=3, n_hidden=(9,), n_decoder_hidden=(9,), transform="none", perplexity=4, l2=0.1),
            Shape(6),
            Noise(3),
        ).eval()
        x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
        x[20:] *= 20  # far from everybody, and so with small weights
        counts = CSR(torch.arange(0, 181, 6), torch.arange(6).repeat(30), x.ravel(), 6)
        network.largest.fill_(50.0)
        with torch.no_grad():
            network.dof.copy_(torch.linspace(0.01, 20, 6))  # beyond its limits at both ends
            loss = network(Batch(counts, torch.ones(30), torch.arange(7, 37)))
            posterior = network.posterior(x / 50)
            latent = posterior.sample(torch.Generator().manual_seed(10))  # seed and first row
            hidden = network.decoder(latent)
            var = torch.nn.functional.softplus(network.var(hidden))
            density = student_t_log_density(x / 50, network.mean(hidden), var, network.dof.clamp(0.1, 10))
        p = affinities(without_self(squared_distances(x / 50)), 4)
        assert p.sum(dim=0).max() > 2
        squares = sum(w.square().sum().item() for w in network.parameters() if w.dim() == 2)
        expected = {
            "nll": -(p.sum(dim=0).clamp(0.01, 2) * density).mean().item(),
            "kl": 0.1 * kl_from_standard(posterior).mean().item(),
            "tsne": 6 * tsne_term(latent, p, 2).item(),
            "l2": 0.05 * squares,
        }
        assert {name: term.item() for name, term in loss.terms.items()} == pytest.approx(expected, rel=1e-4)

    def test_weights_of_the_mean_are_dropped_in_training_alone(self, model: SCVIS, counts: anndata.AnnData) -> None:
        assert np.array_equal(model.embed(counts), model.embed(counts))
        network: Any = model.network_
        x = torch.randn(5, network.projection.n_out)
        kept, dropped = network.posterior(x), network.posterior(x, torch.Generator().manual_seed(0))
        assert not torch.equal(kept.mean, dropped.mean)
        assert torch.equal(kept.var, dropped.var)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            draws = torch.stack([network.posterior(x, generator).mean for _ in range(2000)])
        assert ((draws.mean(dim=0) - kept.mean).abs() < 5 * draws.std(dim=0) / 2000**0.5).all()  # on average the same


class TestEstimator:
    def test_ten_classes_are_apart_for_new_cells(self) -> None:
        row = ten_classes(0, n_obs=800, max_steps=200, batch_size=128)
        assert row["simplex, mapped 5-NN: model"] >= 0.90
        assert row["simplex, mapped 5-NN: PCA-2"] < 0.6

    def test_outliers_have_a_low_likelihood(self) -> None:
        x, label = nine_dimensional(0)
        x = (x / np.abs(x).max(axis=0)).astype(np.float32)
        model = SCVIS(transform="none").fit(anndata.AnnData(x), max_steps=250, batch_size=128, progress=False)
        assert roc_auc_score(label == -1, -model.log_likelihood(anndata.AnnData(x))) >= 0.9

    def test_a_likelihood_is_of_the_cell_alone_and_survives_saving(
        self, model: SCVIS, counts: anndata.AnnData, tmp_path: Path
    ) -> None:
        whole = model.log_likelihood(counts)
        assert whole.shape == (counts.n_obs,)
        np.testing.assert_allclose(model.log_likelihood(counts[40:50]), whole[40:50], rtol=1e-4)
        model.save(tmp_path / "m")
        again: Any = ac.load(tmp_path / "m")
        assert np.array_equal(again.log_likelihood(counts), whole)
        assert np.array_equal(again.embed(counts), model.embed(counts))

    def test_results_stand_in_the_slots(self, counts: anndata.AnnData) -> None:
        before = counts.X.copy()
        model = ac.tl.autoencode(counts, "scvis", key_added="sv", denoise=True, n_pcs=10, **SHORT)
        assert counts.obsm["X_sv"].shape == (counts.n_obs, 2)
        np.testing.assert_array_equal(counts.obs["sv_log_likelihood"], model.log_likelihood(counts))
        assert (counts.layers["sv_denoised"] >= 0).all()
        assert (before != counts.X).nnz == 0

    def test_the_command_line_trains_it(
        self, counts_file: Path, tmp_path: Path, anncoder: Callable[..., Result]
    ) -> None:
        result = anncoder(
            "train",
            counts_file,
            "-o",
            tmp_path / "out.h5ad",
            "--no-evaluation",
            "--model",
            "scvis",
            "--set",
            "max_epochs=1",
        )
        assert result.exit_code == 0, result.output
        assert "ae_log_likelihood" in anndata.read_h5ad(tmp_path / "out.h5ad").obs

    def test_steps_end_a_fit_unless_epochs_are_given(self, counts: anndata.AnnData) -> None:
        def epochs(**settings: Any) -> int:
            small = SCVIS(n_pcs=5).fit(counts, batch_size=40, valid_fraction=0.0, progress=False, **settings)
            return len(small.history_)

        assert epochs(max_steps=7) == 3  # three minibatches an epoch
        assert epochs(max_steps=7, max_epochs=2) == 2
        assert epochs(max_epochs=4) == 4
        assert SCVIS().config.defaults["max_steps"] == 3000

    @pytest.mark.parametrize(
        ("hyper", "fit", "code", "remedy"),
        [
            ({"perplexity": 200}, {}, "few-cells", "perplexity"),
            ({"perplexity": 50}, {"batch_size": 40}, "few-cells", "batch_size"),
            ({"perplexity": 30, "faithful": True}, {}, "few-cells", "perplexity"),
            ({"n_latent": 1, "faithful": True}, {}, "bad-value", "n_latent=2"),
            ({}, {"batch_key": "group"}, "batches-unused", "batch_key"),
        ],
    )
    def test_what_cannot_be_is_named(self, hyper: Any, fit: Any, code: str, remedy: str, counts: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            SCVIS(**hyper).fit(counts, progress=False, **fit)
        assert caught.value.code == code
        assert remedy in caught.value.remedy

    def test_one_latent_unit_and_a_small_last_minibatch_are_fitted(self, counts: anndata.AnnData) -> None:
        model = SCVIS(n_latent=1, n_pcs=10).fit(
            counts, max_epochs=2, batch_size=53, valid_fraction=0.05, progress=False
        )
        assert np.isfinite(model.history_["train_tsne"]).all()
        assert model.embed(counts).shape == (counts.n_obs, 1)

    def test_faithful_keeps_the_last_weights_of_all_cells(self, counts: anndata.AnnData) -> None:
        model = SCVIS(n_pcs=10, faithful=True).fit(counts, max_epochs=3, progress=False)
        assert (len(model.valid_obs_), model.best_epoch_) == (0, 2)
        assert np.isfinite(model.log_likelihood(counts)).all()


def test_a_single_cell_held_out_has_no_neighbours_and_a_loss() -> None:
    cells = ac.datasets.simulate(n_obs=60, n_vars=30, seed=0)
    model = SCVIS(perplexity=5).fit(cells, valid_fraction=1 / 60, max_epochs=2, progress=False)
    assert len(model.valid_obs_) == 1
    assert np.isfinite(model.history_.to_numpy()).all()
