"""Times, coordinates and rates that cannot be used: each is refused with a line that repairs it."""

from __future__ import annotations

import logging
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import anncoder as ac
from anncoder.datasets import branching
from anncoder.errors import AnncoderError, ConfigError, InputError
from anncoder.tl.time_series.time_points import read_times


def cells() -> anndata.AnnData:
    adata = branching(12, n_times=3)
    adata.obs["note"] = "kept"
    return adata


def state(adata: anndata.AnnData) -> tuple[Any, ...]:
    return (list(adata.obs), list(adata.obsm), list(adata.uns), adata.obs.to_csv(), adata.X.tobytes())


def named(adata: anndata.AnnData, prefix: str) -> Any:
    return prefix + adata.obs["time"].astype(int).astype(str)


def ordered(names: list[str], adata: anndata.AnnData) -> Any:
    return adata.obs["time"].astype(int).astype(str).astype(pd.CategoricalDtype(names, ordered=True))


WRONG: dict[str, Any] = {
    "text": lambda a: named(a, "day"),
    "categories": lambda a: named(a, "day").astype("category"),
    "words": lambda a: a.obs["time"].map({0.0: "early", 1.0: "middle", 2.0: "late"}),
    "missing": lambda a: a.obs["time"].where(a.obs["time"] > 0),
    "missing text": lambda a: named(a, "").where(a.obs["time"] > 0),
    "infinite": lambda a: a.obs["time"].replace(2.0, np.inf),
    "one": lambda a: 1.0,
    "dates": lambda a: pd.Timestamp("2026-01-01") + pd.to_timedelta(a.obs["time"], unit="D"),
    "spans": lambda a: pd.to_timedelta(a.obs["time"], unit="D"),
    "seconds": lambda a: 1.7e9 + 86400 * a.obs["time"],
    "twice": lambda a: [*["0", "0.0"] * 6, *["1"] * 12, *["2"] * 12],
    "order": lambda a: ordered(["2", "0", "1"], a),
    "truth": lambda a: a.obs["time"] > 0,
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_time_column_is_refused_and_nothing_is_written(kind: str) -> None:
    adata = cells()
    adata.obs["time"] = WRONG[kind](adata)
    before = state(adata)
    with pytest.raises(InputError) as raised:
        ac.tl.transport(adata, "time", use_rep="X_sim", progress=False)
    assert raised.value.code == "bad-times"
    assert raised.value.remedy
    assert state(adata) == before


@pytest.mark.parametrize(
    "kind", ["text", "categories", "missing", "infinite", "dates", "spans", "seconds", "twice", "order"]
)
def test_the_remedy_works(kind: str) -> None:
    adata = cells()
    adata.obs["time"] = WRONG[kind](adata)
    with pytest.raises(InputError) as raised:
        read_times(adata, "time")
    line = raised.value.remedy.split(": ", 1)[1] if ": adata" in raised.value.remedy else raised.value.remedy
    names = {"adata": adata, "pd": pd, "np": np}
    exec(line, names)
    repaired = read_times(names["adata"], "time")
    assert len(np.unique(repaired)) >= 2
    if len(repaired) == 36:
        assert np.unique(repaired).tolist() == [0, 1, 2]


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        ac.tl.transport(cells(), "tim", use_rep="X_sim")
    assert (raised.value.code, raised.value.remedy) == ("unknown-key", "did you mean 'time'?")


def test_few_cells_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    adata = cells()[5:].copy()
    with caplog.at_level(logging.WARNING, "anncoder"):
        ac.tl.transport(adata, "time", use_rep="X_sim", progress=False)
    assert "time 0 has 7 cells" in caplog.text
    one = cells()[11:].copy()
    ac.tl.transport(one, "time", use_rep="X_sim", progress=False)
    assert one.obs["transport_growth"].notna().sum() == 13


BAD: dict[str, Any] = {
    "nan": lambda x: np.where(np.arange(36)[:, None] == 3, np.nan, x),
    "infinite": lambda x: np.where(np.arange(36)[:, None] == 3, np.inf, x),
    "the same": lambda x: np.ones_like(x),
    "words": lambda x: pd.DataFrame(x.astype(str) + "a", index=cells().obs_names),
    "no axes": lambda x: x[:, :0],
    "mostly the same": lambda x: np.where(np.arange(36)[:, None] == 3, x, 1.0),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_coordinates_are_refused_and_nothing_is_written(kind: str) -> None:
    adata = cells()
    adata.obsm["X_bad"] = BAD[kind](adata.obsm["X_sim"])
    before = state(adata)
    with pytest.raises(InputError) as raised:
        ac.tl.transport(adata, "time", use_rep="X_bad", progress=False)
    assert raised.value.code == "bad-coordinates"
    assert raised.value.remedy
    assert state(adata) == before


def test_a_missing_latent_is_told_how_to_make() -> None:
    with pytest.raises(ConfigError) as raised:
        ac.tl.transport(cells(), "time")
    assert "ac.tl.autoencode(adata, key_added='ae')" in raised.value.remedy


def test_one_cell_far_out_does_not_set_the_scale() -> None:
    adata = cells()
    plain = ac.tl.transport(adata, "time", use_rep="X_sim", progress=False, copy=True)
    adata.obsm["X_sim"][0] = 1e4
    ac.tl.transport(adata, "time", use_rep="X_sim", progress=False)
    scale, before = (a.uns["transport"]["pairs"]["median_cost"].iloc[0] for a in (adata, plain))
    assert scale == pytest.approx(before, rel=0.2)
    assert np.isfinite(adata.obs["transport_f"][:24]).all()


@pytest.mark.parametrize("rate", [0.0, -1.0, np.inf, np.nan, "word", [1.0, 2.0]])
def test_rates_that_cannot_be_are_refused(rate: Any) -> None:
    adata = cells()
    adata.obs["word"] = "fast"
    before = state(adata)
    for option in ("rate", "doubling_time"):
        with pytest.raises(AnncoderError) as raised:
            ac.tl.growth(adata, **{option: rate})
        assert raised.value.code in ("bad-growth", "bad-value")
        assert raised.value.remedy
    assert state(adata) == before


def test_rates_of_another_unit_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    adata = cells()
    ac.tl.growth(adata, rate=30.0)
    assert "multiply more than 20 times" in caplog.text
    assert (adata.obs["growth"] == 30).all()
    ac.tl.growth(adata, doubling_time=2.0)
    assert adata.obs["growth"].to_numpy() == pytest.approx(np.full(36, 2**0.5))


def counted() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    genes = ["MKI67", "TOP2A", "CASP3", "BAX", "ACTB", "GAPDH"]
    counts = rng.poisson(5, (60, 6)).astype(np.float32)
    counts[:20, :2] += 40  # dividing
    counts[20:40, 2:4] += 40  # dying
    return anndata.AnnData(csr_matrix(counts), var=pd.DataFrame(index=genes))


def test_growth_is_scored_from_genes() -> None:
    adata = counted()
    ac.tl.growth(adata)
    fast, dying = adata.obs["growth"][:20], adata.obs["growth"][20:40]
    assert fast.min() > 1.5
    assert dying.max() < 0.7
    logs = adata.copy()
    logs.X = csr_matrix(np.log1p(1e4 * adata.X.toarray() / adata.X.sum(axis=1)).astype(np.float32))
    ac.tl.growth(logs, key_added="again")
    assert logs.obs["again"].to_numpy() == pytest.approx(adata.obs["growth"].to_numpy(), rel=1e-5)
    ac.tl.growth(adata, genes={"proliferation": ["ACTB"], "apoptosis": ["GAPDH"]}, key_added="own", time_unit_hours=1)
    assert np.abs(np.log(adata.obs["own"])).max() <= 1.4 / 24
    ac.tl.growth(adata, proliferation=np.ones(60), apoptosis=np.zeros(60), key_added="given")
    assert adata.obs["given"].to_numpy() == pytest.approx(np.full(60, 3.420047), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"genes": "mouse"}, "unknown-genes", "genes='human'"),
        ({"genes": {"proliferation": ["Nope"], "apoptosis": ["BAX"]}}, "unknown-genes", "MKI67"),
        ({"genes": "worm"}, "bad-value", "human"),
        ({"time_unit_hours": 0}, "bad-value", "hours"),
        ({"time_unit_hours": "day"}, "bad-value", "hours"),
        ({"rate": 1.0, "doubling_time": 1.0}, "bad-value", "one"),
        ({"proliferation": "no"}, "unknown-key", "known"),
        ({"proliferation": np.full(60, np.nan)}, "bad-growth", "score"),
        ({"layer": "no"}, "missing-layer", "layer"),
    ],
)
def test_growth_refuses_with_a_remedy(options: dict[str, Any], code: str, said: str) -> None:
    adata = counted()
    with pytest.raises(AnncoderError) as raised:
        ac.tl.growth(adata, **options)
    assert raised.value.code == code
    assert said in str(raised.value)
    assert not list(adata.obs)
    assert not list(adata.uns)
