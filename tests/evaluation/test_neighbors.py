"""Neighbour consistency against scikit-learn's neighbours and a latent without any, and what it refuses."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist

import anncoder as ac
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation.baselines import Cells
from anncoder.evaluation.comparison import evaluate
from anncoder.evaluation.neighbors import LARGEST, neighbor_scores, overlap, views


class Logs:
    """A method whose latent is the logarithm of the counts."""

    def latent(self, cells: Cells) -> Any:
        return np.log1p(cells.matrix.toarray())


class Noise:
    """A method that says nothing about a cell."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def latent(self, cells: Cells) -> Any:
        return self.random.standard_normal((cells.matrix.shape[0], 5)).astype(np.float32)


class Without:
    """A method without a latent."""

    def latent(self, cells: Cells) -> Any:
        del cells


@pytest.fixture(scope="module")
def grouped() -> anndata.AnnData:
    """Return 300 cells of three groups; not to be changed."""
    return ac.datasets.simulate(n_obs=300, n_vars=80, n_groups=3, de_prob=0.5, lib_loc=6.0, seed=1)


def test_it_is_the_share_of_common_neighbours() -> None:
    random = np.random.default_rng(1)
    first = random.standard_normal((60, 3))
    second = first + 0.5 * random.standard_normal((60, 3))
    expected = []
    for i in range(60):
        near = [set(np.argsort(row[i])[1:8]) for row in (cdist(first, first), cdist(second, second))]
        expected.append(len(near[0] & near[1]) / 7)
    assert overlap(first, second, 7) == pytest.approx(np.mean(expected))
    assert overlap(first, first, 7) == 1


def test_of_noise_it_is_chance_and_of_groups_more(grouped: anndata.AnnData) -> None:
    of_cells = views(Cells(grouped.X), seed=0)
    n, k = of_cells.parts[0].matrix.shape[0], of_cells.n_neighbors
    assert k == 30  # a tenth
    of_noise = neighbor_scores(Noise(), of_cells)["neighbor_consistency"]  # type: ignore[arg-type]
    assert of_noise == pytest.approx(k / (n - 1), abs=0.02)
    assert neighbor_scores(Logs(), of_cells)["neighbor_consistency"] > 2 * of_noise  # type: ignore[arg-type]
    assert np.isnan(list(neighbor_scores(Without(), of_cells).values())).all()  # type: ignore[arg-type]


def test_the_parts_are_independent_parts_of_all_molecules(grouped: anndata.AnnData) -> None:
    given = grouped.X.copy()
    first, second = (part.matrix for part in views(Cells(grouped.X), seed=0).parts)
    np.testing.assert_array_equal((first + second).toarray(), grouped.X.toarray())
    np.testing.assert_array_equal(given.toarray(), grouped.X.toarray())
    assert first.sum() == pytest.approx(grouped.X.sum() / 2, rel=0.1)
    # of independent Poisson counts the parts are uncorrelated around their means, and depths say nothing of each other
    drawn = np.random.default_rng(2).poisson(np.full((400, 200), 6.0))
    left, right = (part.matrix.toarray() for part in views(Cells(csr_matrix(drawn.astype(np.float32))), 0).parts)
    around = [part - part.mean(axis=1, keepdims=True) for part in (left, right)]
    assert abs(np.corrcoef(around[0].ravel(), around[1].ravel())[0, 1]) < 0.03
    share = left.sum(axis=1) / drawn.sum(axis=1)
    assert 0.2 < share.min() < share.max() < 0.8
    assert share.std() > 0.12


def test_a_latent_of_depth_alone_is_not_consistent() -> None:
    """Cells that differ in nothing but their number of molecules have no neighbours that mean anything."""
    random = np.random.default_rng(3)
    depth = np.exp(random.normal(0, 0.3, (400, 1)))
    counts = csr_matrix(random.poisson(depth * np.full(100, 5.0)).astype(np.float32))

    class Depth:
        def latent(self, cells: Cells) -> Any:
            return np.log(np.asarray(cells.matrix.sum(axis=1)))

    of_cells = views(Cells(counts), 0)
    found = neighbor_scores(Depth(), of_cells)["neighbor_consistency"]  # type: ignore[arg-type]
    assert found < 2.5 * of_cells.n_neighbors / 399


def test_cells_without_molecules_in_a_half_are_left_out() -> None:
    one_molecule = csr_matrix(np.eye(40, 30, dtype=np.float32))
    many = csr_matrix(np.random.default_rng(0).poisson(20.0, (60, 30)).astype(np.float32))
    from scipy.sparse import vstack

    of_cells = views(Cells(vstack([one_molecule, many], format="csr")), seed=0)
    assert all((part.matrix.sum(axis=1) > 0).all() for part in of_cells.parts)
    assert of_cells.parts[0].matrix.shape == of_cells.parts[1].matrix.shape == (60, 30)


def test_deep_cells_are_thinned_to_a_fifth_as_well() -> None:
    random = np.random.default_rng(0)
    shallow = csr_matrix(random.poisson(9.0, (100, 300)).astype(np.float32))
    deep = csr_matrix(random.poisson(30.0, (100, 300)).astype(np.float32))
    assert views(Cells(shallow), 0).deep is None
    pair = views(Cells(deep), 0).deep
    assert pair is not None
    assert pair[1].matrix.sum() == pytest.approx(0.2 * deep.sum(), rel=0.01)
    np.testing.assert_array_equal(pair[0].matrix.toarray(), deep.toarray())
    assert np.isnan(neighbor_scores(Logs(), views(Cells(shallow), 0))["depth_agreement"])  # type: ignore[arg-type]
    assert 0 < neighbor_scores(Logs(), views(Cells(deep), 0))["depth_agreement"] < 1  # type: ignore[arg-type]


def test_of_many_cells_a_sample_is_compared() -> None:
    counts = csr_matrix(np.random.default_rng(0).poisson(3.0, (LARGEST + 50, 20)).astype(np.float32))
    assert views(Cells(counts), 0).parts[0].matrix.shape[0] <= LARGEST


def test_the_table_has_it_for_every_method_with_a_latent(grouped: anndata.AnnData) -> None:
    model = ac.CountAutoencoder(n_latent=4, n_hidden=(32,)).fit(grouped, max_epochs=30, threads=1, progress=False)
    table = evaluate(model, grouped, n_neighbors=20).table["neighbor_consistency"]
    assert ((table[["model", "pca", "pca_50"]] > 0.1) & (table[["model", "pca", "pca_50"]] < 1)).all()
    assert np.isnan(table["gene_mean"])
    again = evaluate(model, grouped, n_neighbors=20).table["neighbor_consistency"]
    assert again.equals(table)
    with pytest.raises(InputError, match="300 cells have no 300 neighbours") as few:
        evaluate(model, grouped, n_neighbors=300)
    assert few.value.code == "too-few-cells"
    for bad in (0, -3, 1.5, "ten"):
        with pytest.raises(ConfigError, match="n_neighbors") as wrong:
            evaluate(model, grouped, n_neighbors=bad)  # type: ignore[arg-type]
        assert wrong.value.code == "bad-value"


def test_values_that_are_no_whole_counts_have_none(grouped: anndata.AnnData) -> None:
    logs = grouped.copy()
    logs.X = csr_matrix(np.log1p(logs.X.toarray()))
    model = ac.UndercompleteAutoencoder(n_latent=3, transform="none").fit(logs, max_epochs=3, threads=1, progress=False)
    assert evaluate(model, logs).table["neighbor_consistency"].isna().all()
