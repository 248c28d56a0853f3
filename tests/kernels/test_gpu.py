"""The Triton kernels: in Triton's interpreter on the CPU, compiled on a CUDA GPU where there is one.

A process has the one or the other, because Triton decides when it is imported: where there is a GPU,
``TRITON_INTERPRET=1 pytest tests/test_gpu.py`` runs the interpreter.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_sparse
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anncoder import kernels
from anncoder.config import TrainingConfig
from anncoder.data.loaders.gpu import Resident, ResidentLoader
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.likelihoods import nb_nll, poisson_nll, squared_error, zinb_nll
from anncoder.likelihoods.reference import nb_reference, poisson_reference, zinb_reference
from anncoder.models import find
from anncoder.models.count import CountConfig
from anncoder.nn.inputs import LogNormalize
from anncoder.nn.sparse import sparse_matmul
from anncoder.training.cuda_graph import plain_step
from anncoder.training.loop import State
from anncoder.training.optimizer import GpuAdam, optimizer_of
from anncoder.types import CSR, Batch, LinearOutput, Noise, Shape

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

if "triton" not in sys.modules and not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        from anncoder.kernels.gpu import launch as gpu
        from anncoder.kernels.gpu import loss as triton_loss
else:
    from anncoder.kernels.gpu import launch as gpu
    from anncoder.kernels.gpu import loss as triton_loss

INTERPRETED = type(triton_loss.count_pass).__name__ == "InterpretedFunction"
SHAPES = {"gene": (37,), "cell": (10, 1), "entry": (10, 37)}


@pytest.fixture(params=["interpreter", "cuda"], autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Return where the kernels run; until the end of the test they are in use there."""
    if (request.param == "interpreter") != INTERPRETED:
        pytest.skip("Triton was imported for the other" if INTERPRETED else "the interpreter was not asked for")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # parts of Triton are imported at the first launch
        monkeypatch.setattr(gpu, "ROWS", 16)  # the interpreter takes its time for a program, not for its rows
    before = kernels.use("triton" if INTERPRETED else "numba")
    yield torch.device("cpu" if INTERPRETED else "cuda")
    kernels.use(before)


def csr(dense: Tensor) -> CSR:
    rows, columns = torch.nonzero(dense, as_tuple=True)
    ends = torch.bincount(rows, minlength=len(dense)).cumsum(0)
    return CSR(torch.cat([ends.new_zeros(1), ends]), columns, dense[rows, columns], dense.shape[1])


def problem(theta: str, device: torch.device) -> tuple[Tensor, ...]:
    """Return counts, log mean, log theta, dropout logits and size factors, float32; 10 rows fill no programs."""
    generator = torch.Generator().manual_seed(0)
    log_mean, logits = 2 * torch.randn(10, 37, generator=generator), 3 * torch.randn(10, 37, generator=generator)
    x = torch.poisson(log_mean.exp().clamp(max=200), generator=generator)
    x *= torch.rand(10, 37, generator=generator) < 0.4
    x[3] = 0
    log_theta = 2 * torch.randn(SHAPES[theta], generator=generator)
    sizes = torch.rand(10, generator=generator) + 0.5
    return tuple(t.to(device) for t in (x, log_mean, log_theta, logits, sizes))


# each likelihood of counts, log mean, log theta, dropout logits and size factors, beside its textbook form
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "nb": (
        lambda x, m, t, _, s: nb_nll(csr(x), m, t, s),
        lambda x, m, t, _, s: nb_reference(x, m.exp() * s[:, None], t.exp()),
    ),
    "zinb": (
        lambda x, m, t, p, s: zinb_nll(csr(x), m, t, p, s),
        lambda x, m, t, p, s: zinb_reference(x, m.exp() * s[:, None], t.exp(), p.sigmoid()),
    ),
    "poisson": (
        lambda x, m, _, __, s: poisson_nll(csr(x), m, s),
        lambda x, m, _, __, s: poisson_reference(x, m.exp() * s[:, None]),
    ),
    "squared": (lambda x, m, *_: squared_error(csr(x), m), lambda x, m, *_: (m - x).square()),
}


