"""Going on after a kill: to the bits of a run that nobody disturbed, and never with another run's state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from anncoder import SAUCIE, CountAutoencoder, DenoisingAutoencoder, IterableSource, NetSNE, UndercompleteAutoencoder
from anncoder.errors import ConfigError, FileError, ResourceError
from anncoder.io import atomic
from anncoder.models import find, names
from anncoder.models.count import CountNetwork
from anncoder.training import checkpoint
from anncoder.training.progress import TrainingReport
from anncoder.types import Noise, Rank

Make = Callable[[], Any]
KilledAfter = Callable[[int], None]

SETTINGS = {"batch_size": 16, "max_epochs": 6, "progress": False, "threads": 1, "seed": 3}
RUNS: list[Any] = [
    pytest.param(
        lambda: CountAutoencoder(n_latent=3, n_hidden=(8,), dropout_rate=0.3, l1=1e-3, warmup_steps=30),
        {"reduce_lr_patience": 1, "reduce_lr_factor": 0.5},  # at once where an epoch is no better than the last mark
        id="dropout",
    ),
    pytest.param(
        lambda: CountAutoencoder(n_latent=3, n_hidden=(8,), likelihood="zinb", dispersion="gene-cell"),
        {"optimizer": "rmsprop"},
        id="zinb",
    ),
    pytest.param(lambda: CountAutoencoder(n_latent=3, n_hidden=(8,)), {"optimizer": "sgd"}, id="momentum"),
    pytest.param(lambda: CountAutoencoder(n_latent=3), {"optimizer": "sgd", "beta1": 0.0}, id="no momentum"),
    pytest.param(lambda: DenoisingAutoencoder(n_latent=3, n_hidden=(8,)), {"valid_fraction": 0.0}, id="swap"),
    pytest.param(
        lambda: DenoisingAutoencoder(n_latent=3, n_hidden=(8,), corruption="thinning", mask_predictor=False),
        {"weight_decay": 1e-3, "keep_best": False},
        id="thinning",
    ),
    pytest.param(
        lambda: DenoisingAutoencoder(n_latent=3, n_hidden=(8,), corruption="gaussian"),
        {"clip_value": 0.5},
        id="gaussian",
    ),
    pytest.param(
        lambda: UndercompleteAutoencoder(n_latent=3, n_hidden=(8,)),
        # nothing counts as an improvement: the step size falls every other epoch, the sixth is the last; and as it is
        # far too large, the first is the best
        {
            "learning_rate": 0.2,
            "max_epochs": 40,
            "min_delta": 1e6,
            "reduce_lr_patience": 2,
            "reduce_lr_factor": 0.9,
            "patience": 5,
            "patience_steps": 0,
            "lr_warmup_steps": 0,
            "averaging": False,
        },
        id="falling-rate-and-early-stop",
    ),
]


class Killed(BaseException):
    """As far as the code under test is concerned, the end of the process."""


@pytest.fixture
def every_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the state be kept after every minibatch and epoch."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "COST", float("inf"))
    monkeypatch.setattr(atomic, "sync", lambda path: None)  # it is the power that is not cut here


@pytest.fixture
def every_epoch(every_minibatch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the state be kept after every epoch, and not before it is over."""
    see = checkpoint.FitCheckpointer.after_step
    monkeypatch.setattr(
        checkpoint.FitCheckpointer, "after_step", lambda self, state: None if state.mean.n_steps else see(self, state)
    )


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> KilledAfter:
    """Return a function that sets the minibatch, counted from the start of the process, at which it dies."""
    step, left = TrainingReport.step, 0

    def count(self: TrainingReport) -> None:
        nonlocal left
        step(self)
        left -= 1
        if left == 0:
            raise Killed

    def kill_after(n_steps: int) -> None:
        nonlocal left
        left = n_steps
        monkeypatch.setattr(TrainingReport, "step", count)

    return kill_after


def assert_same_run(left: Any, right: Any) -> None:
    """Compare everything a fit leaves, to the bit."""
    for name, value in left.network_.state_dict().items():
        assert torch.equal(value, right.network_.state_dict()[name]), name
    columns = [name for name in left.history_ if name != "seconds"]
    assert list(left.history_) == list(right.history_)
    pd.testing.assert_frame_equal(left.history_[columns], right.history_[columns], check_exact=True)
    assert (left.best_epoch_, left.stopped_) == (right.best_epoch_, right.stopped_)


