"""The compiled kernels against the eager torch forms and the float64 textbook forms."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import random as random_sparse
from torch import Tensor

from anncoder import kernels
from anncoder.data.loaders.memory import Stored
from anncoder.device import threads_set
from anncoder.kernels.cpu import sparse, threads
from anncoder.kernels.cpu.vector_math import digamma, exp_minus, exp_minus_64, log1p_unit, log1p_unit_64, log_64
from anncoder.likelihoods import autograd_cpu, nb_nll, poisson_nll, squared_error, zinb_nll
from anncoder.likelihoods.reference import nb_reference, poisson_reference, zinb_reference
from anncoder.nn.inputs import LogNormalize
from anncoder.nn.sparse import SparseLinear, centred_transposed_matmul, sparse_matmul
from anncoder.types import CSR, Batch, LinearOutput, Noise

THETA = {"gene": (37,), "shared": (40, 1), "gene-cell": (40, 37)}


@contextmanager
def eager() -> Iterator[None]:
    before = kernels.use("torch")
    try:
        yield
    finally:
        kernels.use(before)


def csr(dense: Tensor) -> CSR:
    rows, columns = torch.nonzero(dense, as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=len(dense)).cumsum(0)])
    return CSR(indptr, columns, dense[rows, columns], dense.shape[1])


def problem(theta: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return counts, log mean, log theta, dropout logits and size factors, float32; 40 rows are 2.5 chunks."""
    generator = torch.Generator().manual_seed(0)
    log_mean, logits = 2 * torch.randn(40, 37, generator=generator), 3 * torch.randn(40, 37, generator=generator)
    x = torch.poisson(log_mean.exp().clamp(max=300), generator=generator) * (torch.rand(40, 37) < 0.4)
    x[3] = 0
    return x, log_mean, 2 * torch.randn(THETA[theta], generator=generator), logits, torch.rand(40) + 0.5


def losses(x: Tensor, theta: str) -> list[tuple[Callable[..., Tensor], Callable[..., Tensor]]]:
    """Return each likelihood beside its textbook form."""
    counts = csr(x)
    dense = x.double()
    return [
        (
            lambda m, t, _, s: nb_nll(counts, m, t, s),
            lambda m, t, _, s: nb_reference(dense, m.exp() * s[:, None], t.exp()),
        ),
        (
            lambda m, t, p, s: zinb_nll(counts, m, t, p, s),
            lambda m, t, p, s: zinb_reference(dense, m.exp() * s[:, None], t.exp(), p.sigmoid()),
        ),
        (
            lambda m, _, __, s: poisson_nll(counts, m, s),
            lambda m, _, __, s: poisson_reference(dense, m.exp() * s[:, None]),
        ),
        (lambda m, _, __, ___: squared_error(counts, m), lambda m, _, __, ___: (m - dense).square()),
    ]


def value_and_gradients(form: Callable[..., Tensor], parameters: list[Tensor], weight: Tensor) -> list[Tensor]:
    leaves = [p.clone().requires_grad_() for p in parameters[:3]]
    value = form(*leaves, parameters[3])
    gradients = torch.autograd.grad((value * weight).sum(), leaves, allow_unused=True)
    return [value.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("theta", THETA)
@pytest.mark.parametrize("weights", ["mean", "another", "unequal"])
def test_kernels_are_the_textbook_forms_with_their_gradients(theta: str, weights: str) -> None:
    x, *parameters = problem(theta)
    weight = {
        "mean": torch.full((40,), 1 / (40 * 37)),
        "another": torch.full((40,), 0.3),
        "unequal": torch.linspace(0.1, 2, 40),
    }[weights]
    for fast, textbook in losses(x, theta):
        got = value_and_gradients(fast, parameters, weight)
        wanted = value_and_gradients(
            lambda *p, form=textbook: form(*p).sum(1), [p.double() for p in parameters], weight.double()
        )
        assert len(got) == len(wanted) > 1
        torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-6, atol=0)
        for a, b in zip(got[1:], wanted[1:], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("theta", THETA)
def test_the_eager_forms_say_the_same(theta: str) -> None:
    x, *parameters = problem(theta)
    for fast, _ in losses(x, theta):
        got = value_and_gradients(fast, parameters, torch.ones(40))
        with eager():
            wanted = value_and_gradients(fast, parameters, torch.ones(40))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6 * float(b.abs().max()))


