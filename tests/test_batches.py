"""Experimental batches: from a column of obs to the minibatches, and by name to new data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from anncoder import CountAutoencoder
from anncoder.config import NetworkConfig, TrainingConfig
from anncoder.data.adata import batches_of
from anncoder.datasets import simulate
from anncoder.errors import ConfigError, InputError
from anncoder.estimators import ESTIMATORS
from anncoder.opening import open_source
from anncoder.preparation import batches_in, prepare, split_cells


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
        (["a", "c"], ["a", "b"], InputError, "does not know the batch 'c'"),
    ],
)
def test_wrong_batches_are_named(column: list[Any], known: list[str] | None, error: Any, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        batches_of(column, "plate", known)
    assert caught.value.remedy


@pytest.mark.parametrize("on_disk", [False, True])
def test_minibatches_carry_the_batch_of_each_cell(counts: anndata.AnnData, tmp_path: Path, on_disk: bool) -> None:
    counts.obs["plate"] = np.where(np.arange(counts.n_obs) % 3 == 0, "x", "y")
    counts.write_h5ad(tmp_path / "a.h5ad")
    source = open_source(str(tmp_path / "a.h5ad") if on_disk else counts, None, counts=True)
    training = TrainingConfig(batch_key="plate", batch_size=16).model_copy(
        update={k: v for k, v in NetworkConfig().suited.items() if k != "batch_size"}
    )
    split = split_cells(source.n_obs, source.column, training)
    data = prepare(source, split, NetworkConfig(), training, torch.device("cpu"))
    assert data.batches == ["x", "y"]
    assert data.valid is not None
    for loader in (data.train, data.valid, data.in_order):
        for batch in loader.epoch(1):
            assert batch.batch_code is not None
            assert batch.batch_code.tolist() == [0 if row % 3 == 0 else 1 for row in batch.rows.tolist()]
    with pytest.raises(ConfigError, match="did you mean 'plate'"):
        batches_in(source, "plat")


def test_a_model_that_has_no_use_for_batches_says_so(counts: anndata.AnnData) -> None:
    with pytest.raises(ConfigError, match="makes no use of batches"):
        CountAutoencoder().fit(counts, batch_key="group", progress=False)


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
        ESTIMATORS[name](**hyper[name]).fit(cells, max_epochs=12, threads=2, progress=False, **settings).embed(cells)
        for _ in range(3)
    ]
    for again in found[1:]:
        np.testing.assert_array_equal(again, found[0])
