"""The check of the input: every problem is found and named, nothing legal is refused, nothing is changed."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from anncoder.data.check import Problem, Report, check, check_matrix
from anncoder.data.matrix.arrays import BLOCK
from anncoder.data.matrix.kind import sample
from anncoder.data.matrix.scan import LARGEST_COUNT, scan, structure
from anncoder.errors import InputError

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

FORMATS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.array,
    "fortran": np.asfortranarray,
}


@pytest.fixture(params=FORMATS)
def form(request):
    return FORMATS[request.param]


def counts(n_obs=60, n_vars=40, seed=0):
    """Counts with no empty cell and no empty gene."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(1.0, 1.0, n_vars), size=(n_obs, n_vars)).astype(np.float32)
    x[np.arange(n_obs), np.arange(n_obs) % n_vars] += 1
    return x


def as_adata(x, layers=None):
    obs = pd.DataFrame(index=[f"cell-{i}" for i in range(x.shape[0])])
    var = pd.DataFrame(index=[f"GENE{j}" for j in range(x.shape[1])])
    return anndata.AnnData(x, obs, var, layers=layers)


def codes(report, severity=None):
    return [problem.code for problem in report.problems if severity in (None, problem.severity)]


def problem(report, code) -> Problem:
    (found,) = [problem for problem in report.problems if problem.code == code]
    assert len(found.what) + len(found.where) < 300
    assert found.what
    assert found.where
    assert found.remedy
    return found


def fingerprint(adata):
    digest = hashlib.sha256()
    for matrix in (adata.X, *(adata.layers[key] for key in adata.layers if key is not None)):
        arrays = (matrix.data, matrix.indices, matrix.indptr) if sparse.issparse(matrix) else (matrix,)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes() + str(array.dtype).encode())
    digest.update(repr([*adata.obs_names, *adata.var_names, *adata.uns]).encode())
    return digest.hexdigest()


# --- bad values ---


@pytest.mark.parametrize(
    ("code", "value", "shown"),
    [
        ("not-finite", np.nan, "nan"),
        ("not-finite", np.inf, "inf"),
        ("not-finite", -np.inf, "-inf"),
        ("negative", -3, "-3"),
        ("not-integer", 2.25, "2.25"),
        ("too-large", 2.0**24 + 2, "16777218"),
        ("too-large", 3e9, "3000000000"),
    ],
)
def test_a_bad_value_is_named_with_its_cell_and_gene(form, code, value, shown):
    x = counts()
    x[17, 23] = value
    report = check(as_adata(form(x)))
    assert codes(report, "error") == [code]
    found = problem(report, code)
    assert found.where == "X, cell 'cell-17', gene 'GENE23'"
    assert found.what.startswith("1 of ")
    assert f"({shown}" in found.what
    with pytest.raises(InputError, match=f"\\[{code}\\]"):
        report.raise_if_bad()


def test_the_number_of_bad_values_and_the_first_of_them_are_given():
    x = counts()
    x[[3, 9, 30], [4, 1, 0]] = [-1, -2, np.nan]
    report = check(as_adata(sparse.csr_matrix(x)))
    assert codes(report, "error") == ["not-finite", "negative"]
    assert problem(report, "negative").what.startswith("2 of ")
    assert "minimum -2" in problem(report, "negative").what
    assert problem(report, "negative").where == "X, first at cell 'cell-3', gene 'GENE4'"
    with pytest.raises(InputError, match=r"not finite .* \(and 1 more: negative\)") as caught:
        report.raise_if_bad()
    assert caught.value.code == "not-finite"


def test_a_bad_value_in_a_later_block_is_found(form):
    x = np.ones((1200, 700), dtype=np.float32)
    assert x.size > 3 * BLOCK
    x[1100, 650] = -1
    assert problem(check(as_adata(form(x))), "negative").where == "X, cell 'cell-1100', gene 'GENE650'"


def test_models_of_expression_take_every_finite_value(form):
    x = counts().astype(np.float64) - 0.5
    adata = as_adata(form(x))
    assert check(adata, counts=False).ok
    x[0, 0] = 3e9
    assert check(as_adata(form(x)), counts=False).ok
    x[2, 3] = np.nan
    x[4, 5] = 1e300
    report = check(as_adata(form(x)), counts=False)
    assert codes(report) == ["not-finite", "too-large"]
    assert "infinite in float32" in problem(report, "too-large").what


def test_the_largest_exact_count_is_legal(form):
    x = counts()
    x[0, 0] = 2.0**24
    assert check(as_adata(form(x))).ok


