"""Data on disk: every row once, whatever the files; the same results as from memory; damage is named."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse as sp

from anncoder import CountAutoencoder, UndercompleteAutoencoder, VariationalAutoencoder, evaluate
from anncoder.config import TrainingConfig
from anncoder.data import direct_read as pages
from anncoder.data import sources
from anncoder.data import store as store_module
from anncoder.data.adata import open_data
from anncoder.data.check import check
from anncoder.data.direct_read import Extents
from anncoder.data.loaders import disk
from anncoder.data.loaders.disk import DiskLoader, prefetched
from anncoder.data.matrix import arrays as held
from anncoder.data.matrix.sample import evenly
from anncoder.data.matrix.zeros import CELLS
from anncoder.data.opening import open_stores
from anncoder.data.sources import open_source
from anncoder.data.split import split_rows
from anncoder.data.stores import Stores
from anncoder.errors import ConfigError, FileError, InputError, ResourceError
from anncoder.models.count import CountConfig
from anncoder.training.prepare import prepare

QUICK: dict[str, Any] = {"max_epochs": 2, "progress": False, "batch_size": 32}


def make(n: int, g: int = 7, seed: int = 0, *, first: int = 0) -> anndata.AnnData:
    generator = np.random.default_rng(seed)
    x = generator.poisson(0.7, (n, g)).astype(np.float32)
    x[:, 0] = np.arange(first, first + n) + 1  # the first gene says which cell it is
    obs = pd.DataFrame({"batch": generator.choice(["a", "b"], n)}, index=[f"c{first + i}" for i in range(n)])
    return anndata.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(g)]))


def write(adata: anndata.AnnData, path: Path) -> Path:
    if path.suffix == ".zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata's and zarr's own, on what comes in their next versions
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


def open_all(*paths: Path) -> Stores:
    stores = open_stores([str(p) for p in paths], None)
    assert stores is not None
    return Stores(stores)


def loader(stores: Stores, chosen: np.ndarray[Any, Any] | None = None, **options: Any) -> DiskLoader:
    chosen = np.ones(stores.n_obs, dtype=bool) if chosen is None else chosen
    return DiskLoader(stores, np.ones(stores.n_obs, dtype=np.float32), chosen, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of 50, 1 and 29 cells; the second has its genes in another order, the third is zarr."""
    folder = tmp_path_factory.mktemp("files")
    middle = make(1, seed=1, first=50)
    return [
        write(make(50), folder / "a.h5ad"),
        write(middle[:, ::-1].copy(), folder / "b.h5ad"),
        write(make(29, seed=2, first=51), folder / "c.zarr"),
    ]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(2, 90),
    block=st.integers(1, 40),
    pool=st.integers(1, 90),
    seed=st.none() | st.integers(0, 5),
    process=st.floats(0.05, 1),
)
def test_every_row_once_an_epoch(
    files: list[Path], batch_size: int, block: int, pool: int, seed: int | None, process: float
) -> None:
    stores = open_all(*files)
    chosen = np.random.default_rng(0).random(80) < process
    chosen[:2] = True
    minibatches = loader(stores, chosen, batch_size=batch_size, block=block, pool=pool, seed=seed)
    batches = list(minibatches.epoch(3))
    rows = torch.cat([b.rows for b in batches]).numpy()
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(chosen))
    assert len(batches) == len(minibatches)
    assert all(len(b.rows) >= 2 for b in batches)
    assert all(len(b.rows) == batch_size for b in batches[:-1])
    for batch in batches:  # each cell came with its own counts, genes in the first file's order
        np.testing.assert_array_equal(batch.counts.to_dense()[:, 0], batch.rows + 1)
    if seed is None:
        np.testing.assert_array_equal(rows, np.flatnonzero(chosen))


