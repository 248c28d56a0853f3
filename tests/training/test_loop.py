"""The loop: early stopping, best weights, seeds, divergence, interruption."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anncoder import CountAutoencoder, DenoisingAutoencoder, UndercompleteAutoencoder
from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.errors import ConfigError, DivergenceError
from anncoder.training.loop import EarlyStopping, History, RunningMean, State, fit_epoch, train
from anncoder.training.optimizer import Adam, optimizer_of, step
from anncoder.types import CSR, Batch, Loss

CPU = torch.device("cpu")


class Silent:
    def step(self) -> None:
        pass

    def epoch(self, record: dict[str, float]) -> None:
        pass


class OneBatch:
    """A loader of a single minibatch of two empty cells."""

    n_obs = 2

    def epoch(self, number: int) -> Iterator[Batch]:
        empty = torch.zeros(0, dtype=torch.int64)
        yield Batch(CSR(torch.zeros(3, dtype=torch.int64), empty, torch.zeros(0), 4), torch.ones(2), torch.arange(2))

    def __len__(self) -> int:
        return 1


class Scripted(nn.Module):
    """Its validation loss follows a script; its weight moves in every step."""

    def __init__(self, script: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.script = iter(script)

    def forward(self, batch: Batch) -> Loss:
        total = self.weight * 1.0 if self.training else torch.tensor(next(self.script))
        return Loss(total, {"part": total.detach()})


def defaults(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**settings).with_defaults_of(NetworkConfig())


def run(script: list[float], **settings: object) -> tuple[Scripted, History]:
    network = Scripted(script)
    config = defaults(**{"max_epochs": len(script), "learning_rate": 0.1, **settings})
    return network, train(network, OneBatch(), OneBatch(), config, CPU, Silent())


def test_the_best_weights_are_restored() -> None:
    network, history = run([5.0, 3.0, 4.0, 6.0], patience=10)
    assert (history.best_epoch, history.stopped, len(history.records)) == (1, "max_epochs", 4)
    assert network.weight.item() == pytest.approx(-0.2, abs=1e-5)  # two steps of Adam, not four
    assert not network.training


def test_the_last_weights_are_kept_where_that_is_asked_for() -> None:
    network, history = run([5.0, 3.0, 4.0, 6.0], patience=10, keep_best=False)
    assert history.best_epoch == 3
    assert network.weight.item() == pytest.approx(-0.4, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "rmsprop"},
        {"clip_value": 0.5},
        {"epsilon": 0.1},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "beta1": 0.0},
    ],
)
def test_optimizers_take_the_steps_of_the_textbook(settings: dict[str, Any]) -> None:
    network = nn.Linear(3, 1)
    config = defaults(learning_rate=0.1, clip_norm=0, **settings)
    optimizer = optimizer_of(network, config, CPU)
    x = torch.tensor([[1.0, -2.0, 0.1]])
    w, v = network.weight.detach().double().clone(), torch.zeros(1, 3, dtype=torch.float64)
    m = v.clone()
    for t in range(1, 4):
        total = network(x).sum() * 2
        optimizer.zero_grad()
        total.backward()
        assert bool(step(optimizer, total.detach(), config))
        g = 2 * x.double()
        if config.clip_value:
            g = g.clamp(-0.5, 0.5)
        if config.optimizer == "rmsprop":
            v = 0.9 * v + 0.1 * g**2
            w = w - 0.1 * g / (v.sqrt() + config.epsilon)
        elif config.optimizer == "sgd":
            assert config.beta1 is not None
            m = config.beta1 * m + g
            w = w - 0.1 * m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w = w - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + config.epsilon)
        torch.testing.assert_close(network.weight.detach().double(), w, rtol=1e-5, atol=1e-6)


def test_training_stops_when_the_loss_no_longer_falls() -> None:
    _, history = run([5.0, 3.0, 4.0, 4.0, 4.0, 4.0, 1.0], patience=3)
    assert (history.best_epoch, history.stopped, len(history.records)) == (1, "early", 5)
    _, history = run([5.0, 3.0, 4.0, 4.0, 4.0, 4.0, 1.0], patience=3, early_stopping=False)
    assert (history.best_epoch, history.stopped) == (6, "max_epochs")


def test_the_learning_rate_falls_on_a_plateau() -> None:
    _, history = run([5.0] * 7, patience=20, reduce_lr_patience=2, reduce_lr_factor=0.1)
    rates = [record["learning_rate"] for record in history.records]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    _, history = run([5.0] * 7, patience=20, reduce_lr_patience=0)
    assert {record["learning_rate"] for record in history.records} == {0.1}


def test_a_negative_loss_is_watched_like_any_other() -> None:
    watch = EarlyStopping(defaults(patience=2, min_delta=0.01))
    network = Scripted([])
    for epoch, loss in enumerate([-1.0, -1.5, -1.505, -1.51]):
        watch.after_epoch(loss, epoch, network)
    assert watch.best == -1.51
    assert watch.gives_up(1)  # the last two fell by less than 1 %


def global_states() -> tuple[object, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what must not change
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate()


MODELS = [
    pytest.param(lambda: CountAutoencoder(n_latent=3, n_hidden=(8,), dropout_rate=0.2), id="count"),
    pytest.param(lambda: CountAutoencoder(n_latent=3, likelihood="zinb", dispersion="gene-cell"), id="zinb"),
    pytest.param(lambda: DenoisingAutoencoder(n_latent=3, n_hidden=(8,)), id="swap"),
    pytest.param(lambda: DenoisingAutoencoder(n_latent=3, corruption="thinning", mask_predictor=False), id="thinning"),
    pytest.param(lambda: UndercompleteAutoencoder(n_latent=3, n_hidden=(8,)), id="undercomplete"),
]


@pytest.mark.parametrize("make", MODELS)
def test_the_same_seed_gives_the_same_arrays_and_no_global_state_is_touched(make, counts) -> None:  # type: ignore[no-untyped-def]
    before = global_states()
    settings = {"max_epochs": 3, "batch_size": 32, "progress": False, "threads": 1}
    first = make().fit(counts, seed=1, **settings)
    torch.rand(7)  # whatever happens in between
    np.random.rand(3)  # noqa: NPY002
    second = make().fit(counts, seed=1, **settings)
    other = make().fit(counts, seed=2, **settings)
    torch.manual_seed(0)
    np.testing.assert_array_equal(first.embed(counts), second.embed(counts))
    losses = [c for c in first.history_ if c != "seconds"]
    assert first.history_[losses].equals(second.history_[losses])
    assert list(first.valid_obs_) == list(second.valid_obs_)
    assert not np.array_equal(first.embed(counts), other.embed(counts))
    del before


@pytest.mark.parametrize("make", MODELS)
def test_no_public_verb_touches_global_random_state(make, counts) -> None:  # type: ignore[no-untyped-def]
    before = global_states()
    model = make().fit(counts, max_epochs=2, progress=False)
    model.embed(counts)
    model.denoise(counts)
    assert global_states() == before


def test_the_threads_that_a_fit_used_are_recorded(counts) -> None:  # type: ignore[no-untyped-def]
    for asked in (None, 1, 2):
        model = CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, threads=asked, progress=False)
        assert model.training_.threads == (asked or 1)  # so small a step has no work for two


def test_large_steps_take_the_threads_that_there_are(counts, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("anncoder.training.prepare.WORK_OF_A_THREAD", 1000)
    monkeypatch.setattr("anncoder.device.usable_cpus", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, progress=False)
        again = CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, threads=2, progress=False)
    finally:
        torch.set_num_threads(before)
    assert model.training_.threads == 2
    for name, value in model.network_.state_dict().items():
        assert torch.equal(value, again.network_.state_dict()[name]), name


def test_threads_are_given_back(counts) -> None:  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    CountAutoencoder(n_latent=2).fit(counts, max_epochs=1, threads=1, progress=False)
    assert torch.get_num_threads() == before


class TestDivergence:
    def test_it_is_named_and_the_last_good_weights_are_kept(self, counts) -> None:  # type: ignore[no-untyped-def]
        model = UndercompleteAutoencoder(n_latent=3, n_hidden=(), norm="none")
        with pytest.raises(DivergenceError, match=r"stopped being finite in epoch \d+, minibatch \d+") as caught:
            model.fit(
                counts,
                learning_rate=1e25,
                max_epochs=50,
                batch_size=128,
                lr_warmup_steps=0,
                averaging=False,
                clip_norm=1e30,
                valid_fraction=0,
                progress=False,
            )
        assert caught.value.term in ("reconstruction", "gradient")
        assert "learning_rate" in caught.value.remedy
        assert model.network_ is not None
        for value in model.network_.state_dict().values():
            assert torch.isfinite(value).all()

    def test_the_guilty_gene_is_named(self, counts) -> None:  # type: ignore[no-untyped-def]
        class Poisoned(nn.Module):
            """Finite until gene 4 has more than two counts in a cell."""

            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

            def forward(self, batch: Batch) -> Loss:
                values: Tensor = batch.counts.to_dense()[:, 4]
                total = (self.weight * torch.where(values > 2, torch.inf, values)).mean()
                return Loss(total, {"nll": total.detach()})

        from scipy.sparse import csr_matrix

        from anncoder.data.loaders.memory import MemoryLoader, Stored

        dense = np.ones((20, 8), dtype=np.float32)
        dense[13, 4] = 9
        loader = MemoryLoader(Stored.of(csr_matrix(dense)), np.ones(20), np.arange(20), batch_size=5)
        with pytest.raises(DivergenceError, match="the nll stopped being finite in epoch 1, minibatch 3") as caught:
            train(Poisoned(), loader, None, defaults(max_epochs=2), CPU, Silent())
        assert caught.value.rows == (13,)
        assert caught.value.columns == (4,)

    @pytest.mark.parametrize("bad", [float("inf"), float("nan")])
    def test_of_the_cells_held_out(self, bad: float) -> None:
        network = Scripted([5.0, 3.0, bad, 1.0])
        with pytest.raises(DivergenceError, match=r"the part of the cells held out stopped .* in epoch 3") as caught:
            train(network, OneBatch(), OneBatch(), defaults(max_epochs=4, learning_rate=0.1), CPU, Silent())
        assert caught.value.term == "part"
        assert (caught.value.history.best_epoch, len(caught.value.history.records)) == (1, 2)
        assert network.weight.item() == pytest.approx(-0.2, abs=1e-5)

    def test_of_the_cells_held_out_from_the_start(self, counts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
        from anncoder.training import loop

        monkeypatch.setattr(loop, "mean_loss", lambda *_: {"loss": torch.inf, "nll": torch.inf})
        model = CountAutoencoder(n_latent=3, n_hidden=(8,))
        with pytest.raises(DivergenceError, match="the nll of the cells held out"):
            model.fit(counts, max_epochs=30, progress=False)
        assert "fitted" not in repr(model)

    def test_off_the_cpu_the_last_minibatch_is_not_blamed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from anncoder.training import loop

        class Elsewhere(nn.Module):
            """Not finite in the second of three minibatches."""

            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(()))

            def forward(self, batch: Batch) -> Loss:
                total = self.weight * (torch.inf if 1 in batch.rows else 1.0)
                return Loss(total, {"nll": total.detach()})

        from scipy.sparse import csr_matrix

        from anncoder.data.loaders.memory import MemoryLoader, Stored

        loader = MemoryLoader(Stored.of(csr_matrix((6, 4))), np.ones(6), np.array([0, 2, 1, 3, 4, 5]), batch_size=2)
        network = Elsewhere()
        config = defaults(learning_rate=0.1)
        state = State(network, optimizer_of(network, config, CPU), config)
        monkeypatch.setattr(Batch, "to", lambda self, device: self)
        monkeypatch.setattr(loop, "next", lambda _: Meta(), raising=False)
        with pytest.raises(DivergenceError) as caught:
            fit_epoch(network, loader, state, config, Silent())
        assert caught.value.what == "the nll stopped being finite in epoch 1"
        assert caught.value.rows == ()
        assert network.weight.item() == pytest.approx(-0.2)  # of the two others


class Meta:
    """Stands for a parameter that is not on the CPU."""

    device = torch.device("meta")


def test_a_term_must_not_be_called_as_the_sum_is() -> None:
    mean = RunningMean()
    with pytest.raises(ConfigError, match="is called 'loss'") as caught:
        mean.add(Loss(torch.ones(()), {"loss": torch.ones(())}), 2)
    assert caught.value.code == "bad-name"


def test_an_interrupted_fit_gives_the_best_model_until_then(counts, monkeypatch, caplog) -> None:  # type: ignore[no-untyped-def]
    from anncoder.training.progress import TrainingReport

    epochs = 0

    def stop_in_the_third(self: object, record: dict[str, float]) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingReport, "epoch", stop_in_the_third)
    model = CountAutoencoder(n_latent=3).fit(counts, max_epochs=50, progress=False)
    assert model.stopped_ == "interrupted"
    assert np.isfinite(model.embed(counts)).all()
    assert "interrupted" in caplog.text


def test_losses_are_means_over_cells_not_over_minibatches(counts) -> None:  # type: ignore[no-untyped-def]
    settings = {"max_epochs": 1, "learning_rate": 1e-12, "valid_fraction": 0, "progress": False}
    model = {"n_latent": 3, "n_hidden": (8,), "norm": "none"}
    whole, parts = (CountAutoencoder(**model).fit(counts, batch_size=b, **settings) for b in (1000, 37))
    assert whole.history_["train_loss"][0] == pytest.approx(parts.history_["train_loss"][0], rel=1e-5)


def test_our_adam_is_torchs_and_goes_on_from_its_state() -> None:
    """Weights of several pieces, decay, parameters without a gradient in some steps; then each takes the other's."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((130, 150), (7,), (3, 1))]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    one: Any = Adam(ours, **settings)
    other: Any = torch.optim.Adam(theirs, **settings)
    for number in range(6):
        if number == 3:  # each goes on from the other's state
            states = copy.deepcopy(other.state_dict()), copy.deepcopy(one.state_dict())
            for optimizer, state in zip((one, other), states, strict=True):
                optimizer.load_state_dict(state)
        for k, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = None if k == 1 and number in (0, 4) else torch.randn(p.shape, generator=generator)
            q.grad = None if p.grad is None else p.grad.clone()
        assert one.descend(1.0, float("inf"))
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def torch_adam(parameters: Any, lr: float, **settings: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr, fused=True, **settings)