# --- zeros ---


def test_empty_cells_are_a_warning_and_empty_genes_are_not(form):
    x = counts()
    x[[5, 50]] = 0
    x[:, 7] = 0
    report = check(as_adata(form(x)))
    assert report.ok
    assert codes(report) == ["empty-cells", "empty-genes"]
    empty = problem(report, "empty-cells")
    assert empty.severity == "warning"
    assert empty.what == "2 of 60 cells are zero in every gene"
    assert empty.where == "X, cells 'cell-5', 'cell-50'"
    assert "sc.pp.filter_cells(adata, min_counts=1)" in empty.remedy
    assert "--drop-empty-cells" in empty.remedy
    assert problem(report, "empty-genes").severity == "info"
    assert problem(report, "empty-genes").where == "X, gene 'GENE7'"


def test_empty_cells_are_a_warning_for_models_of_expression():
    x = counts()
    x[5] = 0
    report = check(as_adata(x), counts=False)
    assert report.ok
    assert codes(report, "warning") == ["empty-cells"]


def test_empty_cells_of_a_layer_are_dropped_by_the_layer():
    x = counts()
    holed = x.copy()
    holed[5] = 0
    adata = as_adata(x, {"counts": sparse.csr_matrix(holed)})
    remedy = problem(check(adata, layer="counts"), "empty-cells").remedy
    kept = eval(remedy.split("adata = ")[1].split(", or")[0], {"adata": adata})
    assert kept.n_obs == 59
    assert not codes(check(kept, layer="counts"))


def test_stored_zeros_are_legal_and_do_not_fill_a_cell():
    x = sparse.csr_matrix(np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.float32))
    x.data[1] = 0
    assert check(as_adata(x)).ok
    x.data[3:6] = 0
    for matrix in (x, x.tocsc()):
        assert problem(check(as_adata(matrix)), "empty-cells").where == "X, cell 'cell-1'"


def test_many_empty_cells_are_counted_and_the_first_are_named():
    x = counts()
    x[10:40] = 0
    where = problem(check(as_adata(x)), "empty-cells").where
    assert where == "X, cells 'cell-10', 'cell-11', 'cell-12', 'cell-13', 'cell-14' and 25 more"


@pytest.mark.parametrize("need_counts", [True, False])
def test_a_matrix_of_zeros_is_an_error(form, need_counts):
    report = check(as_adata(form(np.zeros((5, 4)))), counts=need_counts)
    assert codes(report) == ["all-zero"]
    assert not report.ok
    assert report.kind == "unknown"


# --- shape, names, types ---


@pytest.mark.parametrize(
    ("n_obs", "n_vars", "expected"),
    [
        (0, 5, ["too-few-cells"]),
        (1, 5, ["too-few-cells"]),
        (5, 0, ["no-genes"]),
        (5, 1, ["too-few-genes"]),
        (0, 0, ["too-few-cells", "no-genes"]),
        (1, 1, ["too-few-cells", "too-few-genes"]),
        (2, 2, []),
    ],
)
def test_too_small(form, n_obs, n_vars, expected):
    assert codes(check(as_adata(form(np.ones((n_obs, n_vars))))), "error") == expected


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_repeated_names(form):
    adata = as_adata(form(counts()))
    adata.var_names = [f"G{j % 33}" for j in range(40)]
    adata.obs_names = ["twin", "twin", *adata.obs_names[2:]]
    report = check(adata)
    genes = problem(report, "duplicate-genes")
    assert genes.severity == "error"
    assert genes.what == "7 gene names occur more than once"
    assert genes.where == "var_names 'G0', 'G1', 'G2', 'G3', 'G4' and 2 more"
    assert "var_names_make_unique" in genes.remedy
    cells = problem(report, "duplicate-cells")
    assert (cells.severity, cells.where) == ("warning", "obs_names 'twin'")
    adata.X = -adata.X
    assert codes(check(adata)) == ["duplicate-genes", "negative", "duplicate-cells"]  # errors first


def test_names_that_do_not_fit_the_matrix():
    problems, kind = check_matrix(counts(4, 3), obs_names=list("abc"), var_names=list("xyz"))
    assert [problem.code for problem in problems] == ["shape-mismatch"]
    assert kind == "unknown"