def test_the_order_is_a_function_of_seed_and_epoch(files: list[Path]) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        minibatches = loader(open_all(*files), batch_size=8, seed=seed)
        return torch.cat([b.rows for b in minibatches.epoch(epoch)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_minibatches_of_a_sorted_file_are_mixed(tmp_path: Path) -> None:
    """Entropy of the labels in a minibatch, against a full shuffle, on a file sorted by label."""
    n, n_labels = 40_000, 20
    labels = np.sort(np.random.default_rng(0).integers(0, n_labels, n))
    path = write(anndata.AnnData(sp.csr_matrix(np.ones((n, 1), dtype=np.float32))), tmp_path / "sorted.h5ad")

    def entropy(batches: Iterator[np.ndarray[Any, Any]]) -> float:
        shares = [np.bincount(labels[rows], minlength=n_labels) / len(rows) for rows in batches]
        return float(np.mean([-(p[p > 0] * np.log(p[p > 0])).sum() for p in shares]))

    ours = entropy(b.rows.numpy() for b in loader(open_all(path), batch_size=128, seed=0).epoch(0))
    full = np.random.default_rng(1).permutation(n)
    assert ours >= 0.99 * entropy(full[i : i + 128] for i in range(0, n, 128))


@pytest.mark.parametrize("kind", ["csr.h5ad", "dense.h5ad", "csr.zarr", "dense.zarr", "int.h5ad", "gzip.h5ad"])
def test_every_way_of_storing_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    adata = make(40)
    path = tmp_path / kind
    stored = adata.copy()
    if kind.startswith("dense"):
        stored.X = np.asarray(stored.X.todense())
    if kind.startswith("int"):
        stored.X = stored.X.astype(np.int32)
    if kind.startswith("gzip"):
        stored.write_h5ad(path, compression="gzip")
    else:
        write(stored, path)
    rows = open_all(path).read([(3, 7), (20, 40)])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.toarray(), adata.X[np.r_[3:7, 20:40]].toarray())


class TestReads:
    """How often the stored values and indices are read before the training."""

    @pytest.fixture
    def n_read(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        counts = dict.fromkeys(("X", "X/data", "X/indices"), 0)
        by_hdf5, direct = h5py.Dataset.__getitem__, Extents.read

        def seen(array: h5py.Dataset, n: int) -> None:
            name = array.name.strip("/")
            if name in counts:
                counts[name] += n

        def getitem(array: h5py.Dataset, *at: Any, **options: Any) -> Any:
            found = by_hdf5(array, *at, **options)
            seen(array, np.size(found))
            return found

        def read(places: Extents, start: int, stop: int, out: Any) -> None:
            seen(places.array, stop - start)
            direct(places, start, stop, out)

        monkeypatch.setattr(h5py.Dataset, "__getitem__", getitem)
        monkeypatch.setattr(Extents, "read", read)
        return counts

    @staticmethod
    def stored(kind: str, folder: Path) -> tuple[Path, dict[str, int]]:
        adata = make(300)
        n = {"X": 0, "X/data": adata.X.nnz, "X/indices": adata.X.nnz}
        if kind == "csc":
            adata.X = adata.X.tocsc()
        if kind == "dense":
            adata.X = adata.X.toarray()
            n = {"X": adata.X.size, "X/data": 0, "X/indices": 0}
        path = folder / "it.h5ad"
        adata.write_h5ad(path, compression="gzip" if kind == "gzip" else None)
        return path, n

    @pytest.mark.parametrize("counts", [True, False])
    @pytest.mark.parametrize("kind", ["csr", "gzip", "csc", "dense"])
    def test_a_file_that_fits_into_memory_is_read_once(
        self, kind: str, counts: bool, n_read: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, once = self.stored(kind, tmp_path)
        monkeypatch.setattr(held, "DISK_BLOCK", 200)  # several blocks
        source = open_source(path, None, counts=counts)
        assert n_read == once
        config = CountConfig(n_latent=2) if counts else CountConfig(n_latent=2, likelihood="gaussian", transform="none")
        ready = prepare(source, split_rows(300, 0.1, 0), config, TrainingConfig(batch_size=32))
        list(ready.train.epoch(0))
        list(source.files())
        assert n_read == once

    @pytest.mark.parametrize("kind", ["csr", "gzip", "dense"])
    def test_a_larger_file_is_read_once_for_check_and_library_sizes_and_once_for_the_genes(
        self, kind: str, n_read: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, once = self.stored(kind, tmp_path)
        monkeypatch.setattr(held, "DISK_BLOCK", 200)
        monkeypatch.setattr(sources, "POOL_BYTES", 1000)
        source = open_source(path, None, counts=True)
        assert n_read == once
        np.testing.assert_array_equal(source.sizes, np.asarray(open_data(path).X.sum(axis=1)).ravel())
        n_read.update(dict.fromkeys(n_read, 0))
        list(source.blocks(np.ones(300, dtype=bool), 64))
        assert n_read == once

    def test_the_remedy_of_a_bad_file_needs_a_second_look_at_some_cells_only(
        self, n_read: dict[str, int], tmp_path: Path
    ) -> None:
        adata = make(300)
        adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
        path = write(adata, tmp_path / "it.h5ad")
        with pytest.raises(InputError, match="pass layer='counts'") as error:
            open_source(path, None, counts=True)
        assert error.value.code == "not-integer"
        # one index more: the gene of the first bad value; and some cells, for their zeros are those of the counts
        n = adata.X.nnz + int(np.diff(adata.X.indptr)[evenly(300, CELLS)].sum())
        assert n_read == {"X": 0, "X/data": n, "X/indices": n + 1}


class TestModels:
    def test_from_disk_and_from_memory_the_fit_starts_alike(self, counts: anndata.AnnData, tmp_path: Path) -> None:
        path = write(counts, tmp_path / "counts.h5ad")
        memory = CountAutoencoder(n_latent=4).fit(counts, **QUICK)
        disk = CountAutoencoder(n_latent=4).fit(path, **QUICK)
        assert list(disk.valid_obs_) == list(memory.valid_obs_)
        assert disk.library_size_ == memory.library_size_
        # the order of the cells is another one, the losses nearly the same
        np.testing.assert_allclose(disk.history_["valid_loss"], memory.history_["valid_loss"], rtol=0.05)
        again = CountAutoencoder(n_latent=4).fit(path, **QUICK)
        np.testing.assert_array_equal(again.embed(counts), disk.embed(counts))

    def test_results_are_the_same_wherever_the_cells_are(self, counts: anndata.AnnData, tmp_path: Path) -> None:
        model = UndercompleteAutoencoder(n_latent=4).fit(counts, **QUICK)
        whole = write(counts, tmp_path / "whole.h5ad")
        half = counts.n_obs // 2
        write(counts[:half].copy(), tmp_path / "part1.h5ad")
        write(counts[half:, ::-1].copy(), tmp_path / "part2.h5ad")
        write(counts, tmp_path / "whole.zarr")
        backed = anndata.read_h5ad(whole, backed="r")
        places = [str(whole), tmp_path / "whole.zarr", str(tmp_path / "part*.h5ad"), backed]
        places.append([tmp_path / "part1.h5ad", tmp_path / "part2.h5ad"])
        for place in places:
            np.testing.assert_allclose(model.embed(place), model.embed(counts), atol=1e-5)
            np.testing.assert_allclose(model.denoise(place), model.denoise(counts), rtol=1e-4, atol=1e-5)
        backed.file.close()

    def test_a_backed_object_is_what_it_holds_and_not_what_its_file_does(
        self, counts: anndata.AnnData, tmp_path: Path
    ) -> None:
        counts.obs["batch"], counts.layers["counts"] = "a", counts.X.copy()
        backed = anndata.read_h5ad(write(counts, tmp_path / "it.h5ad"), backed="r")
        for adata in (counts, backed):
            adata.obs["batch"] = pd.Categorical(np.arange(adata.n_obs) % 3)
            adata.obs["donor"] = np.arange(adata.n_obs) % 10
            adata.obs_names = [f"x{i}" for i in range(adata.n_obs)]
            adata.layers["counts"] = adata.layers["counts"] * 3
            adata.layers["new"] = adata.layers["counts"]
            adata.obsm["X_new"] = np.arange(2.0 * adata.n_obs, dtype=np.float32).reshape(-1, 2)
            adata.uns["log1p"] = {"base": None}
        assert check(backed).table == check(counts).table
        assert check(backed, layer="new").table == check(counts, layer="new").table
        for layer, half in [(None, False), ("counts", False), ("new", False), (None, True), ("counts", True)]:
            here, there = (adata[::2] if half else adata for adata in (counts, backed))
            fits = [
                VariationalAutoencoder(n_latent=4).fit(
                    data, layer=layer, batch_key="batch", valid_groups="donor", **QUICK
                )
                for data in (here, there)
            ]
            assert list(fits[0].valid_obs_) == list(fits[1].valid_obs_)
            assert fits[1].batches_ == ["0", "1", "2"]
            np.testing.assert_array_equal(fits[0].embed(here), fits[1].embed(there))
            for n in (1000, 50):
                tables = [evaluate(fits[0], data, labels="donor", max_cells=n).table for data in (here, there)]
                pd.testing.assert_frame_equal(*tables)
        opened = open_stores(backed, None)
        assert opened is not None
        np.testing.assert_array_equal(Stores(opened).coordinates("X_new"), counts.obsm["X_new"])
        with pytest.raises(ConfigError, match="dunor"):
            VariationalAutoencoder(n_latent=4).fit(backed, batch_key="dunor", **QUICK)
        with pytest.raises(InputError) as error:
            fits[0].fit(backed, layer="old", **QUICK)
        assert error.value.code == "missing-layer"
        backed.file.close()

    @pytest.mark.parametrize("how", ["valid_groups", "valid_stratify"])
    def test_the_same_cells_are_held_out_however_the_column_is_stored(self, how: str, tmp_path: Path) -> None:
        adata = make(90)
        adata.obs["donor"] = pd.Categorical(np.array(["a", "b", "c"])[np.arange(90) % 3], categories=["c", "a", "b"])
        adata.obs["plate"] = np.arange(90) % 9 + 1
        path = write(adata, tmp_path / "whole.h5ad")
        parts = [adata[:45].copy(), adata[45:].copy()]
        parts[1].obs["plate"] = parts[1].obs["plate"].astype(str)
        paths = [write(part, tmp_path / f"part{i}.h5ad") for i, part in enumerate(parts)]
        for column, places in (("donor", [path]), ("plate", [path, paths])):
            fits = [
                UndercompleteAutoencoder(n_latent=2).fit(place, **{how: column}, valid_fraction=0.3, **QUICK)
                for place in (adata, *places)
            ]
            assert len({tuple(fit.valid_obs_) for fit in fits}) == 1

    def test_layers_and_split_columns_are_read_from_disk(self, tmp_path: Path) -> None:
        adata = make(60)
        adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
        path = write(adata, tmp_path / "it.h5ad")
        model = UndercompleteAutoencoder(n_latent=2).fit(path, layer="counts", valid_groups="batch", **QUICK)
        assert adata.obs.loc[model.valid_obs_, "batch"].nunique() == 1
        assert model.embed(path).shape == (60, 2)
        with pytest.raises(ConfigError, match="bach"):
            UndercompleteAutoencoder(n_latent=2).fit(path, layer="counts", valid_groups="bach", **QUICK)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")  # that is the case
class TestCheck:
    """A file is told to be what the same cells in memory are told to be."""

    @pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
    @pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
    @pytest.mark.parametrize("fault", ["none", "negative", "log", "empty", "names", "huge"])
    def test_the_reports_are_one(self, kind: str, suffix: str, fault: str, tmp_path: Path) -> None:
        adata = make(60)
        x = adata.X.toarray().astype(np.float64)
        if fault == "negative":
            x[17, 3] = -4
        if fault == "empty":
            x[[2, 40]] = 0
        if fault == "huge":
            x[5, 2] = 2.0**24 + 1
        if fault == "log":
            adata.layers["raw"], x = sp.csr_matrix(x), np.log1p(x)
        if fault == "names":
            adata.obs_names = ["c1", "c1", *adata.obs_names[2:]]
        adata.X = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[kind](x)
        adata.raw = adata.copy()
        expected = check(adata)
        found = check(write(adata, tmp_path / f"it{suffix}"))
        assert found.problems == expected.problems
        assert found.table == expected.table
        assert (found.n_obs, found.n_vars, found.n_stored) == (expected.n_obs, expected.n_vars, expected.n_stored)

    def test_a_file_larger_than_a_block_is_read_in_blocks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adata = make(300)
        adata.X.data[1000] = np.nan
        expected = check(adata)
        monkeypatch.setattr(held, "DISK_BLOCK", 64)
        found = check(write(adata, tmp_path / "it.h5ad"))
        assert found.problems == expected.problems
        assert found.table == expected.table

    def test_names_that_occur_twice_are_found_on_disk(self, tmp_path: Path) -> None:
        adata = make(70_000, g=2)
        adata.obs_names = [*adata.obs_names[:-1], "c3"]
        path = write(adata, tmp_path / "it.h5ad")
        stores = open_stores(path, None)
        assert stores is not None
        names = store_module.Names(stores[0])
        assert list(names.repeated()) == ["c3"]
        assert (len(names), names[69_998], list(names[np.array([2, 69_999])])) == (70_000, "c69998", ["c2", "c3"])


class TestDamage:
    def test_a_file_with_other_genes(self, files: list[Path], tmp_path: Path) -> None:
        other = make(5)
        other.var_names = [f"h{j}" for j in range(7)]
        path = write(other, tmp_path / "other.h5ad")
        with pytest.raises(InputError, match=r"'other\.h5ad' lacks 7 of the 7 genes of 'a\.h5ad': g0, g1") as error:
            open_all(files[0], path)
        assert error.value.code == "other-genes"
        assert error.value.where == str(path)
        fewer = write(make(5)[:, :6].copy(), tmp_path / "fewer.h5ad")
        with pytest.raises(InputError, match=r"'fewer\.h5ad' lacks 1 of the 7 genes of 'a\.h5ad': g6") as error:
            CountAutoencoder(n_latent=2).fit([files[0], fewer], **QUICK)
        assert error.value.code == "other-genes"
        assert "model" not in str(error.value)
        assert "allow" not in str(error.value)
        identifiers = make(5)
        identifiers.var_names = [f"ENSG0000000000{j}" for j in range(7)]
        with pytest.raises(InputError, match=r"has Ensembl identifiers and the first gene symbols") as error:
            open_all(files[0], write(identifiers, tmp_path / "identifiers.h5ad"))
        more = write(make(5, g=9), tmp_path / "more.h5ad")
        with pytest.raises(InputError, match=r"more\.h5ad.*g7, g8") as error:
            open_all(files[0], more)
        assert error.value.code == "other-genes"

    def test_a_truncated_file(self, files: list[Path], tmp_path: Path) -> None:
        cut = tmp_path / "cut.h5ad"
        cut.write_bytes(files[0].read_bytes()[:-2000])
        with pytest.raises(FileError, match=r"cut\.h5ad"):
            UndercompleteAutoencoder(n_latent=2).fit([files[0], cut], **QUICK)

    @pytest.mark.filterwarnings("ignore:Consolidated metadata")  # of zarr's third format
    @pytest.mark.parametrize("name", ["data", "indices", "indptr"])
    @pytest.mark.parametrize("kind", ["v2", "v3", "dots", "sharded", "h5", "gzip", "whole"])
    def test_a_file_that_lacks_a_chunk(self, kind: str, name: str, tmp_path: Path) -> None:
        adata, hdf = make(100), kind in ("h5", "gzip", "whole")
        with anndata.settings.override(zarr_write_format=2 if kind == "v2" else 3):
            path = write(adata, tmp_path / ("it.h5ad" if hdf else "it.zarr"))
        matrix = (h5py.File(path, "r+") if hdf else zarr.open_group(str(path), mode="r+"))["X"]
        for part in ("data", "indices", "indptr"):
            values = matrix[part][:]
            del matrix[part]
            size = 25 if part == "indptr" else 50
            lost = part == name and (size if kind != "whole" else len(values))
            if hdf:
                options: Any = {} if kind == "whole" else {"chunks": (size,)}
                options |= {"compression": "gzip"} if kind == "gzip" else {}
                array = matrix.create_dataset(part, values.shape, values.dtype, **options)
                if lost < len(values):
                    array[lost:] = values[lost:]
                continue
            keys = {"name": "default", "separator": "." if kind == "dots" else "/"}
            options = {"zarr_format": 2} if kind == "v2" else {"chunk_key_encoding": keys}
            options |= {"shards": (size,), "chunks": (5,)} if kind == "sharded" else {"chunks": (size,)}
            array = zarr.create_array(path, name=f"X/{part}", shape=values.shape, dtype=values.dtype, **options)
            array[lost:] = values[lost:]
        if hdf:
            matrix.file.close()
        else:
            zarr.consolidate_metadata(str(path))
        with pytest.raises(FileError, match=r"are missing|do not fit") as error:
            check(path)
        assert error.value.code == "unreadable"
        with pytest.raises(FileError) as error:
            open_data(path)
        assert error.value.code == "unreadable"

    def test_chunks_that_zarr_leaves_out_are_no_damage(self, tmp_path: Path) -> None:
        counts = np.zeros((40, 3), np.float32)
        counts[20:, 0] = 1  # the indices are zeros, and so are the first pointers
        adata = anndata.AnnData(sp.csr_matrix(counts))
        path = write(adata, tmp_path / "it.zarr")
        for part in ("indices", "indptr"):
            values = zarr.open_group(str(path), mode="r")["X"][part][:]
            options: dict[str, Any] = {"config": {"write_empty_chunks": False}, "overwrite": True}
            array = zarr.create_array(path, name=f"X/{part}", data=values, chunks=(5,), zarr_format=2, **options)
            assert array.nchunks_initialized < array.nchunks
        zarr.consolidate_metadata(str(path))
        np.testing.assert_array_equal(open_all(path).read([(0, 40)]).toarray(), counts)
        np.testing.assert_array_equal(open_data(path).X.toarray(), counts)

    def test_a_gene_number_that_does_not_exist(self, tmp_path: Path) -> None:
        path = write(make(30), tmp_path / "bad.h5ad")
        with h5py.File(path, "r+") as file:
            file["X/indices"][5] = 1000
        with pytest.raises(InputError, match="gene index 1,000 is outside 0 to 6") as error:
            UndercompleteAutoencoder(n_latent=2).fit(path, **QUICK)
        assert error.value.code == "sparse-indices"
        with pytest.raises(FileError, match="gene index outside"):  # damage that comes after the check
            open_all(path).read([(0, 30)])

    @pytest.mark.parametrize("bad", [30, -1, 2**30])
    def test_a_cell_number_that_does_not_exist(self, tmp_path: Path, bad: int) -> None:
        adata = make(30)
        adata.X = adata.X.tocsc()
        path = write(adata, tmp_path / "bad.h5ad")
        with h5py.File(path, "r+") as file:
            file["X/indices"][5] = bad
        with pytest.raises(FileError, match=f"cell index {bad:,} is outside 0 to 29") as error:
            open_all(path).read([(0, 30)])
        assert error.value.code == "unreadable"

    def test_a_file_that_changes_while_it_is_read(self, tmp_path: Path) -> None:
        path = write(make(100), tmp_path / "it.h5ad")
        stores = open_all(path)
        minibatches = loader(stores, batch_size=10, seed=0)
        assert len(list(minibatches.epoch(0))) == 10
        path.touch()
        with pytest.raises(FileError) as error:
            next(iter(minibatches.epoch(1)))
        assert error.value.code == "file-changed"

    @pytest.mark.parametrize("layer", [None, "counts"])
    def test_a_chunk_of_a_zarr_folder_that_changes_while_it_is_read(self, tmp_path: Path, layer: str | None) -> None:
        adata = make(100)
        if layer is not None:
            adata.layers[layer] = adata.X.copy()
        path = write(adata, tmp_path / "it.zarr")
        stores = open_stores(path, layer)
        assert stores is not None
        (path / "obs" / "of_another").touch()  # what is not read any more may change
        stores[0].refuse_change()
        matrix = path / "X" if layer is None else path / "layers" / layer
        chunk = max(matrix.rglob("*"), key=lambda file: (file.is_file(), len(file.parts)))
        for change in (lambda: chunk.write_bytes(chunk.read_bytes()), chunk.unlink):
            (opened,) = open_stores(path, layer) or []
            change()
            with pytest.raises(FileError) as error:
                opened.refuse_change()
            assert error.value.code == "file-changed"

    def test_values_that_are_no_counts_are_named_with_their_cell(self, tmp_path: Path) -> None:
        adata = make(30)
        adata.X[17, 0] = -1
        good, bad = write(make(20, first=30), tmp_path / "good.h5ad"), write(adata, tmp_path / "bad.h5ad")
        with pytest.raises(InputError, match="c17") as error:
            UndercompleteAutoencoder(n_latent=2).fit([good, bad], **QUICK)
        assert error.value.code == "negative"

    def test_a_file_of_the_first_years(self, tmp_path: Path) -> None:
        path = write(make(30), tmp_path / "old.h5ad")
        with h5py.File(path, "r+") as file:
            del file["obs"]
            file["obs"] = np.array([(b"c0", 1)], dtype=[("index", "S4"), ("n", "i4")])
        with pytest.raises(FileError, match=r"before version 0\.7") as error:
            UndercompleteAutoencoder(n_latent=2).fit(path, **QUICK)
        assert error.value.code == "old-layout"

    @pytest.mark.parametrize("kind", ["link", "storage", "virtual"])
    def test_a_file_that_takes_part_of_itself_from_another(self, kind: str, tmp_path: Path) -> None:
        path, other = write(make(30), tmp_path / "it.h5ad"), write(make(30, seed=1), tmp_path / "other.h5ad")
        with h5py.File(path, "r+") as file:
            if kind == "link":
                del file["X"]
                file["X"] = h5py.ExternalLink(str(other), "X")
            elif kind == "storage":
                external = [(str(tmp_path / "raw.bin"), 0, h5py.h5f.UNLIMITED)]
                file.create_dataset("uns/secret", (4,), "u1", external=external)
            else:
                layout = h5py.VirtualLayout((31,), "i8")
                layout[:] = h5py.VirtualSource(str(other), "X/indptr", (31,))
                file.create_virtual_dataset("uns/secret", layout)
        with pytest.raises(FileError, match=r"it\.h5ad.*from another file") as error:
            UndercompleteAutoencoder(n_latent=2).fit(path, **QUICK)
        assert error.value.code == "external-link"

    @pytest.mark.parametrize(
        ("name", "code"), [("nothing.h5ad", "no-file"), ("*.nothing", "no-file"), ("text.h5ad", "not-hdf5")]
    )
    def test_what_is_not_there(self, name: str, code: str, tmp_path: Path) -> None:
        (tmp_path / "text.h5ad").write_text("no")
        with pytest.raises(FileError) as error:
            UndercompleteAutoencoder(n_latent=2).fit(str(tmp_path / name), **QUICK)
        assert error.value.code == code

    @pytest.mark.parametrize(
        ("data", "said"),
        [([], "this one is empty"), ([make(3)], "holds AnnData"), ([7], "holds int"), (7, "expected an AnnData or a")],
    )
    def test_what_is_no_path(self, data: Any, said: str) -> None:
        with pytest.raises(InputError, match=said) as error:
            UndercompleteAutoencoder(n_latent=2).fit(data, **QUICK)
        assert error.value.code == "not-anndata"

    def test_a_matrix_stored_by_genes_is_put_in_order_if_it_is_small(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adata = make(30)
        adata.X = adata.X.tocsc()
        path = write(adata, tmp_path / "csc.h5ad")
        np.testing.assert_array_equal(
            open_all(path).read([(3, 7), (9, 12)]).toarray(), adata.X[[*range(3, 7), 9, 10, 11]].toarray()
        )
        monkeypatch.setattr(store_module, "TRANSPOSED", 10)
        with pytest.raises(InputError, match="tocsr") as error:
            UndercompleteAutoencoder(n_latent=2).fit(path, **QUICK)
        assert error.value.code == "not-by-cells"


class TestReadingAhead:
    def test_items_and_errors_come_through(self) -> None:
        def items() -> Iterator[int]:
            yield from range(5)
            raise ValueError("from the thread")

        seen = []
        with pytest.raises(ValueError, match="from the thread"):
            seen.extend(iter_all(disk.prefetched(items()), seen))
        assert seen == list(range(5))

    def test_a_reader_that_hangs_is_named(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def slow() -> Iterator[int]:
            time.sleep(0.2)
            yield 7

        monkeypatch.setattr(disk, "PATIENCE", 0.05)
        assert list(disk.prefetched(slow(), "far.h5ad")) == [7]
        assert "nothing has come from far.h5ad" in caplog.text

    def test_a_read_at_the_end_of_the_interpreter_keeps_no_lock(self) -> None:
        """As of HDF5: who closes a file while the interpreter is taken down needs it."""
        code = """
import threading, time
from anncoder.data.loaders.disk import prefetched

lock, reading = threading.Lock(), threading.Event()

def items():
    with lock:
        reading.set()
        time.sleep(1)
    yield 1

class File:
    def __del__(self):
        with lock:
            print("closed")

file, ahead = File(), prefetched(items())
reading.wait()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == "closed\n"

    def test_the_thread_ends_when_nobody_reads_on(self) -> None:
        before = threading.active_count()
        ahead = prefetched(iter(range(1000)))
        next(ahead)
        ahead.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


def iter_all(items: Iterator[int], into: list[int]) -> Iterator[int]:
    for item in items:
        into.append(item)
    yield from ()


def test_the_next_epoch_is_read_ahead_and_its_thread_ends(files: list[Path]) -> None:
    def readers() -> int:
        return sum(thread.name.startswith("anncoder-reader") for thread in threading.enumerate())

    before = readers()
    stores = open_all(*files)
    one, other = (loader(stores, batch_size=10, seed=0) for _ in range(2))
    orders = [[batch.rows.tolist() for batch in one.epoch(number)] for number in (0, 1, 0, 3)]
    assert readers() == before + 1
    # read ahead or not, and whichever epoch is asked for, an epoch is a function of its number
    assert orders[0] == orders[2]
    assert [[batch.rows.tolist() for batch in other.epoch(number)] for number in (3, 1)] == [orders[3], orders[1]]
    next(iter(other.epoch(2)))  # and left
    del one, other
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("anncoder-reader"):
            thread.join(timeout=10)
    assert readers() == before


def test_cells_held_out_are_read_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stores = open_all(*files)
    inner = loader(stores, batch_size=10, seed=None)
    outer = disk.cached_loader(inner)
    assert isinstance(outer, disk.KeptLoader)
    assert (len(outer), outer.n_obs) == (len(inner), inner.n_obs)
    first = [batch.rows.tolist() for batch in outer.epoch(0)]
    assert first == [batch.rows.tolist() for batch in inner.epoch(0)]
    monkeypatch.setattr(stores, "read", lambda _: pytest.fail("they are read again"))
    assert first == [batch.rows.tolist() for batch in outer.epoch(1)]
    shuffled = loader(stores, batch_size=10, seed=0)
    assert disk.cached_loader(shuffled) is shuffled
    monkeypatch.setattr(disk, "POOL_BYTES", 100)
    assert disk.cached_loader(inner) is inner


class TestExtents:
    @pytest.mark.parametrize("dtype", ["<f4", "<i4", "<i8", "<u2", ">f4", "<f8"])
    @pytest.mark.parametrize("chunks", [None, (7,), (64,)])
    def test_the_bytes_are_those_that_hdf5_reads(self, dtype: str, chunks: tuple[int] | None, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 200, 150).astype(dtype)
        with h5py.File(tmp_path / "it.h5", "w") as file:
            file.create_dataset("it", data=values, chunks=chunks, maxshape=None if chunks is None else (None,))
        with h5py.File(tmp_path / "it.h5", "r") as file:
            places = Extents.of(file["it"])
            assert places is not None
            for start, stop in [(0, 150), (3, 4), (6, 8), (0, 0), (60, 131), (149, 150)]:
                for into in (np.float32, np.int32):
                    out = np.full(stop - start, -1, dtype=into)
                    places.read(start, stop, out)
                    np.testing.assert_array_equal(out, values[start:stop].astype(into))

    @pytest.mark.parametrize("how", ["gzip", "checksum", "gap", "empty", "writable", "closed"])
    def test_what_only_hdf5_can_read_is_left_to_it(self, how: str, tmp_path: Path) -> None:
        options: dict[str, Any] = {"gzip": {"compression": "gzip"}, "checksum": {"fletcher32": True}}.get(how, {})
        with h5py.File(tmp_path / "it.h5", "w") as file:
            size = 0 if how == "empty" else 90
            array = file.create_dataset("it", (size,), "f4", chunks=(30,), maxshape=(None,), **options)
            if how != "empty":
                array[: 30 if how == "gap" else 90] = 1  # what was never written has no place
        with h5py.File(tmp_path / "it.h5", "r+" if how == "writable" else "r") as file:
            places = Extents.of(file["it"])
            assert (places is not None) == (how in ("empty", "closed"))
        if how == "closed":
            assert places is not None
            with pytest.raises(OSError, match="closed"):
                places.read(0, 9, np.empty(9, np.float32))

    def test_a_file_that_shrinks_while_it_is_read(self, tmp_path: Path) -> None:
        path = write(make(2000, g=50), tmp_path / "it.h5ad")
        stores = open_all(path)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(FileError, match=r"it\.h5ad") as error:
            stores.read([(0, 2000)])
        assert error.value.code == "file-changed"


class TestPages:
    def test_an_array_can_be_written_and_is_gone_with_its_last_view(self) -> None:
        for n in (0, 3, pages.LARGE):
            array = pages.unwritten(n, np.float32)
            array[:] = 2
            assert array.dtype == np.float32
            assert len(array) == n
            assert float(array.sum(dtype=np.float64)) == 2 * n
        base: Any = array.base
        while isinstance(base, np.ndarray | memoryview):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        assert type(base).__name__ == "mmap"
        gone = weakref.ref(base)
        tail = array[-1:]
        del array, base
        assert gone() is not None
        del tail
        assert gone() is None

    def test_no_memory_is_not_a_damaged_file(self, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(sources, "POOL_BYTES", 100)  # larger than this, files are read again for every epoch
        monkeypatch.setattr(pages, "LARGE", 0)
        monkeypatch.setattr(pages.mmap, "mmap", refuse)
        with pytest.raises(ResourceError) as caught:
            CountAutoencoder(n_latent=2).fit(files, **QUICK)
        assert caught.value.code == "out-of-memory"


def test_the_interpreter_waits_for_a_reader_that_closes_its_file() -> None:
    """Killed while it does, it would keep the lock of HDF5, for which the end of the interpreter then waits."""
    code = (
        "import time\n"
        "from anncoder.data.loaders.disk import prefetched\n"
        "class File:\n"
        "    def __iter__(self): return self\n"
        "    def __next__(self): time.sleep(0.3); raise StopIteration\n"
        "    def __del__(self): time.sleep(1); print('closed', flush=True)\n"
        "items = prefetched(File())\n"
        "items.close(wait=False)\n"
        "del items\n"
        "time.sleep(0.7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "closed\n"
