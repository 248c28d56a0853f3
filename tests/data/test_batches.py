"""Experimental batches: from a column of obs to the minibatches, and by name to new data."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from anncoder import DCA, CountAutoencoder, load
from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.adata import batch_column, batch_label, batches_of
from anncoder.data.sources import open_source
from anncoder.data.split import split_cells
from anncoder.datasets import simulate
from anncoder.device import threads_set
from anncoder.errors import ConfigError, InputError
from anncoder.models import find, names
from anncoder.training import inference, results
from anncoder.training.prepare import batches_in, prepare
from anncoder.types import Batch


def test_batches_have_codes_in_the_order_of_their_names_and_are_known_by_name() -> None:
    codes, names = batches_of(["b", "a", "b"], "plate", None)
    assert (codes.tolist(), names) == ([1, 0, 1], ["a", "b"])
    assert batches_of(["b", "b"], "plate", names)[0].tolist() == [1, 1]  # one of the known ones is enough
    assert batches_of([2, 10, 2], "plate", None)[1] == ["10", "2"]  # numbers are names too


def test_whole_numbers_are_known_as_integers_and_as_floats() -> None:
    for fitted, new in (([2, 10, 2], np.array([10.0, 2.0])), ([2.0, 10.0], [10, 2]), (["2", "10"], [10.0, 2.0])):
        _, names = batches_of(fitted, "plate", None)
        assert (batches_of(new, "plate", names)[0].tolist(), names) == ([0, 1], ["10", "2"])
    assert batches_of([2.5, 2], "plate", None)[1] == ["2", "2.5"]
    assert batches_of([1.0, 2.0], "plate", ["1.0", "2.0"])[0].tolist() == [0, 1]  # of a model of an earlier version


@pytest.mark.parametrize(
    ("column", "known", "error", "said"),
    [
        (["a", "a"], None, ConfigError, "all cells are of one batch"),
        (["a", None], None, ConfigError, "1 missing"),
        ([0.5, np.nan], None, ConfigError, "1 missing"),
        (["a", "c"], ["a", "b"], InputError, "does not know the batch 'c'"),
    ],
)
def test_wrong_batches_are_named(column: list[Any], known: list[str] | None, error: Any, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        batches_of(column, "plate", known)
    assert caught.value.remedy


def test_several_columns_are_their_combinations() -> None:
    columns = {"plate": ["p", "p", "q", "q"], "donor": [1.0, 2, 1, None]}
    names = batch_column(("plate", "donor"), columns.__getitem__)
    assert names.tolist() == ["p · 1", "p · 2", "q · 1", None]
    assert batch_column("plate", columns.__getitem__) == columns["plate"]
    assert batch_label(("plate", "donor")) == "plate · donor"
    with pytest.raises(ConfigError, match=r"plate · donor.*1 missing"):
        batches_of(names, batch_label(("plate", "donor")), None)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_fit_takes_several_columns(counts: anndata.AnnData, tmp_path: Path, on_disk: bool) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 2, "x", "y")
    counts.obs["donor"] = np.arange(counts.n_obs) % 3 // 2
    counts.write_h5ad(tmp_path / "a.h5ad")
    data: Any = str(tmp_path / "a.h5ad") if on_disk else counts
    model = CountAutoencoder(n_latent=2, n_hidden=(4,))
    model.fit(data, batch_key=["plate", "donor"], max_epochs=1, progress=False).save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.training_.batch_key == ("plate", "donor")
    assert again.batches_ == ["x · 0", "x · 1", "y · 0", "y · 1"]
    np.testing.assert_array_equal(again.embed(data), model.embed(counts))
    assert again.denoise(data, batch="x · 1").shape == counts.shape
    with pytest.raises(ConfigError, match="donors"):
        model.fit(data, batch_key=("plate", "donors"), progress=False)
    with pytest.raises(ConfigError, match="batch_key"):
        model.fit(data, batch_key=(), progress=False)


def test_unlikely_batches_are_said(counts: anndata.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"max_epochs": 1, "progress": False}
    counts.obs["alone"] = ["a", *["b"] * 70, *["c"] * 49]
    counts.obs["score"] = np.linspace(0, 1, counts.n_obs)
    counts.obs["half"] = ["a", "b"] * 60
    for column, said in (
        ("alone", "few cells of the batches 'a' (1) in obs['alone']: they are hardly corrected; leave them out"),
        ("score", "obs['score'] has 120 batches in 120 cells: fewer than 50 cells a batch; is it the batch"),
        ("half", ""),
    ):
        caplog.clear()
        CountAutoencoder(n_latent=2, n_hidden=(4,)).fit(counts, batch_key=column, **settings)
        assert said in caplog.text
        assert caplog.text.count("obs[") == (said != "")


@pytest.mark.parametrize("on_disk", [False, True])
def test_minibatches_carry_the_batch_of_each_cell(counts: anndata.AnnData, tmp_path: Path, on_disk: bool) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 3 == 0, "x", "y")
    counts.write_h5ad(tmp_path / "a.h5ad")
    source = open_source(str(tmp_path / "a.h5ad") if on_disk else counts, None, counts=True)
    training = TrainingConfig(batch_key="plate", batch_size=16).model_copy(
        update={k: v for k, v in NetworkConfig().defaults.items() if k != "batch_size"}
    )
    split = split_cells(source, training)
    data = prepare(source, split, NetworkConfig(), training)
    assert data.batches == ["x", "y"]
    assert data.valid is not None
    for loader in (data.train, data.valid, data.unshuffled):
        for batch in loader.epoch(1):
            assert batch.batch_code is not None
            assert batch.batch_code.tolist() == [0 if row % 3 == 0 else 1 for row in batch.rows.tolist()]
    with pytest.raises(ConfigError, match="did you mean 'plate'"):
        batches_in(source, "plat")


def test_a_model_that_has_no_use_for_batches_says_so(counts: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="makes no use of batches"):
        DCA().fit(counts, batch_key="group", progress=False)


def test_a_tail_split_holds_out_the_last_cells(counts: anndata.AnnData) -> None:
    model = CountAutoencoder(n_latent=2, n_hidden=(4,)).fit(
        counts, max_epochs=1, valid_fraction=0.2, valid_split="tail", progress=False
    )
    assert list(model.valid_obs_) == list(counts.obs_names[-24:])
    with pytest.raises(InputError, match="tail at once"):
        CountAutoencoder().fit(counts, valid_split="tail", valid_groups="group", progress=False)


@pytest.mark.parametrize("name", ["netsne", "variational", "scscope"])
def test_two_threads_give_the_same_arrays_every_time(name: str) -> None:
    """The gradient of rows taken more than once has one order of the sum."""
    cells = simulate(n_obs=700, n_vars=100, n_groups=3, n_batches=3, seed=0)
    hyper: dict[str, dict[str, Any]] = {
        "netsne": {},
        "variational": {"dispersion": "gene-batch", "batches_in_encoder": True, "n_latent": 3},
        "scscope": {"n_latent": 5},
    }
    settings: dict[str, Any] = {} if name == "netsne" else {"batch_key": "batch", "batch_size": 512}
    found = [
        find(name)(**hyper[name]).fit(cells, max_epochs=12, threads=2, progress=False, **settings).embed(cells)
        for _ in range(3)
    ]
    for again in found[1:]:
        np.testing.assert_array_equal(again, found[0])


@pytest.mark.parametrize("name", names())
def test_what_a_model_says_of_cells_has_the_same_bits_on_any_number_of_threads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block of cells is computed by one thread; several blocks at a time, in order."""
    monkeypatch.setattr(results, "BLOCK", 64)  # twelve blocks
    cells = simulate(n_obs=700, n_vars=100, n_groups=3, n_batches=3, seed=0)
    settings: dict[str, Any] = {"batch_key": "batch"} if name == "scscope" else {}
    hyper: dict[str, Any] = {"n_latent": 5} if name not in ("netsne", "scvis", "saucie") else {}
    model = find(name)(**hyper).fit(cells, max_epochs=1, threads=2, progress=False, **settings)
    found: list[dict[str, Any]] = []
    for threads in (1, 2, 3):
        with threads_set(threads):
            of_cells = model.of_cells(cells)
            found.append({"latent": model.embed(cells), **of_cells})
            if model.config.decodes:
                found[-1]["denoised"] = model.denoise(cells, scale="normalized")
            assert torch.get_num_threads() == threads
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for what, values in other.items():
            np.testing.assert_array_equal(values, found[0][what], err_msg=what)


