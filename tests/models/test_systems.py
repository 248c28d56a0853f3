"""The command that holds the published systems to their numbers: it keeps every seed, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.published import Claim, Row, values

from benchmarks import systems


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the seeds that have been measured of a system, which breaks down at the first seed 3."""
    seeds: list[int] = []

    def measure(seed: int) -> Row:
        if seed == 3 and 3 not in seeds:
            seeds.append(seed)
            raise KeyboardInterrupt
        seeds.append(seed)
        return {"score": float(seed), "baseline": 0.5}

    claims = [Claim("score above 1", lambda rows: min(values(rows, "score")) > 1)]
    fake = SimpleNamespace(measure=measure, CLAIMS=claims)
    monkeypatch.setattr(systems, "import_module", lambda name: fake)
    return seeds


def run(monkeypatch: pytest.MonkeyPatch, *words: Any) -> None:
    monkeypatch.setattr("sys.argv", ["systems", "dca", *map(str, words)])
    systems.main()


def test_a_run_that_was_cut_off_goes_on(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "it.json"
    words = ("--seeds", 3, "--first-seed", 2, "-o", kept)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, *words)
    assert list(json.loads(kept.read_text())["dca"]["rows"]) == ["2"]
    run(monkeypatch, *words, "--resume")
    assert measured == [2, 3, 3, 4]
    found = json.loads(kept.read_text())["dca"]
    assert found["claims"] == {"score above 1": True}
    assert found["seeds"] == [2, 3, 4]
    said = capsys.readouterr().out
    assert "dca, seed 2" in said
    assert "holds: score above 1" in said


def test_without_resume_all_is_measured_anew(
    measured: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        run(monkeypatch, "--seeds", 2, "-o", tmp_path / "it.json")
    assert measured == [0, 1, 0, 1]
    assert "FAILS: score above 1" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--seeds", 0), ("--resume",), ("--first-seed", -1)])
def test_words_without_meaning_are_refused(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *words)