@pytest.mark.usefixtures("every_minibatch")
@pytest.mark.parametrize(("make", "settings"), RUNS)
def test_a_killed_fit_ends_with_the_same_bits(
    make: Make, settings: dict[str, Any], counts: anndata.AnnData, tmp_path: Path, killed_after: KilledAfter
) -> None:
    # 7 minibatches an epoch (8 where none are held out): within one, at the end of one, in a later one
    compare(make, counts, {**SETTINGS, **settings}, tmp_path / "kept", killed_after, at=(4, 3, 16))


@pytest.mark.usefixtures("every_minibatch")
@pytest.mark.parametrize(("make", "settings"), [RUNS[0], RUNS[2]])
def test_a_fit_from_disk_killed_within_an_epoch(
    make: Make, settings: dict[str, Any], counts: anndata.AnnData, tmp_path: Path, killed_after: KilledAfter
) -> None:
    counts.write_h5ad(tmp_path / "counts.h5ad")
    data = str(tmp_path / "counts.h5ad")
    compare(make, data, {**SETTINGS, **settings}, tmp_path / "kept", killed_after, at=(4, 19))


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize(("make", "settings"), [RUNS[0], RUNS[4], RUNS[5]])
def test_a_fit_that_keeps_whole_epochs(
    make: Make, settings: dict[str, Any], counts: anndata.AnnData, tmp_path: Path, killed_after: KilledAfter
) -> None:
    compare(make, counts, {**SETTINGS, **settings}, tmp_path / "kept", killed_after, at=(10, 24))


@pytest.mark.usefixtures("every_minibatch")
@pytest.mark.parametrize("name", names())
def test_a_checkpoint_holds_whatever_a_model_changes_in_training(
    name: str, counts: anndata.AnnData, tmp_path: Path, killed_after: KilledAfter
) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
    needed = {"batch_key": "plate"} if find(name)().config.batches == "needed" else {}
    settings = {**SETTINGS, "batch_size": 32, "max_epochs": 3, **needed}
    compare(find(name), counts, settings, tmp_path / "kept", killed_after, at=(2, 3))


def compare(make: Make, data: Any, settings: Any, kept: Path, killed_after: KilledAfter, at: tuple[int, ...]) -> None:
    """Compare a fit that is killed after so many minibatches, again and again, with one that is not."""
    whole = make().fit(data, **settings)
    for n_steps in at:
        killed_after(n_steps)
        with pytest.raises(Killed):
            make().fit(data, checkpoint=kept, **settings)
        assert (kept / checkpoint.NAME).is_file()
    killed_after(-1)
    resumed = make().fit(data, checkpoint=kept, **settings)
    assert_same_run(whole, resumed)
    np.testing.assert_array_equal(whole.embed(data), resumed.embed(data))
    assert not kept.exists()


