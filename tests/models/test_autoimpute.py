"""AutoImpute: the masked objective, imputation beside the gene means, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from typer.testing import Result

import anncoder as ac
from anncoder import AutoImpute
from anncoder.errors import ConfigError, InputError
from anncoder.models.published.autoimpute import AutoImputeConfig, AutoImputeNetwork, nonzero_error
from anncoder.types import CSR, Batch, Noise, Shape, Summary

QUICK: dict[str, Any] = {"threads": 1, "progress": False}


@pytest.fixture
def low_rank() -> anndata.AnnData:
    """Return positive expression of rank 4, with noise, of which 20 % is missing at random."""
    r = np.random.default_rng(0)
    x = 6 + r.normal(0, 1, (300, 4)) @ r.normal(0, 1, (4, 80)) + r.normal(0, 0.3, (300, 80))
    x = np.clip(x, 0.1, None) * (r.random(x.shape) < 0.8)
    return anndata.AnnData(csr_matrix(x.astype(np.float32)))


def test_golden_value() -> None:
    """The published objective where its value is known: 1.65 in all, for 2 cells x 3 genes."""
    network = AutoImputeNetwork(AutoImputeConfig(n_latent=2, lambda_w=1, transform="none"), Shape(3), Noise(0)).double()
    x = CSR(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]), torch.tensor([1, 2, 3], dtype=torch.float64), 3)
    y = torch.tensor([[0.5, 0.2, 1.5], [0.1, 2, 0.3]], dtype=torch.float64)
    assert nonzero_error(x, y).tolist() == pytest.approx([0.5, 1.0])
    network.n_fitted.fill_(2)
    with torch.no_grad():
        network.hidden.weight.fill_(0.1)
        network.output.weight.fill_(0.2)
        network.output.bias.zero_()
    loss = network.train()(Batch(x, torch.ones(2), torch.arange(2)))
    assert loss.terms["weights"].item() * 6 == pytest.approx(0.15, abs=1e-5)
    network.output.weight.requires_grad_(requires_grad=False)
    # with these two rows as the output, the whole is 1.65
    network.output.forward = lambda hidden: y  # type: ignore[method-assign]
    assert network(Batch(x, torch.ones(2), torch.arange(2))).total.item() * 6 == pytest.approx(1.65, abs=1e-5)


def test_zeros_count_for_nothing_stored_or_not() -> None:
    stored = CSR(torch.tensor([0, 3]), torch.tensor([0, 1, 2]), torch.tensor([2.0, 0.0, 1.0]), 3)
    assert nonzero_error(stored, torch.tensor([[1.0, 50.0, 1.5]])).item() == pytest.approx(1.25)


def test_it_imputes_better_than_the_gene_means(low_rank: anndata.AnnData) -> None:
    """The fast form of `benchmarks/published/autoimpute.py`."""
    found = AutoImpute(n_latent=50, transform="none").masked_test(low_rank, max_epochs=60)
    assert list(found.index) == ["model", "gene_mean", "zeros"]
    assert found.loc["model", "rmse"] < 0.8 * found.loc["gene_mean", "rmse"]
    assert found.loc["zeros", "nrmse"] == pytest.approx(1)
    assert (found["mae"] <= found["rmse"]).all()


def test_the_masked_test_scores_the_gene_mean_of_what_is_left(low_rank: anndata.AnnData) -> None:
    from anncoder.models.published.autoimpute import hidden_values

    before = low_rank.X.copy()
    found = AutoImpute(n_latent=5, transform="none").masked_test(low_rank, mask_frac=0.2, seed=3, max_epochs=1)
    hidden = hidden_values(low_rank.X, 0.2, 3)
    assert hidden.sum() == round(0.2 * low_rank.X.nnz)
    x, mask = low_rank.X.toarray(), np.zeros(low_rank.shape, dtype=bool)
    rows, columns = low_rank.X.nonzero()
    mask[rows[hidden], columns[hidden]] = True
    left = np.ma.masked_array(x, mask | (x == 0)).mean(axis=0)
    error = (left[None, :] - x)[mask]
    assert found.loc["gene_mean", "rmse"] == pytest.approx(float(np.sqrt(np.mean(error**2))), rel=1e-5)
    assert found.loc["gene_mean", "mae"] == pytest.approx(float(np.mean(np.abs(error))), rel=1e-5)
    np.testing.assert_array_equal(low_rank.X.toarray(), before.toarray())


def test_training_starts_at_the_gene_mean_of_the_values(low_rank: anndata.AnnData) -> None:
    model = AutoImpute(n_latent=3, transform="none", replace="all")
    model.fit(low_rank, max_epochs=1, learning_rate=1e-9, valid_fraction=0.0, **QUICK)
    x = low_rank.X.toarray()
    means = np.ma.masked_equal(x, 0).mean(axis=0)
    np.testing.assert_allclose(model.network_.output.bias.detach(), means, rtol=1e-4)  # type: ignore[union-attr]
    assert int(model.network_.n_fitted) == 300  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("transform", ["log1p", "normalize", "none"])
def test_observed_values_stay_or_are_replaced(counts: anndata.AnnData, transform: Any) -> None:
    scale: Any = "normalized" if transform == "none" else "counts"
    fitted = AutoImpute(n_latent=8, transform=transform).fit(counts, max_epochs=2, **QUICK)
    imputed = fitted.denoise(counts, scale=scale)
    x = counts.X.toarray()
    np.testing.assert_allclose(imputed[x > 0], x[x > 0], rtol=1e-5)
    assert (imputed[x == 0] != 0).mean() > 0.5
    everything = AutoImpute(n_latent=8, transform=transform, replace="all").fit(counts, max_epochs=2, **QUICK)
    replaced = everything.denoise(counts, scale=scale)
    assert np.abs(replaced[x > 0] - x[x > 0]).max() > 0.1
    np.testing.assert_allclose(replaced[x == 0], imputed[x == 0], rtol=1e-6)


def test_the_hidden_layer_may_be_wider_than_the_data(counts: anndata.AnnData) -> None:
    model = ac.tl.autoencode(counts, "autoimpute", n_latent=100, max_epochs=2, denoise=True, progress=False)
    assert counts.n_vars < 100
    assert counts.obsm["X_ae"].shape == (120, 100)
    assert ((counts.obsm["X_ae"] > 0) & (counts.obsm["X_ae"] < 1)).all()
    assert counts.layers["ae_denoised"].shape == counts.shape
    assert isinstance(model, AutoImpute)


def test_held_out_values_are_hidden_from_the_network() -> None:
    network = AutoImputeNetwork(AutoImputeConfig(n_latent=4, transform="none"), Shape(30), Noise(0))
    x = CSR(torch.arange(0, 1501, 30), torch.arange(1500) % 30, torch.rand(1500) + 1, 30)
    batch = Batch(x, torch.ones(50), torch.arange(50))
    seen, scored = network._hide(x, batch)
    np.testing.assert_array_equal(seen.values + scored.values, x.values)
    assert ((seen.values == 0) != (scored.values == 0)).all()
    assert 0.05 < (scored.values != 0).float().mean() < 0.15
    # scored like the whole: a constant error is the same loss, whatever part of it is looked at
    network.output.forward = lambda hidden: x.to_dense() + 1  # type: ignore[method-assign]
    training, evaluation = network.train()(batch), network.eval()(batch)
    assert training.terms["reconstruction"].item() == pytest.approx(1, rel=1e-5)
    assert evaluation.terms["reconstruction"].item() == pytest.approx(1, rel=1e-5)
    del network.output.forward
    with torch.no_grad():
        error = nonzero_error(scored, network.output(network._encode(seen))).sum()
        expected = error / (scored.values != 0).sum()  # of 1500 values, all of them observed
        assert network(batch).terms["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_published_start() -> None:
    network = AutoImputeNetwork(AutoImputeConfig(n_latent=200, faithful=True), Shape(100), Noise(0))
    for parameter in network.parameters():
        assert 0.8 < parameter.std().item() < 1.2
    assert [AutoImputeConfig(faithful=f).weight_penalty for f in (True, False)] == [1, 100]
    defaults = AutoImputeConfig(faithful=True).defaults
    assert (defaults["optimizer"], defaults["learning_rate"], defaults["max_epochs"]) == ("rmsprop", 1e-4, 7000)
    assert AutoImputeNetwork(AutoImputeConfig(), Shape(1000), Noise(0)).hidden.weight.std().item() < 0.03


def test_full_batches_are_of_all_cells(counts: anndata.AnnData, tmp_path: Path) -> None:
    counts.write_h5ad(tmp_path / "a.h5ad")
    model = AutoImpute(n_latent=8, faithful=True)
    in_memory = model.fit(counts, max_epochs=3, **QUICK).embed(counts)
    assert len(model.history_) <= 3
    assert len(model.valid_obs_) == 0
    on_disk = AutoImpute(n_latent=8, faithful=True).fit(str(tmp_path / "a.h5ad"), max_epochs=3, **QUICK).embed(counts)
    np.testing.assert_allclose(in_memory, on_disk, rtol=1e-3, atol=1e-4)


def test_negative_values_and_wrong_shares_are_named(low_rank: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="mask_frac"):
        AutoImpute(transform="none").masked_test(low_rank, mask_frac=1.0)
    low_rank.X = low_rank.X - 2 * (low_rank.X > 5).astype(np.float32).multiply(low_rank.X)
    with pytest.raises(InputError, match="smallest value is -") as caught:
        AutoImpute(transform="none").fit(low_rank, max_epochs=1, **QUICK)
    assert caught.value.code == "negative"
    assert "log-normalised" in caught.value.remedy


def test_saved_and_loaded_it_is_the_same(counts: anndata.AnnData, tmp_path: Path) -> None:
    model = AutoImpute(n_latent=8).fit(counts, max_epochs=2, **QUICK)
    model.save(tmp_path / "m")
    again = ac.load(tmp_path / "m")
    np.testing.assert_array_equal(again.embed(counts), model.embed(counts))
    np.testing.assert_array_equal(again.denoise(counts), model.denoise(counts))


def test_from_the_command_line(anncoder: Callable[..., Result], counts_file: Path, tmp_path: Path) -> None:
    words = ("train", counts_file, "-o", tmp_path / "out.h5ad", "--model", "autoimpute", "--no-evaluation", "--denoise")
    result = anncoder(*words, "--set", "n_latent=8", "--set", "max_epochs=2")
    assert result.exit_code == 0, result.output
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    x = out.X.toarray()
    np.testing.assert_allclose(out.layers["ae_denoised"][x > 0], x[x > 0], rtol=1e-5)


def test_a_gene_without_values_starts_at_nothing() -> None:
    network = AutoImputeNetwork(AutoImputeConfig(n_latent=2, transform="none"), Shape(2), Noise(0))
    batch = Batch(CSR(torch.arange(3), torch.zeros(2, dtype=torch.int64), torch.tensor([1.0, 3.0]), 2),
                  torch.ones(2), torch.arange(2))  # fmt: skip

    class One:
        n_obs = 2

        def epoch(self, number: int) -> Any:
            return iter([batch])

        def __len__(self) -> int:
            return 1

    gene = torch.tensor([2.0, 0.0])
    network.start_from(Summary(2, 0.0, 1.0, gene, gene, gene, torch.ones(2)), One())
    assert network.output.bias.tolist() == [2.0, 0.0]
