"""What a training says: bars, log lines, the end, and nothing that it cannot know."""

from __future__ import annotations

import io
import logging
import sys
import time
import types
from typing import Any

import pytest

from anncoder.config import TrainingConfig
from anncoder.models import find
from anncoder.training import progress
from anncoder.training.loop import History
from anncoder.training.progress import TrainingReport, bar, ending, still_improving


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**settings).with_defaults_of(find("count").config_class())


def record(epoch: int, loss: float) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": loss, "valid_loss": loss}


def report_of(losses: list[float], caplog: pytest.LogCaptureFixture, **settings: Any) -> list[str]:
    with caplog.at_level(logging.DEBUG, "anncoder"), TrainingReport(10, training(**settings), show=None) as report:
        for epoch, loss in enumerate(losses):
            report.step()
            report.epoch(record(epoch, loss))
    return caplog.messages


def test_where_training_may_stop_early_no_end_is_foretold(caplog: pytest.LogCaptureFixture) -> None:
    lines = report_of([3.0, 2.0, 1.0], caplog)
    assert lines[0] == "epoch 1  train 3  valid 3"
    assert not any("left" in line or "400" in line for line in lines)


def test_the_time_left_is_that_of_epochs_after_the_first(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 102.0, 104.0])  # the first took 100 s, in which kernels were compiled
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    lines = report_of([3.0, 2.0, 1.0], caplog, early_stopping=False, max_epochs=10)
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/10", "epoch 2/10", "epoch 3/10"]
    assert "left" not in lines[0]
    assert lines[1].endswith("16 s left")
    assert lines[2].endswith("14 s left")


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        ("early", "stopped after epoch 3, no longer improving (best: epoch 2)"),
        ("max_epochs", "reached max_epochs = 3 (best: epoch 2)"),
        ("interrupted", "stopped after epoch 3, interrupted (best: epoch 2)"),
    ],
)
def test_the_end_says_when_and_why(stopped: str, said: str) -> None:
    assert ending(History([record(0, 3), record(1, 1), record(2, 2)], 1, stopped)) == said


def test_an_end_while_the_loss_was_falling_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    falling = History([record(0, 3), record(1, 2)], 1, "max_epochs")
    flat = History([record(0, 2), record(1, 2 - 1e-7)], 1, "max_epochs")
    assert still_improving(falling, 1e-4)
    assert not still_improving(flat, 1e-4)
    assert not still_improving(History([record(0, 3)], 0, "max_epochs"), 1e-4)
    with TrainingReport(10, training(max_epochs=2), show=False) as report:
        report.ended(flat)
        assert not caplog.messages
        report.ended(falling)
    assert "max_epochs = 2" in caplog.text
    assert "--set max_epochs=8" in caplog.text


def test_compiling_is_said_while_it_is_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    names = {"work": "numba.core.compiler"}

    def working() -> str:
        source = "def compile():\n    import time\n    time.sleep(0.2)\n"
        frame: dict[str, Any] = {"__name__": names["work"]}
        exec(source, frame)
        with caplog.at_level(logging.INFO, "anncoder"), TrainingReport(1, training(), show=None) as report:
            frame["compile"]()
            report.step()
        found, _ = caplog.text, caplog.clear()
        return found

    assert "compiling the kernels, once" in working()
    names["work"] = "slow_disk"
    assert "compiling" not in working()


def test_a_notebook_without_ipywidgets_has_one_line_that_renews_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    shown = bar(4, "batch", mininterval=0)
    shown.update(4)
    shown.close()
    assert "\r" in out.getvalue()
    assert "\n" not in out.getvalue()