@pytest.mark.parametrize("dtype", [object, complex, "U3"])
def test_values_that_are_not_real_numbers(dtype):
    names = {"obs_names": range(4), "var_names": range(3)}
    problems, kind = check_matrix(counts(4, 3).astype(dtype), **names)
    assert [problem.code for problem in problems] == ["not-numeric"]
    assert kind == "unknown"
    if dtype is complex:
        assert check_matrix(sparse.csr_matrix(counts(4, 3), dtype=dtype), **names)[0] == problems


@pytest.mark.parametrize(
    "matrix", [[[1, 2], [3, 4]], np.ones(3), pd.DataFrame({"a": [1, 2]}), np.ma.masked_equal(np.eye(2), 0)]
)
def test_what_is_not_a_matrix(matrix):
    problems, _ = check_matrix(matrix, obs_names=["a", "b"], var_names=["a", "b"])
    assert [problem.code for problem in problems] == ["not-a-matrix"]


# --- the structure of sparse matrices ---


def damaged(matrix, **arrays):
    """A sparse matrix with other index arrays, past scipy's own checks."""
    matrix = matrix.copy()
    for name, array in arrays.items():
        setattr(matrix, name, array)
    return matrix


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix])
def test_damaged_sparse_matrices_are_not_touched(kind):
    good = kind(counts(6, 6))
    falling = good.indptr.copy()
    falling[2] = falling[4] + 1
    negative, outside = good.indices.copy(), good.indices.copy()
    negative[3], outside[3] = -1, 6
    short = damaged(good, indptr=good.indptr - np.eye(7, dtype=np.int32)[6])
    cases = {
        "indptr falls": damaged(good, indptr=falling),
        "index -1 is outside 0 to 5": damaged(good, indices=negative),
        "index 6 is outside 0 to 5": damaged(good, indices=outside),
        f"indptr runs from 0 to {good.nnz - 1} instead of 0 to {good.nnz}": short,
        f"indptr runs from 1 to {good.nnz}": damaged(good, indptr=np.maximum(good.indptr, 1)),
        "indptr has 6 entries instead of 7": damaged(good, indptr=good.indptr[:-1]),
        f"there are {good.nnz - 1} indices for {good.nnz} values": damaged(good, indices=good.indices[:-1]),
        "not integers": damaged(good, indices=good.indices.astype(float)),
    }
    for reason, matrix in cases.items():
        problems, found = check_matrix(matrix, obs_names=range(6), var_names=range(6))
        assert [problem.code for problem in problems] == ["sparse-indices"]
        assert reason in problems[0].what
        assert found == "unknown"


def test_a_damaged_layer_that_is_not_checked_is_harmless():
    adata = as_adata(counts(6, 6), {"broken": sparse.csr_matrix(counts(6, 6))})
    adata.layers["broken"].indices[3] = 10**6
    assert check(adata).ok
    assert check(adata).slots["layers['broken']"] == "unknown"


def test_unsorted_and_repeated_entries():
    # row 0: out of order; row 1: column 2 twice, side by side; row 2: column 1 twice, apart
    indices, indptr = np.array([2, 0, 2, 2, 1, 0, 1]), np.array([0, 2, 4, 7])
    matrix = sparse.csr_matrix((np.ones(7), indices, indptr), shape=(3, 3))
    assert structure(matrix) == ("", 2, 2)
    assert structure(sparse.csc_matrix((np.ones(7), indices, indptr), shape=(3, 3))) == ("", 2, 2)
    problems, kind = check_matrix(matrix, obs_names=range(3), var_names=range(3))
    severities = {problem.code: problem.severity for problem in problems}
    assert severities == {"duplicate-entries": "warning", "unsorted-indices": "info"}
    assert kind == "counts"
    assert matrix.indices.tolist() == [2, 0, 2, 2, 1, 0, 1]


def test_repeated_neighbours_alone_need_no_sorting():
    matrix = sparse.csr_matrix((np.ones(4), np.array([0, 0, 0, 1]), np.array([0, 2, 4])), shape=(2, 2))
    assert structure(matrix) == ("", 0, 1)


# --- what is legal ---


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64", ">f4"])
def test_every_real_dtype_is_legal(dtype):
    x = np.minimum(counts(), 200).astype(dtype)
    for matrix in (x, np.asfortranarray(x)) if x.dtype.byteorder == ">" or dtype == "float16" else (
        x, sparse.csr_matrix(x), sparse.csc_matrix(x)
    ):  # fmt: skip
        problems, kind = check_matrix(matrix, obs_names=range(60), var_names=range(40))
        assert problems == ()
        assert kind == "counts"


