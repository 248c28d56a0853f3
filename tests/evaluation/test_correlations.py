"""The guard: what is permuted keeps its distribution and loses its partners, and what is counted is scipy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pytest
from scipy import sparse as sp
from scipy.stats import spearmanr

import anncoder as ac
from anncoder.data.summary import library_sizes
from anncoder.errors import ConfigError, InputError
from anncoder.evaluation import correlations
from anncoder.evaluation.baselines import Cells, Trained
from anncoder.evaluation.comparison import evaluate
from anncoder.evaluation.correlations import LEVEL, NEIGHBOURS, correlated, invented, permuted
from anncoder.models.base import Autoencoder
from anncoder.models.count import CountConfig, CountNetwork
from anncoder.types import Loader, Summary


@pytest.fixture(scope="module")
def grouped() -> anndata.AnnData:
    """Return 200 cells of three distinct groups x 60 genes; not to be changed."""
    shape = {"n_obs": 200, "n_vars": 60, "n_groups": 3}
    return ac.datasets.simulate(**shape, de_prob=0.5, de_fac_loc=1.0, lib_loc=7.0, seed=1)


def normalized(matrix: Any) -> Any:
    return matrix.toarray() / library_sizes(matrix)[:, None]


def test_permuted_genes_keep_their_counts_and_the_others_their_cells(grouped: anndata.AnnData) -> None:
    matrix, genes = sp.csr_matrix(grouped.X), np.arange(0, 60, 2)
    before = matrix.copy()
    moved = permuted(matrix, genes, 0)
    assert (matrix != before).nnz == 0
    old, new = matrix.toarray(), moved.toarray()
    np.testing.assert_array_equal(old[:, 1::2], new[:, 1::2])
    varies = old[:, ::2].std(axis=0) > 0
    np.testing.assert_array_equal((old[:, ::2] != new[:, ::2]).any(axis=0), varies)
    order = np.argsort(library_sizes(matrix), kind="stable")
    for cells in np.array_split(order, range(NEIGHBOURS, 200, NEIGHBOURS)):  # each within cells of about one size
        np.testing.assert_array_equal(np.sort(old[cells], axis=0), np.sort(new[cells], axis=0))
    assert (permuted(matrix, genes, 0) != moved).nnz == 0
    assert (permuted(matrix, genes, 1) != moved).nnz > 0


def test_permuted_genes_have_no_partners_left(grouped: anndata.AnnData) -> None:
    genes = np.arange(60)
    assert correlated(normalized(sp.csr_matrix(grouped.X))) > 0.2
    # of every gene: what is left is what the totals do to all
    assert correlated(normalized(permuted(sp.csr_matrix(grouped.X), genes[:30], 0))[:, :30]) < 0.05


def test_significance_is_scipys() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(50, 8)) + np.outer(generator.normal(size=50), np.linspace(0, 1.5, 8))
    values = np.column_stack([np.round(values), np.ones(50)])  # ties, and a gene that says nothing
    pairs = [(i, j) for i in range(9) for j in range(i)]
    p = [spearmanr(values[:, i], values[:, j]).pvalue for i, j in pairs if 8 not in (i, j)]
    expected = sum(value < LEVEL / len(pairs) for value in p) / len(pairs)
    assert 0 < expected < 1
    assert correlated(values) == pytest.approx(expected)


def test_what_a_model_invents_is_a_column_of_the_table(grouped: anndata.AnnData) -> None:
    model = ac.CountAutoencoder(n_latent=3, n_hidden=(32,))
    model.fit(grouped, max_epochs=30, batch_size=32, threads=1, progress=False)
    weights = {name: value.clone() for name, value in model.network_.state_dict().items()}  # type: ignore[union-attr]
    table = evaluate(model, grouped, guard=True).table
    found = table["invented_correlations"]
    assert np.isnan(found["gene_mean"])
    # few numbers a cell: permuted genes come back correlated, from either
    assert (found[["model", "pca"]] > 0.05).all()
    assert found[["model", "pca"]].to_dict() == invented(model, Cells(sp.csr_matrix(grouped.X)), 0)
    for name, value in model.network_.state_dict().items():  # type: ignore[union-attr]
        assert value.equal(weights[name])
    assert "invented_correlations" not in evaluate(model, grouped).table


def test_it_is_the_model_of_the_permuted_genes_that_is_scored(
    grouped: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(grouped, max_epochs=2, threads=1, progress=False)
    scored: list[Any] = []
    monkeypatch.setattr(correlations, "Trained", lambda fitted: scored.append(fitted) or Trained(fitted))
    invented(model, Cells(sp.csr_matrix(grouped.X)), 0)
    (again,) = scored
    assert again.config == model.config
    assert not np.array_equal(again.embed(grouped), model.embed(grouped))


def test_batches_go_along(grouped: anndata.AnnData) -> None:
    cells = grouped.copy()
    cells.obs["plate"] = np.repeat(["a", "b"], 100)
    model = ac.VariationalAutoencoder(n_latent=3, n_hidden=(16,))
    model.fit(cells, batch_key="plate", max_epochs=2, threads=1, progress=False)
    assert evaluate(model, cells, guard=True).table["invented_correlations"].notna().sum() == 2


def test_what_it_cannot_do(grouped: anndata.AnnData) -> None:
    expression = grouped.copy()
    expression.X = expression.X.log1p()
    quick: dict[str, Any] = {"max_epochs": 1, "threads": 1, "progress": False}
    model = ac.UndercompleteAutoencoder(n_latent=2, transform="none").fit(expression, **quick)
    with pytest.raises(ConfigError) as refused:
        evaluate(model, expression, guard=True)
    assert refused.value.code == "no-decoder"
    rare = anndata.AnnData(sp.csr_matrix(np.eye(200, 60, dtype=np.float32) + (np.arange(60) < 15)))
    counts = ac.CountAutoencoder(n_latent=2).fit(rare, **quick)
    with pytest.raises(InputError) as few:
        invented(counts, Cells(sp.csr_matrix(rare.X)), 0)
    assert few.value.code == "too-few-genes"


def test_the_guard_fits_with_the_batches_that_embedding_does_not_need() -> None:
    cells = ac.datasets.simulate(n_obs=120, n_vars=60, n_batches=2, lib_loc=7.0, seed=0)
    model = ac.SAUCIE(lambda_b=0.1).fit(cells, batch_key="batch", max_epochs=2, progress=False)
    table = ac.evaluate(model, cells, guard=True).table
    assert table.loc["model", "invented_correlations"] >= 0


class AimedConfig(CountConfig):
    @property
    def fits_slot(self) -> str:
        return "X_known"

    @property
    def labels(self) -> Literal["optional"]:
        return "optional"


class AimedNetwork(CountNetwork):
    def start_from(self, summary: Summary, cells: Loader) -> None:
        assert summary.target is not None
        assert summary.target.shape == (summary.n_obs, 3)
        assert summary.sample is not None
        assert summary.sample.label is not None
        super().start_from(summary, cells)


class Aimed(ac.CountAutoencoder):
    name = "aimed"
    config_class, network_class = AimedConfig, AimedNetwork

    def __init__(self, *, n_latent: int = 2, n_hidden: tuple[int, ...] = (8,)) -> None:
        Autoencoder.__init__(self, AimedConfig(n_latent=n_latent, n_hidden=n_hidden))


def test_coordinates_and_labels_that_a_model_is_fitted_to_go_along(grouped: anndata.AnnData, tmp_path: Path) -> None:
    cells = grouped.copy()
    cells.obsm["X_known"] = np.arange(3.0 * cells.n_obs).reshape(-1, 3)
    cells.obs["kind"] = np.where(np.arange(cells.n_obs) % 2, "odd", None)
    cells.write_h5ad(path := tmp_path / "cells.h5ad")
    model = Aimed()
    model.unfitted = lambda: Aimed()  # type: ignore[method-assign] # only some of the settings are its own
    model.fit(cells, label_key="kind", max_epochs=1, valid_fraction=0, threads=1, progress=False)
    for data in (cells, path):
        assert evaluate(model, data, guard=True).table["invented_correlations"].notna().sum() == 2
    del cells.obsm["X_known"]
    with pytest.raises(ConfigError, match="X_known"):
        evaluate(model, cells, guard=True)
