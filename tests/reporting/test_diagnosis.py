"""Diagnoses in words: each is made by a curve or latent built for it, and not by a good one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from anncoder import CountAutoencoder
from anncoder.config import TrainingConfig
from anncoder.reporting.diagnosis import (
    diagnose,
    ending,
    in_parts,
    none_held_out,
    overfitting,
    step_too_large,
    still_improving,
    units_unused,
)

EPOCHS = np.arange(40.0)
GOOD = 1 + np.exp(-EPOCHS / 4)  # flat at the end
TRAINING = TrainingConfig().with_defaults_of(CountAutoencoder().config)


def history(train: Any, valid: Any = None, **terms: Any) -> pd.DataFrame:
    columns = {"train_loss": train, **terms} | ({} if valid is None else {"valid_loss": valid})
    return pd.DataFrame({name: np.asarray(values, dtype=float) for name, values in columns.items()})


class TestEnding:
    def test_by_itself(self) -> None:
        found = ending(history(GOOD, GOOD), 30, "early", TRAINING)
        assert found.severity == "good"
        assert "ended by itself after 40 epochs" in found.text
        assert "weights of epoch 31" in found.text
        assert "held-out" in found.text
        assert "fitted cells" in ending(history(GOOD), 30, "early", TRAINING).text

    def test_a_first_epoch_that_is_never_surpassed(self) -> None:
        found = ending(history(GOOD, GOOD), 0, "early", TRAINING)
        assert (found.code, found.severity) == ("no-better", "warning")
        assert "never below the first epoch's" in found.text

    def test_all_epochs(self) -> None:
        assert ending(history(GOOD, GOOD), 39, "max_epochs", TRAINING).code == "all-epochs"

    def test_interrupted(self) -> None:
        found = ending(history(GOOD, GOOD), 39, "interrupted", TRAINING)
        assert (found.code, found.severity) == ("interrupted", "warning")

    def test_diverged_asks_for_a_tenth_of_the_step(self) -> None:
        found = ending(history(GOOD, GOOD), 5, "diverged", TRAINING.model_copy(update={"learning_rate": 0.5}))
        assert (found.code, found.severity) == ("diverged", "warning")
        assert "learning_rate=0.05 " in found.remedy


class TestStillImproving:
    def test_a_straight_fall(self) -> None:
        found = still_improving(history(np.linspace(2, 1, 40)), 39, "max_epochs")
        assert found is not None
        assert found.code == "still-improving"
        assert "26% of its whole fall came in the last 10 epochs" in found.text  # 10 of 39 steps
        assert "max_epochs=160" in found.remedy

    def test_the_validation_loss_decides_where_there_is_one(self) -> None:
        falling = np.linspace(2, 1, 40)
        assert still_improving(history(falling, GOOD), 39, "max_epochs") is None
        assert still_improving(history(GOOD, falling), 39, "max_epochs") is not None

    def test_not_of_a_flat_end_of_an_early_best_or_of_a_stop_by_itself(self) -> None:
        assert still_improving(history(GOOD, GOOD), 39, "max_epochs") is None
        assert still_improving(history(np.linspace(2, 1, 40)), 20, "max_epochs") is None
        assert still_improving(history(np.linspace(2, 1, 40)), 39, "early") is None

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_a_few_epochs_tell_nothing(self, n: int) -> None:
        found = still_improving(history(GOOD[:n]), n - 1, "max_epochs")
        assert found is not None
        assert found.code == "too-short"


class TestOverfitting:
    falling = np.linspace(2, 1, 40)
    turning = np.where(EPOCHS < 20, 2 - EPOCHS / 20, 1 + (EPOCHS - 20) / 40)

    def test_held_out_cells_get_worse(self) -> None:
        found = overfitting(history(self.falling, self.turning), 20, TRAINING)
        assert found is not None
        assert (found.code, found.severity) == ("overfitting", "note")
        assert "after epoch 21" in found.text
        assert "from before" in found.text

    def test_it_is_a_warning_where_the_last_weights_are_kept(self) -> None:
        last = TRAINING.model_copy(update={"keep_best": False})
        found = overfitting(history(self.falling, self.turning), 39, last)  # of which the weights are
        assert found is not None
        assert found.severity == "warning"
        assert "after epoch 21" in found.text
        assert "keep_best=True" in found.remedy

    def test_not_of_parallel_curves_without_held_out_cells_or_where_both_rise(self) -> None:
        assert overfitting(history(self.falling, self.falling), 39, TRAINING) is None
        assert overfitting(history(GOOD, GOOD), 30, TRAINING) is None
        assert overfitting(history(self.falling), 20, TRAINING) is None
        assert overfitting(history(self.turning, self.turning), 20, TRAINING) is None


class TestStepTooLarge:
    def test_jumps(self) -> None:
        jumping = GOOD.copy()
        jumping[12] += 0.5  # 0.5 + exp(-3) - exp(-11/4), of a fall of 1
        found = step_too_large(history(jumping), TRAINING)
        assert found is not None
        assert found.code == "step-too-large"
        assert "in epoch 13 by 49%" in found.text
        jumping[12] += 5
        found = step_too_large(history(jumping), TRAINING)
        assert found is not None
        assert "more than its whole fall" in found.text

    def test_a_loss_that_stays_is_no_progress(self) -> None:
        found = step_too_large(history(np.full(10, 0.17)), TRAINING)
        assert found is not None
        assert found.code == "no-progress"

    def test_a_rising_loss_is_no_progress(self) -> None:
        found = step_too_large(history(np.linspace(1, 2, 10)), TRAINING)
        assert found is not None
        assert found.code == "no-progress"

    def test_penalties_may_rise_as_they_are_warmed_up(self) -> None:
        warmed = GOOD + np.where(EPOCHS > 5, 2.0, 0.0)
        assert step_too_large(history(warmed, train_nll=GOOD, train_kl=warmed - GOOD), TRAINING) is None
        assert step_too_large(history(warmed), TRAINING) is not None

    def test_not_of_a_good_curve_with_a_little_noise_or_of_few_epochs(self) -> None:
        noise = np.random.default_rng(0).normal(0, 0.01, len(GOOD))
        assert step_too_large(history(GOOD + noise), TRAINING) is None
        assert step_too_large(history([1, 2, 1]), TRAINING) is None


class TestLatent:
    latent = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)

    def test_unused_units(self) -> None:
        found = units_unused(self.latent * [1, 1, 1e-3, 0])
        assert found is not None
        assert found.code == "units-unused"
        assert "2 of 4" in found.text
        assert "n_latent=2" in found.remedy
        assert units_unused(self.latent) is None
        assert units_unused(self.latent[:1]) is None

    def test_a_constant_latent(self) -> None:
        found = units_unused(np.ones((50, 3)) + 1e-7 * self.latent[:50, :3])
        assert found is not None
        assert (found.code, found.severity) == ("latent-constant", "warning")

    def test_parts(self) -> None:
        apart = self.latent + 100 * (np.arange(200) < 80)[:, None]
        found = in_parts(apart)
        assert found is not None
        assert "2 parts, of 120, 80 cells" in found.text
        assert in_parts(self.latent) is None

    def test_none_held_out(self) -> None:
        assert none_held_out(history(GOOD, GOOD)) is None
        found = none_held_out(history(GOOD))
        assert found is not None
        assert "valid_fraction=0.1" in found.remedy


def test_warnings_come_first(fitted: CountAutoencoder, simulated: Any) -> None:
    found = diagnose(fitted, fitted.embed(simulated))
    assert [finding.code for finding in found][:2] == ["too-short", "all-epochs"]
    rank = [("warning", "note", "good").index(finding.severity) for finding in found]
    assert rank == sorted(rank)


def test_nothing_is_good_beside_a_warning(
    fitted: CountAutoencoder, simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = pd.DataFrame({"train_loss": GOOD, "train_nll": GOOD, "valid_loss": GOOD})
    for name, value in {"history_": quiet, "best_epoch_": 30, "stopped_": "early"}.items():
        monkeypatch.setattr(fitted, name, value)
    latent = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    assert [(one.code, one.severity) for one in diagnose(fitted, latent)] == [("converged", "good")]
    found = diagnose(fitted, np.ones_like(latent))
    assert [one.code for one in found] == ["latent-constant", "converged"]
    assert [one.severity for one in found] == ["warning", "note"]


def test_a_real_fit_with_a_step_that_is_too_large(fitted: CountAutoencoder, simulated: Any) -> None:
    wild = CountAutoencoder(n_latent=2, n_hidden=(8,), norm="none").fit(
        simulated, max_epochs=6, learning_rate=3.0, clip_norm=0, averaging=False, early_stopping=False, progress=False
    )
    codes = {finding.code for finding in diagnose(wild, wild.embed(simulated))}
    assert codes & {"step-too-large", "no-progress", "latent-constant"}