def test_large_and_negative_integers_are_found_in_integer_types():
    x = counts().astype(np.int64)
    x[1, 2], x[3, 4] = 2**53, -5
    report = check(as_adata(sparse.csr_matrix(x)))
    assert codes(report, "error") == ["too-large", "negative"]
    assert problem(report, "negative").where == "X, cell 'cell-3', gene 'GENE4'"


def test_other_sparse_formats_and_strided_arrays_are_legal():
    x = counts()
    for matrix in (sparse.coo_matrix(x), sparse.lil_matrix(x), np.repeat(x, 2, axis=1)[:, ::2]):
        problems, kind = check_matrix(matrix, obs_names=range(60), var_names=range(40))
        assert problems == ()
        assert kind == "counts"


def test_views_of_views(form):
    x = counts()
    x[40, 30] = -1
    adata = as_adata(form(x), {"log": np.log1p(np.abs(x))})
    adata.raw = adata
    view = adata[20:][:, ::-1]
    before = fingerprint(adata)
    report = check(view)
    assert view.is_view
    assert fingerprint(adata) == before
    assert problem(report, "negative").where == "X, cell 'cell-40', gene 'GENE30'"
    assert check(view[:10]).ok
    assert check(view[:10]).slots == {"X": "counts", "layers['log']": "log1p", "raw.X": "counts"}


def test_a_backed_file_is_read(tmp_path):
    as_adata(sparse.csr_matrix(counts())).write_h5ad(tmp_path / "counts.h5ad")
    adata = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    assert check(adata).kind == "counts"
    assert adata.isbacked
    adata.file.close()


def test_nothing_is_changed(form):
    x = counts()
    x[3, 4], x[6], x[7, 8] = np.nan, 0, 1.5
    adata = as_adata(form(x), {"counts": form(counts(seed=1))})
    adata.raw = adata
    before = fingerprint(adata)
    check(adata)
    check(adata, layer="counts", counts=False)
    assert fingerprint(adata) == before


def test_unsorted_indices_stay_as_they_are():
    matrix = sparse.csr_matrix(counts())
    matrix.indices[:2], matrix.data[:2] = matrix.indices[1::-1].copy(), matrix.data[1::-1].copy()
    adata = as_adata(matrix)
    before = fingerprint(adata)
    assert check(adata).ok
    assert fingerprint(adata) == before


# --- what a matrix is, and where the counts are ---


def library(n_obs=300, n_vars=400):
    rng = np.random.default_rng(5)
    rate = rng.gamma(0.3, 1.0, n_vars) * rng.lognormal(0, 0.5, (n_obs, 1))
    return sparse.csr_matrix(rng.poisson(rate).astype(np.float32))


@pytest.mark.parametrize("name", ["csr", "csc", "dense"])  # scanpy 1.11 cannot normalise sparse arrays
def test_the_stages_of_a_scanpy_pipeline_are_recognised(name):
    adata = as_adata(FORMATS[name](library().toarray()))
    sc.pp.filter_cells(adata, min_counts=1)
    sc.pp.filter_genes(adata, min_cells=1)
    assert check(adata).kind == "counts"
    sc.pp.normalize_total(adata, target_sum=1e4)
    assert check(adata).kind == "cpm"
    sc.pp.log1p(adata)
    hinted = check(adata)
    adata.uns.clear()
    assert hinted.kind == check(adata).kind == "log1p"
    assert check(adata[:, ::3]).kind == "log1p"
    dense = as_adata(np.array(adata.to_df()))  # a copy: what pandas 3 gives is not to be written to
    sc.pp.scale(dense)
    assert check(dense).kind == "scaled"


def test_a_subset_of_normalised_genes_is_recognised_by_its_multiples():
    adata = as_adata(library())
    sc.pp.normalize_total(adata, target_sum=1e6)
    assert check(adata[:, ::3]).kind == "cpm"


def test_constant_totals_are_enough():
    shares = np.random.default_rng(0).dirichlet(np.full(50, 0.5), size=100)
    assert check(as_adata(1e4 * shares)).kind == "cpm"
    assert check(as_adata(np.log1p(shares))).kind == "log1p"
    assert check(as_adata(np.log1p(1e12 * shares))).kind == "expression"  # a maximum of 27 is not logged


