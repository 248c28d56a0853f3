"""Share of each gene that a latent explains: closed forms, invariants, and what noise alone gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from anncoder import CountAutoencoder
from anncoder.evaluation.baselines import Cells, GeneMean, Normalized
from anncoder.reporting.genes import _deviances, _squares, best_and_worst, explained_genes

N, G = 400, 12


@pytest.fixture(scope="module")
def grouped() -> tuple[Any, Any]:
    """Return counts of two groups, half of whose genes differ, and the true means of each cell."""
    rng = np.random.default_rng(0)
    means = np.full((N, G), 20.0)
    means[: N // 2, :3], means[N // 2 :, 3:6] = 60, 60
    return csr_matrix(rng.poisson(means).astype(np.float32)), means


class Truth:
    """The true means, as a method."""

    def __init__(self, means: Any) -> None:
        self.means = means

    def latent(self, cells: Cells) -> None:
        return None

    def expected(self, cells: Cells) -> Iterator[Any]:
        yield self.means

    reconstructed = expected


def test_the_truth_explains_what_poisson_says(grouped: tuple[Any, Any]) -> None:
    matrix, means = grouped
    scale, cells = Normalized(float(means.sum(axis=1).mean())), Cells(matrix)
    methods: Any = {"truth": Truth(means), "mean": GeneMean(scale, cells)}  # type: ignore[arg-type]
    losses, molecules = _deviances(scale, methods, cells, cells, seed=0)  # type: ignore[arg-type]
    # a Poisson deviance of means that are not small is nearly chi squared, 1 + 1 / (6 mu) a cell, and the cell's size,
    # known from 180 molecules of the other half, adds mu / 180; standard error of 400 cells: 0.08
    wanted = 1 + 1 / (6 * means / 2) + means / 2 / 180
    np.testing.assert_allclose(losses["truth"] / N, wanted.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(losses["truth"].mean() / N, wanted.mean(), atol=0.06)
    shares = 1 - losses["truth"] / losses["mean"]
    # of the second half, 30 against 10 molecules: 2 (log-likelihood ratio), by hand
    half = np.array([30.0, 10.0])
    expected = (2 * half * np.log(half / 20)).mean()
    np.testing.assert_allclose(shares[:6], expected / (wanted[0, 0] + expected), atol=0.05)
    np.testing.assert_allclose(shares[6:], 0, atol=0.03)
    np.testing.assert_allclose(molecules, matrix.sum(axis=0).A1 / 2, rtol=0.05)


def test_squared_errors_give_r_squared(grouped: tuple[Any, Any]) -> None:
    matrix, means = grouped
    scale = Normalized(1.0, reads_counts=False)
    methods: Any = {"truth": Truth(means), "mean": GeneMean(scale, Cells(matrix))}  # type: ignore[arg-type]
    losses, n = _squares(scale, methods, Cells(matrix), Cells(matrix), seed=0)  # type: ignore[arg-type]
    x = matrix.toarray()
    np.testing.assert_allclose(losses["truth"], np.square(x - means).sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(losses["mean"], x.var(axis=0) * N, rtol=1e-4)
    assert (n == N).all()


def test_genes_of_groups_come_before_those_of_noise() -> None:
    rng = np.random.default_rng(1)
    means = np.full((N, 30), 12.0)
    means[: N // 2, :5], means[N // 2 :, 5:10] = 40, 40
    adata = anndata.AnnData(csr_matrix(rng.poisson(means).astype(np.float32)))
    model = CountAutoencoder(n_latent=1, n_hidden=(16,)).fit(adata, max_epochs=8, progress=False)
    cells = Cells(adata.X)
    table = explained_genes(model, cells.take(slice(0, N, 2)), cells.take(slice(1, N, 2)), seed=0)
    assert list(table.columns) == ["molecules", "model", "pca"]
    assert set(table.index[:10]) == {str(i) for i in range(10)}
    assert table["model"].iloc[:10].min() > 0.4
    assert table["model"].iloc[10:].abs().max() < 0.15
    assert table["model"].is_monotonic_decreasing
    again = explained_genes(model, cells.take(slice(0, N, 2)), cells.take(slice(1, N, 2)), seed=0)
    pd.testing.assert_frame_equal(table, again)


def test_genes_with_few_molecules_are_left_out(fitted: CountAutoencoder, simulated: Any) -> None:
    cells = Cells(fitted.aligned_matrix(simulated))
    rare = cells.matrix.tolil()
    rare[:, 0] = 0
    rare[0, 0] = 1
    table = explained_genes(fitted, Cells(csr_matrix(rare)), cells, seed=0)
    assert fitted.var_names_[0] not in table.index
    assert (table["molecules"] >= 50).all()
    assert np.isfinite(table.to_numpy()).all()


def test_models_of_expression_are_scored_by_squared_error(simulated: Any) -> None:
    from anncoder import UndercompleteAutoencoder

    values = simulated.copy()
    values.X = values.X.log1p()
    model = UndercompleteAutoencoder(n_latent=2, transform="none").fit(values, max_epochs=2, progress=False)
    cells = Cells(model.aligned_matrix(values))
    table = explained_genes(model, cells, cells, seed=0)
    # PCA that was fitted to these cells explains what its components hold
    from sklearn.decomposition import PCA

    x = values.X.toarray()
    pca = PCA(2, random_state=0).fit(x)
    rest = np.square(x - pca.inverse_transform(pca.transform(x))).sum(axis=0)
    whole = np.square(x - x.mean(axis=0)).sum(axis=0)
    wanted = pd.Series(1 - rest / np.where(whole > 0, whole, 1), index=values.var_names)
    np.testing.assert_allclose(table["pca"], wanted[table.index], atol=1e-3)


@pytest.mark.parametrize(("n", "best", "worst"), [(0, 0, 0), (1, 1, 0), (5, 3, 2), (40, 10, 10)])
def test_no_gene_is_both_best_and_worst(n: int, best: int, worst: int) -> None:
    table = pd.DataFrame({"model": np.arange(n)[::-1]}, index=[f"g{i}" for i in range(n)])
    top, bottom = best_and_worst(table)
    assert (len(top), len(bottom)) == (best, worst)
    assert not set(top.index) & set(bottom.index)
    assert list(bottom.index) == list(table.index[::-1][:worst])