def value_and_gradients(form: Callable[..., Tensor], data: tuple[Tensor, ...], weight: Tensor) -> list[Tensor]:
    x, *parameters, sizes = data
    leaves = [p.clone().requires_grad_() for p in parameters]
    value = form(x, *leaves, sizes)
    gradients = torch.autograd.grad((value * weight).sum(), leaves, allow_unused=True)
    return [value.detach().cpu(), *(g.cpu() for g in gradients if g is not None)]


def assert_textbook(kind: str, data: tuple[Tensor, ...], weight: Tensor) -> None:
    fast, textbook = FORMS[kind]
    got = value_and_gradients(fast, data, weight)
    wanted = value_and_gradients(lambda *p: textbook(*p).sum(1), tuple(t.double() for t in data), weight.double())
    assert len(got) == len(wanted) > 1
    torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-6, atol=0)
    for a, b in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize(("kind", "theta"), [*((k, t) for k in ("nb", "zinb") for t in SHAPES), ("poisson", "gene")])
def test_the_kernel_is_the_textbook_form_with_its_gradients(kind: str, theta: str, device: torch.device) -> None:
    assert_textbook(kind, problem(theta, device), torch.full((10,), 1 / 370, device=device))


@pytest.mark.parametrize(("kind", "theta"), [("nb", "gene"), ("zinb", "entry"), ("squared", "gene")])
def test_other_weights_of_the_cells(kind: str, theta: str, device: torch.device) -> None:
    assert_textbook(kind, problem(theta, device), torch.linspace(0.1, 2, 10, device=device))