def test_values_that_fit_nothing():
    rng = np.random.default_rng(0)
    assert check(as_adata(rng.gamma(0.5, 50.0, (100, 50)))).kind == "expression"
    assert check(as_adata(rng.uniform(0, 0.5, (100, 50)))).kind == "expression"
    logged = as_adata(rng.uniform(0, 0.5, (100, 50)))
    logged.uns["log1p"] = {"base": None}
    assert check(logged).kind == "log1p"
    assert check(as_adata(counts() - 1)).kind == "unknown"


def test_normalised_values_for_a_count_model():
    adata = as_adata(library())
    sc.pp.filter_cells(adata, min_counts=1)
    raw_counts = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    found = problem(check(adata), "not-integer")
    assert "these look like log1p-normalised values" in found.what
    assert f"maximum {adata.X.max():.6g}" in found.what
    assert "give the raw counts" in found.remedy
    adata.layers["umi's"] = raw_counts
    report = check(adata)
    assert report.slots == {"X": "log1p", """layers["umi's"]""": "counts"}
    assert report.counts_in == ("""layers["umi's"]""",)
    assert problem(report, "not-integer").remedy == """pass layer="umi's" (--layer "umi's"), which holds counts"""
    assert check(adata, layer="umi's").ok


def test_scaled_values_with_counts_in_raw():
    adata = as_adata(counts())
    adata.raw = adata.copy()
    sc.pp.scale(adata)
    report = check(adata)
    assert codes(report, "error") == ["not-integer", "negative"]
    assert report.slots == {"X": "scaled", "raw.X": "counts"}
    remedy = problem(report, "negative").remedy
    assert remedy == "pass layer='raw.X' (--layer raw.X), which holds counts, of the genes of raw.var"
    assert check(adata, layer="raw.X").ok


def test_a_missing_layer_names_those_there_are_and_the_counts():
    adata = as_adata(counts(), {"log": np.log1p(counts())})
    with pytest.raises(InputError, match="there is no layer 'counts'") as caught:
        check(adata, layer="counts")
    assert caught.value.code == "missing-layer"
    assert caught.value.where == "layers: 'log'"
    assert caught.value.remedy == "leave out layer (--layer): X holds counts"
    adata.X = adata.layers["log"].copy()
    with pytest.raises(InputError, match="none holds counts"):
        check(adata, layer="counts")


def test_an_anndata_without_x():
    adata = anndata.AnnData(layers={"counts": counts()})
    with pytest.raises(InputError, match="has no X") as caught:
        check(adata)
    assert caught.value.remedy == "pass layer='counts' (--layer 'counts'), which holds counts"
    assert check(adata, layer="counts").slots == {"layers['counts']": "counts"}


def test_the_sample_of_cells_is_the_same_in_every_format():
    x = library(500, 90).toarray()
    expected = x[np.linspace(0, 499, 40).astype(int)]
    for make in FORMATS.values():
        taken = sample(make(x), n_cells=40)
        assert taken.n_cells == 40
        for i, row in enumerate(expected):
            assert sorted(taken.values[taken.owner == i]) == sorted(row[row != 0])


# --- the report ---


def bad_report() -> Report:
    x = counts().astype(np.float64)
    x[0, 0], x[1, 1], x[2] = np.nan, -1.5, 0
    return check(as_adata(x, {"counts": counts()}))


def test_the_report_as_text():
    text = str(bad_report())
    assert text.startswith("60 cells x 40 genes; X: ")
    assert "not usable as it is" in text
    assert "layers['counts']  counts" in text
    assert "error: 1 of 2,400 values (0.0417 %) is not finite (nan) [not-finite]\n  where:  X, cell" in text
    assert "values (0.0417 %) is not an integer (-1.5; maximum " in text
    assert "ready" in str(check(as_adata(counts())))


def test_the_report_as_table_and_json():
    report = bad_report()
    frame = report.to_frame()
    assert list(frame.columns) == ["code", "severity", "what", "where", "remedy"]
    assert frame["code"].tolist() == codes(report)
    plain = json.loads(report.to_json())
    assert plain == json.loads(json.dumps(report.to_dict()))
    assert plain["kind"] == "unknown"
    assert not plain["ok"]
    assert plain["counts_in"] == ["layers['counts']"]
    assert [problem["code"] for problem in plain["problems"]] == codes(report)
    assert check(as_adata(counts())).to_frame().empty
    json.loads(check(as_adata(np.full((3, 3), np.nan))).to_json())