def test_every_block_is_computed_by_one_thread_and_they_come_in_order(
    fitted: CountAutoencoder, counts: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a processor gives products the same bits on any number of threads, this can fail."""
    monkeypatch.setattr(results, "BLOCK", 16)

    def threads_and_cells(batch: Batch) -> torch.Tensor:
        return torch.stack([torch.full((len(batch.rows),), float(torch.get_num_threads())), batch.rows.float()], dim=1)

    for threads in (1, 2, 5):
        with threads_set(threads):
            source = open_source(counts, None, counts=True)
            found = np.concatenate(list(results.blocks(fitted, source, threads_and_cells)))
            in_a_new_thread: list[int] = []
            later = Thread(target=lambda seen: seen.append(torch.get_num_threads()), args=(in_a_new_thread,))
            later.start()
            later.join()
            assert in_a_new_thread == [threads]
        np.testing.assert_array_equal(found[:, 0], 1)
        np.testing.assert_array_equal(found[:, 1], np.arange(counts.n_obs))


def test_of_many_genes_few_blocks_are_computed_at_a_time(
    fitted: CountAutoencoder, counts: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "BLOCK", 16)
    source, block = open_source(counts, None, counts=True), 4 * 16 * counts.n_vars
    inside, most, lock = 0, 0, Lock()

    def slow(batch: Batch) -> torch.Tensor:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1
        return batch.rows.float()

    for n_bytes, expected in ((block // 2, 1), (block, 1), (2 * block, 2)):
        monkeypatch.setattr(inference, "MOST_BYTES", n_bytes)
        most = 0
        with threads_set(4):
            np.testing.assert_array_equal(np.concatenate(list(results.blocks(fitted, source, slow))), np.arange(120))
        assert most == expected