@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_float32_accuracy_over_the_whole_range(
    kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss to 1e-6 and gradients to 1e-5 of 40 digits, an entry at a time."""
    if INTERPRETED:
        monkeypatch.setattr(gpu, "ROWS", 128)
    random = np.random.default_rng(0)
    x = np.where(random.random(200) < 0.5, random.integers(0, 4, 200), np.exp(random.uniform(0, 13.8, 200)) // 1)
    bounds = np.log([[1e-8, 1e6], [1e-4, 1e6], [1e-13, 1e13]])
    numbers = [np.float32(random.uniform(*pair, 200)) for pair in bounds]
    data = [torch.tensor(v, dtype=torch.float32, device=device)[:, None] for v in (x, *numbers)]
    got = value_and_gradients(FORMS[kind][0], (*data, torch.ones(200, device=device)), torch.ones(200, device=device))
    wanted = np.array([exact(kind, *v) for v in zip(x, *numbers, strict=True)])
    for k, values in enumerate(got):
        scale = np.maximum(np.abs(wanted[:, k]), 1e-9 if k else 1e-3)
        assert np.max(np.abs(values.double().numpy().ravel() - wanted[:, k]) / scale) < (1e-5 if k else 1e-6), k


def exact(kind: str, *numbers: float) -> list[float]:
    """Return the loss and its derivatives by log mean, log theta and dropout logit."""
    x, *parameters = (mpmath.mpf(float(v)) for v in numbers)

    def loss(m: mpmath.mpf, t: mpmath.mpf, logit: mpmath.mpf) -> mpmath.mpf:
        theta, log_total = mpmath.exp(t), mpmath.log(mpmath.exp(m) + mpmath.exp(t))
        rise = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
        log_nb = rise + theta * (t - log_total) + x * (m - log_total)
        pi = 1 / (1 + mpmath.exp(-logit)) if kind == "zinb" else 0
        return -mpmath.log((pi if x == 0 else 0) + (1 - pi) * mpmath.exp(log_nb))

    with mpmath.workdps(40):
        orders = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)][: 4 if kind == "zinb" else 3]
        return [float(mpmath.diff(loss, parameters, order) if sum(order) else loss(*parameters)) for order in orders]


def test_values_that_are_not_whole(device: torch.device) -> None:
    x = torch.tensor([[0.5, 33.0, 0.0, 2.25, 100_000.0]], device=device)
    log_mean, log_theta = torch.tensor([[0.1, 3.0, -1.0, 0.5, 11.0]]), torch.tensor([0.3, -2.0, 0.0, 4.0, 1.0])
    wanted = nb_reference(x.cpu().double(), log_mean.double().exp(), log_theta.double().exp()).sum(1)
    got = nb_nll(csr(x), log_mean.to(device), log_theta.to(device)).cpu()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("entry", [False, True])
def test_beyond_the_limits_the_gradient_is_zero(entry: bool, device: torch.device) -> None:
    x = torch.tensor([[0.0, 2.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]], device=device)
    log_mean = torch.tensor([[-30.0, 40.0, 0.0, -25.0]] * 2, device=device, requires_grad=True)
    log_theta = torch.tensor([0.0, 0.0, 50.0, -40.0], device=device).expand((2, 4) if entry else (4,)).clone()
    log_theta.requires_grad_()
    nb_nll(csr(x), log_mean, log_theta).sum().backward()
    assert (log_mean.grad != 0).tolist() == [[False, False, True, False]] * 2
    assert (log_theta.grad != 0).reshape(-1, 4).tolist() == [[True, True, False, False]] * (2 if entry else 1)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # numpy's, in the interpreter
def test_a_parameter_that_is_not_a_number_is_not_hidden(device: torch.device) -> None:
    x, log_mean, log_theta, logits, sizes = problem("gene", device)
    log_mean[2, 5] = float("nan")
    for loss in (nb_nll(csr(x), log_mean, log_theta, sizes), zinb_nll(csr(x), log_mean, log_theta, logits, sizes)):
        assert torch.isnan(loss).nonzero().ravel().tolist() == [2]


def test_a_graph_can_be_gone_through_again(device: torch.device) -> None:
    x, log_mean, log_theta, _, sizes = problem("gene", device)
    leaves = [log_mean.requires_grad_(), log_theta.requires_grad_()]
    loss = nb_nll(csr(x), *leaves, sizes).mean()
    first = [g.clone() for g in torch.autograd.grad(loss, leaves, retain_graph=True)]
    for leaf in leaves:
        leaf.grad = None
    for _ in range(3):
        loss.backward(retain_graph=True)  # each adds to what the one before left
    for leaf, once in zip(leaves, first, strict=True):
        torch.testing.assert_close(leaf.grad, 3 * once)


def as_product(parameter: Tensor) -> LinearOutput:
    """Return an output layer that gives a parameter."""
    g = parameter.shape[1]
    return LinearOutput(parameter, torch.eye(g, device=parameter.device), torch.zeros(g, device=parameter.device))


def test_the_gradient_can_take_the_memory_of_a_product(device: torch.device) -> None:
    x, log_mean, log_theta, logits, sizes = problem("gene", device)
    for kind in ("nb", "zinb", "poisson"):
        results = []
        for whole in (True, False):
            leaves = [p.clone().requires_grad_() for p in (log_mean, log_theta, logits)]
            decoded, dropout = (leaf + 0.0 if whole else as_product(leaf) for leaf in leaves[::2])
            parameters = {"nb": leaves[1:2], "zinb": [leaves[1], dropout], "poisson": []}[kind]
            nll = {"nb": nb_nll, "zinb": zinb_nll, "poisson": poisson_nll}[kind]
            loss = nll(csr(x), decoded, *parameters, sizes)
            (0.7 * loss.mean()).backward(retain_graph=True)
            results.append([loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
            if not whole:
                with pytest.raises(RuntimeError, match="differentiated once"):
                    loss.sum().backward()
        for plain, in_place in zip(*results, strict=True):
            torch.testing.assert_close(in_place, plain, rtol=2e-6, atol=0)


def test_an_overwritten_product_gives_no_wrong_gradient(device: torch.device) -> None:
    x, log_mean, log_theta, _, sizes = problem("gene", device)
    leaves = [log_mean.requires_grad_(), log_theta.requires_grad_()]
    weights = torch.linspace(0.1, 2, 10, device=device)
    wanted = torch.autograd.grad((nb_nll(csr(x), *leaves, sizes) * weights).sum(), leaves)
    loss = nb_nll(csr(x), as_product(leaves[0]), leaves[1], sizes)
    got = torch.autograd.grad((loss * weights).sum(), leaves)
    torch.testing.assert_close(got[0], wanted[0], rtol=2e-6, atol=0)
    assert bool(got[1].isnan().all())  # what each cell added to the sum over the cells is not known any more
    assert torch.equal(leaves[0], problem("gene", device)[1])


@pytest.mark.parametrize("kind", ["nb", "poisson"])
def test_a_softmax_mean_is_the_eager_one(kind: str, device: torch.device) -> None:
    x, log_mean, log_theta, _, _ = problem("gene", device)
    library = x.sum(1) + 1
    results = []
    for backend in ("torch", "triton" if INTERPRETED else "numba"):
        kernels.use(backend)
        leaf = log_mean.clone().requires_grad_()
        parameters = (leaf, log_theta) if kind == "nb" else (leaf,)
        loss = (nb_nll if kind == "nb" else poisson_nll)(csr(x), *parameters, library, mean="softmax")
        results.append([loss.detach(), *torch.autograd.grad(loss.mean(), leaf)])
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-6 * float(eager.abs().max()))


def test_without_gradients_and_again_the_bits_are_the_same(device: torch.device) -> None:
    data = problem("entry", device)
    for fast, _ in (FORMS["nb"], FORMS["zinb"]):
        once, again = (value_and_gradients(fast, data, torch.ones(10, device=device)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        assert torch.equal(fast(*data).cpu(), once[0])


def test_empty_rows_and_no_rows(device: torch.device) -> None:
    log_theta = torch.zeros(3, device=device, requires_grad=True)
    for n in (5, 0):
        log_mean = torch.zeros(n, 3, device=device, requires_grad=True)
        loss = nb_nll(csr(torch.zeros(n, 3, device=device)), log_mean, log_theta)
        np.testing.assert_allclose(loss.detach().cpu(), np.full(n, 3 * np.log(2)), rtol=1e-6)
        gradients = torch.autograd.grad(loss.sum(), [log_mean, log_theta])
        np.testing.assert_allclose(gradients[0].cpu(), np.full((n, 3), 0.5), rtol=1e-6)
        np.testing.assert_allclose(gradients[1].cpu(), np.full(3, n * (np.log(2) - 0.5)), rtol=1e-6)


def test_sparse_rows_and_products_are_those_of_scipy(device: torch.device) -> None:
    matrix: csr_matrix = random_sparse(30, 23, 0.2, format="csr", dtype=np.float32, random_state=0)
    matrix.data = np.ceil(9 * matrix.data)
    rows = np.array([29, 3, 3, 0])
    starts = torch.tensor(np.concatenate([[0], np.cumsum(np.diff(matrix.indptr)[rows])]), device=device)
    taken = Resident(Stored.of(matrix), device).take(torch.tensor(rows, device=device), starts, int(starts[-1]))
    np.testing.assert_array_equal(taken.to_dense().cpu(), matrix[rows].toarray())
    assert taken.indices.dtype == torch.int64
    sizes = (torch.rand(4) + 0.5).to(device)
    log = LogNormalize("log1p")(Batch(taken, sizes, torch.arange(4)))
    wanted = np.log1p(matrix[rows].toarray() / sizes.cpu().numpy()[:, None])
    np.testing.assert_allclose(log.to_dense().cpu(), wanted, rtol=3e-7)
    weight = torch.randn(23, 11, device=device, requires_grad=True)
    upstream = torch.randn(4, 11, device=device)
    product = sparse_matmul(log, weight)
    np.testing.assert_allclose(product.detach().cpu(), wanted @ weight.detach().cpu().numpy(), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad((product * upstream).sum(), weight)
    np.testing.assert_allclose(gradient.cpu(), wanted.T @ upstream.cpu().numpy(), rtol=1e-5, atol=1e-5)


class NoWaiting(TorchDispatchMode):
    """Refuses, on the CPU, what a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"), name
        assert name != "lift_fresh", "a tensor made of numbers of Python, which would be copied"
        sized = name != "repeat_interleave" or kwargs.get("output_size") is not None
        masks = args[1] if name in ("index", "index_put", "index_put_") else ()
        masked = any(m is not None and m.dtype == torch.bool for m in masks)
        assert sized, "a size that only the GPU knows"
        assert not masked, "a size that only the GPU knows"
        return func(*args, **kwargs)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        with NoWaiting():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_test_knows_what_waiting_is(device: torch.device) -> None:
    for wait in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: torch.repeat_interleave(x, (x > 0).long())):
        with pytest.raises((AssertionError, RuntimeError)), no_waiting(device):
            wait(torch.ones(3, device=device))


