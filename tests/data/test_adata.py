"""Rows, minibatches, genes: invariants, against plain numpy."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from anncoder.data.adata import codes_of, obs_column, read_matrix
from anncoder.data.genes import align, naming
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.data.loaders.order import minibatches, n_minibatches, shuffled
from anncoder.data.matrix import arrays
from anncoder.data.split import split_rows
from anncoder.data.summary import library_sizes, summarize
from anncoder.errors import ConfigError, InputError


@given(n=st.integers(2, 200), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 9))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_split_is_disjoint_and_covers(n: int, fraction: float, seed: int) -> None:
    train, valid = split_rows(n, fraction, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(n))
    assert len(train) >= 2
    if n > 2:
        assert len(valid) >= 1
        assert abs(len(valid) - min(max(round(fraction * n), 1), n - 2)) == 0


def test_a_stratified_split_keeps_proportions() -> None:
    codes = np.repeat([0, 1, 2], [700, 250, 50])
    _, valid = split_rows(1000, 0.2, 0, stratify=codes)
    assert np.abs(np.bincount(codes[valid]) - [140, 50, 10]).max() <= 1


def test_another_seed_holds_out_other_cells() -> None:
    (one, same, other) = (split_rows(200, 0.2, seed).valid.tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_a_grouped_split_divides_no_group() -> None:
    groups = np.repeat(np.arange(10), 37)
    train, valid = split_rows(370, 0.2, 3, groups=groups)
    assert not set(groups[train]) & set(groups[valid])
    assert len(valid) == 74
    drawn = {tuple(np.unique(groups[split_rows(370, 0.2, seed, groups=groups).valid])) for seed in range(5)}
    assert len(drawn) > 1  # others with another seed
    with pytest.raises(InputError, match="two groups"):
        split_rows(5, 0.2, 0, groups=np.zeros(5, dtype=np.int64))
    with pytest.raises(InputError, match="stratified, grouped"):
        split_rows(5, 0.2, 0, groups=np.arange(5), stratify=np.arange(5))


def test_codes_depend_on_the_names_alone() -> None:
    names = np.array(["b", "a", "c", "a", "10", "9"])
    expected = [3, 2, 4, 2, 0, 1]
    for column in (
        names,
        names.astype(object),
        pd.Series(pd.Categorical(names, categories=["c", "9", "b", "10", "a"])),
    ):
        assert codes_of(column, "donor", what="valid_groups").tolist() == expected
    numbers = np.array([9, 10, 9, 1])
    mixed = np.array([9, "10", 9.0, "1"], dtype=object)
    for column in (numbers, numbers.astype(float), numbers.astype(str), pd.Series(numbers, dtype="Int64"), mixed):
        assert codes_of(column, "donor", what="valid_groups").tolist() == [1, 2, 1, 0]


@given(n=st.integers(2, 100), size=st.integers(2, 40))
@settings(deadline=None, derandomize=True)
def test_every_row_once_and_never_a_batch_of_one(n: int, size: int) -> None:
    batches = list(minibatches(np.arange(n), size))
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(n))
    assert min(map(len, batches)) >= 2
    assert max(map(len, batches)) <= size + 1
    assert len(batches) == n_minibatches(n, size)


def test_an_epoch_is_a_function_of_its_number() -> None:
    rows = np.arange(50)
    assert np.array_equal(shuffled(rows, 0, 3), shuffled(rows, 0, 3))
    assert not np.array_equal(shuffled(rows, 0, 3), shuffled(rows, 0, 4))
    assert not np.array_equal(shuffled(rows, 0, 3), shuffled(rows, 1, 3))


@given(seed=st.integers(0, 50), n=st.integers(2, 30), g=st.integers(1, 8))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_minibatches_hold_the_rows_they_name(seed: int, n: int, g: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = sp.csr_matrix(generator.poisson(0.5, (n, g)).astype(np.float32))
    factor = generator.random(n).astype(np.float32)
    loader = MemoryLoader(Stored.of(matrix), factor, np.arange(n), batch_size=4, seed=seed)
    seen = []
    for batch in loader.epoch(0):
        rows = batch.rows.numpy()
        np.testing.assert_array_equal(batch.counts.to_dense(), matrix[rows].toarray())
        np.testing.assert_array_equal(batch.size_factor, factor[rows])
        seen.append(rows)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n))
    assert len(seen) == len(loader)


def test_rows_can_repeat_and_be_empty() -> None:
    matrix = sp.csr_matrix(np.array([[0, 1], [0, 0], [2, 3]], dtype=np.float32))
    rows = np.array([2, 1, 2, 0])
    np.testing.assert_array_equal(Stored.of(matrix).take(rows).to_dense(), matrix[rows].toarray())


class TestReading:
    @pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array, np.asarray])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16, np.bool_])
    def test_any_format_gives_the_same_matrix_and_is_left_alone(self, form, dtype) -> None:  # type: ignore[no-untyped-def]
        dense = np.array([[0, 3, 0], [1, 0, 2]]).astype(dtype)
        original = form(dense)
        adata = anndata.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["x", "y", "z"]))
        adata.layers["counts"] = original.tocsr() if form is sp.coo_matrix else original
        matrix = read_matrix(adata, "counts")
        assert matrix.dtype == np.float32
        assert matrix.has_canonical_format
        np.testing.assert_array_equal(matrix.toarray(), dense.astype(np.float32))
        kept = adata.layers["counts"]
        assert kept.dtype == dtype

    def test_unsorted_and_duplicate_entries_are_put_right_in_a_copy(self) -> None:
        data, indices = np.array([1, 2, 5], dtype=np.float32), np.array([2, 0, 2])
        matrix = sp.csr_matrix((data.copy(), indices.copy(), np.array([0, 3])), shape=(1, 3))
        adata = anndata.AnnData(matrix)
        before = adata.X.data.copy(), adata.X.indices.copy()
        np.testing.assert_array_equal(read_matrix(adata, None).toarray(), [[2, 0, 6]])
        np.testing.assert_array_equal(adata.X.data, before[0])
        np.testing.assert_array_equal(adata.X.indices, before[1])

    def test_obs_columns(self) -> None:
        adata = anndata.AnnData(
            np.ones((3, 2)), obs=pd.DataFrame({"donor": ["b", "a", "b"], "gap": ["x", None, "y"]}, index=list("pqr"))
        )
        donors = obs_column(adata, "donor", what="valid_groups")
        np.testing.assert_array_equal(codes_of(donors, "donor", what="valid_groups"), [1, 0, 1])
        with pytest.raises(ConfigError, match="did you mean 'donor'"):
            obs_column(adata, "doner", what="valid_groups")
        with pytest.raises(ConfigError, match="1 missing"):
            codes_of(obs_column(adata, "gap", what="valid_groups"), "gap", what="valid_groups")


class TestGenes:
    def test_order_and_extra_genes_do_not_matter(self) -> None:
        matrix = sp.csr_matrix(np.arange(12, dtype=np.float32).reshape(3, 4))
        alignment = align(["a", "c", "b"], ["extra", "b", "a", "c"])
        np.testing.assert_array_equal(alignment.apply(matrix).toarray(), matrix[:, [2, 3, 1]].toarray())
        assert alignment.n_extra == 1
        assert alignment.apply(matrix).has_canonical_format

    def test_the_same_genes_are_not_copied(self) -> None:
        matrix = sp.csr_matrix(np.eye(3, dtype=np.float32))
        assert align(["a", "b", "c"], ["a", "b", "c"]).apply(matrix) is matrix

    def test_a_reversed_pair_is_not_taken_for_the_same(self) -> None:
        matrix = sp.csr_matrix(np.array([[1, 2, 3]], dtype=np.float32))
        np.testing.assert_array_equal(align(["b", "c"], ["a", "b", "c"]).apply(matrix).toarray(), [[2, 3]])

    def test_missing_genes_are_refused_with_their_names_or_taken_as_zero(self, caplog) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(InputError, match="1 of the model's 4 genes is missing: d") as caught:
            align(list("abcd"), list("abc"))
        assert "allow_missing" in caught.value.remedy
        aligned = align(list("abcd"), list("cba"), allow_missing=0.25).apply(
            sp.csr_matrix(np.array([[1, 2, 3]], dtype=np.float32))
        )
        np.testing.assert_array_equal(aligned.toarray(), [[3, 2, 1, 0]])
        assert "taken as zero: d" in caplog.text

    def test_identifiers_against_symbols_are_recognised(self) -> None:
        identifiers = [f"ENSG{i:011d}" for i in range(20)]
        symbols = [f"GENE{i}" for i in range(20)]
        assert naming(identifiers) == "Ensembl identifiers"
        with pytest.raises(InputError) as caught:
            align(identifiers, symbols)
        assert "the model knows Ensembl identifiers, the data have gene symbols" in caught.value.remedy
        with pytest.raises(InputError) as caught:
            align(identifiers, [f"{name}.3" for name in identifiers])
        assert "version suffix" in caught.value.remedy

    def test_names_that_occur_twice_are_refused(self) -> None:
        with pytest.raises(InputError, match="twice: a"):
            align(["a", "b"], ["a", "b", "a"])


@pytest.mark.parametrize("stored", [1, 7, 2**18])
@pytest.mark.parametrize("transform", ["log1p", "none"])
def test_the_summary_is_that_of_dense_arrays(transform: str, stored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK", stored)
    generator = np.random.default_rng(0)
    dense = generator.poisson(1, (50, 6)).astype(np.float32)
    dense[:, 2] = 0
    rows = np.arange(5, 45)
    sizes = library_sizes(sp.csr_matrix(dense))
    summary = summarize(
        [(sp.csr_matrix(dense[part]), sizes[part] / np.median(sizes)) for part in np.array_split(rows, 2)],
        dense.shape[1],
        float(np.median(sizes)),
        transform=transform,
    )
    values = dense / (sizes / np.median(sizes))[:, None] if transform == "log1p" else dense
    x = np.log1p(values) if transform == "log1p" else values
    np.testing.assert_allclose(summary.gene_mean, values[rows].mean(0), rtol=1e-5)
    np.testing.assert_allclose(summary.gene_var, values[rows].var(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(summary.x_mean, x[rows].mean(0), rtol=1e-5)
    expected = x[rows].std(0)
    np.testing.assert_allclose(summary.x_std, np.where(expected > 0, expected, 1), rtol=1e-4)
