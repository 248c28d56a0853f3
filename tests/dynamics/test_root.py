"""Root cells: medoid, and walks against velocities."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix, diags
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from anncoder.dynamics.populations.root import medoid, origins
from anncoder.errors import InputError


def test_the_medoid_is_that_of_all_distances() -> None:
    points = np.random.default_rng(0).standard_normal((700, 5)) + 1000
    assert medoid(points) == cdist(points, points).sum(axis=1).argmin()
    assert medoid(points[:1]) == 0


def test_far_cells_do_not_move_the_medoid_away() -> None:
    random = np.random.default_rng(1)
    points = np.concatenate([random.standard_normal((100, 2)), random.standard_normal((20, 2)) + 1000])
    assert np.linalg.norm(points[medoid(points)]) < 1


def test_of_many_points_a_sample_tells() -> None:
    points = np.random.default_rng(2).standard_normal((6000, 3))
    assert np.linalg.norm(points[medoid(points)]) < 0.3
    assert medoid(points) == medoid(points)


def test_a_chain_of_velocities_begins_at_its_begin() -> None:
    n = 50
    shuffled = np.random.default_rng(3).permutation(n)
    graph = csr_matrix(diags([np.full(n - 1, 0.8), np.full(n - 2, 0.5)], [1, 2]))[shuffled][:, shuffled]
    assert shuffled[origins(graph).argmax()] <= 1


@pytest.mark.parametrize(
    "graph", [csr_matrix((5, 5)), csr_matrix(-np.ones((5, 5))), csr_matrix(np.full((5, 5), np.nan))]
)
def test_a_graph_without_velocities_has_no_root(graph: csr_matrix) -> None:
    with pytest.raises(InputError) as refused:
        origins(graph)
    assert refused.value.code == "no-root"


def test_dentate_gyrus(shared_data: Path) -> None:
    cells = anndata.read_h5ad(shared_data / "dentate_velocity_100.h5ad")
    found = origins(cells.obsp["velocity_graph"])
    assert cells.obs["label"].iloc[int(found.argmax())] == "Neuroblast"
    assert spearmanr(found, cells.obs["root_cells"])[0] >= 0.75  # scVelo's own
    assert spearmanr(found, cells.obs["latent_time"])[0] <= -0.82