@pytest.mark.parametrize(("likelihood", "in_place"), [("nb", False), ("zinb", True)])
def test_a_step_waits_for_nothing(likelihood: str, in_place: bool, device: torch.device) -> None:
    """Minibatch, loss, gradients and step, from a matrix on the device, without a copy to or from it."""
    matrix = random_sparse(12, 9, 0.4, format="csr", dtype=np.float32, random_state=0)
    matrix.data = np.ceil(9 * matrix.data)
    in_memory = MemoryLoader(Stored.of(matrix), np.ones(12), np.arange(12), batch_size=6, seed=0)
    config = CountConfig(n_latent=2, n_hidden=(4,), likelihood=likelihood)
    network = find("count").network_class(config, Shape(9), Noise(0)).to(device)
    settings = TrainingConfig().with_defaults_of(config)
    optimizer = optimizer_of(network, settings, device)
    loader = ResidentLoader(in_memory, Resident(in_memory.stored, device))
    place = loader.in_one_place() if in_place else None
    batches = loader.epoch(0)
    before = [p.detach().clone() for p in network.parameters()]
    for k, batch in enumerate(batches):
        with no_waiting(device) if k else nullcontext():  # the first step compiles, and makes what is made once
            if place is not None:
                place.fill()
            _, finite = plain_step(network, batch, optimizer, settings)
    assert k == 1
    assert bool(finite)
    assert not all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_minibatches_made_by_the_kernel_are_those_of_the_loader_in_memory(device: torch.device) -> None:
    matrix = random_sparse(15, 300, 0.5, format="csr", dtype=np.float32, random_state=0)  # rows of more than a block
    codes, sizes = np.arange(15) % 4, np.linspace(0.5, 2, 15)
    settings = {"batch_size": 6, "seed": 1, "batch_code": codes}
    beside = np.linspace(-1, 1, 30, dtype=np.float32).reshape(15, 2)
    in_memory = MemoryLoader(Stored.of(matrix), sizes, np.arange(15), covariates=beside, **settings)
    made = ResidentLoader(in_memory, Resident(in_memory.stored, device))
    for one, other in zip(in_memory.epoch(0), made.epoch(0), strict=True):
        assert one.label is other.label is None  # labels are added behind a loader
        for a, b in zip((*one.counts[:3], *one[1:-1]), (*other.counts[:3], *other[1:-1]), strict=True):
            assert torch.equal(a, b.cpu())
    in_memory = MemoryLoader(
        Stored.of(matrix), sizes, np.arange(15), **settings
    )  # steps with covariates are not recorded
    made = ResidentLoader(in_memory, Resident(in_memory.stored, device))
    place, full = made.in_one_place(), 0
    for one, other in zip(in_memory.epoch(1), made.epoch(1), strict=True):
        if other is place.batch:
            place.fill()
            full += 1
        for a, b in zip((*one.counts[:3], *one[1:4]), (*other.counts[:3], *other[1:4]), strict=True):
            assert torch.equal(a, b[: len(a)].cpu())
    assert full == 2


