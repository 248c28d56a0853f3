"""scikit-learn's interface: its own checks, pipelines, searches, containers, parameters, scores."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import anncoder as ac
from anncoder.data.tables import adata_of_table
from anncoder.errors import ConfigError, InputError

QUICK: dict[str, Any] = {"max_epochs": 2, "threads": 1, "device": "cpu"}

EXPECTED = {
    "check_no_attributes_set_in_init": "the parameters are one validated object, config",
    "check_do_not_raise_errors_in_init_or_set_params": "a value out of range is refused where it is given",
    "check_dtype_object": "what is no number is an InputError, a ValueError, where this wants a TypeError",
}


@pytest.fixture
def matrix(counts: anndata.AnnData) -> Any:
    return counts.X.toarray()


@pytest.fixture
def model() -> ac.CountAutoencoder:
    return ac.CountAutoencoder(n_latent=3, n_hidden=(8,)).set_params(**QUICK)


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn() -> None:
    logging.disable(logging.CRITICAL)  # that the cells are few
    linear: dict[str, Any] = {"n_hidden": (), "activation": "linear", "transform": "none", "start": "random"}
    model = ac.UndercompleteAutoencoder(n_latent=1, **linear).set_params(**QUICK | {"max_epochs": 1})
    try:
        found = check_estimator(model, expected_failed_checks=EXPECTED, on_skip=None)
    finally:
        logging.disable(logging.NOTSET)
    results = {check["check_name"]: check["status"] for check in found}
    assert {name for name, status in results.items() if status == "xfail"} == {*EXPECTED}
    assert sum(status == "passed" for status in results.values()) > 35


def test_arrays_frames_and_anndata_are_the_same_cells(
    counts: anndata.AnnData, matrix: Any, model: ac.CountAutoencoder
) -> None:
    wanted = clone(model).fit(counts, progress=False).embed(counts)
    by_gene = pd.DataFrame(matrix, counts.obs_names, counts.var_names)
    for data in (matrix, matrix.astype(int), matrix.tolist(), sparse.csc_matrix(matrix), sparse.coo_array(matrix)):
        fitted = clone(model).fit(data, progress=False)
        np.testing.assert_array_equal(fitted.transform(data), wanted)
        np.testing.assert_array_equal(fitted.embed(by_gene.set_axis(fitted.var_names_, axis=1)), wanted)
    fitted = clone(model).fit(by_gene, progress=False)
    assert list(fitted.feature_names_in_) == list(counts.var_names)
    assert list(fitted.valid_obs_) == list(clone(model).fit(counts, progress=False).valid_obs_)
    np.testing.assert_array_equal(fitted.embed(by_gene.iloc[:, ::-1]), wanted)  # by name
    np.testing.assert_array_equal(fitted.embed(counts), wanted)
    np.testing.assert_array_equal(fitted.denoise(matrix), fitted.denoise(counts))
    np.testing.assert_array_equal(fitted.embed(by_gene.astype(pd.SparseDtype("float32", 0))), wanted)


def test_pipelines_searches_and_cross_validation(counts: anndata.AnnData, matrix: Any) -> None:
    groups = counts.obs["group"].to_numpy()
    base = ac.CountAutoencoder(n_hidden=(8,)).set_params(**QUICK)
    steps = make_pipeline(base, LogisticRegression())
    search = GridSearchCV(steps, {"countautoencoder__n_latent": [2, 3]}, cv=2, error_score="raise")
    search.fit(matrix, groups)
    assert search.best_estimator_[0].config.n_latent in (2, 3)
    assert search.best_estimator_[0].training_.max_epochs == 2
    assert search.predict(matrix).shape == groups.shape
    assert "CountAutoencoder" in search._repr_html_()
    of_fit = GridSearchCV(base, {"learning_rate": [1e-9, 1e-2]}, cv=2, error_score="raise").fit(matrix, max_epochs=20)
    assert of_fit.best_params_ == {"learning_rate": 1e-2}  # the other one does not learn
    scores = cross_val_score(base, matrix, cv=2, params={"seed": 1}, error_score="raise")
    assert (scores < 0).all()


def test_a_score_is_a_likelihood_of_molecules(counts: anndata.AnnData) -> None:
    """One latent unit and no epochs know the gene means: the score is near that of the means, by scipy's Poisson."""
    from scipy.stats import poisson

    from anncoder.models.scikit_learn import _log_likelihood, _set_aside

    kept, aside = _set_aside(sparse.csr_matrix(counts.X), seed=0)
    assert (kept + aside != counts.X).nnz == 0
    assert aside.sum() / counts.X.sum() == pytest.approx(0.1, abs=0.01)
    of_genes = np.asarray(kept.sum(axis=0)).ravel()
    means = np.tile(of_genes, (counts.n_obs, 1)).astype(np.float32)
    share = (of_genes + 1) / (of_genes.sum() + len(of_genes))
    rate = np.outer(np.asarray(kept.sum(axis=1)).ravel() / 9, 0.99 * of_genes / of_genes.sum() + 0.01 * share)
    wanted = poisson.logpmf(aside.toarray(), rate).sum()
    found = _log_likelihood(lambda: iter([means[:50], means[50:]]), kept, aside)
    assert found == pytest.approx(wanted, rel=1e-3)
    knows, learns_nothing = ac.CountAutoencoder(n_latent=3, n_hidden=(16,)), ac.CountAutoencoder(n_latent=3)
    knows.fit(counts, max_epochs=30, threads=1, progress=False)
    learns_nothing.fit(counts, max_epochs=1, learning_rate=1e-12, threads=1, progress=False)
    assert knows.score(counts) > learns_nothing.score(counts)
    assert knows.score(counts.X.toarray()) == knows.score(counts)


