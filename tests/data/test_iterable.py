"""Cells that something else reads: any order, any block sizes, the results of the same cells in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import anncoder as ac
from anncoder import DCA, CountAutoencoder, IterableSource
from anncoder.data.sources import PerCell
from anncoder.errors import AnncoderError
from anncoder.types import Rank

QUICK: dict[str, Any] = {"max_epochs": 2, "progress": False, "batch_size": 32}


class LikeAnnbatch:
    """Yields dictionaries of CSR, obs and row numbers, shuffled anew in every pass, the last one small."""

    def __init__(self, adata: anndata.AnnData) -> None:
        self.adata, self.generator = adata, np.random.default_rng(0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = self.generator.permutation(self.adata.n_obs)
        for start in range(0, len(order), 49):
            rows = order[start : start + 49]
            yield {"X": self.adata.X[rows], "obs": self.adata.obs.iloc[rows], "index": rows}


class LikeSCDataset:
    """Yields what a collate function makes of contiguous blocks in random order: here an AnnData in memory."""

    def __init__(self, adata: anndata.AnnData) -> None:
        adata.obs["row"] = np.arange(adata.n_obs)
        self.adata, self.generator = adata, np.random.default_rng(0)

    def __iter__(self) -> Iterator[anndata.AnnData]:
        blocks = [slice(i, i + 16) for i in range(0, self.adata.n_obs, 16)]
        for at in self.generator.permutation(len(blocks)):
            yield self.adata[blocks[at]].to_memory()


class LikeTileDB:
    """Yields dense arrays beside data frames with the identifiers of the rows, which are no row numbers."""

    def __init__(self, adata: anndata.AnnData) -> None:
        self.adata, self.generator = adata, np.random.default_rng(0)
        self.joinids = np.arange(adata.n_obs) * 3 + 1000

    def __iter__(self) -> Iterator[tuple[np.ndarray[Any, Any], pd.DataFrame]]:
        for rows in np.array_split(self.generator.permutation(self.adata.n_obs), 5):
            yield self.adata.X[rows].toarray(), pd.DataFrame({"soma_joinid": self.joinids[rows]})


def annbatch_like(adata: anndata.AnnData) -> Callable[[], Any]:
    loader = LikeAnnbatch(adata)
    return lambda: ((block["X"], block["index"]) for block in loader)


def scdataset_like(adata: anndata.AnnData) -> Callable[[], Any]:
    loader = LikeSCDataset(adata)
    return lambda: ((block.X, block.obs["row"]) for block in loader)


def tiledb_like(adata: anndata.AnnData) -> Callable[[], Any]:
    loader = LikeTileDB(adata)
    position = pd.Index(loader.joinids)
    return lambda: ((x, position.get_indexer(obs["soma_joinid"])) for x, obs in loader)


READERS = [annbatch_like, scdataset_like, tiledb_like]


def in_turn(adata: anndata.AnnData, size: int) -> Callable[[], Any]:
    blocks = [np.arange(adata.n_obs)[i : i + size] for i in range(0, adata.n_obs, size)]
    return lambda: ((adata.X[rows], rows) for rows in blocks)


@pytest.mark.parametrize("like", READERS)
def test_fit_embed_and_denoise(like: Callable[..., Any], counts: anndata.AnnData) -> None:
    source = IterableSource(like(counts.copy()), counts.var_names, counts.n_obs, counts.obs)
    model = CountAutoencoder(n_latent=3).fit(source, valid_stratify="group", **QUICK)
    memory = CountAutoencoder(n_latent=3).fit(counts, valid_stratify="group", **QUICK)
    assert list(model.valid_obs_) == list(memory.valid_obs_)
    assert model.library_size_ == memory.library_size_
    np.testing.assert_allclose(model.history_["valid_loss"], memory.history_["valid_loss"], rtol=0.05)
    np.testing.assert_allclose(model.embed(source), model.embed(counts), atol=1e-5)  # in the order of the rows
    np.testing.assert_allclose(model.denoise(source), model.denoise(counts), rtol=1e-4, atol=1e-5)


def test_evaluate(counts: anndata.AnnData, fitted: CountAutoencoder) -> None:
    source = IterableSource(annbatch_like(counts), counts.var_names, counts.n_obs, counts.obs)
    of_source, of_memory = (ac.evaluate(fitted, data, labels="group", max_cells=70) for data in (source, counts))
    np.testing.assert_allclose(of_source.table, of_memory.table, rtol=1e-4)


def test_evaluate_where_genes_are_missing(counts: anndata.AnnData, fitted: CountAutoencoder) -> None:
    few = counts[:, :58].copy()
    source = IterableSource(in_turn(few, 50), few.var_names, counts.n_obs)
    of_source, of_memory = (ac.evaluate(fitted, data, allow_missing=0.1, max_cells=70) for data in (source, few))
    np.testing.assert_allclose(of_source.table, of_memory.table, rtol=1e-4)


def test_counts_that_are_no_integers(counts: anndata.AnnData) -> None:
    counts.X = counts.X * np.float32(0.5)
    source = IterableSource(in_turn(counts, 50), counts.var_names, counts.n_obs)
    model = DCA(n_latent=3, n_hidden=(8,), check_counts=False).fit(source, **QUICK)
    np.testing.assert_allclose(model.embed(source), model.embed(counts), atol=1e-5)
    assert np.isfinite(ac.evaluate(model, source).table.loc["model", "reconstruction_mse"])


def test_genes_are_matched_by_name(counts: anndata.AnnData, fitted: CountAutoencoder) -> None:
    turned = counts[:, ::-1].copy()
    source = IterableSource(in_turn(turned, 50), turned.var_names, counts.n_obs)
    np.testing.assert_allclose(fitted.embed(source), fitted.embed(counts), atol=1e-5)
    few = counts[:, :58].copy()
    source = IterableSource(in_turn(few, 50), few.var_names, counts.n_obs)
    np.testing.assert_allclose(fitted.embed(source, allow_missing=0.1), fitted.embed(few, allow_missing=0.1), atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 32, 33, 200])
def test_minibatches_are_cut_from_the_blocks_in_their_order(counts: anndata.AnnData, size: int) -> None:
    source = IterableSource(in_turn(counts, size), counts.var_names, counts.n_obs)
    opened = source.opened(None, counts=True, to_fit=True)
    chosen = np.ones(120, dtype=bool)
    chosen[::5] = False
    cells = PerCell(np.ones(120, dtype=np.float32), np.arange(120))
    loader = opened.loader(cells, chosen, batch_size=32, seed=0)
    batches = list(loader.epoch(0))
    np.testing.assert_array_equal(np.concatenate([b.rows for b in batches]), np.flatnonzero(chosen))
    assert [len(b.rows) for b in batches] == [32, 32, 32]
    assert len(loader) == 3
    for batch in batches:
        np.testing.assert_array_equal(batch.counts.to_dense(), counts.X[batch.rows.numpy()].toarray())
        np.testing.assert_array_equal(batch.batch_code, batch.rows)


def test_the_blocks_are_left_as_they_are(counts: anndata.AnnData, fitted: CountAutoencoder) -> None:
    block = counts.X.copy()
    block.indices[:2], block.data[:2] = block.indices[:2][::-1].copy(), block.data[:2][::-1].copy()  # not sorted
    before = block.data.copy(), block.indices.copy()
    fitted.embed(IterableSource(lambda: [(block, np.arange(120))], counts.var_names, 120))
    np.testing.assert_array_equal(block.data, before[0])
    np.testing.assert_array_equal(block.indices, before[1])


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("layout", ["sparse_csr", "sparse_csc", "sparse_coo", "strided"])
def test_torch_tensors(layout: str, counts: anndata.AnnData, fitted: CountAutoencoder) -> None:
    def make_blocks() -> Iterator[Any]:
        for rows in np.array_split(np.random.default_rng(0).permutation(counts.n_obs), 3):
            dense = torch.tensor(counts.X[rows].toarray(), requires_grad=layout == "strided")
            block = dense if layout == "strided" else dense.to_sparse(layout=getattr(torch, layout))
            yield block, torch.tensor(rows)

    source = IterableSource(make_blocks, counts.var_names, counts.n_obs)
    np.testing.assert_allclose(fitted.embed(source), fitted.embed(counts), atol=1e-5)


def once(adata: anndata.AnnData) -> Callable[[], Any]:
    blocks = iter([(adata.X, np.arange(adata.n_obs))])
    return lambda: blocks


BAD: dict[str, tuple[Callable[[anndata.AnnData], Callable[[], Any]], str, str]] = {
    "a single pass": (once, "bad-blocks", "120 of 120 rows did not come"),
    "a row twice": (lambda a: lambda: [(a.X[:2], [1, 1])], "bad-blocks", "twice"),
    "a row in two blocks": (lambda a: lambda: [(a.X[:2], [0, 1]), (a.X[:1], [1])], "bad-blocks", "twice"),
    "rows are missing": (lambda a: lambda: [(a.X[:90], np.arange(90))], "bad-blocks", "30 of 120 rows"),
    "a row too many": (lambda a: lambda: [(a.X[:2], [0, 120])], "bad-blocks", "outside 0 to 119"),
    "names for numbers": (lambda a: lambda: [(a.X[:2], ["a", "b"])], "bad-blocks", "row numbers of type"),
    "fewer genes": (lambda a: lambda: [(a.X[:2, :9], [0, 1])], "bad-blocks", "(2, 9)"),
    "None": (lambda a: lambda: None, "bad-blocks", "returned a NoneType"),
    "no pairs": (lambda a: lambda: [a.X], "bad-blocks", "a csr_matrix came where a pair"),
    "a dictionary": (lambda a: lambda: [{"X": a.X, "index": np.arange(120)}], "bad-blocks", "a dict came"),
    "an AnnData": (lambda a: lambda: [(a, np.arange(120))], "bad-blocks", "such as adata.X"),
    "ragged rows": (lambda a: lambda: [([[1, 2], [3]], [0, 1])], "bad-blocks", "numpy makes no matrix of a list"),
    "one number": (lambda a: lambda: [(a.X[:1], 0)], "bad-blocks", "() row numbers"),
    "a column of numbers": (lambda a: lambda: [(a.X, np.arange(120)[:, None])], "bad-blocks", "(120, 1) row numbers"),
    "bfloat16": (
        lambda a: lambda: [(torch.ones(120, 9).bfloat16(), np.arange(120))],
        "bad-blocks",
        "no matrix of a Te",
    ),
    "fractions": (lambda a: lambda: [(a.X * 0.5, np.arange(120))], "not-integer", "0.5"),
    "negative": (lambda a: lambda: [(-a.X, np.arange(120))], "negative", "negative"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, counts: anndata.AnnData) -> None:
    make, code, said = BAD[name]
    source = IterableSource(make(counts), counts.var_names, counts.n_obs)
    with pytest.raises(AnncoderError) as error:
        CountAutoencoder(n_latent=3).fit(source, **QUICK)
    assert error.value.code == code
    assert said in str(error.value)


@pytest.mark.parametrize("wrong", [-5.0, np.nan, "gene"])
def test_what_only_a_later_pass_brings(wrong: Any, counts: anndata.AnnData) -> None:
    """All is looked at once; after that, what would do harm."""
    passes = []

    def make_blocks() -> Iterator[Any]:
        passes.append(1)
        block = counts.X.copy()
        if len(passes) == 4 and wrong == "gene":
            block.indices[5] = 100_000_000
        elif len(passes) == 4:
            block.data[5] = wrong
        yield block, np.arange(counts.n_obs)

    source = IterableSource(make_blocks, counts.var_names, counts.n_obs)
    with pytest.raises(AnncoderError, match="outside of its columns" if wrong == "gene" else "a later pass") as caught:
        CountAutoencoder(n_latent=2).fit(source, **QUICK)
    assert caught.value.code == "bad-blocks"


def test_refusals_of_the_description(counts: anndata.AnnData) -> None:
    with pytest.raises(AnncoderError) as error:
        IterableSource(in_turn(counts, 50), counts.var_names, 120, counts.obs[:7])
    assert error.value.code == "shape-mismatch"
    for make, n_obs, said in [([counts.X], 120, "is a list"), (in_turn(counts, 50), 120.0, "n_obs = 120.0")]:
        with pytest.raises(AnncoderError, match=said) as error:
            IterableSource(make, counts.var_names, n_obs)  # type: ignore[arg-type]
        assert error.value.code == "bad-blocks"
    source = IterableSource(in_turn(counts, 50), counts.var_names, 120)
    with pytest.raises(AnncoderError, match="plate"):
        CountAutoencoder(n_latent=3).fit(source, valid_groups="plate", **QUICK)
    opened = source.opened(None, counts=True, to_fit=True)
    cells = PerCell(np.ones(120, dtype=np.float32))
    with pytest.raises(AnncoderError) as error:
        opened.loader(cells, np.ones(120, dtype=bool), batch_size=9, process=Rank(0, 2))
    assert error.value.code == "one-process"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="annbatch needs Python 3.12")
@pytest.mark.filterwarnings("ignore")  # of annbatch and zarr, about their next versions
def test_annbatch_itself(counts: anndata.AnnData, tmp_path: Any) -> None:
    annbatch = pytest.importorskip("annbatch", reason="annbatch is not installed")
    import zarr

    counts.write_zarr(tmp_path / "in.zarr")
    group = zarr.open_group(str(tmp_path / "in.zarr"), mode="r")
    loader = annbatch.Loader(
        batch_size=32,
        chunk_size=16,
        preload_nchunks=4,
        shuffle=True,
        rng=np.random.default_rng(0),
        return_index=True,
        preload_to_gpu=False,
    )
    loader.add_adata(anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=counts.obs))
    source = IterableSource(lambda: ((block["X"], block["index"]) for block in loader), counts.var_names, counts.n_obs)
    model = CountAutoencoder(n_latent=3).fit(source, **QUICK)
    np.testing.assert_allclose(model.embed(source), model.embed(counts), atol=1e-5)