def test_steps_in_one_place_are_the_steps_on_minibatches_of_their_own(device: torch.device) -> None:
    """As they are recorded: longer arrays than the counts need, and the same bits."""
    matrix = random_sparse(17, 9, 0.4, format="csr", dtype=np.float32, random_state=0)
    matrix.data = np.ceil(9 * matrix.data)
    in_memory = MemoryLoader(Stored.of(matrix), np.linspace(0.5, 2, 17), np.arange(17), batch_size=5, seed=0)
    resident = Resident(in_memory.stored, device)
    weights, seen = [], []
    for in_place in (False, True):
        config = CountConfig(n_latent=2, n_hidden=(4,), l2=0.1, warmup_steps=3, corruption="none")
        network = find("count").network_class(config, Shape(9), Noise(0)).to(device)
        settings = TrainingConfig().with_defaults_of(config)
        loader = ResidentLoader(in_memory, resident)
        place = loader.in_one_place() if in_place else None
        state = State(network, optimizer_of(network, settings, device), settings)
        for batch in loader.epoch(0):
            if place is not None:
                if len(batch.rows) == 5:
                    place.fill()
                seen.append(batch.counts.values.data_ptr())
            loss, _ = plain_step(network, batch, state.optimizer, settings)
            state.mean.add(loss, len(batch.rows))
        weights.append([*(p.detach() for p in network.parameters()), torch.tensor(state.mean.result(device)["loss"])])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert seen == [loader.in_one_place().batch.counts.values.data_ptr()] * 3 + seen[3:]
    assert len(seen) == 4
    assert seen[3] != seen[0]  # the last two cells have a place of their own


