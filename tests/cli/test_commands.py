"""The command line: what it writes, what it prints, and the codes it ends with."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import anndata
import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from scipy.sparse import csr_matrix, issparse

from anncoder import CountAutoencoder, load, models
from anncoder.cli import run_folder, train
from anncoder.cli.app import app
from anncoder.cli.exit import Signals, outcome
from anncoder.cli.options import MODELS
from anncoder.datasets import SplatParameters
from anncoder.errors import ConfigError, FileError, ResourceError
from anncoder.tl import files

Run = Callable[..., Any]

QUICK = ("--set", "max_epochs=2", "--set", "n_hidden=[8]", "--set", "n_latent=3", "--no-evaluation")
RUN_FOLDER = ["history.csv", "metrics.json", "model", "resolved.yaml", "run.log"]


def names(folder: Path) -> list[str]:
    """Return everything in a folder, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


def assert_same(left: Any, right: Any) -> None:
    """Compare two slots of an AnnData, dtype and all."""
    if isinstance(left, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif issparse(left):
        assert left.format == right.format
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
            assert getattr(left, name).dtype == getattr(right, name).dtype
    else:
        np.testing.assert_array_equal(left, right)
        assert np.asarray(left).dtype == np.asarray(right).dtype


def assert_input_kept(before: anndata.AnnData, after: anndata.AnnData, *, new: set[str]) -> None:
    """Everything of the input is in the output as it was, and besides it there is nothing but our slots."""
    added = set()
    assert_same(before.X, after.X)
    assert_same(before.raw.X, after.raw.X)
    assert_same(before.raw.var, after.raw.var)
    assert_same(before.obs, after.obs)
    assert_same(before.var, after.var[before.var.columns])
    added |= {f"var/{name}" for name in after.var.columns.difference(before.var.columns)}
    for group in ("layers", "obsm", "varm", "obsp", "uns"):
        old, now = dict(getattr(before, group)), dict(getattr(after, group))
        for name, value in old.items():
            assert_same(value, now[name])
        added |= {f"{group}/{name}" for name in now.keys() - old.keys()}
    assert added == new


class TestTrain:
    def test_the_whole_command(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        config = tmp_path / "x.yaml"
        config.write_text("model: denoising\nn_latent: 7\nlearning_rate: 1e-3\nmax_epochs: 3\nseed: 5\n")
        out, model = tmp_path / "out.h5ad", tmp_path / "model_dir"
        before = counts_file.read_bytes()
        words = ("--model", "count", "--config", config, "--set", "n_latent=4", "--layer", "counts", "--key", "ae")
        result = anncoder("train", counts_file, "-o", out, *words, "--denoise", "--save", model, "--seed", "0")
        assert result.exit_code == 0, result.output
        assert counts_file.read_bytes() == before
        assert names(tmp_path) == ["in.h5ad", "model_dir", "out.anncoder", "out.h5ad", "x.yaml"]
        assert names(tmp_path / "out.anncoder") == RUN_FOLDER
        given, written = anndata.read_h5ad(counts_file), anndata.read_h5ad(out)
        assert_input_kept(given, written, new={"obsm/X_ae", "layers/ae_denoised", "uns/ae", "var/ae_theta"})
        again = load(model)
        np.testing.assert_array_equal(written.obsm["X_ae"], again.embed(given))
        np.testing.assert_array_equal(written.layers["ae_denoised"], again.denoise(given))
        assert written.obsm["X_ae"].shape == (120, 4)
        assert "sc.pp.neighbors(adata, use_rep='X_ae')" in result.stderr

        resolved = yaml.safe_load((tmp_path / "out.anncoder" / "resolved.yaml").read_text())
        assert (resolved["model"], resolved["n_latent"], resolved["max_epochs"], resolved["seed"]) == ("count", 4, 3, 0)
        history = pd.read_csv(tmp_path / "out.anncoder" / "history.csv")
        assert list(history["epoch"]) == [0, 1, 2]
        metrics = json.loads((tmp_path / "out.anncoder" / "metrics.json").read_text())
        assert metrics["epochs"] == 3
        assert {"model", "pca", "gene_mean"} <= set(metrics["evaluation"]["methods"])
        log = (tmp_path / "out.anncoder" / "run.log").read_text()
        assert "epoch 3 " in log
        assert "INFO" in log
        for name in ("config.json", "genes.txt", "weights.safetensors", "manifest.json"):
            assert (tmp_path / "out.anncoder" / "model" / name).read_bytes() == (model / name).read_bytes()

    def test_the_resolved_configuration_gives_the_same_bits(
        self, anncoder: Run, counts_file: Path, tmp_path: Path
    ) -> None:
        words = ("--set", "n_latent=3", "--set", "max_epochs=2", "--set", "likelihood=zinb", "--no-evaluation")
        assert anncoder("train", counts_file, "-o", tmp_path / "a.h5ad", *words, "--seed", "7").exit_code == 0
        resolved = tmp_path / "a.anncoder" / "resolved.yaml"
        words = ("--config", resolved, "--no-evaluation")
        assert anncoder("train", counts_file, "-o", tmp_path / "b.h5ad", *words).exit_code == 0
        left, right = (anndata.read_h5ad(tmp_path / name).obsm["X_ae"] for name in ("a.h5ad", "b.h5ad"))
        assert left.tobytes() == right.tobytes()
        assert resolved.read_text() == (tmp_path / "b.anncoder" / "resolved.yaml").read_text()

    @pytest.mark.parametrize("model", ["count", "denoising", "undercomplete"])
    def test_what_config_prints_train_reads(self, anncoder: Run, counts_file: Path, tmp_path: Path, model: str) -> None:
        printed = anncoder("config", "--model", model, *QUICK[:-1], "--set", "max_epochs=1").stdout
        assert yaml.safe_load(printed)["model"] == model
        (tmp_path / "c.yaml").write_text(printed)
        out = tmp_path / "out.h5ad"
        result = anncoder("train", counts_file, "-o", out, "--config", tmp_path / "c.yaml", "--no-evaluation")
        assert result.exit_code == 0, result.output
        assert yaml.safe_load((tmp_path / "out.anncoder" / "resolved.yaml").read_text()) == yaml.safe_load(printed)
        assert load(tmp_path / "out.anncoder" / "model").name == model

    def test_in_place(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        before = anndata.read_h5ad(counts_file)
        assert anncoder("train", counts_file, "-o", counts_file, "--in-place", *QUICK).exit_code == 0
        after = anndata.read_h5ad(counts_file)
        assert_input_kept(before, after, new={"obsm/X_ae", "uns/ae", "var/ae_theta"})
        assert names(tmp_path) == ["in.anncoder", "in.h5ad"]

    def test_in_place_through_a_link(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        (tmp_path / "link.h5ad").symlink_to(counts_file)
        link = tmp_path / "link.h5ad"
        assert anncoder("train", link, "-o", link, "--in-place", *QUICK).exit_code == 0
        assert link.is_symlink()
        assert "X_ae" in anndata.read_h5ad(counts_file).obsm

    def test_values_of_expression(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        words = ("--model", "undercomplete", "--set", "transform=none", "--layer", "logs", "--denoise")
        result = anncoder("train", counts_file, "-o", tmp_path / "out.h5ad", *words, *QUICK)
        assert result.exit_code == 0, result.output
        result = anncoder(
            "denoise", tmp_path / "out.anncoder" / "model", counts_file, "-o", tmp_path / "d.h5ad", "--key", "other"
        )
        assert result.exit_code == 0, result.output
        left = anndata.read_h5ad(tmp_path / "out.h5ad").layers["ae_denoised"]
        np.testing.assert_array_equal(left, anndata.read_h5ad(tmp_path / "d.h5ad").layers["other_denoised"])

    def test_empty_cells_are_left_out_on_request(self, anncoder: Run, counts: anndata.AnnData, tmp_path: Path) -> None:
        dense = counts.X.toarray()
        dense[[3, 50]] = 0
        counts.X = csr_matrix(dense)
        counts.write_h5ad(tmp_path / "holes.h5ad")
        words = (tmp_path / "holes.h5ad", "-o", tmp_path / "out.h5ad", *QUICK)
        refused = anncoder("train", *words, "--set", "empty_cells=error")
        assert refused.exit_code == 4
        assert not (tmp_path / "out.h5ad").exists()
        assert "2 of 120 cells have no count in any of the 60 genes (Cell4, Cell51)" in refused.stderr
        assert "--drop-empty-cells" in refused.stderr
        result = anncoder("train", *words, "--drop-empty-cells")
        assert result.exit_code == 0, result.output
        assert "left out 2 of 120 cells" in result.stderr
        written = anndata.read_h5ad(tmp_path / "out.h5ad")
        assert written.n_obs == 118
        assert not {"Cell4", "Cell51"} & set(written.obs_names)

    def test_quiet_is_quiet_and_the_log_is_not(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        result = anncoder(
            "train", counts_file, "-o", tmp_path / "out.h5ad", "--quiet", "--set", "early_stopping=false", *QUICK[:-1]
        )
        assert (result.exit_code, result.output) == (0, "")
        assert "neighbors" in (tmp_path / "out.anncoder" / "run.log").read_text()


class TestRunFolder:
    def test_a_second_run_replaces_the_first(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        assert anncoder(*words, "--seed", "1").exit_code == 0
        (tmp_path / "out.anncoder" / "my_notes.txt").write_text("precious")
        assert anncoder(*words, "--seed", "2", "--set", "max_epochs=1").exit_code == 0
        folder = tmp_path / "out.anncoder"
        assert names(folder) == sorted([*RUN_FOLDER, "my_notes.txt"])
        assert len(pd.read_csv(folder / "history.csv")) == 1
        assert yaml.safe_load((folder / "resolved.yaml").read_text())["seed"] == 2
        assert load(folder / "model").training_.seed == 2
        assert "epoch 2 " not in (folder / "run.log").read_text()

    def test_a_failed_run_keeps_the_results_of_the_one_before(
        self, anncoder: Run, counts_file: Path, tmp_path: Path
    ) -> None:
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        folder, out = tmp_path / "out.anncoder", tmp_path / "out.h5ad"
        assert anncoder(*words).exit_code == 0
        weights, written = (folder / "model" / "weights.safetensors").read_bytes(), out.read_bytes()
        for _ in range(2):
            assert anncoder(*words, *DIVERGES_AT_ONCE).exit_code == 5
            assert names(folder) == [*RUN_FOLDER, "unfinished"]
            assert names(folder / "unfinished") == ["resolved.yaml", "run.log"]
            assert (folder / "model" / "weights.safetensors").read_bytes() == weights
            assert out.read_bytes() == written
        assert anncoder(*words).exit_code == 0
        assert names(folder) == RUN_FOLDER

    def test_a_run_killed_while_it_writes_does_not_cost_the_model_of_the_output(
        self, anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        folder = tmp_path / "out.anncoder"
        assert anncoder(*words).exit_code == 0
        weights = (folder / "model" / "weights.safetensors").read_bytes()
        with monkeypatch.context() as killed:  # neither the results nor anything else is put in order after a SIGKILL
            killed.setattr(train, "write_results", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            killed.setattr(run_folder, "_settle", lambda _: None)
            anncoder(*words, "--set", "seed=9")
        assert (folder / "model" / "weights.safetensors").read_bytes() == weights
        assert load(folder / "unfinished" / "model").training_.seed == 9
        assert anncoder(*words, *DIVERGES_AT_ONCE).exit_code == 5
        assert (folder / "model" / "weights.safetensors").read_bytes() == weights
        assert anncoder(*words).exit_code == 0
        assert names(folder) == RUN_FOLDER

    def test_a_run_killed_when_its_output_has_its_name_does_not_cost_the_model_of_the_output(
        self, anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        folder = tmp_path / "out.anncoder"
        assert anncoder(*words).exit_code == 0
        with monkeypatch.context() as killed:
            killed.setattr(run_folder, "_settle", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            killed.setattr(train, "start_run", lambda folder: (folder / "unfinished").mkdir() or folder / "unfinished")
            anncoder(*words, "--set", "seed=9")
        assert load(folder / "model").training_.seed == 0
        written = anndata.read_h5ad(tmp_path / "out.h5ad")
        assert json.loads(written.uns["ae"]["params_json"])["training"]["seed"] == 9
        assert anncoder(*words, *DIVERGES_AT_ONCE).exit_code == 5  # whatever comes next puts it in order
        assert load(folder / "model").training_.seed == 9
        assert yaml.safe_load((folder / "resolved.yaml").read_text())["seed"] == 9

    def test_the_model_of_an_output_stays_in_its_place_while_another_is_trained(
        self, anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pipeline goes on embedding with it, also after a SIGKILL."""
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        folder = tmp_path / "out.anncoder"
        assert anncoder(*words).exit_code == 0
        older = {name: (folder / name).read_bytes() for name in ("model/weights.safetensors", "history.csv")}
        with monkeypatch.context() as killed:
            killed.setattr(train, "_fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            for seed in (8, 9):  # twice: the second finds what the first left
                anncoder(*words, "--set", f"seed={seed}")
                assert {name: (folder / name).read_bytes() for name in older} == older
        assert anncoder("embed", folder / "model", counts_file, "-o", tmp_path / "e.h5ad").exit_code == 0
        assert anncoder(*words, *DIVERGES_AT_ONCE).exit_code == 5
        assert {name: (folder / name).read_bytes() for name in older} == older
        assert anncoder(*words, "--set", "seed=9").exit_code == 0
        assert names(folder) == RUN_FOLDER
        assert load(folder / "model").training_.seed == 9

    def test_an_older_model_stays_where_the_outputs_cannot_be_written(
        self, anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK, "--save", tmp_path / "mine")
        assert anncoder(*words).exit_code == 0
        models = [tmp_path / name / "weights.safetensors" for name in ("mine", "out.anncoder/model")]
        older = [path.read_bytes() for path in models]
        full = ResourceError("cannot-write", "no space left")
        monkeypatch.setattr(train, "write_results", lambda *_, **__: (_ for _ in ()).throw(full))
        assert anncoder(*words, "--set", "seed=9").exit_code == 6
        assert [path.read_bytes() for path in models] == older

    def test_a_file_and_a_folder_of_one_name_do_not_share_a_model(
        self, anncoder: Run, counts_file: Path, tmp_path: Path
    ) -> None:
        assert anncoder("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK).exit_code == 0
        weights = (tmp_path / "out.anncoder" / "model" / "weights.safetensors").read_bytes()
        refused = anncoder("train", counts_file, "-o", tmp_path / "out", *QUICK)
        assert "has the model of 'out.h5ad'" in refused.stderr
        assert refused.exit_code == 3
        assert (tmp_path / "out.anncoder" / "model" / "weights.safetensors").read_bytes() == weights
        (tmp_path / "out.h5ad").unlink()
        assert anncoder("train", counts_file, "-o", tmp_path / "out", *QUICK).exit_code == 0

    def test_of_several_outputs_none_is_new_where_one_fails(
        self, anncoder: Run, counts: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a", "b"):
            counts.write_h5ad(tmp_path / f"{name}.h5ad")
        words = ("train", tmp_path / "a.h5ad", tmp_path / "b.h5ad", "-o", tmp_path / "out", *QUICK)
        assert anncoder(*words).exit_code == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        verify = files._verify

        def damaged(path: Path, *rest: Any) -> None:
            verify(path, *rest)
            if path.name == "b.h5ad":
                raise ResourceError("disk-full", "the disk is full", str(path), "make room")

        monkeypatch.setattr(files, "_verify", damaged)
        assert anncoder(*words, "--set", "seed=9").exit_code == 6
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


DIVERGES_AT_ONCE = ("--set", "learning_rate=1e30", "--set", "clip_norm=1e30", "--set", "batch_size=16")


class TestExitCodes:
    def test_divergence(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        result = anncoder("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK, *DIVERGES_AT_ONCE)
        assert result.exit_code == 5
        assert "epoch 1, minibatch" in result.stderr
        assert "lower learning_rate" in result.stderr
        assert "Traceback" not in result.output
        assert names(tmp_path) == ["in.h5ad", "out.anncoder"]
        assert names(tmp_path / "out.anncoder") == ["unfinished"]
        part = tmp_path / "out.anncoder" / "unfinished"
        assert names(part) == ["resolved.yaml", "run.log"]
        assert "ERROR" in (part / "run.log").read_text()

    def test_divergence_keeps_the_last_good_weights(
        self, anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from anncoder.training import loop

        fit_epoch = loop.fit_epoch

        def poisoned(network: Any, loader: Any, state: Any, *rest: Any) -> Any:
            if len(state.records) == 2:
                state.rate = float("nan")
            return fit_epoch(network, loader, state, *rest)

        monkeypatch.setattr(loop, "fit_epoch", poisoned)
        words = ("--set", "max_epochs=9", "--set", "batch_size=16", "--set", "n_latent=3", "--save", tmp_path / "mine")
        result = anncoder("train", counts_file, "-o", tmp_path / "out.h5ad", *words)
        assert result.exit_code == 5
        assert names(tmp_path) == ["in.h5ad", "out.anncoder"]
        assert names(tmp_path / "out.anncoder") == ["unfinished"]
        part = tmp_path / "out.anncoder" / "unfinished"
        assert names(part) == ["history.csv", "model", "resolved.yaml", "run.log"]
        model = load(part / "model")
        assert model.stopped_ == "diverged"
        assert len(model.history_) == 2
        assert np.isfinite(model.embed(anndata.read_h5ad(counts_file))).all()

    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (ConfigError("c", "what"), 2, "error: what [c]"),
            (FileError("c", "what", "there", "this"), 3, "where:  there\n  remedy: this"),
            (MemoryError("Unable to allocate 9 TiB"), 6, "out of memory"),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 6, "out of memory"),
            (RuntimeError("CUDA out of memory. Tried to allocate"), 6, "out of memory"),
            (OSError(28, "No space left on device", "/full"), 6, "No space left"),
            (PermissionError(13, "Permission denied"), 6, "Permission denied"),
            (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 6, "free space"),
            (FileNotFoundError(2, "No such file"), 1, "this is a bug in anncoder"),
            (ZeroDivisionError("division by zero"), 1, "run again with --debug"),
        ],
    )
    @pytest.mark.parametrize("debug", [False, True])
    def test_what_happens_decides_the_code(
        self, anncoder: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str, debug: bool
    ) -> None:
        from anncoder.cli import inspect

        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(inspect, "run_info", fails)
        result = anncoder("info", "model", *["--debug"] * debug)
        assert result.exit_code == code
        assert said in result.stderr
        assert ("Traceback" in result.stderr) == debug
        assert result.stdout == ""

    def test_a_signal_in_compiled_code_is_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        """numba makes another exception of what a signal raises in it."""

        def compiled() -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt as stop:
                raise SystemError("CPUDispatcher returned a result with an exception set") from stop

        with pytest.raises(typer.Exit) as ended, outcome(debug=False):
            compiled()
        assert ended.value.exit_code == 143
        assert capsys.readouterr().err == "interrupted; no results were written\n"

    def test_a_closed_pipe_is_no_error_of_ours(self) -> None:
        with pytest.raises(BrokenPipeError), outcome(debug=False):
            raise BrokenPipeError(32, "Broken pipe")

    def test_torch_says_so_when_memory_is_short(
        self, anncoder: Run, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from anncoder.models import base

        monkeypatch.setattr(base, "train", lambda *_: torch.empty(2**60))
        result = anncoder("train", counts_file, "-o", tmp_path / "out.h5ad", *QUICK)
        assert result.exit_code == 6
        assert "out of memory" in result.stderr
        assert not (tmp_path / "out.h5ad").exists()

    def test_handlers_and_logging_are_as_before(self, anncoder: Run, tmp_path: Path) -> None:
        import logging

        logger = logging.getLogger("anncoder")
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], logger.level, list(logger.handlers)
        anncoder("info", tmp_path)
        assert before == (
            [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
            logger.level,
            list(logger.handlers),
        )


class TestOtherCommands:
    def test_embed(self, anncoder: Run, model_folder: Path, counts_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.h5ad"
        result = anncoder("embed", model_folder, counts_file, "-o", out, "--key", "mine")
        assert result.exit_code == 0, result.output
        given, written = anndata.read_h5ad(counts_file), anndata.read_h5ad(out)
        assert_input_kept(given, written, new={"obsm/X_mine", "uns/mine", "var/mine_theta"})
        np.testing.assert_array_equal(written.obsm["X_mine"], load(model_folder).embed(given))
        assert names(tmp_path) == ["in.h5ad", "out.h5ad"]

    def test_embed_in_place_from_another_layer(self, anncoder: Run, counts_file: Path, tmp_path: Path) -> None:
        adata = anndata.read_h5ad(counts_file)
        model = CountAutoencoder(n_latent=3, n_hidden=()).fit(adata, layer="counts", max_epochs=1, progress=False)
        model.save(tmp_path / "model")
        del adata.layers["counts"]
        adata.write_h5ad(counts_file)
        words = ("embed", tmp_path / "model", counts_file, "-o", counts_file, "--in-place")
        refused = anncoder(*words)
        assert refused.exit_code == 4
        assert "fitted on layers['counts']" in refused.stderr
        assert "--layer" in refused.stderr
        result = anncoder(*words, "--layer", "X", "--drop-empty-cells")
        assert result.exit_code == 0, result.output
        np.testing.assert_array_equal(anndata.read_h5ad(counts_file).obsm["X_ae"], model.embed(adata, layer="X"))

    def test_cells_without_a_count_in_the_genes_of_the_model(
        self, anncoder: Run, counts: anndata.AnnData, tmp_path: Path
    ) -> None:
        half = counts[:, 30:].copy()
        model = CountAutoencoder(n_latent=3, n_hidden=())
        model.fit(half, max_epochs=1, progress=False, empty_cells="error").save(tmp_path / "model")
        dense = counts.X.toarray()
        dense[5, 30:] = 0
        counts.X = dense
        counts.write_h5ad(tmp_path / "in.h5ad")
        words = ("embed", tmp_path / "model", tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad")
        refused = anncoder(*words)
        assert refused.exit_code == 4
        assert "Cell6" in refused.stderr
        result = anncoder(*words, "--drop-empty-cells")
        assert result.exit_code == 0, result.output
        assert anndata.read_h5ad(tmp_path / "out.h5ad").n_obs == 119

    def test_denoise(self, anncoder: Run, model_folder: Path, counts_file: Path, tmp_path: Path) -> None:
        given = anndata.read_h5ad(counts_file)
        for scale in ("counts", "normalized"):
            out = tmp_path / f"{scale}.h5ad"
            result = anncoder("denoise", model_folder, counts_file, "-o", out, "--scale", scale)
            assert result.exit_code == 0, result.output
            written = anndata.read_h5ad(out)
            assert_input_kept(given, written, new={"layers/ae_denoised", "uns/ae"})
            expected = load(model_folder).denoise(given, scale=scale)  # type: ignore[arg-type]
            np.testing.assert_array_equal(written.layers["ae_denoised"], expected)

    def test_info(self, anncoder: Run, model_folder: Path) -> None:
        as_yaml = yaml.safe_load(anncoder("info", model_folder).stdout)
        as_json = json.loads(anncoder("info", model_folder, "--json").stdout)
        assert as_yaml == as_json
        assert (as_json["model"], as_json["n_genes"], as_json["epochs"]) == ("count", 60, 2)
        assert as_json["hyperparameters"]["n_latent"] == 3
        assert as_json["versions"]["anncoder"]

    def test_info_looks_at_the_weights(self, anncoder: Run, model_folder: Path, tmp_path: Path) -> None:
        load(model_folder).save(tmp_path / "model")
        weights = tmp_path / "model" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        assert anncoder("info", tmp_path / "model").exit_code == 3

    @pytest.mark.parametrize("model", ["count", "denoising", "undercomplete"])
    def test_config_explains_every_key(self, anncoder: Run, model: str) -> None:
        result = anncoder("config", "--model", model)
        lines = [line for line in result.stdout.splitlines()[1:] if line and not line.startswith("#")]
        assert all("  # " in line and "None" not in line.split("#")[1] for line in lines)

    def test_check(self, anncoder: Run, counts_file: Path) -> None:
        table = anncoder("check", counts_file)
        assert table.exit_code == 0
        assert "ready" in table.stdout
        assert "layers['logs']" in table.stdout
        found = json.loads(anncoder("check", counts_file, "--json").stdout)
        assert found["ok"]
        assert found["counts_in"] == ["X", "layers['counts']", "raw.X"]

    def test_check_of_a_layer_that_is_called_x_is_of_x(self, anncoder: Run, counts_file: Path) -> None:
        result = anncoder("check", counts_file, "--layer", "X", "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert (found["where"], found["file"]) == ("X", str(counts_file))

    def test_check_of_what_is_wrong(self, anncoder: Run, counts_file: Path) -> None:
        result = anncoder("check", counts_file, "--layer", "logs", "--json")
        assert result.exit_code == 4
        assert not json.loads(result.stdout)["ok"]
        assert "leave out layer (--layer)" in result.stderr
        assert anncoder("check", counts_file, "--layer", "logs", "--expression").exit_code == 0

    def test_evaluate(self, anncoder: Run, model_folder: Path, counts_file: Path, tmp_path: Path) -> None:
        words = ("evaluate", model_folder, counts_file, "--labels", "group", "-o", tmp_path / "metrics.json")
        result = anncoder(*words)
        assert result.exit_code == 0, result.output
        for word in ("model", "pca", "gene_mean", "labels: group"):
            assert word in result.stdout
        methods = json.loads((tmp_path / "metrics.json").read_text())["methods"]
        assert {"model", "pca", "gene_mean"} <= set(methods)

    def test_evaluate_in_a_run_folder_leaves_its_metrics(
        self, anncoder: Run, model_folder: Path, counts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = names(tmp_path)
        assert anncoder("evaluate", model_folder, counts_file).exit_code == 0
        assert names(tmp_path) == sorted([*before, "evaluation.json"])
        assert "evaluation.json" not in RUN_FOLDER

    def test_the_seed_of_a_simulation_is_that_of_the_option(self, anncoder: Run, tmp_path: Path) -> None:
        words = ("simulate", "-o", tmp_path / "s.h5ad", "--set", "n_obs=10", "--set", "n_vars=5", "--set", "seed=2")
        for option, seed in (((), 2), (("--seed", "1"), 1)):
            assert anncoder(*words, *option).exit_code == 0
            assert json.loads(anndata.read_h5ad(tmp_path / "s.h5ad").uns["simulation"])["seed"] == seed

    def test_the_parameters_of_simulate_are_listed(self, anncoder: Run) -> None:
        listed = yaml.safe_load(anncoder("config", "--simulate", "--set", "n_obs=7").stdout)
        assert SplatParameters(**listed) == SplatParameters(n_obs=7)

    def test_simulate(self, anncoder: Run, tmp_path: Path) -> None:
        words = ("--set", "n_obs=300", "--set", "n_vars=40", "--set", "n_groups=2", "--seed", "4", "--keep-means")
        result = anncoder("simulate", "-o", tmp_path / "s.h5ad", *words)
        assert result.exit_code == 0, result.output
        adata = anndata.read_h5ad(tmp_path / "s.h5ad")
        assert adata.shape == (300, 40)
        assert adata.layers["true_mean"].shape == (300, 40)
        assert anncoder("check", tmp_path / "s.h5ad", "--layer", "true_mean", "--expression").exit_code == 0

    def test_a_comparison_that_fails_does_not_cost_the_results(
        self, anncoder: Run, counts_file: Path, tmp_path: Path
    ) -> None:
        adata = anndata.read_h5ad(counts_file)[:12].copy()
        adata.write_h5ad(tmp_path / "few.h5ad")
        result = anncoder("train", tmp_path / "few.h5ad", "-o", tmp_path / "out.h5ad", *QUICK[:-1])
        assert result.exit_code == 0, result.output
        assert "not compared with PCA" in result.stderr
        assert json.loads((tmp_path / "out.anncoder" / "metrics.json").read_text())["evaluation"] is None

    def test_version_and_help(self, anncoder: Run) -> None:
        assert anncoder("--version").stdout.startswith("anncoder 0.")
        for command in (
            "check",
            "train",
            "embed",
            "denoise",
            "evaluate",
            "info",
            "config",
            "simulate",
            "demo",
            "relations",
        ):
            assert anncoder(command, "--help").exit_code == 0

    def test_no_option_asks_whether_a_file_can_be_read(self) -> None:
        # that is said with exit code 3, and not as wrong usage
        commands = [command.callback for command in app.registered_commands]
        hints = [hint for command in commands for hint in get_type_hints(command, include_extras=True).values()]
        options = [hint.__metadata__[0] for hint in hints if "pathlib" in str(hint)]
        assert len(options) > 20
        assert not [option.help for option in options if option.readable]

    def test_check_says_how_long_a_fit_will_take(self, anncoder: Run, counts_file: Path) -> None:
        line = anncoder("check", counts_file).stdout.strip().splitlines()[-1]
        found = re.fullmatch(
            r"a fit of the count model with its defaults: about [\d.]+ s on \w+ \(\d+ threads?\), some (\d+) epochs of "
            r"[\d.e-]+ s; 60 genes, ([\d.]+) GiB of memory",
            line,
        )
        assert found, line
        assert int(found[1]) == 5 + round(170 * 64 / (0.9 * 120))
        assert 0.5 < float(found[2]) < 1
        for more in ("--no-estimate", "--json"):
            assert "about" not in anncoder("check", counts_file, more).stdout

    def test_check_of_cells_that_the_defaults_do_not_fit(self, anncoder: Run, counts_file: Path) -> None:
        anndata.read_h5ad(counts_file)[:, :12].copy().write_h5ad(counts_file)
        result = anncoder("check", counts_file)
        assert result.exit_code == 0
        assert "was not tried: n_latent = 16 is not below the number of genes, 12" in result.stdout

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_a_file_that_cannot_be_read(self, anncoder: Run, model_folder: Path, counts_file: Path) -> None:
        counts_file.chmod(0)
        for words in (
            ("check", counts_file),
            ("embed", model_folder, counts_file, "-o", counts_file.parent / "o.h5ad"),
        ):
            result = anncoder(*words)
            assert result.exit_code == 3, result.output
            assert "[unreadable]" in result.stderr

    @pytest.mark.parametrize("command", ["train", "config", "search"])
    def test_help_names_every_model(self, anncoder: Run, command: str) -> None:
        assert set(models.names()) <= set(re.findall(r"\w+", anncoder(command, "--help").stdout))
        named, _, others = MODELS.removeprefix("One of ").partition(", or ")
        assert named.split(", ") == models.names()
        assert others.startswith("a model of an installed package")


def test_a_remedy_names_the_argument_and_the_option(anncoder: Run, counts: anndata.AnnData, tmp_path: Path) -> None:
    counts.layers["raw counts"] = counts.X.copy()
    counts.X = counts.X.log1p()
    counts.write_h5ad(tmp_path / "in.h5ad")
    words = ("train", tmp_path / "in.h5ad", "-o", tmp_path / "out.h5ad", *QUICK)
    remedy = "remedy: pass layer='raw counts' (--layer 'raw counts'), which holds counts\n"
    assert remedy in anncoder(*words).stderr
    assert remedy in anncoder("check", tmp_path / "in.h5ad").stdout
    assert anncoder(*words, "--layer", "raw counts").exit_code == 0


class TestSignals:
    def test_while_saving_the_first_waits_and_the_second_does_not(self) -> None:
        signals, done = Signals(), []

        def saves(*numbers: int) -> None:
            with signals.saving():
                for number in numbers:
                    signals(number, None)
                done.append("saved")

        with pytest.raises(KeyboardInterrupt, match="results until then were saved"):
            saves(signal.SIGTERM)
        assert done == ["saved"]
        signals.reset()

        with pytest.raises(KeyboardInterrupt, match="while results were being saved"):
            saves(signal.SIGINT, signal.SIGTERM)
        assert done == ["saved"]
        assert signals.number == signal.SIGTERM

    def test_one_from_before_ends_the_command_after_saving(self) -> None:
        signals, done = Signals(), []
        with pytest.raises(KeyboardInterrupt, match="no results were written"):
            signals(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt, match="were saved"), signals.saving():
            done.append("saved")
        assert done == ["saved"]

    def test_where_it_is_polled_for_it_waits_until_then(self) -> None:
        signals = Signals()
        with signals.polled() as stops:
            assert not stops()
            signals(signal.SIGTERM, None)
            assert stops()
            with pytest.raises(KeyboardInterrupt):
                signals(signal.SIGTERM, None)
        signals.reset()
        with signals.polled(), pytest.raises(KeyboardInterrupt):  # not polled for yet: the data are still read
            signals(signal.SIGTERM, None)
        signals.reset()
        with signals.polled() as stops:
            stops()
        with pytest.raises(KeyboardInterrupt):  # and no longer
            signals(signal.SIGTERM, None)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


class TestProcess:
    @pytest.mark.parametrize(
        "closed",
        [
            pytest.param("2>&-", marks=pytest.mark.slow),
            pytest.param(">&- 2>&-", marks=pytest.mark.slow),
            "<&- >&- 2>&-",
        ],
    )
    def test_streams_may_be_closed(self, counts_file: Path, closed: str) -> None:
        for path, code in ((counts_file, 0), (counts_file.with_name("none.h5ad"), 3)):
            command = ["sh", "-c", f'"$0" -m anncoder check "$1" {closed}', sys.executable, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
            assert (done.returncode, done.stderr) == (code, "")

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
    def test_the_name_of_a_file_need_not_be_utf_8(self, counts_file: Path, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9.h5ad")
        counts_file.rename(tmp_path / name)
        command = [sys.executable, "-m", "anncoder", "train", str(tmp_path / name), "-o", str(tmp_path / "out"), *QUICK]
        done = subprocess.run(command, capture_output=True, check=False, env=environment())
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert "caf\\udce9.h5ad" in (tmp_path / "out.anncoder" / "run.log").read_text(encoding="utf-8")
        assert names(tmp_path / "out") == [name]

    def test_help_is_quick_and_imports_nothing_heavy(self) -> None:
        took = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)  # its own work, however busy the machine is
            command = [sys.executable, "-m", "anncoder", "--help"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "train" in done.stdout
        assert min(took) < 0.5
        code = (
            "import sys, anncoder.cli.app\n"
            "print([m for m in ('torch', 'numpy', 'anndata', 'pydantic', 'yaml') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
    )
    def test_a_signal_ends_training_after_keeping_its_state(
        self, counts_file: Path, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        words = ("--set", "max_epochs=100000", "--set", "early_stopping=false", "--set", "n_latent=3")
        command = [
            sys.executable,
            "-m",
            "anncoder",
            "train",
            str(counts_file),
            "-o",
            str(tmp_path / "out.h5ad"),
            *words,
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("epoch 5/"):
                    break
            process.send_signal(number)
            said = process.stderr.read()
        assert process.returncode == code, said
        (epoch,) = re.findall("the same command again goes on after epoch ([0-9]+)", said)
        assert int(epoch) >= 5
        assert "Traceback" not in said
        assert names(tmp_path) == ["in.h5ad", "out.anncoder"]
        assert names(tmp_path / "out.anncoder") == ["unfinished"]
        part = tmp_path / "out.anncoder" / "unfinished"
        assert names(part) == ["checkpoint.safetensors", "history.csv", "model", "resolved.yaml", "run.log"]
        model = load(part / "model")
        assert model.stopped_ == "interrupted"
        assert len(model.history_) == int(epoch)

    def test_a_full_disk(self, model_folder: Path, counts_file: Path, tmp_path: Path) -> None:
        (tmp_path / "out.h5ad").write_text("old")
        code = (
            "import resource, sys\n"
            "import anncoder.cli.apply, anncoder.cli.demo\n"  # before torch has no room for its own files
            "from anncoder.cli.app import app\n"
            "codes = []\n"
            "for limit in range(1_000, 141_000, 20_000):\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
            "    simulate = ['simulate', '-o', 'out.h5ad', '--set', 'n_obs=1000', '--set', 'n_vars=500']\n"
            "    for command in (sys.argv[1:], simulate):\n"
            "        try:\n"
            "            app(command)\n"
            "        except SystemExit as stop:\n"
            "            codes.append(stop.code)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
            "print(codes)\n"
        )
        command = [sys.executable, "-c", code, "embed", str(model_folder), str(counts_file), "-o", "out.h5ad"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60, env=environment()
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout) == [6] * 14
        assert done.stderr.count("File too large") == 14
        assert "Traceback" not in done.stderr
        assert (tmp_path / "out.h5ad").read_text() == "old"
        assert names(tmp_path) == ["in.h5ad", "out.h5ad"]
