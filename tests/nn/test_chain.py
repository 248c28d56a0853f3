"""The step without a graph: losses and gradients of the readable form, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anncoder import CountAutoencoder
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.models.count import CountNetwork
from anncoder.nn.chain import links_of
from anncoder.types import Batch, Noise, Shape


@pytest.fixture
def batch(simulated: Any) -> Batch:
    sizes = simulated.X.sum(axis=1).A1 / 100
    loader = MemoryLoader(Stored.of(simulated.X.tocsr()), sizes, range(len(sizes)), batch_size=64, seed=0)
    return next(iter(loader.epoch(0)))


def network(n_vars: int, n_batches: int = 0, **settings: Any) -> CountNetwork:
    settings = {"n_latent": 5, "n_hidden": (16, 12), **settings}
    return CountNetwork(CountAutoencoder(**settings).config, Shape(n_vars, n_batches), Noise(3)).train()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"corruption": "swap", "norm": "none"},
        {"likelihood": "poisson", "corruption": "thinning", "activation": "linear"},
        {"likelihood": "zinb", "corruption": "none", "linear_decoder": True},
        {"likelihood": "zinb", "dispersion": "gene-cell", "corruption": "mask"},
        {"dispersion": "gene-cell", "n_hidden": ()},
        {"n_batches": 3},
        {"n_batches": 2, "linear_decoder": True, "likelihood": "zinb", "corruption": "swap"},
    ],
    ids=str,
)
def test_steps_without_a_graph_have_the_bits_of_the_readable_form(batch: Batch, settings: dict[str, Any]) -> None:
    fast, readable = (network(batch.counts.n_vars, **settings) for _ in range(2))
    if n_batches := settings.get("n_batches"):
        batch = batch._replace(batch_code=torch.arange(len(batch.rows)) % n_batches)
    if settings.get("norm") == "none":  # a ReLU alone has no form: the readable one is taken
        assert fast.gradients(batch) is None
        return
    for _ in range(2):  # twice: statistics and random stream go on alike
        loss, expected = fast.gradients(batch), readable(batch)
        readable.zero_grad()
        expected.total.backward()
        assert loss is not None
        assert not loss.total.requires_grad
        assert torch.equal(loss.total, expected.total.detach())
        assert loss.terms.keys() == expected.terms.keys()
        for (name, left), right in zip(fast.named_parameters(), readable.parameters(), strict=True):
            if left.requires_grad:
                assert left.grad is not None, name
                assert torch.equal(left.grad, right.grad), name
                assert left.grad.is_contiguous(), name
            else:
                assert left.grad is None, name
        assert all(map(torch.equal, fast.buffers(), readable.buffers()))


@pytest.mark.parametrize(
    "settings",
    [
        {"likelihood": "gaussian"},
        {"dispersion": "shared"},
        {"standardize": True},
        {"dropout_rate": 0.1},
        {"l2": 1e-3},
        {"likelihood": "zinb", "ridge_pi": 0.1},
        {"corruption": "gaussian"},
        {"activation": "gelu"},
        {"norm": "layer"},
    ],
    ids=str,
)
def test_others_take_the_readable_form_and_draw_nothing(batch: Batch, settings: dict[str, Any]) -> None:
    net = network(batch.counts.n_vars, **settings)
    assert net.gradients(batch) is None
    twin = network(batch.counts.n_vars, **settings)
    assert torch.equal(net(batch).total, twin(batch).total)


def test_hooks_are_called(batch: Batch) -> None:
    net, seen = network(batch.counts.n_vars), []
    handle = net.decoder.register_forward_hook(lambda *_: seen.append(1))
    assert net.gradients(batch) is None
    handle.remove()
    assert net.gradients(batch) is not None


def test_other_data_and_single_cells_take_the_readable_form(batch: Batch) -> None:
    net = network(batch.counts.n_vars)
    assert net.gradients(batch.head(1)) is None
    assert net.gradients(batch._replace(size_factor=batch.size_factor.double())) is None


def test_a_subclass_with_a_forward_of_its_own_is_not_passed_by(batch: Batch) -> None:
    class Own(CountNetwork):
        """A network of a user."""

    net = Own(CountAutoencoder(n_latent=5).config, Shape(batch.counts.n_vars), Noise(0)).train()
    assert net.gradients(batch) is None


def test_no_links_of_layers_that_have_no_form() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())
    assert links_of(net, net, ()) is None
    assert links_of(net, net[:1], ()) is not None
