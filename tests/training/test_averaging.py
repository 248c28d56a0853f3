"""Averaged weights and exact batch-norm statistics: what is validated, kept and resumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import anncoder as ac
from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.training.averaging import EVERY, MEMORY, AveragedWeights, recompute_statistics
from anncoder.training.loop import EarlyStopping, State
from anncoder.types import CSR, Batch


def defaults(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**settings).with_defaults_of(NetworkConfig())


class Layer(nn.Module):
    """A dense layer with batch normalisation, on the counts as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.product, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.01)

    def forward(self, batch: Batch) -> Any:
        return self.norm(self.product(batch.counts.to_dense()))


def cells(n: int = 50) -> Batch:
    dense = torch.rand(n, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    indptr = torch.arange(0, 4 * n + 1, 4)
    return Batch(CSR(indptr, torch.arange(4).repeat(n), dense.ravel(), 4), torch.ones(n), torch.arange(n))


def test_the_average_is_the_recursion_of_its_definition() -> None:
    network = nn.Linear(2, 1)
    averaged, expected = AveragedWeights(network, None), [p.detach().double() for p in network.parameters()]
    rng = np.random.default_rng(0)
    for step in range(1, 2001):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
        averaged.after_step(step)
        if step % EVERY == 0:
            weight = max(1 - MEMORY**EVERY, 9 / (9 + step // EVERY))
            expected = [
                e + weight * (p.detach().double() - e) for e, p in zip(expected, averaged.parameters, strict=True)
            ]
    for ours, theirs in zip(averaged.values, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
        assert float(ours.abs().max()) < 1  # of normal numbers: the average is nearer to their mean


def test_parameters_are_lent_in_place_and_given_back_also_after_an_error() -> None:
    network = Layer()
    averaged = AveragedWeights(network, cells())
    with torch.no_grad():
        network.product.weight.add_(1)
    trained, address = network.product.weight.detach().clone(), network.product.weight.data_ptr()

    def interrupted() -> None:
        with averaged.in_place():
            torch.testing.assert_close(network.product.weight, trained - 1)
            assert network.product.weight.data_ptr() == address
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(network.product.weight, trained)
    assert network.product.weight.data_ptr() == address


def test_the_statistics_are_those_of_the_cells_and_nothing_else_changes() -> None:
    network, batch = Layer(), cells()
    other = nn.Dropout()
    network.dropped = other  # type: ignore[assignment]
    recompute_statistics(network, batch)
    product = network.product(batch.counts.to_dense())
    torch.testing.assert_close(network.norm.running_mean, product.mean(0))
    torch.testing.assert_close(network.norm.running_var, product.var(0))
    assert network.norm.momentum == 0.01
    assert not any(module.training for module in network.modules())


def test_no_early_stop_before_enough_minibatches() -> None:
    watch = EarlyStopping(defaults(patience=2, patience_steps=100))
    network = nn.Linear(1, 1)
    for epoch in range(3):
        watch.after_epoch(1.0, epoch, network)
    assert not watch.gives_up(10)  # two epochs of ten
    assert watch.gives_up(50)


def test_the_step_size_rises_and_stays() -> None:
    network = nn.Linear(1, 1)
    config = defaults(learning_rate=0.1, lr_warmup_steps=4)
    state, rates = State(network, torch.optim.SGD(network.parameters(), 1.0), config), []
    for _ in range(6):
        state.before_step()
        rates.append(state.optimizer.param_groups[0]["lr"])
        state.after_step()
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


def test_a_fitted_model_has_averaged_weights_and_the_statistics_of_its_cells(counts: Any) -> None:
    settings: dict[str, Any] = {"max_epochs": 3, "threads": 1, "progress": False, "early_stopping": False}
    averaged = ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(counts, **settings)
    plain = ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(counts, averaging=False, **settings)
    assert averaged.training_.averaging is True
    # the same steps, other weights: the losses of training agree, those of validation need not
    np.testing.assert_array_equal(averaged.history_["train_loss"], plain.history_["train_loss"])
    assert (averaged.history_["valid_loss"] != plain.history_["valid_loss"]).all()
    assert np.isfinite(averaged.embed(counts)).all()