@pytest.mark.parametrize("adam", [Adam, torch_adam])
@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
def test_a_step_clips_the_gradient_as_torch_does(clip_norm: float, adam: Callable[..., torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    fused = adam(ours.parameters(), lr=0.1, weight_decay=0.1)  # which is not clipped
    plain = torch.optim.Adam(theirs.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(4):
        x = 10 * torch.randn(8, 5)
        for network, optimizer in ((ours, fused), (theirs, plain)):
            optimizer.zero_grad()
            loss = network(x).square().mean()
            loss.backward()
            if network is ours:
                assert bool(step(fused, loss.detach(), defaults(clip_norm=clip_norm)))
            else:
                nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
                plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adam", [Adam, torch_adam, None])
@pytest.mark.parametrize("settings", [{}, {"clip_value": 0.5}, {"optimizer": "rmsprop"}])
def test_a_step_that_is_not_finite_changes_nothing(
    settings: dict[str, Any], adam: Callable[..., torch.optim.Optimizer] | None
) -> None:
    network = nn.Linear(5, 3)
    config = defaults(clip_norm=1.0, **settings)
    optimizer = optimizer_of(network, config, CPU) if adam is None else adam(network.parameters(), lr=0.1)
    for factor in (1.0, float("inf")):  # with what a first step leaves in the optimizer, too
        before = [p.detach().clone() for p in network.parameters()]
        optimizer.zero_grad()
        loss = (network(torch.ones(2, 5)) * factor).sum()
        loss.backward()
        taken = bool(step(optimizer, loss.detach(), config))
        assert taken == (factor == 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("adam", [Adam, torch_adam, None])
@pytest.mark.parametrize("settings", [{}, {"clip_value": 0.5}, {"optimizer": "rmsprop"}])
def test_a_loss_that_is_not_finite_changes_nothing_though_its_gradient_is(
    settings: dict[str, Any], adam: Callable[..., torch.optim.Optimizer] | None
) -> None:
    network = nn.Linear(5, 3)
    config = defaults(clip_norm=1.0, **settings)
    optimizer = optimizer_of(network, config, CPU) if adam is None else adam(network.parameters(), lr=0.1)

    def state() -> list[Tensor]:
        moments = [value for values in optimizer.state.values() for value in values.values()]
        return [value.detach().clone() for value in (*network.parameters(), *moments)]

    for added in (0.0, float("nan")):
        before = state()
        optimizer.zero_grad()
        loss = network(torch.ones(2, 5)).sum() + added
        loss.backward()
        assert bool(step(optimizer, loss.detach(), config)) == (added == 0.0)
    assert len(before) > 2  # what the first step left in the optimizer, too
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_tf32_is_for_products_on_a_gpu_and_for_the_time_of_a_fit(counts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from anncoder import CountAutoencoder, device
    from anncoder.models import base

    inside: list[tuple[str, str, str]] = []
    for precision, on in (("float32", "cuda"), ("tf32", "cpu"), ("tf32", "cuda")):
        with suppress(ValueError), device.products_in(precision, torch.device(on)):
            inside.append((precision, on, torch.get_float32_matmul_precision()))
            raise ValueError("what ends a fit")
        assert torch.get_float32_matmul_precision() == "highest"
    assert [now for *_, now in inside] == ["highest", "highest", "high"]
    asked: list[str] = []
    original = device.products_in
    monkeypatch.setattr(base, "products_in", lambda p, on: (asked.append(p), original(p, on))[1])
    CountAutoencoder(n_latent=2, n_hidden=(4,)).fit(counts, max_epochs=1, precision="tf32", progress=False)
    assert asked == ["tf32"]


def test_our_adam_follows_a_parameter_whose_memory_is_replaced() -> None:
    """``p.data = ...`` keeps the parameter, and frees what it was: no step may be written there."""
    ours, theirs = (nn.Parameter(torch.ones(40, 50)) for _ in range(2))
    one: Any = Adam([ours], 0.1)
    other: Any = torch.optim.Adam([theirs], 0.1)
    for number in range(4):
        if number == 2:
            for p in (ours, theirs):
                p.data = torch.full_like(p, -3.0)
        ours.grad, theirs.grad = torch.full_like(ours, number + 1.0), torch.full_like(theirs, number + 1.0)
        assert one.descend(1.0, float("inf"))
        other.step()
        torch.testing.assert_close(ours, theirs)
    ours.grad = torch.ones(50, 40).T
    with pytest.raises(RuntimeError, match="not contiguous"):
        one.descend(1.0, float("inf"))


def test_a_fitted_network_holds_no_gradients(counts: Any) -> None:
    model = CountAutoencoder(n_hidden=(8,), n_latent=2).fit(counts, max_epochs=2, progress=False)
    assert all(p.grad is None for p in model.network_.parameters())
