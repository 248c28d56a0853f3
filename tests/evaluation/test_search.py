"""Trials: the same from the same seed, resumed where they stopped, scored on one scale, the best trained."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner

import anncoder as ac
from anncoder.cli.app import app
from anncoder.errors import ConfigError, FileError, ResourceError
from anncoder.evaluation.comparison import evaluate, heldout_score
from anncoder.evaluation.selection import search as trials
from anncoder.evaluation.selection.search import SPACE, Trial, draw, search
from anncoder.io.atomic import locked
from anncoder.training.progress import TrainingReport

FEW = {"n_latent": [2, 3], "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
QUICK = {"max_epochs": 2, "n_hidden": [8]}
Run = Callable[..., Any]


def test_drawn_settings_are_of_the_space_and_depend_on_seed_and_number_alone() -> None:
    drawn = [draw(SPACE, 0, number) for number in range(200)]
    assert drawn[7] == draw(SPACE, 0, 7) != draw(SPACE, 1, 7)
    rates = np.array([d["learning_rate"] for d in drawn])
    assert (rates >= 5e-4).all()
    assert (rates <= 1e-2).all()
    assert abs(np.median(np.log(rates)) - np.log(np.sqrt(5e-4 * 1e-2))) < 0.25  # equal ratios are equally likely
    whole = {draw({"n_latent": {"low": 2, "high": 5}}, 0, i)["n_latent"] for i in range(100)}
    assert whole == {2, 3, 4, 5}
    assert {d["likelihood"] for d in drawn} == {"nb", "zinb"}


def test_a_stopped_search_goes_on_to_the_same_trials(counts: anndata.AnnData, tmp_path: Path) -> None:
    whole = search(counts, space=FEW, n_trials=3, **QUICK)
    journal, seen = tmp_path / "it.jsonl", []
    search(counts, space=FEW, n_trials=2, journal=journal, **QUICK)
    with journal.open("a") as file:
        file.write('{"number": 2, "sett')  # killed while it wrote
    again = search(counts, space=FEW, n_trials=3, journal=journal, report=seen.append, **QUICK)
    assert [(t.number, t.settings, t.heldout_nll) for t in again] == [
        (t.number, t.settings, t.heldout_nll) for t in whole
    ]
    assert sorted(t.number for t in seen) == [0, 1, 2]
    assert len(journal.read_text().splitlines()) == 4
    scores = [t.heldout_nll for t in again]
    assert scores == sorted(scores)
    with pytest.raises(ConfigError, match="another search") as caught:
        search(counts, space=FEW, n_trials=3, journal=journal, seed=1, **QUICK)
    assert caught.value.code == "other-search"
    counts.layers["other"] = counts.X * 2
    with pytest.raises(ConfigError, match="another search"):
        search(counts, space=FEW, n_trials=3, journal=journal, layer="other", **QUICK)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_command_and_the_trial_it_cut_off_is_done_anew(
    anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    output, epoch = tmp_path / "out.h5ad", TrainingReport.epoch
    words = ["search", counts_file, "-o", output, "--trials", "2", "--set", "max_epochs=3", "--set", "n_hidden=[8]"]
    seen = []

    def epoch_and_signal(self: TrainingReport, record: Any) -> None:
        epoch(self, record)
        seen.append(record)
        if len(seen) == 5:  # in the second trial, when there are weights to go on with
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingReport, "epoch", epoch_and_signal)
    stopped = anncoder(*words)
    assert (stopped.exit_code, len(seen)) == (code, 5)
    assert "the same command again goes on" in stopped.stderr
    assert not output.exists()
    journal = output.with_suffix(".search.jsonl")
    assert [json.loads(line)["number"] for line in journal.read_text().splitlines()[1:]] == [0]
    assert anncoder(*words).exit_code == 0
    assert [json.loads(line)["epochs"] for line in journal.read_text().splitlines()[1:]] == [3, 3]


def test_two_searches_of_one_output_are_refused(anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.h5ad"
    with locked(output.with_suffix(".search.jsonl")):
        result = anncoder("search", counts_file, "-o", output)
    assert result.exit_code == 6
    assert "output-in-use" in result.stderr
    assert not output.with_suffix(".search.jsonl").exists()


def test_a_line_that_was_cut_before_its_end_of_line_is_kept_and_ended(counts: anndata.AnnData, tmp_path: Path) -> None:
    journal = tmp_path / "it.jsonl"
    first = search(counts, space=FEW, n_trials=1, journal=journal, **QUICK)
    journal.write_text(journal.read_text().removesuffix("\n"))
    search(counts, space=FEW, n_trials=2, journal=journal, **QUICK)
    numbers = [json.loads(line)["number"] for line in journal.read_text().splitlines()[1:]]
    assert numbers == [0, 1]
    seen: list[Trial] = []
    search(counts, space=FEW, n_trials=2, journal=journal, report=seen.append, **QUICK)
    assert seen[0] == first[0]
    assert len(seen) == 2


def test_a_journal_is_mended_whole_or_not_at_all(
    counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "it.jsonl"
    search(counts, space=FEW, n_trials=1, journal=journal, **QUICK)
    journal.write_text(journal.read_text() + '{"number": 1, "sett')
    before = journal.read_text()
    with pytest.raises(ConfigError, match="another search"):
        search(counts, space=FEW, n_trials=1, journal=journal, seed=9, **QUICK)
    assert journal.read_text() == before  # of another search: not ours to mend

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        search(counts, space=FEW, n_trials=1, journal=journal, **QUICK)
    assert journal.read_text() == before


def test_a_journal_of_trials_that_are_there_twice_is_damaged(counts: anndata.AnnData, tmp_path: Path) -> None:
    journal = tmp_path / "it.jsonl"
    search(counts, space=FEW, n_trials=1, journal=journal, **QUICK)
    journal.write_text(journal.read_text() + journal.read_text().splitlines()[1] + "\n")
    with pytest.raises(FileError, match="damaged") as caught:
        search(counts, space=FEW, n_trials=3, journal=journal, **QUICK)
    assert caught.value.code == "bad-journal"


def test_the_command_takes_the_model_and_the_seed_as_train_does(
    anncoder: Run, counts_file: Path, tmp_path: Path
) -> None:
    space, output = tmp_path / "space.yaml", tmp_path / "out.h5ad"
    space.write_text("n_latent: [2, 3]\n")
    words = ["search", counts_file, "-o", output, "--space", space, "--trials", "1", "--set", "max_epochs=1"]
    assert anncoder(*words, "--set", "model=denoising", "--set", "seed=3", "--seed", "4").exit_code == 0
    head = json.loads(output.with_suffix(".search.jsonl").read_text().splitlines()[0])
    assert (head["model"], head["seed"]) == ("denoising", 4)
    assert json.loads(anndata.read_h5ad(output).uns["ae"]["params_json"])["model"] == "denoising"
    for word in ("n_trials=3", "journal=x", "space=[]", "adata=1", "model=cuont"):
        refused = anncoder(*words, "--set", word)
        assert refused.exit_code == 2, refused.output
        assert "unknown-key" in refused.stderr


def test_the_score_is_that_of_evaluate(counts: anndata.AnnData) -> None:
    model = ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(counts, max_epochs=2, valid_fraction=0.3, progress=False)
    assert heldout_score(model, counts) == pytest.approx(evaluate(model, counts).table.loc["model", "heldout_nll"])


def test_without_cells_held_out_there_is_nothing_to_score(counts: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="no cells are held out") as caught:
        search(counts, space=FEW, n_trials=1, valid_fraction=0.0, **QUICK)
    assert (caught.value.code, caught.value.where) == ("bad-value", "valid_fraction")
    model = ac.CountAutoencoder(n_latent=2, n_hidden=(8,)).fit(counts, max_epochs=1, valid_fraction=0, progress=False)
    with pytest.raises(ConfigError, match="no cells are held out"):
        heldout_score(model, counts)
    assert evaluate(model, counts).scored == "seen"


def test_a_trial_that_cannot_be_fitted_is_told_of_and_comes_last(counts: anndata.AnnData) -> None:
    trials = search(counts, space={"n_latent": [2, 500]}, n_trials=6, **QUICK)
    assert trials[0].heldout_nll is not None
    assert trials[-1].heldout_nll is None
    assert "not below the number of genes" in trials[-1].problem


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"n_latnt": [2]}, "did you mean 'n_latent'"),
        ({"n_latent": 3}, "neither"),
        ({"n_latent": []}, "neither"),
        ({"learning_rate": {"low": 0.0, "high": 1.0, "log": True}}, "neither"),
        ({"learning_rate": {"low": "1e-3", "high": 1e-2}}, "neither"),
        (["n_latent"], "not a mapping"),
        ({"n_latent": [2, "x"]}, "n_latent = 'x'"),
        ({"n_latent": [2, True]}, "n_latent = True"),
        ({"n_hidden": [[8], [8, 0]]}, "n_hidden.1 = 0"),
        ({"n_latent": {"low": 0, "high": 3}}, "n_latent = 0"),
        ({"n_latent": {"low": 2.0, "high": 5.0}}, "n_latent = .*: input should be a valid integer"),
        ({"valid_fraction": {"low": 0.1, "high": 0.95}}, "valid_fraction = 0.95"),
    ],
)
def test_a_space_that_is_none_is_refused(counts: anndata.AnnData, space: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        search(counts, space=space, n_trials=1, **QUICK)


def test_values_that_fit_together_are_a_space_though_one_alone_would_be_refused(counts: anndata.AnnData) -> None:
    trial = search(counts, "undercomplete", space={"tied": [True]}, n_trials=1, norm="none", **QUICK)[0]
    assert trial.heldout_nll is not None


def test_a_shared_value_of_the_wrong_type_is_refused_before_the_trials(counts: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="max_epochs = 'x'"):
        search(counts, space=FEW, n_trials=1, max_epochs="x")


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("--labels", "nope"), "unknown-key", 2),
        (("-o", "in.h5ad"), "choose another name", 2),
        (("--layer", "nope"), "missing-layer", 4),
        (("--set", "n_latent=500"), "latent-too-wide", 2),
        (("--set", "batch_key=nope"), "unknown-key", 2),
    ],
)
def test_the_command_refuses_before_the_trials(
    anncoder: Run,
    counts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, str],
    said: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("dropout_rate: [0.0]\n")
    result = anncoder("search", counts_file, "-o", "out.h5ad", "--space", "space.yaml", "--trials", "2", *words)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "--in-place" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.h5ad", "space.yaml"]


def test_a_search_goes_on_where_only_its_first_settings_are_refused(
    anncoder: Run, counts_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text("n_latent: [2, 500]\n")
    words = ("--space", tmp_path / "space.yaml", "--trials", "4", "--set", "max_epochs=1", "--set", "n_hidden=[8]")
    drawn = [draw({"n_latent": [2, 500]}, 1, number)["n_latent"] for number in range(4)]
    assert drawn[0] == 500
    assert 2 in drawn
    result = anncoder("search", counts_file, "-o", tmp_path / "out.h5ad", *words, "--seed", "1")
    assert result.exit_code == 0, result.output


def test_a_seed_out_of_range_is_refused(counts: anndata.AnnData) -> None:
    for seed in (-1, 2**32, "x"):
        with pytest.raises(ConfigError, match="seed = "):
            search(counts, space=FEW, n_trials=1, seed=seed, **QUICK)


def test_no_trials_and_no_place_for_a_journal_are_named(counts: anndata.AnnData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_trials = 0"):
        search(counts, space=FEW, n_trials=0, **QUICK)
    for journal in (tmp_path, tmp_path / "nowhere" / "it.jsonl"):
        with pytest.raises(FileError, match="as a journal"):
            search(counts, space=FEW, n_trials=1, journal=journal, **QUICK)


def test_the_command_trains_the_winner(counts_file: Path, tmp_path: Path) -> None:
    space, output = tmp_path / "space.yaml", tmp_path / "out.h5ad"
    space.write_text("n_latent: [2, 3]\ndropout_rate: {low: 0.0, high: 0.3}\n")
    words = ["search", str(counts_file), "-o", str(output), "--space", str(space), "--trials", "3"]
    wrong = CliRunner().invoke(app, [*words, "--set", "layer=counts"])
    assert wrong.exit_code == 2
    assert "remedy: --layer NAME" in wrong.output
    done = CliRunner().invoke(app, [*words, "--set", "max_epochs=2", "--set", "n_hidden=[8]", "--set", "seed=4"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in output.with_suffix(".search.jsonl").read_text().splitlines()]
    best = min((Trial(**line) for line in lines[1:]), key=lambda t: t.heldout_nll)
    record = json.loads(anndata.read_h5ad(output).uns["ae"]["params_json"])
    assert record["hyperparameters"]["n_latent"] == best.settings["n_latent"]
    assert record["hyperparameters"]["dropout_rate"] == pytest.approx(best.settings["dropout_rate"])
    assert record["hyperparameters"]["n_hidden"] == [8]
    assert record["training"]["seed"] == 4
    assert lines[0]["seed"] == 4


def test_a_score_that_is_no_number_comes_last(counts: anndata.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([float("nan"), 3.0, float("nan"), 2.0])
    monkeypatch.setattr(trials, "heldout_score", lambda *_, **__: next(scores))
    found = search(counts, space=FEW, n_trials=4, **QUICK)
    assert [trial.heldout_nll for trial in found] == [2.0, 3.0, None, None]
    assert "not a number" in found[-1].problem


def test_values_that_are_no_counts_have_no_molecules_to_score(counts: anndata.AnnData) -> None:
    with pytest.raises(ConfigError) as caught:
        search(counts, "denoising", space={"n_latent": [2, 3]}, transform="none", n_trials=1, max_epochs=1)
    assert caught.value.code == "no-decoder"
    found = search(counts, "denoising", space={"transform": ["none"]}, n_trials=1, max_epochs=1, n_latent=2)
    assert found[0].heldout_nll is None
    assert "whole counts" in found[0].problem


def test_a_trial_whose_minibatches_lack_a_batch_does_not_end_the_search(counts: anndata.AnnData) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) < 3, "rare", "common")
    settings: dict[str, Any] = {"lambda_b": 0.1, "batch_key": "plate", "max_epochs": 1, "valid_fraction": 0.1}
    found = search(counts, "saucie", space={"batch_size": [4, counts.n_obs]}, n_trials=4, **settings)
    assert {trial.settings["batch_size"] for trial in found if trial.heldout_nll is None} <= {4}
    assert found[0].heldout_nll is not None or all(trial.settings["batch_size"] == 4 for trial in found)
