"""A latent is looked at before it is written: the parts of its neighbour graph."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.sparse.csgraph import connected_components

from anncoder.tl import latent_check
from anncoder.tl.latent_check import LatentCheck, parts_of_graph


def blobs(sizes: list[int], apart: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = [rng.normal(size=(n, 4)) + apart * i for i, n in enumerate(sizes)]
    return np.concatenate(found).astype(np.float32)


@pytest.mark.parametrize(("sizes", "apart"), [([60, 40], 50.0), ([60, 40], 0.0), ([30, 30, 30], 50.0)])
def test_the_parts_are_those_of_scanpys_graph(sizes: list[int], apart: float) -> None:
    latent = blobs(sizes, apart)
    cells = AnnData(latent)
    sc.pp.neighbors(cells, use_rep="X", n_neighbors=15)
    n_parts, _ = connected_components(cells.obsp["connectivities"], directed=False)
    found = parts_of_graph(latent)
    assert len(found) == n_parts
    assert sum(found) == len(latent)
    assert found == sorted(found, reverse=True)


def test_few_cells_are_one_part() -> None:
    assert parts_of_graph(blobs([3, 4], 50.0)) == [7]


def check(latent: np.ndarray, step: int = 30) -> None:
    look = LatentCheck("ae")
    for start in range(0, len(latent), step):
        look.add(latent[start : start + step])
    look.close()


def test_a_latent_in_parts_is_warned_about_with_their_sizes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "anncoder"):
        check(blobs([80], 0.0))
        assert not caplog.messages
        check(blobs([60, 40], 50.0))
    assert "2 parts, of 60, 40 cells" in caplog.text
    assert "--seed 1" in caplog.text


def test_of_many_cells_a_sample_is_looked_at(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_check, "CELLS", 100)
    latent = blobs([2000, 2000], 50.0)  # sorted: the first cells are of one part
    look = LatentCheck("ae")
    for start in range(0, len(latent), 512):
        look.add(latent[start : start + 512])
    assert look._sample.shape == (100, 4)
    with caplog.at_level(logging.WARNING, "anncoder"):
        look.close()
    assert "of 100 sampled cells falls into 2 parts" in caplog.text