@pytest.mark.usefixtures("every_minibatch")
def test_cells_in_an_order_of_their_own_are_all_seen_in_every_epoch(
    counts: anndata.AnnData, tmp_path: Path, killed_after: KilledAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, seen = np.random.default_rng(0), []

    def make_blocks() -> Any:
        for rows in np.array_split(generator.permutation(counts.n_obs), 5):
            yield counts.X[rows], rows

    gradients = CountNetwork.gradients

    def spy(self: CountNetwork, batch: Any) -> Any:
        seen.extend(batch.rows.tolist())
        return gradients(self, batch)

    monkeypatch.setattr(CountNetwork, "gradients", spy)
    source = IterableSource(make_blocks, counts.var_names, counts.n_obs)
    settings: dict[str, Any] = {**SETTINGS, "checkpoint": tmp_path / "kept"}
    killed_after(10)  # of 7 an epoch
    with pytest.raises(Killed):
        CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(source, **settings)
    killed_after(-1)
    seen.clear()
    model = CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(source, **settings)
    assert len(model.history_) == 6
    assert (np.bincount(seen)[np.unique(seen)] == 5).all()
    assert len(seen) == 5 * 108


def test_what_is_tested_above_does_happen(counts: anndata.AnnData) -> None:
    make, settings = RUNS[-1].values
    model = make().fit(counts, **{**SETTINGS, **settings})
    assert (len(model.history_), model.best_epoch_, model.stopped_) == (6, 0, "early")
    assert len(set(model.history_["learning_rate"])) == 3


@pytest.mark.usefixtures("every_minibatch")
def test_an_interrupted_fit_goes_on(counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, _ = RUNS[0].values
    whole = make().fit(counts, **SETTINGS)

    def stop(self: object, record: dict[str, float]) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    (tmp_path / "mine").write_text("precious")
    with monkeypatch.context() as patched:
        patched.setattr(TrainingReport, "epoch", stop)
        assert make().fit(counts, checkpoint=tmp_path, **SETTINGS).stopped_ == "interrupted"
    assert_same_run(whole, make().fit(counts, checkpoint=tmp_path, **SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.usefixtures("every_minibatch")
def test_an_empty_folder_of_the_users_stays(counts: anndata.AnnData, tmp_path: Path, killed_after: KilledAfter) -> None:
    make, _ = RUNS[0].values
    for kill in (False, True):
        if kill:
            killed_after(10)
            with pytest.raises(Killed):
                make().fit(counts, checkpoint=tmp_path, **SETTINGS)
            killed_after(-1)
        make().fit(counts, checkpoint=tmp_path, **SETTINGS)
        assert not list(tmp_path.iterdir())
    make().fit(counts, checkpoint=tmp_path / "ours", **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_written_after_the_first_epoch_and_then_seldom(
    counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = checkpoint.FitCheckpointer._store, []

    def counted(self: checkpoint.FitCheckpointer, state: Any) -> None:
        kept.append((len(state.records), state.mean.n_steps))
        keep(self, state)

    monkeypatch.setattr(checkpoint.FitCheckpointer, "_store", counted)
    CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, checkpoint=tmp_path, **SETTINGS)
    assert kept == [(1, 0)]
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    kept.clear()
    CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, checkpoint=tmp_path, **SETTINGS)
    assert 1 <= len(kept) < 42 / 4  # writing takes longer than a minibatch here, and may take 2 % of the time


def test_a_process_more_than_before_begins_its_own_noise(
    counts: anndata.AnnData, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, restore = [], checkpoint.FitCheckpointer.restore
    cpu = torch.device("cpu")

    def restored(self: checkpoint.FitCheckpointer, state: Any) -> None:
        stored = self.stored
        for rank in range(2):
            self.stored, self.process, self.noise = stored, Rank(rank, 2), Noise(3)
            self.noise.seed_for_rank(rank)
            restore(self, state)
            drawn.append(torch.rand(4, generator=self.noise.on(cpu)).tolist())
        raise Killed

    monkeypatch.setattr(checkpoint.FitCheckpointer, "restore", restored)
    with pytest.raises(Killed):
        CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, checkpoint=unfinished, **SETTINGS)
    assert drawn[0] != drawn[1]


@pytest.fixture
def unfinished(counts: anndata.AnnData, tmp_path: Path, every_minibatch: None, killed_after: KilledAfter) -> Path:
    """Return a folder with a checkpoint of the second epoch."""
    killed_after(10)
    with pytest.raises(Killed):
        CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, checkpoint=tmp_path / "kept", **SETTINGS)
    killed_after(-1)
    return tmp_path / "kept"


class TestAnotherRun:
    @pytest.mark.parametrize(
        ("hyper", "settings", "said"),
        [
            ({"n_latent": 4}, {}, "n_latent was 3, is 4"),
            ({"n_hidden": (9,)}, {}, "n_hidden was [8], is [9]"),
            ({}, {"seed": 4}, "seed was 3, is 4"),
            ({}, {"max_epochs": 7}, "max_epochs was 6, is 7"),
        ],
    )
    def test_other_settings(
        self, hyper: Any, settings: Any, said: str, counts: anndata.AnnData, unfinished: Path
    ) -> None:
        before = (unfinished / checkpoint.NAME).read_bytes()
        model = CountAutoencoder(**{"n_latent": 3, "n_hidden": (8,), **hyper})
        with pytest.raises(ConfigError) as caught:
            model.fit(counts, checkpoint=unfinished, **{**SETTINGS, **settings})
        assert caught.value.code == "other-run"
        assert said in caught.value.what
        assert (unfinished / checkpoint.NAME).read_bytes() == before

    def test_another_model(self, counts: anndata.AnnData, unfinished: Path) -> None:
        with pytest.raises(ConfigError, match="model was count, is undercomplete"):
            UndercompleteAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, checkpoint=unfinished, **SETTINGS)

    @pytest.mark.parametrize("change", ["cells", "genes", "value"])
    def test_other_data(self, change: str, counts: anndata.AnnData, unfinished: Path) -> None:
        if change == "cells":
            other = counts[:100].copy()
        elif change == "genes":
            other = counts.copy()
            other.var_names = other.var_names[::-1]
        else:
            other = counts.copy()
            other.X[5, 5] += 1
        with pytest.raises(ConfigError) as caught:
            CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(other, checkpoint=unfinished, **SETTINGS)
        said = {"cells": "number of cells was 120, is 100", "genes": "other gene names", "value": "other library sizes"}
        assert said[change] in caught.value.what

    @pytest.mark.parametrize("change", ["gene means", "batch codes", "coordinates to fit to"])
    def test_data_with_the_same_library_sizes(
        self,
        change: str,
        counts: anndata.AnnData,
        tmp_path: Path,
        every_minibatch: None,
        killed_after: KilledAfter,
    ) -> None:
        counts.X = counts.X.log1p()
        counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "a", "b")
        counts.obsm["X_map"] = np.arange(2.0 * counts.n_obs, dtype=np.float32).reshape(-1, 2)
        other = counts.copy()
        model: Any = UndercompleteAutoencoder(n_latent=3, n_hidden=(8,), transform="none")
        settings: dict[str, Any] = {**SETTINGS, "checkpoint": tmp_path / "kept"}
        if change == "gene means":
            other.X = counts.X[:, [1, 0, *range(2, counts.n_vars)]].sorted_indices()
        elif change == "batch codes":
            model, settings["batch_key"] = SAUCIE(n_hidden=(8,), transform="none", lambda_b=0.1), "plate"
            other.obs["plate"] = other.obs["plate"].to_numpy()[::-1]
        else:
            model = NetSNE(n_hidden=(8,), transform="none", target="X_map")
            other.obsm["X_map"][5, 1] += 1
        killed_after(5)
        with pytest.raises(Killed):
            model.fit(counts, **settings)
        killed_after(-1)
        with pytest.raises(ConfigError, match=rf"is another one: other {change} \[") as caught:
            model.fit(other, **settings)
        assert caught.value.code == "other-run"
        model.fit(counts, **settings)

    def test_the_same_cells_in_another_order(self, counts: anndata.AnnData, unfinished: Path) -> None:
        source = IterableSource(lambda: [(counts.X, np.arange(120))], counts.var_names, counts.n_obs)
        with pytest.raises(ConfigError, match="within an epoch of cells in another order"):
            CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(source, checkpoint=unfinished, **SETTINGS)

    def test_where_it_is_computed_makes_no_other_run_but_a_change_is_said(
        self,
        counts: anndata.AnnData,
        unfinished: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(checkpoint, "version", lambda _: "9.9")
        settings = {**SETTINGS, "device": "cpu"}
        model = CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, checkpoint=unfinished, **settings)
        assert len(model.history_) == 6
        assert "may differ from that of an undisturbed run: anncoder 9.9, until then 0." in caplog.text


class TestDamage:
    def test_every_changed_byte_is_found(self, unfinished: Path) -> None:
        path = unfinished / checkpoint.NAME
        whole, generator = path.read_bytes(), np.random.default_rng(0)
        cuts = [whole[:n] for n in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1)]
        places = generator.integers(0, len(whole), 60).tolist()
        changed = [whole[:at] + bytes([whole[at] ^ 1 << int(generator.integers(8))]) + whole[at + 1 :] for at in places]
        good = checkpoint.decoded(whole, path)
        for content in [*cuts, *changed, whole + b"x", b"{}", b"\xff" * 64]:
            try:
                kept = checkpoint.decoded(content, path)
            except FileError as error:
                assert error.code == "bad-checkpoint"  # noqa: PT017 - what is equal needs no error
            else:  # such as a space of the header's padding
                assert kept.numbers == good.numbers
                assert all(torch.equal(value, good.tensors[name]) for name, value in kept.tensors.items())

    def test_it_is_refused_before_training(self, counts: anndata.AnnData, unfinished: Path) -> None:
        path = unfinished / checkpoint.NAME
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(FileError, match="cannot be used") as caught:
            CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, checkpoint=unfinished, **SETTINGS)
        assert caught.value.code == "bad-checkpoint"

    def test_a_folder_that_cannot_be(self, counts: anndata.AnnData, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        for folder in (tmp_path / "file", tmp_path / "no" / "folder"):
            with pytest.raises(ResourceError):
                CountAutoencoder(n_latent=3).fit(counts, checkpoint=folder, **SETTINGS)
        assert (tmp_path / "file").read_text() == "mine"
