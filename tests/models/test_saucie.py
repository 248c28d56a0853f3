"""SAUCIE: its four terms against published and float64 values, batches, clusters, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks.data import blobs
from benchmarks.published.saucie import accuracy, mixing
from sklearn.metrics import adjusted_rand_score
from typer.testing import Result

import anncoder as ac
from anncoder import SAUCIE
from anncoder.errors import AnncoderError, ConfigError, InputError
from anncoder.models.published.saucie import SAUCIEConfig, SAUCIENetwork, reference_error
from anncoder.nn.discrepancy import batch_discrepancy, multiscale_kernel, usage_entropy, within_clusters
from anncoder.types import CSR, Batch, Noise, Shape, Summary

ACTIVATIONS = torch.tensor([[1, 0, 0.5, 0], [0.9, 0, 0.1, 0], [0, 1, 0, 0]], dtype=torch.float64)
EMBEDDING = torch.tensor([[1, 0], [2, 1], [0, 3], [1, 4]], dtype=torch.float64)
SMALL: dict[str, Any] = {"n_hidden": (64, 32), "transform": "none"}
QUICK: dict[str, Any] = {"batch_size": 100, "learning_rate": 5e-3, "threads": 1, "progress": False}


@pytest.fixture
def cells() -> anndata.AnnData:
    data = blobs(0, n_obs=600)
    cells = anndata.AnnData(data.x)
    cells.obs["plate"], cells.obs["group"] = np.where(data.batch, "second", "first"), data.group
    return cells


def test_golden_values() -> None:
    x = torch.tensor([[0, 0], [1, 0], [0, 2]], dtype=torch.float64)
    codes = torch.tensor([0, 0, 1, 1])
    kernel = multiscale_kernel(torch.tensor([0, 1, 10], dtype=torch.float64))
    np.testing.assert_allclose(kernel, [1, 0.650306, 0.523908], atol=1e-6)
    assert usage_entropy(ACTIVATIONS).item() == pytest.approx(0.991898, abs=1e-6)
    assert within_clusters(x, ACTIVATIONS).item() == pytest.approx(0.07009, abs=1e-6)
    assert batch_discrepancy(EMBEDDING, codes).item() == pytest.approx(0.383559, abs=1e-6)


def test_the_scale_of_the_latent_has_no_part_in_the_discrepancy() -> None:
    """So the published division by the mean, which may be zero, is left out: it changes nothing where it works."""
    codes, latent = torch.tensor([0, 0, 1, 1]), EMBEDDING.clone().requires_grad_()
    (ours,) = torch.autograd.grad(batch_discrepancy(latent, codes), latent)
    published = batch_discrepancy(latent / latent.mean(), codes)
    (theirs,) = torch.autograd.grad(published, latent)
    assert published.item() == pytest.approx(batch_discrepancy(EMBEDDING, codes).item(), rel=1e-12)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_several_batches_are_a_mean_over_the_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    codes = torch.arange(12) % 3
    distance = torch.cdist(latent, latent, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    kernel = multiscale_kernel(distance / distance.max())
    found = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        aa, bb, ab = (kernel[codes == p][:, codes == q].mean() for p, q in ((a, a), (b, b), (a, b)))
        found.append(abs(aa + bb - 2 * ab))
    assert batch_discrepancy(latent, codes).item() == pytest.approx(float(sum(found) / 3), rel=1e-9)
    assert batch_discrepancy(latent, torch.zeros(12, dtype=torch.int64)).item() == 0


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    # away from ties: the largest activation and distance have kinks there
    activations = torch.rand(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    codes = torch.arange(6) % 2
    # the narrowest kernels are flat here, and central differences see no more than the analytic gradient does
    assert torch.autograd.gradcheck(lambda a: within_clusters(x, a), activations, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(lambda a: batch_discrepancy(a, codes), activations, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(usage_entropy, activations)


def test_other_batches_may_move_and_scale() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    codes = torch.arange(40) % 2
    moved = torch.where((codes == 1).unsqueeze(1), 2 * x + 7, x)
    assert reference_error(x, moved, codes, 0).item() < 1e-9  # what is added to the variance is not quite nothing
    expected = (moved - x)[codes == 1].square().mean().item()
    assert reference_error(x, moved, codes, 1).item() == pytest.approx(expected, rel=1e-6)
    mean = x[codes == 1].mean(dim=0).expand(20, 3)
    flat = torch.cat([x[codes == 0], mean])
    ordered = torch.cat([x[codes == 0], x[codes == 1]])
    # a reconstruction without any difference between cells costs the whole variance, 1 a gene
    assert reference_error(ordered, flat, codes.sort()[0], 0).item() == pytest.approx(0.01, rel=1e-4)


def test_what_has_no_spread_costs_nothing_and_is_finite() -> None:
    nothing, codes = torch.zeros(6, 4, requires_grad=True), torch.arange(6) % 2
    terms = [usage_entropy(nothing), within_clusters(torch.zeros(6, 3), nothing), batch_discrepancy(nothing, codes)]
    torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(term) for term in terms)
    assert torch.isfinite(nothing.grad).all()  # type: ignore[arg-type]


def minibatch(codes: list[int]) -> Batch:
    n = len(codes)
    counts = CSR(torch.arange(n + 1), torch.arange(n) % 5, torch.ones(n), 5)
    return Batch(counts, torch.ones(n), torch.arange(n), torch.tensor(codes))


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    weights: dict[str, Any] = {"lambda_b": 0.3, "lambda_c": 0.2, "lambda_d": 0.5}
    x = torch.rand(12, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    counts = CSR(torch.arange(0, 61, 5), torch.arange(5).repeat(12), x.ravel(), 5)
    batch = Batch(counts, torch.ones(12), torch.arange(12), torch.arange(12) % 2)
    shape = Shape(5, 2, ("a", "b"))
    for options in (weights | {"reference": "b"}, weights | {"lambda_b": 0.0}):
        network = SAUCIENetwork(SAUCIEConfig(n_hidden=(16,), transform="none", **options), shape, Noise(0))
        network.factor.fill_(2.0)
        with torch.no_grad():
            latent = network.encode(batch)
            activations = network.decoder(latent)
            decoded = network.output(activations)
            terms = network(batch).terms
        expected = {
            "entropy": 0.2 * usage_entropy(activations),
            "within_clusters": 0.5 * within_clusters(2 * x, activations),
            "reconstruction": (decoded - 2 * x).square().mean(),
        }
        if options["lambda_b"]:
            expected["reconstruction"] = reference_error(2 * x, decoded, batch.batch_code, 1)  # type: ignore[arg-type]
            expected["batch"] = 0.3 * batch_discrepancy(latent, batch.batch_code)  # type: ignore[arg-type]
        assert terms.keys() == expected.keys()
        assert all(value > 1e-3 for value in expected.values())
        for name, value in expected.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_minibatch_without_a_batch_is_refused_unless_it_is_what_is_left_of_an_epoch() -> None:
    network = SAUCIENetwork(SAUCIEConfig(lambda_b=1, n_hidden=(4,)), Shape(5, 3), Noise(0))
    network.train()(minibatch([0, 1, 2, 0]))
    network(minibatch([0, 1]))  # the last one of an epoch may be small
    resumed = SAUCIENetwork(SAUCIEConfig(lambda_b=1, n_hidden=(4,)), Shape(5, 3), Noise(0))
    resumed.load_state_dict(network.state_dict())
    resumed.train()(minibatch([0, 1]))  # so may the first one of a run that goes on
    with pytest.raises(InputError, match="none of some experimental batch") as caught:
        network(minibatch([0, 1, 1, 0]))
    assert caught.value.code == "empty-batch-group"
    assert "batch_size" in caught.value.remedy
    assert torch.isfinite(network.eval()(minibatch([0, 0, 0, 0])).total)


def test_a_batch_too_rare_for_the_minibatches_is_refused_in_fit(cells: anndata.AnnData) -> None:
    cells.obs["plate"] = np.where(np.arange(600) < 3, "rare", "common")
    with pytest.raises(InputError, match="none of some experimental batch"):
        SAUCIE(lambda_b=0.1, **SMALL).fit(cells, batch_key="plate", max_epochs=1, **QUICK)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SAUCIE(lambda_d=0.2), "lambda_c"),
        (lambda: SAUCIE(reference="first"), "lambda_b"),
        (lambda: SAUCIE(lambda_b=0.1, lambda_c=0.1, faithful=True), "faithful"),
        (lambda: SAUCIE(n_hidden=(), lambda_c=0.1), "n_hidden"),
        (lambda: SAUCIE(lambda_b=0.1).fit(blobs_of_counts()), "batch_key"),
        (lambda: SAUCIE().fit(blobs_of_counts(), batch_key="plate"), "remedy: set lambda_b=0.1"),
        (lambda: SAUCIE(lambda_b=0.1, reference="3").fit(blobs_of_counts(), batch_key="plate"), "did you mean"),
        (lambda: SAUCIE(n_hidden=(8,)).fit(blobs_of_counts(), max_epochs=1).clusters(blobs_of_counts()), "lambda_c"),
    ],
)
def test_wrong_settings_are_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)


def blobs_of_counts() -> anndata.AnnData:
    counts = anndata.AnnData(np.random.default_rng(0).poisson(3, (40, 20)).astype(np.float32))
    counts.obs["plate"] = ["31", "32"] * 20
    return counts


def test_batches_are_mixed_groups_are_kept_and_the_reference_stays(cells: anndata.AnnData) -> None:
    """The fast form of `benchmarks/published/saucie.py`."""
    plain = SAUCIE(rescale=10, **SMALL).fit(cells, max_epochs=25, **QUICK).embed(cells)
    model = SAUCIE(rescale=10, lambda_b=0.1, reference="second", **SMALL)
    model.fit(cells, batch_key="plate", max_epochs=25, **QUICK)
    latent = model.embed(cells)
    assert mixing(plain, cells.obs["plate"]) < 0.3
    assert mixing(latent, cells.obs["plate"]) > 0.7
    assert accuracy(latent, cells.obs["group"]) > 0.9
    # the first plate is shifted in ten dimensions: in the reconstruction it is not, and the reference is where it was
    first = (cells.obs["plate"] == "first").to_numpy()
    group = cells.obs["group"].to_numpy()
    corrected = model.denoise(cells, scale="normalized")

    def gap(x: Any) -> float:
        apart = [x[first & (group == k)].mean(axis=0) - cells.X[~first & (group == k)].mean(axis=0) for k in range(6)]
        return float(np.abs(apart).mean())

    assert gap(corrected) < 0.6 * gap(cells.X)


def test_clusters_are_found_kept_and_known_again(cells: anndata.AnnData, tmp_path: Path) -> None:
    cells.X = blobs(0, n_obs=600, shift=0).x
    model = SAUCIE(lambda_c=0.1, lambda_d=0.2, min_cells=20, rescale=10, **SMALL)
    model.fit(cells, max_epochs=120, valid_fraction=0.0, **QUICK)
    found = model.clusters(cells)
    assert adjusted_rand_score(cells.obs["group"], found.labels) > 0.5
    counts = np.bincount(found.labels[found.labels >= 0], minlength=found.n_clusters)
    assert len(counts) == found.n_clusters
    assert (counts > 20).all()
    assert (np.diff(counts) <= 0).all()  # the largest first
    assert found.pct_assigned == pytest.approx(100 * (found.labels >= 0).mean())
    np.testing.assert_array_equal(model.clusters(cells[40:90]).labels, found.labels[40:90])
    model.save(tmp_path / "m")
    again = ac.load(tmp_path / "m")
    assert isinstance(again, SAUCIE)
    np.testing.assert_array_equal(again.clusters(cells).labels, found.labels)
    np.testing.assert_array_equal(again.embed(cells), model.embed(cells))
    np.testing.assert_array_equal(again.denoise(cells, scale="normalized"), model.denoise(cells, scale="normalized"))


def test_a_cluster_has_more_than_the_fewest_cells() -> None:
    x = 10 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    counts = CSR(torch.arange(0, 301, 5), torch.arange(5).repeat(60), x.ravel(), 5)
    batch = Batch(counts, torch.ones(60), torch.arange(60))

    class Cells:
        n_obs = 60

        def epoch(self, number: int) -> Any:
            return iter([batch])

        def __len__(self) -> int:
            return 1

    def sizes(min_cells: int) -> Any:
        config = SAUCIEConfig(n_hidden=(8,), lambda_c=0.1, transform="none", min_cells=min_cells)
        network = SAUCIENetwork(config, Shape(5), Noise(0)).eval()
        network.start_from(Summary(60, 0.0, 1.0, *[torch.zeros(5)] * 4), Cells())
        network.finish(batch)
        labels = network.clusters(batch)
        return torch.bincount(labels[labels >= 0], minlength=int(network.n_clusters))

    of_all = sizes(1)
    assert len(of_all) > 2
    least = int(of_all[-1])
    assert sizes(least).tolist() == of_all[of_all > least].tolist()


def test_clusters_are_categories_of_obs(cells: anndata.AnnData) -> None:
    quick = {"max_epochs": 3, "batch_size": 600, "progress": False, **SMALL}
    ac.tl.autoencode(cells, "saucie", lambda_c=0.1, min_cells=60, key_added="s", **quick)
    assert cells.obsm["X_s"].shape == (600, 2)
    column = cells.obs["s_cluster"]
    assert isinstance(column.dtype, pd.CategoricalDtype)
    assert "-1" in column.cat.categories  # after three epochs, few patterns are common
    assert list(column.cat.categories) == sorted(column.cat.categories, key=int)
    ac.tl.autoencode(cells, "saucie", key_added="s", **quick)
    assert "s_cluster" not in cells.obs  # a model without clusters leaves none of another's


def test_from_the_command_line(anncoder: Callable[..., Result], counts_file: Path, tmp_path: Path) -> None:
    words = ("train", counts_file, "-o", tmp_path / "out.h5ad", "--model", "saucie", "--no-evaluation", "--denoise")
    settings = ("lambda_b=0.1", "lambda_c=0.1", "min_cells=5", "n_hidden=[16,8]", "max_epochs=2", "batch_key=group")
    result = anncoder(*words, *(part for setting in settings for part in ("--set", setting)))
    assert result.exit_code == 0, result.output
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert out.obsm["X_ae"].shape == (120, 2)
    assert out.layers["ae_denoised"].shape == out.shape
    assert "ae_cluster" in out.obs
    plain = anncoder(*words[:2], "-o", tmp_path / "plain.h5ad", *words[4:], "--set", "max_epochs=1")
    assert plain.exit_code == 0, plain.output


def test_the_scale_of_the_input(cells: anndata.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="anncoder"):
        SAUCIE(**SMALL).fit(cells, max_epochs=1, **QUICK)
    assert "rescale=10" in caplog.text
    model = SAUCIE(rescale=10, **SMALL).fit(cells, max_epochs=1, valid_fraction=0.0, **QUICK)
    assert float(model.network_.factor) == pytest.approx(10 / np.abs(cells.X).max())  # type: ignore[union-attr, arg-type]
    # the reconstruction starts at the mean of each gene, on the data's own scale
    np.testing.assert_allclose(
        model.denoise(cells, scale="normalized").mean(axis=0), cells.X.mean(axis=0), atol=0.3 * np.abs(cells.X).mean()
    )


@pytest.mark.parametrize("lambda_c", [0.0, 0.1])
def test_the_cells_are_not_kept_alive(lambda_c: float, cells: anndata.AnnData) -> None:
    model = SAUCIE(lambda_c=lambda_c, **SMALL).fit(cells, max_epochs=1, **QUICK)
    assert model.network_ is not None
    assert not any(hasattr(value, "epoch") for value in vars(model.network_).values())


def test_the_published_networks() -> None:
    def layers(**settings: Any) -> tuple[str, str]:
        network = SAUCIENetwork(SAUCIEConfig(**settings), Shape(20, 2), Noise(0))
        return type(network.encoder[0]).__name__, type(network.decoder[-1]).__name__

    assert layers(faithful=True) == ("Sigmoid", "LeakyReLU")
    assert layers(faithful=True, lambda_b=1.0) == ("LeakyReLU", "LeakyReLU")
    assert layers(faithful=True, lambda_c=1.0) == ("LeakyReLU", "ReLU")
    assert layers() == ("LeakyReLU", "LeakyReLU")
    assert layers(lambda_b=1.0, lambda_c=1.0) == ("LeakyReLU", "ReLU")
    widths = [
        p.shape for n, p in SAUCIENetwork(SAUCIEConfig(), Shape(20), Noise(0)).named_parameters() if "weight" in n
    ]
    assert [tuple(w) for w in widths] == [
        (20, 512), (256, 512), (128, 256), (2, 128), (128, 2), (256, 128), (512, 256), (20, 512),
    ]  # fmt: skip


def test_every_error_has_a_remedy() -> None:
    for make in (lambda: SAUCIE(lambda_d=0.1), lambda: SAUCIE(reference="a")):
        with pytest.raises(AnncoderError) as caught:
            make()
        assert caught.value.remedy


def test_clusters_that_have_no_cell_are_not_passed_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    cells = ac.datasets.simulate(n_obs=60, n_vars=30, seed=0)
    model = ac.SAUCIE(lambda_c=0.1, lambda_d=0.2, min_cells=10_000)
    model.fit(cells, max_epochs=1, max_steps=None, progress=False, threads=1)
    with caplog.at_level("WARNING", "anncoder"):
        found = model.clusters(cells)
    assert (found.labels == -1).all()
    assert "min_cells=1000" in caplog.text