def test_parameters(model: ac.CountAutoencoder, counts: anndata.AnnData) -> None:
    params = model.get_params()
    assert (params["n_latent"], params["max_epochs"], params["learning_rate"]) == (3, 2, None)
    assert repr(model).endswith(".set_params(max_epochs=2, threads=1, device='cpu')")
    fitted = clone(model).fit(counts, progress=False)
    assert (fitted.training_.max_epochs, fitted.training_.seed) == (2, 0)
    assert fitted.fit(counts, max_epochs=1, progress=False).training_.max_epochs == 1  # of the call, first
    assert clone(fitted).get_params() == params
    assert clone(fitted).network_ is None
    with pytest.raises(ConfigError, match="unknown key 'n_laten'") as unknown:
        fitted.set_params(n_laten=3)
    assert unknown.value.remedy == "did you mean 'n_latent'?"
    with pytest.raises(ConfigError, match="n_latent"):
        fitted.set_params(n_latent=0, max_epochs=7)
    assert fitted.get_params() == params
    assert fitted.set_params(seed=4).network_ is not None
    assert fitted.set_params(n_latent=2).network_ is None  # which was another network
    assert ac.CountAutoencoder().fit_settings == {}


def test_containers_of_results(model: ac.CountAutoencoder, counts: anndata.AnnData) -> None:
    frame = counts.to_df()
    latent = model.set_output(transform="pandas").fit_transform(frame, progress=False)
    assert list(latent.columns) == ["countautoencoder0", "countautoencoder1", "countautoencoder2"]
    assert (latent.index == frame.index).all()
    assert (model.transform(counts).index == counts.obs_names).all()
    np.testing.assert_array_equal(latent.to_numpy(), model.embed(counts))
    assert clone(model).container == "pandas"
    with pytest.raises(ConfigError, match="unknown key 'panda'"):
        model.set_output(transform="panda")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (np.ones((12, 3, 2)), "not-a-matrix"),
        (np.ones(12), "not-a-matrix"),
        ([[1, 2], [3]], "not-a-matrix"),
        (np.array([["a", "b"], ["c", "d"]]), "not-numeric"),
        (pd.DataFrame({"gene": ["a", "b"], "other": [1, 2]}), "not-numeric"),
        (np.ones((5, 4)) + 0.5, "not-integer"),
        (np.empty((0, 4)), "too-few-cells"),
        (pd.DataFrame(np.ones((9, 2)), columns=["same", "same"]), "duplicate-genes"),
    ],
)
def test_what_is_no_matrix_of_counts(data: Any, code: str) -> None:
    with pytest.raises(InputError) as error:
        ac.CountAutoencoder(n_latent=1).fit(data, progress=False)
    assert error.value.code == code
    assert error.value.remedy
    assert isinstance(error.value, ValueError)


def test_other_columns_than_those_of_the_fit(fitted: ac.CountAutoencoder, counts: anndata.AnnData) -> None:
    with pytest.raises(InputError, match="X has 59 features, but Autoencoder is expecting 60"):
        fitted.embed(counts.X[:, 1:])
    with pytest.raises(InputError, match="missing") as missing:
        fitted.embed(counts.to_df().iloc[:, 1:])
    assert missing.value.code == "missing-genes"


def test_names_are_made_where_there_are_none() -> None:
    made = adata_of_table(pd.DataFrame(np.ones((3, 2)), index=["a", "b", "c"]))
    assert (list(made.obs_names), list(made.var_names)) == (["a", "b", "c"], ["x0", "x1"])


def test_neither_the_package_nor_its_command_line_waits_for_scikit_learn(tmp_path: Path) -> None:
    code = "import sys; import anncoder; from anncoder.cli import app; assert 'sklearn' not in sys.modules"
    with warnings.catch_warnings():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
