"""Fixtures that several test files use."""

from __future__ import annotations

import os

# numba (umap uses it) gives the OpenMP that it shares with torch as many threads as there are cores, whatever
# OMP_NUM_THREADS says, and a fit that runs after it is then 50 times slower where the cores are busy; it asks for this
# once, when it is imported, and fails where the answer changes
if "OMP_NUM_THREADS" in os.environ:
    os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from anncoder import CountAutoencoder
from anncoder.cli.app import app
from anncoder.datasets import simulate


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets, which are not part of the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets (../shared/data) are not here")
    return folder


@pytest.fixture(scope="session")
def simulated() -> anndata.AnnData:
    """Return 120 cells of three groups x 60 genes; not to be changed."""
    return simulate(n_obs=120, n_vars=60, n_groups=3, de_prob=0.5, de_fac_loc=0.1, lib_loc=6.0, seed=1)


@pytest.fixture
def counts(simulated: anndata.AnnData) -> anndata.AnnData:
    """Return a copy of the simulated counts, to do with as one likes."""
    return simulated.copy()


@pytest.fixture(scope="session")
def fitted(simulated: anndata.AnnData) -> CountAutoencoder:
    """Return a small fitted model; not to be changed."""
    return CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(simulated, max_epochs=2, progress=False)


@pytest.fixture(scope="session")
def model_folder(fitted: CountAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of that model; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    fitted.save(folder)
    return folder


@pytest.fixture
def counts_file(counts: anndata.AnnData, tmp_path: Path) -> Path:
    """Return an .h5ad file of counts, with everything else that a user's file may hold."""
    counts.layers["counts"] = counts.X.copy()
    counts.layers["logs"] = counts.X.log1p()
    counts.raw = counts.copy()
    counts.obs["note"] = np.where(np.arange(counts.n_obs) % 2, "odd", "even").astype(object)
    counts.obsm["X_user"] = np.arange(2.0 * counts.n_obs).reshape(-1, 2)
    counts.uns["user"] = {"colour": "red", "numbers": np.arange(3)}
    path = tmp_path / "in.h5ad"
    counts.write_h5ad(path, convert_strings_to_categoricals=False)
    return path


@pytest.fixture
def anncoder() -> Callable[..., Result]:
    """Return a function that runs a command line in this process."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
