"""The run folder beside an output: whenever a run is killed, the model there is the one that made the output."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anncoder.cli import run_folder as run
from anncoder.cli.run_folder import HISTORY, LOG, METRICS, MODEL, SETTINGS, UNFINISHED

TEXTS = (SETTINGS, HISTORY, LOG)  # here, each has the number of its run
TAG = "weights.safetensors"  # its time of change tells the models of this test apart; what is in it, all the same


class Killed(BaseException):
    """A SIGKILL: from here on nothing happens on the disk."""


class Disk:
    """Counts what is done to the disk, and does nothing from one point on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dies_at: int | None = None
        self.done = 0
        for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            if self.dies_at is not None:
                if self.done >= self.dies_at:
                    raise Killed
                self.done += 1
            return act(*given, **named)

        return counted


def life(out: Path, number: int, ends: str, sound: Path) -> Iterator[str]:
    """Do what ``anncoder train`` does to the folder; yield where it is."""
    run.refuse_run_folder(out)
    folder = run.new_run_folder(out)
    with run.older_kept(folder):
        for name in (SETTINGS, LOG):
            (folder / name).write_text(str(number))
        if ends == "early":
            raise RuntimeError
        run.set_aside(folder)
        shutil.copytree(sound, folder / MODEL)
        (folder / MODEL / TAG).touch()
        tag(folder / MODEL, number)
        (folder / HISTORY).write_text(str(number))
        if ends == "late":
            raise RuntimeError
        out.write_text(str(number))
        yield "between"
        run.forget_previous(folder)
        yield "over"
        (folder / METRICS).write_text(f'{{"output": "{out.name}"}}')


def tag(model: Path, number: int | None = None) -> int:
    """Set, or read, which run a model is of."""
    if number is not None:
        os.utime(model / TAG, (number, number))
    return int((model / TAG).stat().st_mtime)


def lived(out: Path, number: int, ends: str, sound: Path) -> str:
    """Run it to its end, whichever that is; return where it was last."""
    at = "begun"
    try:
        for at in life(out, number, ends, sound):  # noqa: B007 - the last one is returned
            pass
    except (RuntimeError, Killed):
        pass
    return at


@pytest.mark.parametrize("then", ["early", "late", "whole"])
@pytest.mark.parametrize("ends", ["early", "late", "whole"])
@pytest.mark.parametrize("older", [True, False])
def test_a_kill_at_any_point(
    older: bool, ends: str, then: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    for point in range(60):
        out = tmp_path / f"{point}.h5ad"
        folder = run.run_folder(out)
        if older:
            assert lived(out, 1, "whole", model_folder) == "over"
        disk.dies_at, disk.done = point, 0
        at = lived(out, 2, ends, model_folder)
        killed, disk.dies_at = disk.done >= point, None
        lived(out, 3, then, model_folder)
        run.refuse_run_folder(out)  # never refused for good
        if out.exists() and (folder / MODEL).exists() and at != "between":
            made = out.read_text()
            assert str(tag(folder / MODEL)) == made, point
            assert [(folder / name).read_text() for name in TEXTS if (folder / name).exists()] == [made] * 3, point
        part = folder / UNFINISHED
        records = {(part / name).read_text() for name in TEXTS if (part / name).exists()}
        models = {str(tag(part / MODEL))} if (part / MODEL).exists() else set()
        assert len(records | models) <= 1, point  # of one run
        if not killed:
            return
    raise AssertionError("it never came to its end")
