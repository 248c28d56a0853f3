"""A layer of counts is suggested only if its zeros are those of the matrix that was to be used."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse as sp

import anncoder as ac
from anncoder.data.matrix.zeros import pattern
from anncoder.errors import InputError

FORMS: dict[str, Any] = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}


def of_velocity(counts: anndata.AnnData, form: str) -> anndata.AnnData:
    """Return normalised layers, and one that is still integer, of ambiguous molecules."""
    x = counts.X.toarray()
    ambiguous = np.random.default_rng(0).poisson(0.1, x.shape)
    ambiguous[0, 0] = 1
    layers = {"ambiguous": FORMS[form](ambiguous.astype(np.float32)), "spliced": FORMS[form](x / 7.3)}
    logs = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
    return anndata.AnnData(FORMS[form](logs), counts.obs, counts.var, layers=layers)


def forms_of(adata: anndata.AnnData, folder: Path) -> list[Any]:
    adata.write_h5ad(folder / "in.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata's, on zarr versions
        adata.write_zarr(folder / "in.zarr")
    backed = anndata.read_h5ad(folder / "in.h5ad", backed="r")
    return [adata, adata[:100], folder / "in.h5ad", folder / "in.zarr", backed]


def remedy(data: Any, layer: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        ac.CountAutoencoder(n_latent=2).fit(data, layer=layer, max_epochs=1, threads=1, progress=False)
    return caught.value.remedy


@pytest.mark.parametrize("form", FORMS)
def test_ambiguous_molecules_are_not_suggested(counts: anndata.AnnData, form: str, tmp_path: Path) -> None:
    for data in forms_of(of_velocity(counts, form), tmp_path):
        for layer in (None, "spliced", "missing"):
            assert "ambiguous" not in remedy(data, layer)


@pytest.mark.parametrize("form", FORMS)
def test_true_counts_are_suggested_beside_them(counts: anndata.AnnData, form: str, tmp_path: Path) -> None:
    adata = of_velocity(counts, form)
    adata.layers["true"] = FORMS[form](counts.X.toarray())
    for data in forms_of(adata, tmp_path):
        for layer in (None, "spliced", "missing"):
            assert "layer='true' (--layer 'true')" in remedy(data, layer)


def test_the_counts_of_raw_are_compared_in_the_genes_of_x(counts: anndata.AnnData, tmp_path: Path) -> None:
    adata = of_velocity(counts, "csr")[:, ::-2].copy()
    adata.raw = counts
    for data in forms_of(adata, tmp_path):
        assert "layer='raw.X'" in remedy(data)
    shuffled = counts[np.random.default_rng(0).permutation(120)].copy()
    adata.raw = anndata.AnnData(shuffled.X, adata.obs, counts.var)
    (tmp_path / "shuffled").mkdir()
    for data in forms_of(adata, tmp_path / "shuffled"):
        assert "raw.X" not in remedy(data)


def test_where_x_is_centred_other_slots_tell(counts: anndata.AnnData, tmp_path: Path) -> None:
    adata = of_velocity(counts, "csr")
    adata.X = adata.X.toarray() - 1.0
    assert "ambiguous" not in remedy(adata)
    del adata.layers["spliced"], adata.layers["ambiguous"]
    adata.layers["counts"] = counts.X
    for data in forms_of(adata, tmp_path):  # nothing else to compare with
        assert "layer='counts'" in remedy(data)


def test_the_pattern_is_that_of_the_values_and_not_of_what_is_stored() -> None:
    x = sp.random(50, 30, 0.3, format="csr", random_state=0)
    x.data[::3] = 0
    cells = np.array([0, 7, 49])
    for form in FORMS.values():
        matrix = form(x.toarray()) if form is np.asarray else form(x)
        found = pattern(matrix, pd.RangeIndex(30), cells)
        assert found is not None
        np.testing.assert_array_equal(found.filled.toarray(), (x.toarray() != 0)[cells])


def test_other_cells_have_other_zeros(counts: anndata.AnnData) -> None:
    names, rows = counts.var_names, np.arange(120)
    own = pattern(counts.X, names, rows)
    assert own is not None
    assert own.like(pattern(counts.X * 2.5, names, rows))
    assert not own.like(pattern(counts.X[::-1], names, rows))
    assert not own.like(pattern(counts.X[:60], names, rows[:60]))
    assert own.like(pattern(counts.X[:, ::-1], names[::-1], rows))


def test_a_matrix_with_indices_outside_of_it_is_not_followed(counts: anndata.AnnData) -> None:
    counts.layers["counts"] = counts.X.copy()
    counts.X.indices[5] = 10**6
    assert "layer='counts'" in remedy(counts)