@pytest.mark.slow
@pytest.mark.parametrize("beta1", [0.8, 0.0])
def test_the_step_is_adams(beta1: float, device: torch.device) -> None:
    """Clipped or not, with decay, over more tensors than a launch takes; and none where the loss is infinite."""
    shapes = [(1500,), (3, 5), (1,), *[(2,)] * 31]
    ours, theirs = (
        [torch.nn.Parameter(torch.linspace(-1, 1, math.prod(s), device=device).view(s)) for s in shapes]
        for _ in range(2)
    )
    settings: dict[str, Any] = {"lr": 0.05, "betas": (beta1, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    one, other = GpuAdam(ours, capturable=True, **settings), torch.optim.Adam(theirs, **settings)
    generator = torch.Generator().manual_seed(0)
    for clip_norm in (float("inf"), 1.0, 100.0):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(device)
            q.grad = p.grad.clone()
        assert bool(one.descend(torch.ones((), device=device), clip_norm))
        torch.nn.utils.clip_grad_norm_(theirs, clip_norm)
        other.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    state = one.state_dict()
    before = [p.detach().clone() for p in ours]
    assert not bool(one.descend(torch.tensor(float("inf"), device=device), 1.0))
    ours[3].grad[0] = float("nan")
    assert not bool(one.descend(torch.ones((), device=device), 1.0))
    assert all(torch.equal(p, q) for p, q in zip(ours, before, strict=True))
    assert all(float(s["step"]) == 3 for s in state["state"].values())
    again = GpuAdam(ours, capturable=True, **settings)
    again.load_state_dict(state)
    ours[3].grad[0] = 0
    assert bool(again.descend(torch.ones((), device=device), 1.0))
    ours[4].grad = None
    with pytest.raises(RuntimeError, match="others than"):
        again.descend(torch.ones((), device=device), 1.0)
    assert all(float(s["step"]) == 4 for s in again.state_dict()["state"].values())


def test_a_recorded_fit_is_the_same_fit(simulated, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    from anncoder import CountAutoencoder

    if device.type == "cpu":
        pytest.skip("nothing can be recorded on the CPU")
    settings = {"max_epochs": 5, "batch_size": 20, "device": "cuda", "progress": False, "reduce_lr_patience": 1}
    plain, recorded = (
        CountAutoencoder(n_latent=4, n_hidden=(8,)).fit(simulated, cuda_graph=g, **settings) for g in (False, True)
    )
    columns = ["learning_rate", "train_loss", "valid_loss"]
    np.testing.assert_allclose(recorded.history_[columns], plain.history_[columns], rtol=1e-5)


def test_training_takes_the_same_road(  # type: ignore[no-untyped-def]
    simulated, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs, same seed and order: the loss curves of the kernels and of the eager forms agree to 1e-5.

    (With batch normalisation the biases before it have rounding for a gradient, and Adam makes whole steps of that.)
    """
    from anncoder import CountAutoencoder

    curves = []
    if INTERPRETED:
        monkeypatch.setattr(gpu, "ROWS", 128)
    for backend in ("torch", "triton" if INTERPRETED else "numba"):
        kernels.use(backend)
        model = CountAutoencoder(n_latent=4, n_hidden=(8,), norm="none", start="random").fit(
            simulated[::2].copy(), max_epochs=2, batch_size=27, device=device.type, progress=False
        )
        curves.append(model.history_[["train_loss", "valid_loss"]].to_numpy())
    np.testing.assert_allclose(*curves, rtol=1e-5)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from anncoder.kernels.gpu import adam as triton_adam, launch as gpu, loss as triton_loss, sparse as triton_sparse

FLOAT64 = {"known", "kept_theta", "partial", "sums"}
INT64 = {"indptr", "indices", "rows", "starts", "columns", "codes", "row", "code"}
NUMBERS = {"n", "g", "nnz", "per_cell_step", "step", "programs", "n_parameters", "b"}
FRACTIONS = {"common", "clip_norm", "rate", "log_beta1", "log_beta2", "decay", "new_first", "new_second", "epsilon"}
THREE = ("*fp32",) * 3
TUPLES = {"matrix": ("*i64", "*i32", "*fp32"), "plan": ("*i64",) * 3, "counts": ("*i64", "*i64", "*fp32")}
TUPLES |= {"parameters": THREE, "gradients": THREE, "firsts": THREE, "seconds": THREE, "sizes": ("i32",) * 3}

def compiled(kernel, capability, **constants):
    signature = {}
    for name in kernel.arg_names:
        if name not in constants:
            pointer = "*fp64" if name in FLOAT64 else "*i64" if name in INT64 else "*fp32"
            signature[name] = "i32" if name in NUMBERS else "fp32" if name in FRACTIONS else TUPLES.get(name, pointer)
    if "finite" in signature:
        signature["finite"] = "*i1"
    if constants.get("THETA") == "gene":
        signature["by_theta"] = "*fp64"
    made = compile(
        ASTSource(kernel, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": gpu.WARPS, "enable_fp_fusion": False} if kernel is triton_loss.count_pass else {},
    )
    print(kernel.__name__, capability, len(made.asm["cubin"]))
    text = made.asm["ptx"].replace("fma.rn", "") if kernel is triton_loss.count_pass else ""
    assert "mul.f32" not in text and "add.f32" not in text, "products and sums may be contracted"

sizes = {"COLUMNS": gpu.COLUMNS, "ENTRIES": gpu.ENTRIES, "FACTORIALS": gpu.FACTORIALS}
for capability, kind, theta, again in ((90, "nb", "gene", False), (75, "zinb", "entry", True)):
    pass_of = {"KIND": kind, "THETA": theta, "GRADIENT": True, "RERUN": again}
    for rows in (gpu.ROWS, gpu.ROWS // 2):
        compiled(triton_loss.count_pass, capability, ROWS=rows, **pass_of, **sizes)
    compiled(triton_loss.theta_total, capability, RERUN=again, ROWS=gpu.PARTS, COLUMNS=gpu.TOTALS)
    compiled(triton_loss.agreement, capability, BLOCK=gpu.SCALED)
    compiled(triton_loss.scale_rows, capability, COLUMNS=gpu.SCALED)
    compiled(triton_sparse.take_rows, capability, BLOCK=gpu.STORED)
    compiled(triton_sparse.log_normalize, capability, BLOCK=gpu.STORED)
    compiled(triton_sparse.densify, capability, COLUMNS=gpu.SCALED, BLOCK=gpu.STORED)
    compiled(triton_sparse.fill, capability, CODED=True, BLOCK=gpu.STORED)
    compiled(triton_adam.sum_squares, capability, BLOCK=gpu.PIECE)
    compiled(triton_adam.settle, capability, BLOCK=gpu.SCALED)
    compiled(triton_adam.adam, capability, BLOCK=gpu.PIECE)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """To machine code for two generations of GPUs: the compiler refuses more than the interpreter does."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 24
