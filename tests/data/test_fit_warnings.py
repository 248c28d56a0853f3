"""Warnings before a fit: few cells, and antibodies among the genes."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata
import pytest

import anncoder as ac
from anncoder.data.sources import open_source

ANTIBODIES = ["Gene Expression"] * 55 + ["Antibody Capture"] * 5


def opened(data: object, caplog: pytest.LogCaptureFixture, *, to_fit: bool = True) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "anncoder"):
        open_source(data, None, counts=True, to_fit=to_fit)
    return caplog.text


@pytest.mark.parametrize("on_disk", [False, True])
def test_few_cells_are_warned_about_where_they_are_fitted(
    counts: anndata.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture, on_disk: bool
) -> None:
    found = {}
    for n_obs in (49, 50):
        few = counts[:n_obs].copy()
        few.write_h5ad(tmp_path / f"{n_obs}.h5ad")
        found[n_obs] = tmp_path / f"{n_obs}.h5ad" if on_disk else few
    assert "49 cells are few" in opened(found[49], caplog)
    assert "few" not in opened(found[49], caplog, to_fit=False)
    assert "few" not in opened(found[50], caplog)
    assert [problem.code for problem in ac.check(found[49]).problems if problem.severity == "warning"] == ["few-cells"]
    assert ac.check(found[49]).ok


@pytest.mark.parametrize("on_disk", [False, True])
def test_antibodies_among_the_genes_are_warned_about(
    counts: anndata.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture, on_disk: bool
) -> None:
    counts.var["feature_types"] = ANTIBODIES
    counts.write_h5ad(tmp_path / "citeseq.h5ad")
    data = tmp_path / "citeseq.h5ad" if on_disk else counts
    assert "5 of 'Antibody Capture'" in opened(data, caplog)
    (problem,) = (problem for problem in ac.check(data).problems if problem.code == "other-features")
    remedy = problem.remedy.partition(": ")[2]
    genes = eval(remedy, {"adata": counts})
    assert genes.n_vars == 55
    assert "Antibody" not in opened(genes, caplog)
