"""Likelihoods against scipy, against R, against published golden numbers, and float32 against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from anncoder.likelihoods import absolute_error, gaussian_nll, nb_nll, poisson_nll, squared_error, zinb_nll
from anncoder.likelihoods.reference import gaussian_reference, nb_reference, poisson_reference, zinb_reference
from anncoder.nn.count_heads import CountHeads
from anncoder.types import CSR, Noise


def to_csr(dense: Tensor) -> CSR:
    rows, columns = torch.nonzero(dense, as_tuple=True)
    per_row = torch.bincount(rows, minlength=dense.shape[0])
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), per_row.cumsum(0)])
    return CSR(indptr, columns, dense[rows, columns], dense.shape[1])


def problem(shape_of_theta: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    log_mu = 2 * draw(12, 7)
    x = torch.poisson(log_mu.exp().clamp(max=40), generator=generator) * (torch.rand(12, 7, generator=generator) < 0.5)
    x[3] = 0  # a cell without any count
    return x, log_mu, 2 * draw(*shape_of_theta), 2 * draw(12, 7)


THETA_SHAPES = [(7,), (12, 1), (12, 7)]


@pytest.mark.parametrize("shape", THETA_SHAPES)
def test_nb_is_scipy(shape: tuple[int, ...]) -> None:
    x, log_mu, log_theta, _ = problem(shape)
    mu, theta = log_mu.exp(), log_theta.exp().expand_as(log_mu)
    expected = -stats.nbinom.logpmf(x.numpy(), theta.numpy(), (theta / (theta + mu)).numpy()).sum(axis=1)
    np.testing.assert_allclose(nb_nll(to_csr(x), log_mu, log_theta), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", THETA_SHAPES)
def test_zinb_is_the_mixture_of_scipy(shape: tuple[int, ...]) -> None:
    x, log_mu, log_theta, logits = problem(shape)
    mu, theta, pi = log_mu.exp(), log_theta.exp().expand_as(log_mu), logits.sigmoid().numpy()
    nb = stats.nbinom.pmf(x.numpy(), theta.numpy(), (theta / (theta + mu)).numpy())
    expected = -np.log(pi * (x.numpy() == 0) + (1 - pi) * nb).sum(axis=1)
    np.testing.assert_allclose(zinb_nll(to_csr(x), log_mu, log_theta, logits), expected, rtol=1e-10)


def test_poisson_is_scipy() -> None:
    x, log_mu, _, _ = problem((7,))
    expected = -stats.poisson.logpmf(x.numpy(), log_mu.exp().numpy()).sum(axis=1)
    np.testing.assert_allclose(poisson_nll(to_csr(x), log_mu), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", THETA_SHAPES)
def test_gaussian_is_scipy(shape: tuple[int, ...]) -> None:
    x, mean, log_sigma, _ = problem(shape)
    expected = -stats.norm.logpdf(x.numpy(), mean.numpy(), log_sigma.exp().expand_as(mean).numpy()).sum(axis=1)
    np.testing.assert_allclose(gaussian_nll(to_csr(x), mean, log_sigma), expected, rtol=1e-10)


@pytest.mark.parametrize(("low", "sigma"), [(5.0, 1e-3), (5.0, 0.01), (100.0, 0.1), (1.0, 1.0)])
def test_gaussian_keeps_its_digits_in_float32(low: float, sigma: float) -> None:
    generator = np.random.default_rng(0)
    mean = torch.from_numpy(generator.uniform(low, 2 * low, (6, 50)).astype(np.float32))
    x = (mean.double() + sigma * torch.from_numpy(generator.standard_normal((6, 50)))).float()
    x[:, ::3], mean[:, ::3] = 0, sigma / 2  # some are not stored
    log_sigma = torch.full((50,), float(np.log(sigma)), dtype=torch.float32)
    found = []
    for dtype in (torch.float32, torch.float64):
        parameters = [p.to(dtype).requires_grad_() for p in (mean, log_sigma)]
        value = gaussian_nll(to_csr(x.to(dtype)), *parameters)
        found.append([value.detach(), *torch.autograd.grad(value.sum(), parameters)])
    exact = gaussian_reference(x.double(), mean.double(), log_sigma.double().exp()).sum(1)
    torch.testing.assert_close(found[1][0], exact, rtol=1e-9, atol=1e-9)
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_errors_are_those_of_dense_arrays() -> None:
    x, mean, _, _ = problem((7,))
    np.testing.assert_allclose(squared_error(to_csr(x), mean), ((x - mean) ** 2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(absolute_error(to_csr(x), mean), (x - mean).abs().sum(1), rtol=1e-12)


@pytest.mark.parametrize("shape", THETA_SHAPES)
def test_production_form_is_the_textbook_form_with_its_gradients(shape: tuple[int, ...]) -> None:
    x, log_mu, log_theta, logits = problem(shape, seed=1)
    weight = torch.linspace(
        0.5, 2, 12, dtype=torch.float64
    )  # cells that count differently: the chain rule is tested too
    cases = [
        (lambda m, t, _: nb_nll(to_csr(x), m, t), lambda m, t, _: nb_reference(x, m.exp(), t.exp())),
        (
            lambda m, t, p: zinb_nll(to_csr(x), m, t, p),
            lambda m, t, p: zinb_reference(x, m.exp(), t.exp(), p.sigmoid()),
        ),
        (lambda m, _, __: poisson_nll(to_csr(x), m), lambda m, _, __: poisson_reference(x, m.exp())),
        (lambda m, t, _: gaussian_nll(to_csr(x), m, t), lambda m, t, _: gaussian_reference(x, m, t.exp())),
    ]
    for fast, textbook in cases:
        results = []
        for form in (fast, lambda *p, f=textbook: f(*p).sum(1)):
            parameters = [p.clone().requires_grad_() for p in (log_mu, log_theta, logits)]
            value = form(*parameters)
            gradients = torch.autograd.grad((value * weight).sum(), parameters, allow_unused=True)
            results.append((value.detach(), [g for g in gradients if g is not None]))
        (value, gradients), (expected, expected_gradients) = results
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)
        assert len(gradients) == len(expected_gradients) > 0
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)


GOLDEN = [(0, 1, 1), (3, 1, 1), (0, 0.5, 2), (5, 2.5, 0.7), (10, 10, 1e6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("entry", "nb", "zinb", "poisson"),
    list(
        zip(
            GOLDEN,
            (0.693147, 2.772589, 0.446287, 3.06257, 2.078567),
            (0.430783, 3.129264, 0.290352, 3.419245, 2.435242),
            (1.0, 2.791759, 0.5, 2.706038, 2.078562),
            strict=True,
        )
    ),
)
def test_golden_values_of_the_published_implementation(
    entry: tuple[float, float, float], nb: float, zinb: float, poisson: float, dtype: torch.dtype
) -> None:
    x, mu, theta = (torch.tensor([[v]], dtype=dtype) for v in entry)
    counts, log_mu, log_theta = to_csr(x), mu.log(), theta.log()[0]
    pi_logits = torch.full_like(log_mu, 0.3).logit()
    assert nb_nll(counts, log_mu, log_theta).item() == pytest.approx(nb, abs=1e-5)
    assert zinb_nll(counts, log_mu, log_theta, pi_logits).item() == pytest.approx(zinb, abs=1e-5)
    assert poisson_nll(counts, log_mu).item() == pytest.approx(poisson, abs=1e-5)


@given(
    x=st.integers(0, 100_000),
    log_mu=st.floats(np.log(1e-8), np.log(1e6)),
    log_theta=st.floats(np.log(1e-4), np.log(1e6)),
    logit=st.floats(-15, 15),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_float32_holds_for_every_mean_and_dispersion(x: int, log_mu: float, log_theta: float, logit: float) -> None:
    """Against float64 on the same (rounded) parameters; the tolerance is relative to the largest part of the loss."""
    counts = to_csr(torch.tensor([[float(x), 0.0]]))
    p32 = [torch.full((1, 2), v, dtype=torch.float32, requires_grad=True) for v in (log_mu, log_theta, logit)]
    p64 = [p.detach().double().requires_grad_() for p in p32]
    dense = torch.tensor([[float(x), 0.0]], dtype=torch.float64)
    for form in (lambda c, m, t, _: nb_nll(c, m, t), zinb_nll):
        low = form(counts, *p32)
        high = form(to_csr(dense), *p64)
        assert torch.isfinite(low).all()
        torch.testing.assert_close(low.double(), high, rtol=3e-6, atol=3e-6)
        wanted = torch.autograd.grad(high.sum(), p64, allow_unused=True)
        got = torch.autograd.grad(low.sum(), p32, allow_unused=True)
        scale = max(1.0, *(float(g.abs().max()) for g in wanted if g is not None))
        for a, b in zip(got, wanted, strict=True):
            if a is not None and b is not None:
                assert torch.isfinite(a).all()
                torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * scale)


def test_large_theta_is_poisson_in_float32() -> None:
    """The textbook form in float32 is wrong here by 0.08; Poisson is the limit."""
    x = torch.tensor([[3.0, 0.0, 17.0]])
    log_mu = torch.tensor([[2.0, 0.5, 11.0]]).log()
    nb = nb_nll(to_csr(x), log_mu, torch.full((3,), 1e6).log())
    torch.testing.assert_close(nb, poisson_nll(to_csr(x), log_mu), rtol=0, atol=2e-4)


def test_explicitly_stored_zeros_change_nothing() -> None:
    x, log_mu, log_theta, logits = problem((7,))
    sparse = to_csr(x)
    full = to_csr(torch.ones_like(x)).with_values(x.reshape(-1))
    torch.testing.assert_close(nb_nll(full, log_mu, log_theta), nb_nll(sparse, log_mu, log_theta))
    torch.testing.assert_close(zinb_nll(full, log_mu, log_theta, logits), zinb_nll(sparse, log_mu, log_theta, logits))
    torch.testing.assert_close(poisson_nll(full, log_mu), poisson_nll(sparse, log_mu))


def test_a_weight_that_is_not_finite_is_seen_in_the_gradients() -> None:
    x, log_mu, log_theta, _ = (value.float() for value in problem((7,)))
    for weight in (float("nan"), float("inf")):
        log_mu.requires_grad_().grad = None
        (nb_nll(to_csr(x), log_mu, log_theta).sum() * weight).backward()
        assert log_mu.grad is not None
        assert not torch.isfinite(log_mu.grad).any()


class TestAgainstR:
    """bioChemists (Long 1990) with the coefficients of MASS::glm.nb and pscl::zeroinfl.

    R's optimum must be the optimum of our likelihood, and a network with no hidden layer must find it.
    """

    NB = (0.2561, -0.2164, 0.1505, -0.1764, 0.0153, 0.0291)
    NB_THETA = 2.2644
    COUNT = (0.4167, -0.1955, 0.0976, -0.1518, -0.0007, 0.0248)
    ZERO = (-0.1917, 0.6359, -1.4995, 0.6284, -0.0377, -0.8823)
    ZINB_THETA = 2.6548

    @pytest.fixture(autouse=True)
    def read(self, shared_data) -> None:  # type: ignore[no-untyped-def]
        import pandas as pd

        frame = pd.read_csv(shared_data / "biochemists.tsv", sep="\t")
        self.x = torch.tensor(frame.iloc[:, :1].to_numpy(dtype=np.float64))
        self.design = torch.tensor(frame.iloc[:, 1:].to_numpy(dtype=np.float64))
        self.counts = to_csr(self.x)
        self.nb_coef = pd.read_csv(shared_data / "biochemists-nb-coef.tsv", sep="\t")
        self.zinb_coef = pd.read_csv(shared_data / "biochemists-zinb-coef.tsv", sep="\t")

    def linear_predictor(self, coefficients: Tensor) -> Tensor:
        return (coefficients[0] + self.design @ coefficients[1:]).unsqueeze(1)

    def test_nb_likelihood_and_gradient_at_the_optimum_of_r(self) -> None:
        named = dict(zip(self.nb_coef["coef"], self.nb_coef["val"], strict=True))
        theta = float(named.pop("theta"))
        beta = torch.tensor(list(named.values()), dtype=torch.float64, requires_grad=True)
        log_theta = torch.tensor([theta], dtype=torch.float64).log().requires_grad_()
        mean = nb_nll(self.counts, self.linear_predictor(beta), log_theta).mean()
        assert mean.item() == pytest.approx(1.705965, abs=1e-6)
        for gradient in torch.autograd.grad(mean, (beta, log_theta)):
            assert gradient.abs().max() < 1e-5

    def test_zinb_likelihood_and_gradient_at_the_optimum_of_r(self) -> None:
        table = self.zinb_coef.set_index("coef")
        theta = float(table.loc["theta", "count"])
        table = table.drop(index="theta")
        parts = [torch.tensor(table[c].to_numpy(), dtype=torch.float64, requires_grad=True) for c in ("count", "zero")]
        log_theta = torch.tensor([theta], dtype=torch.float64).log().requires_grad_()
        mu, logits = (self.linear_predictor(p) for p in parts)
        mean = zinb_nll(self.counts, mu, log_theta, logits).mean()
        assert mean.item() == pytest.approx(1.693979, abs=1e-6)
        for gradient in torch.autograd.grad(mean, (*parts, log_theta)):
            assert gradient.abs().max() < 1e-5

    def fit(self, heads: CountHeads, loss) -> None:  # type: ignore[no-untyped-def]
        optimizer = torch.optim.LBFGS(
            heads.parameters(),
            max_iter=3000,
            tolerance_grad=1e-10,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value: Tensor = loss(heads(self.design)).mean()
            value.backward()
            return value

        optimizer.step(closure)

    def test_a_network_without_hidden_layer_finds_the_coefficients_of_r(self) -> None:
        heads = CountHeads(5, 1, likelihood="nb", dispersion="gene", noise=Noise(0)).double()
        self.fit(heads, lambda p: nb_nll(self.counts, p.log_mean, p.log_theta))
        found = torch.cat([heads.mean.bias, heads.mean.weight[0]]).detach().numpy()
        np.testing.assert_allclose(found, self.NB, atol=1e-3)
        assert heads.gene_log_theta.exp().item() == pytest.approx(self.NB_THETA, abs=1e-3)

        inflated = CountHeads(5, 1, likelihood="zinb", dispersion="gene", noise=Noise(0)).double()
        inflated.mean.load_state_dict(heads.mean.state_dict())
        with torch.no_grad():
            inflated.gene_log_theta.copy_(heads.gene_log_theta)
            inflated.pi.weight.zero_()
            inflated.pi.bias.fill_(-2)
        self.fit(inflated, lambda p: zinb_nll(self.counts, p.log_mean, p.log_theta, p.pi_logits))
        count = torch.cat([inflated.mean.bias, inflated.mean.weight[0]]).detach().numpy()
        zero = torch.cat([inflated.pi.bias, inflated.pi.weight[0]]).detach().numpy()
        np.testing.assert_allclose(count, self.COUNT, atol=1e-3)
        np.testing.assert_allclose(zero, self.ZERO, atol=1e-3)
        assert inflated.gene_log_theta.exp().item() == pytest.approx(self.ZINB_THETA, abs=1e-3)