def test_hostile_names_are_cut_and_escaped():
    x = counts(3, 3)
    x[:], x[1] = -0.5, 0
    adata = as_adata(x)
    adata.obs_names = ["\x1b[31m" * 500, "\u202e" * 5000, "line\nbreak"]
    adata.var_names = ["a" * 10_000, "<script>", "🧬" * 999]
    adata.layers["l" * 5000] = adata.X
    for report in (check(adata), check(adata, layer="l" * 5000)):
        for found in report.problems:
            problem(report, found.code)
        assert "\x1b" not in str(report)
        assert "\u202e" not in str(report)
    with pytest.raises(InputError, match="no layer") as caught:
        check(adata, layer="m" * 5000)
    assert len(str(caught.value)) < 400


# --- against an oracle ---

ODD_VALUES = st.sampled_from(
    [0, 0, 0, 0, 1, 2, 7, -1, 0.5, -2.5, math.nan, math.inf, -math.inf, 2.0**24, 2.0**24 + 2, 1e30]
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    x=hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=ODD_VALUES),
    name=st.sampled_from(sorted(FORMATS)),
)
def test_the_scan_agrees_with_numpy(x, name):
    matrix = FORMATS[name](x)
    assert structure(matrix) == ("", 0, 0)
    found = scan(matrix, LARGEST_COUNT)
    finite = np.isfinite(x)
    masks = {
        "not-finite": ~finite,
        "negative": finite & (x < 0),
        "not-integer": finite & (x != np.floor(x)),
        "too-large": finite & (np.abs(x) > 2**24),
    }
    assert set(found.flaws) == {code for code, mask in masks.items() if mask.any()}
    for code, flaw in found.flaws.items():
        mask = masks[code]
        by_column = name in ("csc", "csc_array") or (name == "fortran" and not matrix.flags.c_contiguous)
        obs, var = np.argwhere(mask.T)[0][::-1] if by_column else np.argwhere(mask)[0]
        assert flaw[:3] == (mask.sum(), obs, var)
        np.testing.assert_equal(flaw.value, x[obs, var])
    assert found.n_nonzero == np.count_nonzero(x)
    assert found.empty_obs.tolist() == np.flatnonzero(~(x != 0).any(axis=1)).tolist()
    assert found.empty_vars.tolist() == np.flatnonzero(~(x != 0).any(axis=0)).tolist()
    extremes = (x[finite].min(), x[finite].max()) if finite.any() else (None, None)
    assert (found.lowest, found.highest) == extremes


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), n_rows=st.integers(1, 5), n_columns=st.integers(1, 5))
def test_disorder_agrees_with_scipy(data, n_rows, n_columns):
    rows = data.draw(st.lists(st.lists(st.integers(0, n_columns - 1), max_size=6), min_size=n_rows, max_size=n_rows))
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.array([index for row in rows for index in row], dtype=int)
    matrix = sparse.csr_matrix((np.ones(len(indices)), indices, indptr), shape=(n_rows, n_columns))
    found = structure(matrix)
    assert found.n_unsorted == sum(row != sorted(row) for row in rows)
    assert found.n_duplicates == sum(len(row) - len(set(row)) for row in rows)


# --- real data and speed ---


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real data sets is not beside the repository")
def test_real_data_sets_hold_counts():
    files = sorted(DATA.glob("*.h5ad"))
    assert files
    for file in files:
        report = check(anndata.read_h5ad(file))
        assert report.kind == "counts", file.name
        assert not {"not-finite", "negative", "not-integer", "too-large", "sparse-indices"} & set(codes(report))


def test_the_whole_check_costs_a_few_passes_over_the_values():
    # measured: 12 times one pass of np.isfinite over the stored values; a Python loop costs thousands
    n_obs, n_vars, per_cell = 2500, 8000, 2000
    indices = np.tile(np.arange(per_cell, dtype=np.int32) * 4, n_obs) + np.repeat(np.arange(n_obs) % 4, per_cell)
    values = np.random.default_rng(0).geometric(0.4, n_obs * per_cell).astype(np.float32)
    indptr = np.arange(n_obs + 1) * per_cell
    matrix = sparse.csr_matrix((values, indices.astype(np.int32), indptr.astype(np.int32)), shape=(n_obs, n_vars))
    names = {"obs_names": range(n_obs), "var_names": range(n_vars)}

    def seconds(job):
        start = time.perf_counter()
        job()
        return time.perf_counter() - start

    floor = min(seconds(lambda: np.isfinite(values).all()) for _ in range(5))
    ours = min(seconds(lambda: check_matrix(matrix, **names)) for _ in range(5))
    assert ours < 60 * floor
    assert ours < 0.5