@pytest.mark.parametrize("theta", ["gene", "shared", "gene-cell"])
def test_the_last_block_may_be_one_cell(theta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of dispersions of a cell, or of its entries, is no row of dispersions of genes."""
    monkeypatch.setattr(autograd_cpu, "BLOCK", 1)
    n, g = autograd_cpu.FEWEST + 1, 37
    generator = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.rand(n, g, generator=generator), generator=generator)
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in ((n, 3), (g, 3), (g,)))
    shape = {"gene": (g,), "shared": (n, 1), "gene-cell": (n, g)}[theta]
    log_theta = 9 * torch.randn(shape, generator=generator)  # some beyond the limits
    found = []
    for in_blocks, precision in ((True, torch.float32), (False, torch.float64)):
        leaves = [p.to(precision, copy=True).requires_grad_() for p in (hidden, weight, bias, log_theta)]
        mean = LinearOutput(*leaves[:3])
        of_theta: Any = leaves[3]
        if in_blocks and theta == "gene-cell":
            of_theta = LinearOutput(leaves[3], torch.eye(g), torch.zeros(g))
        loss = nb_nll(csr(x.to(precision)), mean if in_blocks else mean.materialize(), of_theta)
        found.append([loss.detach().double(), *(p.double() for p in torch.autograd.grad(loss.mean(), leaves))])
    for fast, exact in zip(*found, strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@given(
    counts=st.lists(st.integers(0, 40) | st.integers(0, 1_000_000), min_size=1, max_size=6),
    log_mu=st.floats(np.log(1e-8), np.log(1e6)),
    log_theta=st.floats(np.log(1e-4), np.log(1e6)),
    logit=st.floats(-30, 30),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_float32_accuracy_over_the_whole_range(
    counts: list[int], log_mu: float, log_theta: float, logit: float
) -> None:
    """Loss to 1e-6 and gradients to 1e-5 of the eager forms in float64, themselves tested against scipy."""
    x = torch.tensor([counts], dtype=torch.float32)
    p32 = [torch.full((1, len(counts)), v, dtype=torch.float32) for v in (log_mu, log_theta, logit)]
    p64 = [p.double() for p in p32]
    one = torch.ones(1)
    forms = [
        lambda c, m, t, _: nb_nll(c, m, t),
        lambda c, m, t, p: zinb_nll(c, m, t, p),
        lambda c, m, _, __: poisson_nll(c, m),
    ]
    for form in forms:
        got = value_and_gradients(lambda m, t, p, _, f=form: f(csr(x), m, t, p), [*p32, one], one)
        wanted = value_and_gradients(lambda m, t, p, _, f=form: f(csr(x.double()), m, t, p), [*p64, one], one.double())
        assert all(bool(torch.isfinite(g).all()) for g in got)
        # a float32 zero of a huge theta is a part of its size: the loss is a sum of parts of both signs
        torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-6, atol=1e-9)
        for a, b in zip(got[1:], wanted[1:], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * max(1e-6, float(b.abs().max())))


def test_values_that_are_not_whole_and_large_counts_take_the_general_form() -> None:
    x = torch.tensor([[0.5, 33.0, 0.0, 2.25, 100_000.0]])
    log_mean, log_theta = torch.tensor([[0.1, 3.0, -1.0, 0.5, 11.0]]), torch.tensor([0.3, -2.0, 0.0, 4.0, 1.0])
    wanted = nb_reference(x.double(), log_mean.double().exp(), log_theta.double().exp()).sum(1)
    torch.testing.assert_close(nb_nll(csr(x), log_mean, log_theta).double(), wanted, rtol=1e-6, atol=0)


def test_beyond_the_limits_the_gradient_is_zero() -> None:
    x = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    log_mean = torch.tensor([[-30.0, 40.0, 0.0, -25.0]], requires_grad=True)
    log_theta = torch.tensor([0.0, 0.0, 50.0, -40.0], requires_grad=True)
    nb_nll(csr(x), log_mean, log_theta).sum().backward()
    assert (log_mean.grad[0] != 0).tolist() == [False, False, True, False]
    assert (log_theta.grad != 0).tolist() == [True, True, False, False]


def test_beyond_the_limits_the_gradient_is_zero_of_other_kinds_and_of_cells() -> None:
    x = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    log_mean = torch.tensor([[-30.0, 40.0, 0.0, -25.0]], requires_grad=True)
    for value in (poisson_nll(csr(x), log_mean), zinb_nll(csr(x), log_mean, torch.zeros(4), torch.zeros(1, 4))):
        (gradient,) = torch.autograd.grad(value.sum(), log_mean)
        assert (gradient[0] != 0).tolist() == [False, False, True, False]
    of_cells = torch.tensor([[0.0], [50.0], [-40.0]], requires_grad=True)
    nb_nll(csr(x.expand(3, 4)), torch.zeros(3, 4), of_cells).sum().backward()
    assert (of_cells.grad != 0).ravel().tolist() == [True, False, False]  # type: ignore[operator, union-attr]


def test_a_zero_that_neither_dropout_nor_the_mean_explains() -> None:
    """Beyond the exponents of float32: ``softplus(l) - logaddexp(l, log NB(0))``, and its gradient."""
    log_mean, log_theta = torch.full((1, 4), 12.0), torch.tensor([1.0, 5.0, 5.0, 9.0])
    logits = torch.tensor([[-60.0, -150.0, -2000.0, -300.0]])
    leaves = [log_mean, log_theta, logits]
    ours, wanted = ([leaf.to(dtype).requires_grad_() for leaf in leaves] for dtype in (torch.float32, torch.float64))
    found = zinb_nll(csr(torch.zeros(1, 4)), *ours)
    m, t, p = wanted
    log_nb = -t.exp() * torch.log1p((m - t).exp())
    expected = (torch.nn.functional.softplus(p) - torch.logaddexp(p, log_nb)).sum(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    for one, other in zip(torch.autograd.grad(found, ours), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_a_parameter_that_is_not_a_number_is_not_hidden() -> None:
    x, log_mean, log_theta, logits, sizes = problem("gene")
    log_mean[2, 5] = float("nan")
    for form in (nb_nll(csr(x), log_mean, log_theta, sizes), zinb_nll(csr(x), log_mean, log_theta, logits, sizes)):
        assert torch.isnan(form).nonzero().ravel().tolist() == [2]


def test_a_graph_can_be_gone_through_again() -> None:
    x, log_mean, log_theta, _, sizes = problem("gene")
    leaf = log_mean.clone().requires_grad_()
    loss = nb_nll(csr(x), leaf, log_theta, sizes).mean()
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0].clone()
    leaf.grad = None
    for _ in range(3):
        loss.backward(retain_graph=True)  # each adds to what the one before left
    torch.testing.assert_close(leaf.grad, 3 * first)


def test_without_gradients_the_loss_is_the_same() -> None:
    x, *parameters = problem("gene-cell")
    for fast, _ in losses(x, "gene-cell"):
        leaves = [p.clone().requires_grad_() for p in parameters[:3]]
        with torch.no_grad():
            alone = fast(*leaves, parameters[3])
        assert torch.equal(alone, fast(*leaves, parameters[3]))


def test_elementary_functions() -> None:
    a = np.concatenate([[0.0], np.geomspace(1e-8, 80, 400)])
    t = np.linspace(0, 1, 401)
    single = [np.float32(v) for v in a]
    np.testing.assert_allclose(
        [exp_minus(v, np.float32(0)) for v in single], np.exp(-np.array(single, float)), rtol=3e-7
    )
    np.testing.assert_allclose([exp_minus_64(v) for v in a], np.exp(-a), rtol=1e-14)
    np.testing.assert_allclose([log1p_unit(np.float32(v)) for v in t], np.log1p(np.float32(t).astype(float)), rtol=2e-7)
    np.testing.assert_allclose([log1p_unit_64(v) for v in t], np.log1p(t), rtol=1e-14)
    wide = np.geomspace(1e-300, 1e300, 400)
    np.testing.assert_allclose([log_64(v) for v in wide], np.log(wide), rtol=1e-14)
    from scipy.special import digamma as scipy_digamma

    z = np.geomspace(1e-4, 1e7, 100)
    np.testing.assert_allclose([digamma(v) for v in z], scipy_digamma(z), rtol=1e-12)


def test_sparse_products_and_rows_are_those_of_scipy() -> None:
    matrix = random_sparse(50, 23, 0.2, format="csr", dtype=np.float32, random_state=0)
    matrix.data = np.ceil(9 * matrix.data)
    rows = np.array([49, 3, 3, 0])
    taken = Stored.of(matrix).take(rows)
    np.testing.assert_array_equal(taken.to_dense(), matrix[rows].toarray())
    x = Stored.of(matrix).take(np.arange(50))
    weight = torch.randn(23, 11, requires_grad=True)
    upstream = torch.randn(50, 11)
    (gradient,) = torch.autograd.grad((sparse_matmul(x, weight) * upstream).sum(), weight)
    np.testing.assert_allclose(gradient, matrix.T @ upstream.numpy(), rtol=1e-5, atol=1e-5)
    sizes = torch.rand(50) + 0.5
    log = LogNormalize("log1p")(Batch(x, sizes, torch.arange(50)))
    np.testing.assert_allclose(log.to_dense(), np.log1p(matrix.toarray() / sizes.numpy()[:, None]), rtol=3e-7)


def test_bits_do_not_depend_on_threads() -> None:
    x, *parameters = problem("gene")
    results = []
    for n_threads in (1, 2, 5):
        with threads_set(n_threads):
            results.append([value_and_gradients(f, parameters, torch.ones(40)) for f, _ in losses(x, "gene")])
    for other in results[1:]:
        for one, many in zip(results[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


def test_without_openmp_threads_of_our_own_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, *parameters = problem("gene")
    wanted = [value_and_gradients(f, parameters, torch.ones(40)) for f, _ in losses(x, "gene")]
    monkeypatch.setattr(threads, "_torch_openmp", lambda: None)
    with threads_set(3):
        got = [value_and_gradients(f, parameters, torch.ones(40)) for f, _ in losses(x, "gene")]
    for one, other in zip(wanted, got, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_kernels_start_no_second_pool_of_threads() -> None:
    """Two OpenMP runtimes that wait for work by spinning take the cores from each other."""
    code = (
        "import torch; torch.ones(9, 9) @ torch.ones(9, 9); from anncoder.likelihoods import poisson_nll; "
        "from anncoder.types import CSR; i = torch.zeros(2, dtype=torch.int64); "
        "poisson_nll(CSR(i, i[:0], torch.zeros(0), 3), torch.zeros(1, 3)); "
        "print(sum('gomp' in l and 'r-xp' in l for l in open('/proc/self/maps')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1


def test_a_kernel_refuses_arrays_of_another_type() -> None:
    x = np.zeros(3)
    with pytest.raises(TypeError, match="log_normalize: expected contiguous int64"):
        sparse.log_normalize(1, x, x, x, x)


def test_the_environment_switches_the_kernels_off() -> None:
    code = "import torch; from anncoder import kernels; print(kernels.fused(torch.ones(1)))"
    for value, expected in (("torch", "False"), ("numba", "True")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"ANNCODER_KERNELS": value},
        )
        assert done.stdout.strip() == expected


def test_training_takes_the_same_road_with_and_without_kernels(counts) -> None:  # type: ignore[no-untyped-def]
    """Five steps, same seed and order: the loss curves differ by rounding alone.

    The orders of the sums differ, on each processor in another way. The rounding of a float32 sum of n terms grows as
    sqrt(n) half units of the last place; the longest sums are over 256 hidden units, and each step adds its own.
    """
    from anncoder import CountAutoencoder, UndercompleteAutoencoder

    n_steps, longest = 5, 256
    rounding = n_steps * longest**0.5 * np.finfo(np.float32).eps / 2  # 4.8e-6

    # from random weights: a start from components has long sums of its own
    for model in (CountAutoencoder(n_latent=4, start="random"), UndercompleteAutoencoder(n_latent=4, start="random")):
        curves = []
        for backend in ("numba", "torch"):
            before = kernels.use(backend)
            try:
                model.fit(counts, max_epochs=n_steps, batch_size=128, progress=False)
            finally:
                kernels.use(before)
            curves.append(model.history_[["train_loss", "valid_loss"]].to_numpy())
        np.testing.assert_allclose(*curves, rtol=rounding)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_a_softmax_mean_is_the_eager_one(likelihood: str, spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.poisson(torch.full((6, 40), 0.5), generator=generator)
    x[2, 5] = 300
    rows, columns = x.nonzero(as_tuple=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=6).cumsum(0)])
    counts = CSR(indptr, columns, x[rows, columns], 40)
    logits, size = spread * torch.randn(6, 40, generator=generator), x.sum(1)
    others = [torch.randn(40, generator=generator), torch.randn(6, 40, generator=generator)]
    nll, n_others = {"nb": (nb_nll, 1), "zinb": (zinb_nll, 2), "poisson": (poisson_nll, 0)}[likelihood]
    found: list[list[Tensor]] = []
    for precision in (torch.float32, torch.float64):  # the eager form serves float64
        leaves = [p.detach().to(precision, copy=True).requires_grad_() for p in (logits, *others[:n_others])]
        data = counts.with_values(counts.values.to(precision))
        loss = nll(data, *leaves, size.to(precision), mean="softmax")
        loss.mean().backward()
        found.append([loss.detach().double(), *(p.grad.double() for p in leaves)])
    for fast, exact in zip(*found, strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "squared"])
@pytest.mark.parametrize("weights", ["mean", "another", "unequal"])
@pytest.mark.parametrize("threshold", [1, 1 << 20])
def test_an_output_layer_in_blocks_is_the_layer_and_the_loss(
    likelihood: str, weights: str, threshold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 cells are one block, or blocks of 64, the last one not full; gradients are those of autograd in float64."""
    monkeypatch.setattr(autograd_cpu, "BLOCK", threshold)
    generator = torch.Generator().manual_seed(0)
    n, g, h = 150, 37, 5
    x = torch.poisson(torch.rand(n, g, generator=generator), generator=generator)
    sizes = torch.rand(n, generator=generator) + 0.5
    layers = [torch.randn(shape, generator=generator) for _ in range(3) for shape in ((n, h), (g, h), (g,))]
    weight = {"mean": torch.full((n,), 1 / n), "another": torch.full((n,), 0.3), "unequal": torch.rand(n)}[weights]

    def loss(counts: CSR, sizes: Tensor, mean: Any, theta: Any, pi: Any) -> Tensor:
        forms: dict[str, Callable[[], Tensor]] = {
            "nb": lambda: nb_nll(counts, mean, theta, sizes),
            "zinb": lambda: zinb_nll(counts, mean, theta, pi, sizes),
            "poisson": lambda: poisson_nll(counts, mean, sizes),
            "squared": lambda: squared_error(counts, mean),
        }
        return forms[likelihood]()

    found = []
    for in_blocks, precision in ((True, torch.float32), (False, torch.float64)):
        leaves = [p.to(precision, copy=True).requires_grad_() for p in layers]
        products = [LinearOutput(*leaves[k : k + 3]) for k in (0, 3, 6)]
        parameters = (p if in_blocks else p.materialize() for p in products)
        value = loss(csr(x.to(precision)), sizes.to(precision), *parameters)
        gradients = torch.autograd.grad((value * weight.to(precision)).sum(), leaves, allow_unused=True)
        found.append([value.detach().double(), *(gradient.double() for gradient in gradients if gradient is not None)])
    assert len(found[0]) == 1 + 3 * {"nb": 2, "zinb": 3, "poisson": 1, "squared": 1}[likelihood]
    for fast, exact in zip(*found, strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_what_does_not_fit_is_refused_before_its_addresses_are_followed() -> None:
    x, log_mean, log_theta, logits, size_factor = problem("gene")
    counts = csr(x)
    wrong: list[Callable[[], Tensor]] = [
        lambda: nb_nll(csr(torch.ones(40, 99)), log_mean, log_theta),
        lambda: nb_nll(csr(x[:20]), log_mean, log_theta),
        lambda: nb_nll(counts, log_mean, log_theta[:9]),
        lambda: nb_nll(counts, log_mean, log_theta, size_factor[:2]),
        lambda: poisson_nll(counts.with_values(counts.values[:-1]), log_mean),
        lambda: zinb_nll(
            counts, LinearOutput(torch.ones(39, 3), torch.ones(37, 3), torch.ones(37)), log_theta, logits[:39]
        ),
        lambda: squared_error(csr(x[:20]), log_mean),
        lambda: centred_transposed_matmul(counts, None, torch.ones(9, 4))[0],
        lambda: centred_transposed_matmul(counts, torch.ones(36), torch.ones(40, 4))[0],
        lambda: LogNormalize("log1p")(Batch(counts, size_factor[:3], torch.arange(40))).values,
    ]
    for call in wrong:
        with pytest.raises(ValueError, match=r"\d"):
            call()


def test_a_row_that_repeats_columns_stays_in_its_memory() -> None:
    """Longer than there are genes; a kernel's room is as long as the longest row."""
    n = 300
    counts = CSR(torch.tensor([0, n]), torch.zeros(n, dtype=torch.int64), torch.ones(n), 3)
    zeros = torch.zeros(1, 3)
    for loss in (nb_nll(counts, zeros, zeros[0]), zinb_nll(counts, zeros, zeros[0], zeros), poisson_nll(counts, zeros)):
        assert torch.isfinite(loss).all()
    assert torch.isfinite(squared_error(counts, zeros)).all()


@pytest.mark.parametrize("shape", [(1, 37), (1, 1)])
def test_dispersions_of_every_shape_that_broadcasts(shape: tuple[int, int]) -> None:
    x, log_mean, _, logits, _ = problem("gene")
    log_theta = torch.linspace(-1, 1, shape[1])[None]
    for form in (lambda c, m, t, _: nb_nll(c, m, t), zinb_nll):
        fast = form(csr(x), log_mean, log_theta, logits)
        with eager():
            torch.testing.assert_close(form(csr(x), log_mean, log_theta, logits), fast)


def test_gradients_that_the_kernels_do_not_have_come_from_the_eager_forms() -> None:
    """Of size factors, of the mean that is subtracted, and of the input: none is dropped without a word."""
    x, log_mean, log_theta, logits, size_factor = problem("gene")
    layer = SparseLinear(37, 5, Noise(0))
    mean = torch.rand(37)

    def of(size: Tensor, centre: Tensor, values: Tensor) -> Tensor:
        counts = csr(x)
        seen = LogNormalize("log1p")(Batch(counts.with_values(values), size, torch.arange(40)))
        nll = nb_nll(counts, log_mean, log_theta, size) + zinb_nll(counts, log_mean, log_theta, logits, size)
        return (nll + poisson_nll(counts, log_mean, size)).sum() + layer(seen, centre).square().sum()

    def gradients() -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in (size_factor, mean, csr(x).values)]
        return torch.autograd.grad(of(*leaves), leaves)

    fast = gradients()
    with eager():
        for a, b in zip(fast, gradients(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    leaf = csr(x).values.requires_grad_()
    assert torch.autograd.grad(sparse_matmul(csr(x).with_values(leaf), layer.weight).sum(), leaf)[0].abs().sum() > 0


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    """Their gradients are written by hand, once: in a gradient penalty their part would be missing."""
    for tensors in (problem("gene"), tuple(t.double() for t in problem("gene"))):
        x, log_mean, log_theta, logits, _ = tensors
        for form in (
            lambda m: nb_nll(csr(x), m, log_theta),  # noqa: B023 - called at once
            lambda m: zinb_nll(csr(x), m, log_theta, logits),  # noqa: B023
            lambda m: poisson_nll(csr(x), m),  # noqa: B023
        ):
            leaf = log_mean.clone().requires_grad_()
            with pytest.raises(RuntimeError, match="differentiated once"):
                torch.autograd.grad(form(leaf).sum(), leaf, create_graph=True)


@pytest.mark.parametrize(
    ("indptr", "indices"),
    [
        ([0, 1, 2], [0, 3]),
        ([0, 1, 2], [0, -1]),
        ([0, 1, 2], [0, 750_000_000]),
        ([0, 5, 2], [0, 1]),
        ([0, 1, 200_000_000], [0, 1]),
        ([1, 1, 2], [0, 1]),
    ],
)
def test_counts_that_point_outside_of_themselves_are_refused(indptr: list[int], indices: list[int]) -> None:
    counts = CSR(torch.tensor(indptr), torch.tensor(indices), torch.ones(2), 3)
    zeros = torch.zeros(2, 3)
    for form in (
        lambda: nb_nll(counts, zeros, zeros[0]),
        lambda: zinb_nll(counts, zeros, zeros[0], zeros),
        lambda: poisson_nll(counts, zeros),
        lambda: squared_error(counts, zeros),
    ):
        with pytest.raises(ValueError, match="lies outside of them"):
            form()


def test_counts_that_change_before_the_gradients_are_taken() -> None:
    """As a loader of one's own may, that fills its arrays again: noticed where the values are read again."""
    x, log_mean, log_theta, _, _ = problem("gene")
    layer, counts = SparseLinear(37, 5, Noise(0)), csr(x)
    hidden = layer(counts).sum()
    leaf = log_mean.clone().requires_grad_()
    loss = (nb_nll(counts, leaf, log_theta) * torch.rand(40)).sum()  # weights of their own: the pass runs again
    counts.values.fill_(7)
    for total in (hidden, loss):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_counts_that_were_made_in_inference_mode() -> None:
    """autograd does not save such tensors, which know no changes."""
    x, log_mean, log_theta, _, _ = problem("gene")
    with torch.inference_mode():
        counts = csr(x)
    layer, leaf = SparseLinear(37, 5, Noise(0)), log_mean.clone().requires_grad_()
    (nb_nll(counts, leaf, log_theta).sum() + layer(counts).sum()).backward()
    assert leaf.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.sum(dim=0)[:, None].expand(37, 5))


def test_counts_themselves_have_no_gradient() -> None:
    x, log_mean, log_theta, logits, _ = problem("gene")
    counts = csr(x)
    moving = counts.with_values(counts.values.requires_grad_())
    for form in (
        lambda: nb_nll(moving, log_mean, log_theta),
        lambda: zinb_nll(moving, log_mean, log_theta, logits),
        lambda: poisson_nll(moving, log_mean),
    ):
        with pytest.raises(ValueError, match="not differentiated by them"):
            form()


def test_without_a_place_for_the_cache_the_kernels_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that cannot be written to, of a user without a home: numba has no folder then."""
    real, asked = threads.cfunc, []

    def cfunc(*signature: Any, cache: bool = False, **settings: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'row': no locator available for file 'nb.py'")
        return real(*signature, **settings)

    monkeypatch.setattr(threads, "cfunc", cfunc)
    out = torch.empty(4)
    again = threads.Kernel(sparse.log_normalize.function, sparse.log_normalize.dtypes)
    again(1, torch.arange(5), torch.arange(4.0), torch.full((4,), 2.0), out)
    torch.testing.assert_close(out, (torch.arange(4.0) / 2).log1p())
    assert asked == [True, False]


@pytest.mark.slow
def test_kernels_compiled_now_and_kernels_of_the_cache_give_the_same_bits(tmp_path: Path) -> None:
    """A function that a kernel calls, and that is compiled on its own as well, is another one in the first process."""
    code = """
import hashlib
import anncoder as ac
cells = ac.datasets.simulate(n_obs=200, n_vars=90, n_groups=3, seed=1, lib_loc=6.0)
for likelihood in ("nb", "zinb", "poisson"):
    model = ac.CountAutoencoder(n_latent=3, n_hidden=(8,), likelihood=likelihood)
    model.fit(cells, max_epochs=25, early_stopping=False, threads=1, progress=False)
    arrays = b"".join(value.numpy().tobytes() for value in model.network_.state_dict().values())
    print(hashlib.sha256(arrays).hexdigest())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, later = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    )
    assert any(tmp_path.rglob("*.nbi"))
    assert first == later
