"""The run folder beside an output: whenever a run is killed, the model there is the one that made the output."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anncoder.cli import run_folder as run
from anncoder.cli.run_folder import (
    CHECKPOINT,
    HISTORY,
    LOG,
    METRICS,
    MODEL,
    OUTPUTS,
    PREVIOUS,
    REPLACED,
    SETTINGS,
    UNFINISHED,
)

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


def life(out: Path, number: int, ends: str, sound: Path) -> None:
    """Do what ``anncoder train`` does to the folder."""
    run.refuse_run_folder(out)
    folder = run.run_folder(out)
    part = run.start_run(folder)
    for name in (SETTINGS, LOG):
        (part / name).write_text(str(number))
    if ends == "early":
        raise RuntimeError
    with run.results_replaced(folder, [out]):
        shutil.copytree(sound, part / MODEL)
        (part / MODEL / TAG).touch()
        tag(part / MODEL, number)
        (part / HISTORY).write_text(str(number))
        (part / METRICS).write_text(f'{{"output": "{out.name}"}}')
        if ends == "late":
            raise RuntimeError
        out.write_text(str(number))
        os.utime(out, (number, number))  # two of this test are younger than a clock tells them apart


def tag(model: Path, number: int | None = None) -> int:
    """Set, or read, which run a model is of."""
    if number is not None:
        os.utime(model / TAG, (number, number))
    return int((model / TAG).stat().st_mtime)


def lived(out: Path, number: int, ends: str, sound: Path) -> bool:
    """Run it to its end, whichever that is; tell whether nothing cut it short."""
    try:
        life(out, number, ends, sound)
    except (RuntimeError, Killed):
        return False
    return True


def models(folder: Path) -> set[str]:
    """Return which runs have a model, wherever it is."""
    places = (folder / MODEL, folder / UNFINISHED / MODEL, folder / UNFINISHED / REPLACED)
    return {str(tag(place)) for place in places if (place / TAG).exists()}


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
            assert lived(out, 1, "whole", model_folder)
        disk.dies_at, disk.done = point, 0
        lived(out, 2, ends, model_folder)
        killed, disk.dies_at = disk.done >= point, None
        if out.exists():
            assert out.read_text() in models(folder), point
        lived(out, 3, then, model_folder)
        run.refuse_run_folder(out)  # never refused for good
        if out.exists():
            made = out.read_text()
            assert str(tag(folder / MODEL)) == made, point
            assert [(folder / name).read_text() for name in TEXTS if (folder / name).exists()] == [made] * 3, point
        part = folder / UNFINISHED
        records = {(part / name).read_text() for name in TEXTS if (part / name).exists()}
        models_left = {str(tag(part / MODEL))} if (part / MODEL).exists() else set()
        assert len(records | models_left) <= 1, point  # of one run
        if not killed:
            return
    raise AssertionError("it never came to its end")


def test_the_model_in_its_place_is_used_until_there_is_another(model_folder: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out.h5ad", []
    folder = run.run_folder(out)
    assert lived(out, 1, "whole", model_folder)
    part = run.start_run(folder)
    shutil.copytree(model_folder, part / MODEL)
    with run.results_replaced(folder, [out, tmp_path / "other.h5ad"]):
        seen.append(tag(folder / MODEL))
        out.write_text("of two outputs one")
    assert seen == [1]
    assert tag(folder / MODEL) == 1
    assert not (part / OUTPUTS).exists()
    with run.results_replaced(folder, [out]):
        out.write_text("all of them")
    assert tag(folder / MODEL) != 1
    assert not part.exists()


@pytest.mark.parametrize("writing", [False, True])
def test_a_folder_in_which_an_earlier_version_was_killed(writing: bool, model_folder: Path, tmp_path: Path) -> None:
    """It trained in the folder itself; the results before were in previous/, the model when there was a new one."""
    out = tmp_path / "out.h5ad"
    folder = run.run_folder(out)
    assert lived(out, 1, "whole", model_folder)
    (folder / PREVIOUS).mkdir()
    for name in (SETTINGS, HISTORY, METRICS, LOG, *[MODEL] * writing):
        (folder / name).replace(folder / PREVIOUS / name)
    for name in (SETTINGS, LOG, CHECKPOINT):
        (folder / name).write_text("2")
    if writing:
        shutil.copytree(model_folder, folder / MODEL)
    (folder / PREVIOUS / "mine.txt").write_text("precious")
    run.refuse_run_folder(out)
    part = run.start_run(folder)
    assert [path.name for path in part.iterdir()] == [CHECKPOINT]
    assert tag(folder / MODEL) == 1
    assert [(folder / name).read_text() for name in TEXTS] == ["1"] * 3
    assert [path.name for path in (folder / PREVIOUS).iterdir()] == ["mine.txt"]
