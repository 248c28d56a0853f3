"""Lagged relations of genes through a transport: rebuilt from potentials, as through its matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import block_array, csr_matrix

import anncoder as ac
from anncoder.errors import AnncoderError

Array = np.ndarray[Any, Any]

N, GENES, TRUE = 150, 200, "17"


@pytest.fixture(scope="module")
def lineages() -> anndata.AnnData:
    """Return 150 cells at times 0, 1, 2 with a transport; not to be changed.

    Gene 0 is u_t at time t, one of four independent traits that cells inherit, and gene 17 follows u_(t-1): what gene 0
    was one time before, and unrelated to what it is.
    """
    rng = np.random.default_rng(0)
    traits = rng.uniform(-1, 1, (N, 4))
    latent, values = [], []
    for time in range(3):
        here = traits + 0.02 * rng.normal(size=traits.shape)
        genes = np.sin(2 * here @ rng.normal(size=(4, GENES))) + 0.3 * rng.normal(size=(N, GENES))
        genes[:, 0] = here[:, time + 1]
        genes[:, int(TRUE)] = np.tanh(2 * here[:, time]) + 0.1 * rng.normal(size=N)
        latent.append(np.column_stack([here, np.full(N, 0.1 * time)]))
        values.append(genes)
    obs = pd.DataFrame({"day": np.repeat([0.0, 1.0, 2.0], N)}, index=[f"c{i}" for i in range(3 * N)])
    var = pd.DataFrame(index=[str(k) for k in range(GENES)])
    adata = anndata.AnnData(np.concatenate(values), obs=obs, var=var, obsm={"X_ae": np.concatenate(latent)})
    ac.tl.transport(adata, "day", epsilon=0.01, progress=False)
    return adata


def lagged(adata: anndata.AnnData, target: Any = None, **options: Any) -> pd.DataFrame:
    fixed: dict[str, Any] = {"layer": "X", "method": "lagged", "n_shuffles": 5, "threads": 1, "progress": False}
    return ac.tl.gene_relations(adata.copy(), "0", target, **{**fixed, **options})


def test_the_true_pair_is_found_and_lag_one_is_above_lag_zero(lineages: anndata.AnnData) -> None:
    table = lagged(lineages)
    assert len(table) == GENES - 1
    assert TRUE in table.index[:5]
    row = table.loc[TRUE]
    assert row["score"] > 2 * row["lag0"]
    assert row["directed"]


def test_scores_are_those_of_the_matrix(lineages: anndata.AnnData) -> None:
    some = [TRUE, "5", "9", "100"]
    for measure in ("dremi", "correlation"):
        found = lagged(lineages, some, measure=measure)
        other = lineages.copy()
        first, second = (ac.tl.couple(other, t, t + 1) for t in (0, 1))
        empty = csr_matrix((N, N))
        blocks = [[empty, first, empty], [empty, empty, second], [empty, empty, empty]]
        other.obsp["plan"] = csr_matrix(block_array(blocks))
        wanted = lagged(other, some, measure=measure, transport="plan", time_key="day")
        numbers = ["score", "correlation", "z", "lag0"]
        np.testing.assert_allclose(found.loc[some, numbers], wanted.loc[some, numbers], rtol=1e-6)


def test_pairs_are_those_that_were_solved_and_chains_are_followed(lineages: anndata.AnnData) -> None:
    chain = lagged(lineages, [TRUE, "5"], times=(0, 2))
    other = lineages.copy()
    both = ac.tl.couple(other, 0, 1).multiply(other.obs["transport_growth"].to_numpy()[:N, None])
    both = csr_matrix(both) @ csr_matrix(
        ac.tl.couple(other, 1, 2).multiply(other.obs["transport_growth"].to_numpy()[N : 2 * N, None])
    )
    empty = csr_matrix((N, N))
    other.obsp["plan"] = csr_matrix(block_array([[empty, empty, both], [empty] * 3, [empty] * 3]))
    wanted = lagged(other, [TRUE, "5"], times=(0, 2), transport="plan", time_key="day")
    np.testing.assert_allclose(chain.loc[TRUE, "score"], wanted.loc[TRUE, "score"], rtol=1e-6)
    skipping = lineages.copy()
    ac.tl.transport(skipping, "day", pairs=[(0, 2)], progress=False)
    assert np.isfinite(lagged(skipping, TRUE).loc[TRUE, "score"])


WRONG: dict[str, tuple[Callable[[anndata.AnnData], Any], dict[str, Any], str]] = {
    "another latent": (lambda a: a.obsm.__setitem__("X_ae", a.obsm["X_ae"] + 1), {}, "other-latent"),
    "no potentials": (lambda a: a.obs.drop(columns="transport_f", inplace=True), {}, "no-transport"),
    "other times": (lambda a: a.obs.insert(0, "hour", 24 * a.obs["day"]), {"time_key": "hour"}, "bad-value"),
    "nothing": (lambda a: a.uns.pop("transport"), {"time_key": "day"}, "no-transport"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_transport_that_does_not_fit_is_refused(lineages: anndata.AnnData, name: str) -> None:
    change, options, code = WRONG[name]
    adata = lineages.copy()
    change(adata)
    with pytest.raises(AnncoderError) as refused:
        lagged(adata, TRUE, **options)
    assert refused.value.code == code
    assert "relations" not in adata.uns
