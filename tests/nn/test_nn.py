"""Layers, corruption and penalties against dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anncoder.config import Layers
from anncoder.data.loaders.memory import Stored
from anncoder.nn.basis import LatentBasis, pulled_back
from anncoder.nn.corruption import InputNoise, corrupt, drop, hits, partners, select, swap, swap_reference, thin
from anncoder.nn.inputs import LogNormalize
from anncoder.nn.layers import Decoder, Dropout, Encoder
from anncoder.nn.penalties import WarmUp, WeightPenalty
from anncoder.nn.sparse import SparseLinear, sparse_matmul
from anncoder.types import CSR, Batch, Noise


@st.composite
def sparse_counts(draw: st.DrawFn) -> CSR:
    """Small matrices with empty rows, empty columns, no entry at all, a single row or column."""
    n, g = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    cells = draw(st.lists(st.integers(0, 3), min_size=n * g, max_size=n * g))
    dense = np.array(cells, dtype=np.float32).reshape(n, g)
    return Stored.of(sp.csr_matrix(dense)).take(np.arange(n))


def random_counts(n: int = 40, g: int = 30, seed: int = 0, density: float = 0.2) -> CSR:
    generator = np.random.default_rng(seed)
    dense = generator.poisson(3, (n, g)) * (generator.random((n, g)) < density)
    return Stored.of(sp.csr_matrix(dense.astype(np.float32))).take(np.arange(n))


@given(sparse_counts(), st.integers(1, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_sparse_product_and_gradient_are_the_dense_ones(x: CSR, width: int) -> None:
    weight = torch.randn(x.n_vars, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for form in (x, x.to_dense().double()):
        w = weight.clone().requires_grad_()
        product = sparse_matmul(form, w)
        results.append((product.detach(), torch.autograd.grad((product**2).sum(), w)[0]))
    torch.testing.assert_close(results[0], results[1])


@given(sparse_counts())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_csr_helpers_are_the_dense_ones(x: CSR) -> None:
    dense = x.to_dense()
    torch.testing.assert_close(x.row_sums(), dense.sum(1))
    assert (dense.reshape(-1)[x.flat()] == x.values).all()
    torch.testing.assert_close(select(x, x.values > 1).to_dense(), torch.where(dense > 1, dense, 0))
    torch.testing.assert_close(x.head(2).to_dense(), dense[:2])
    torch.testing.assert_close(x.head(99).to_dense(), dense)


def test_standardised_input_stays_sparse_and_is_the_dense_one() -> None:
    x, layer = random_counts(), SparseLinear(30, 5, Noise(0))
    mean, scale = torch.rand(30), torch.rand(30) + 0.5
    expected = ((x.to_dense() - mean) / scale) @ layer.weight + layer.bias
    torch.testing.assert_close(layer(x, mean, scale), expected, rtol=1e-4, atol=1e-5)


def test_log_normalisation_is_that_of_scanpy() -> None:
    import anndata
    import scanpy as sc

    x = random_counts(density=0.9)
    sizes = x.row_sums()
    size_factor = sizes / sizes.median()
    adata = anndata.AnnData(x.to_dense().numpy())
    sc.pp.normalize_total(adata, target_sum=float(sizes.median()))
    sc.pp.log1p(adata)
    ours = LogNormalize("log1p")(Batch(x, size_factor, torch.arange(x.n_rows))).to_dense()
    np.testing.assert_allclose(ours, adata.X, rtol=1e-5)


class TestCorruption:
    def generator(self, seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    @given(sparse_counts(), st.integers(0, 5), st.sampled_from([0.0, 0.3, 0.9]))
    @settings(max_examples=120, deadline=None, derandomize=True)
    def test_swapped_values_come_from_one_other_cell_and_changes_are_reported(
        self, x: CSR, seed: int, strength: float
    ) -> None:
        corrupted, changed = corrupt(x, "swap", strength, self.generator(seed))
        assert isinstance(corrupted, CSR)
        clean, noisy = x.to_dense(), corrupted.to_dense()
        assert corrupted.flat().unique().numel() == corrupted.values.numel()  # every entry at most once
        shifts = [s for s in range(1, x.n_rows) if ((noisy == clean) | (noisy == clean.roll(-s, 0))).all()]
        assert shifts or x.n_rows < 2
        assert changed is not None
        reported = torch.zeros_like(clean, dtype=torch.bool)
        reported.view(-1)[changed.flat()] = True
        torch.testing.assert_close(reported, noisy != clean)
        torch.testing.assert_close(changed.values, clean.reshape(-1)[changed.flat()])

    @given(sparse_counts(), st.integers(0, 2**62 - 1), st.sampled_from([0.1, 0.5, 0.9]))
    @settings(max_examples=120, deadline=None, derandomize=True)
    def test_kernels_decide_as_the_references_do(self, x: CSR, key: int, strength: float) -> None:
        for shift in range(1, x.n_rows):
            partner = partners(x, torch.tensor(shift))
            fast, slow = (f(x, partner, strength, torch.tensor(key)) for f in (swap, swap_reference))
            for ours, reference in zip(fast, slow, strict=True):
                assert isinstance(ours, CSR)
                assert isinstance(reference, CSR)
                assert all(torch.equal(a, b) for a, b in zip(ours[:3], reference[:3], strict=True))
        factor = 1 / (1 - strength)
        dropped = drop(x, strength, torch.tensor(key), factor)
        expected = torch.where(hits(torch.tensor(key), x.flat(), strength), 0, x.values * factor)
        torch.testing.assert_close(dropped.values, expected, rtol=0, atol=0)

    def test_the_random_numbers_are_splitmix64s(self) -> None:
        # the first three numbers of seed 1234567, as published with the generator's reference implementation
        published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
        for place, number in enumerate(published):
            key, at = torch.tensor(1234567), torch.tensor([place])
            share = (number >> 32) / 2**32
            assert bool(hits(key, at, share + 2**-31)[0])
            assert not bool(hits(key, at, share - 2**-31)[0])

    @pytest.mark.parametrize("kind", ["swap", "mask", "dropout", "gaussian", "thinning"])
    def test_noise_is_of_training_and_of_the_networks_own_stream(self, kind: str) -> None:
        counts = random_counts(40, 30, density=0.5)
        batch = Batch(counts, torch.ones(40), torch.arange(40))
        inputs, noise = LogNormalize("log1p"), Noise(3)
        corruption = InputNoise(kind, 0.5, inputs, noise)  # type: ignore[arg-type]
        before = torch.get_rng_state()
        noisy, again = corruption(batch), corruption(batch)
        noisy, again = (x if isinstance(x, Tensor) else x.to_dense() for x in (noisy, again))
        clean = inputs(batch).to_dense()
        assert not torch.equal(noisy, clean)
        assert not torch.equal(noisy, again)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(corruption.eval()(batch).to_dense(), clean)
        assert torch.equal(InputNoise(kind, 0.0, inputs, noise)(batch).to_dense(), clean)  # type: ignore[arg-type]

    def test_thinned_input_stays_on_its_scale(self) -> None:
        counts = random_counts(2000, 5, density=1.0)
        batch = Batch(counts, torch.ones(2000), torch.arange(2000))
        thinned = InputNoise("thinning", 0.5, LogNormalize("normalize"), Noise(0))(batch).to_dense()
        torch.testing.assert_close(thinned.mean(0), counts.to_dense().mean(0), rtol=0.05, atol=0)

    @pytest.mark.parametrize("kind", ["swap", "mask", "dropout"])
    def test_strength_is_the_share_of_values_hit(self, kind: str) -> None:
        x = random_counts(300, 100, density=0.5)
        corrupted, changed = corrupt(x, kind, 0.3, self.generator())  # type: ignore[arg-type]
        dense = x.to_dense()
        assert isinstance(corrupted, CSR)
        if kind == "swap":  # a swap of two equal values changes nothing
            possible = float((dense != dense.roll(-1, 0)).float().mean())
            assert changed is not None
            assert changed.values.numel() / dense.numel() == pytest.approx(0.3 * possible, rel=0.05)
        else:
            lost = 1 - float((corrupted.values != 0).float().mean() / (x.values != 0).float().mean())
            assert lost == pytest.approx(0.3, abs=0.02)
        if kind == "dropout":  # the expectation is kept
            assert float(corrupted.values.sum() / x.values.sum()) == pytest.approx(1, abs=0.02)

    def test_gaussian_noise_has_its_standard_deviation(self) -> None:
        x = random_counts(300, 100)
        corrupted, changed = corrupt(x, "gaussian", 0.5, self.generator())
        assert changed is None
        assert isinstance(corrupted, Tensor)
        difference = corrupted - x.to_dense()
        assert float(difference.std()) == pytest.approx(0.5, rel=0.02)
        assert float(difference.mean()) == pytest.approx(0, abs=0.01)

    def test_thinning_is_binomial(self) -> None:
        x = random_counts(400, 100, density=0.9)
        kept = thin(x, 0.4, self.generator())
        assert ((kept.values >= 0) & (kept.values <= x.values) & (kept.values == kept.values.round())).all()
        fives = kept.values[x.values == 5]
        assert float(fives.mean()) == pytest.approx(5 * 0.6, rel=0.03)
        assert float(fives.var()) == pytest.approx(5 * 0.6 * 0.4, rel=0.08)

    @pytest.mark.parametrize("kind", ["swap", "mask", "dropout", "gaussian"])
    def test_the_same_seed_gives_the_same_noise(self, kind: str) -> None:
        x = random_counts()
        first, second, third = (corrupt(x, kind, 0.3, self.generator(s)).x for s in (1, 1, 2))  # type: ignore[arg-type]
        dense = [c if isinstance(c, Tensor) else c.to_dense() for c in (first, second, third)]
        assert torch.equal(dense[0], dense[1])
        assert not torch.equal(dense[0], dense[2])


class TestLayers:
    def test_widths_are_mirrored(self) -> None:
        layers = Layers((20, 10), norm="none")
        encoder, decoder = Encoder(layers, 30, 3, Noise(0)), Decoder(layers._replace(widths=(10, 20)), 3, Noise(0))
        assert [layer.out_features for layer in encoder.rest] == [10, 3]
        assert encoder.first.weight.shape == (30, 20)
        assert [m.out_features for m in decoder if isinstance(m, torch.nn.Linear)] == [10, 20]
        assert decoder.n_out == 20

    def test_no_hidden_layer(self) -> None:
        layers = Layers(())
        assert Encoder(layers, 30, 3, Noise(0))(random_counts()).shape == (40, 3)
        assert Decoder(layers, 3, Noise(0)).n_out == 3

    def test_dropout_is_seeded_and_off_in_evaluation(self) -> None:
        x = torch.ones(200, 50)
        one, two = (Dropout(0.3, Noise(5)) for _ in range(2))
        dropped = one(x)
        assert torch.equal(dropped, two(x))
        assert not torch.equal(dropped, one(x))  # the stream goes on
        assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
        assert torch.equal(one.eval()(x), x)


def test_where_there_are_only_shapes_noise_is_asked_and_not_drawn_from() -> None:
    noise, meta = Noise(1), torch.device("meta")
    with meta:
        assert torch.empty(3).normal_(generator=noise.on(meta)).is_meta
    assert not noise.state()


class TestPenalties:
    def test_values(self) -> None:
        weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])]  # the bias is not penalised
        terms = WeightPenalty(0.1, 0.01, 0)(weights)
        assert terms["l1"].item() == pytest.approx(0.3)
        assert terms["l2"].item() == pytest.approx(0.05)
        assert WeightPenalty(0, 0, 0)(weights) == {}

    def test_warm_up_counts_training_steps_and_is_saved_with_the_model(self) -> None:
        warm_up = WarmUp(4)
        assert [warm_up().item() for _ in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
        fresh = WarmUp(4)
        assert fresh().item() == 0.25
        fresh.load_state_dict(warm_up.state_dict())
        assert fresh().item() == 1

    def test_the_warm_up_is_over_in_evaluation(self) -> None:
        assert WarmUp(4).eval()().item() == 1


class TestNaturalAxes:
    def test_the_metric_is_the_averaged_jacobian_product(self) -> None:
        torch.manual_seed(0)
        decode = torch.nn.Sequential(
            torch.nn.Linear(3, 7), torch.nn.BatchNorm1d(7), torch.nn.Mish(), torch.nn.Linear(7, 5)
        )
        decode.eval()
        latent, information = torch.randn(6, 3), torch.rand(6, 5)
        jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: decode(z[None])[0], z) for z in latent])
        expected = torch.einsum("bgk,bg,bgl->kl", jacobian, information, jacobian) / 6
        torch.testing.assert_close(pulled_back(decode, latent, lambda _: information), expected)

    def test_distances_are_those_of_a_linear_decoder_and_axes_are_principal(self) -> None:
        generator = torch.Generator().manual_seed(1)
        latent = torch.randn(50, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
        latent, weight = latent.double(), torch.randn(4, 20, generator=generator).double()
        basis = LatentBasis(4).double()
        assert torch.equal(basis(latent), latent)
        basis.set_from(
            latent, pulled_back(lambda z: z @ weight, latent, lambda _: torch.ones(50, 20, dtype=torch.float64))
        )
        natural = basis(latent)
        torch.testing.assert_close(
            torch.cdist(natural, natural), torch.cdist(latent @ weight, latent @ weight), atol=1e-3, rtol=1e-3
        )
        covariance = natural.T.cov()
        torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-3, rtol=0)
        assert (covariance.diagonal().diff() <= 0).all()
        assert natural.mean(0).abs().max() < 1e-4

    def test_a_direction_that_the_decoder_ignores_does_no_harm(self) -> None:
        latent = torch.randn(30, 3, generator=torch.Generator().manual_seed(2))
        basis = LatentBasis(3)
        basis.set_from(latent, torch.diag(torch.tensor([1.0, 0.0, 4.0])))
        assert torch.isfinite(basis(latent)).all()
        assert basis(latent).var(0)[2] < 1e-6

    def test_a_latent_wider_than_the_decoder_and_a_metric_that_is_not_finite(self) -> None:
        generator = torch.Generator().manual_seed(3)
        latent, weight = torch.randn(50, 9, generator=generator), torch.randn(9, 4, generator=generator)
        basis = LatentBasis(9)
        basis.set_from(latent, weight @ weight.T)
        torch.testing.assert_close(torch.pdist(basis(latent)), torch.pdist(latent @ weight), atol=1e-3, rtol=1e-3)
        basis = LatentBasis(9)
        basis.set_from(latent, torch.full((9, 9), torch.nan))
        assert torch.equal(basis(latent), latent)


@pytest.mark.parametrize("norm", ["batch", "batch-shift", "layer", "none"])
def test_a_bias_that_a_normalisation_takes_away_is_left_alone(norm: str) -> None:
    layers = Layers((5, 4), norm=norm)  # type: ignore[arg-type]
    encoder, decoder = Encoder(layers, 7, 3, Noise(0)), Decoder(layers, 3, Noise(0))
    held = {name for part in (encoder, decoder) for name, p in part.named_parameters() if not p.requires_grad}
    expected = {"first.bias", "rest.0.bias", "0.bias", "2.bias"}  # of the encoder, but for its last; of the decoder
    assert held == (expected if norm.startswith("batch") else set())
