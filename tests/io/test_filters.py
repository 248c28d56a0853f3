"""HDF5 files compressed with filters from plugins: read, copied, or refused by the filter's name before any work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from anncoder import CountAutoencoder, check, tl
from anncoder.data.adata import open_data
from anncoder.data.formats import failures
from anncoder.errors import FileError, InputError
from anncoder.io import h5ad_copy
from anncoder.io.h5ad_copy import copy_h5ad
from anncoder.io.hdf5 import h5_in_memory
from anncoder.tl.files import OutputSpec, open_files_for

COUNTS = np.random.default_rng(0).poisson(1.0, (200, 60)).astype(np.float32)
COUNTS[:, 0] += 1

# in a process of its own: it died of SIGABRT, as soon as HDF5 copied what it had read
COPY = """
import sys
from pathlib import Path
import h5py, numpy as np
from anncoder.data.opening import open_stores
from anncoder.io.h5ad_copy import copy_h5ad, rehearse
from anncoder.io.hdf5 import new_h5

assert "hdf5plugin" not in sys.modules
for name in sys.argv[1:]:
    path = Path(name)
    (store,) = open_stores(path, None)
    before = store.read([(0, store.n_obs)]).toarray()
    rehearse(store.root, path)
    for number, keep in enumerate((None, np.arange(store.n_obs) % 2 == 0)):
        with new_h5(path.with_suffix(f".copy{number}")) as (file, disk):
            copy_h5ad(store.root, file, disk, keep=keep)
        (again,) = open_stores(path.with_suffix(f".copy{number}"), None)
        after = again.read([(0, again.n_obs)]).toarray()
        assert (after == (before if keep is None else before[keep])).all(), name
print("done")
"""


@pytest.fixture(scope="module")
def plugin():  # type: ignore[no-untyped-def]
    return pytest.importorskip("hdf5plugin")


def compressed(folder: Path, name: str, how: object, kind: type = sparse.csr_matrix) -> Path:
    path = folder / f"{name}_{kind.__name__}.h5ad"
    anndata.AnnData(kind(COUNTS)).write_h5ad(
        path, compression=how["compression"], compression_opts=how["compression_opts"]
    )  # type: ignore[index]
    return path


def test_what_a_plugin_compressed_is_copied(plugin, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ways = {"zstd": plugin.Zstd(), "lz4": plugin.LZ4(), "bitshuffle": plugin.Bitshuffle(), "bzip2": plugin.BZip2()}
    paths = [compressed(tmp_path, name, how) for name, how in ways.items()]
    paths.append(compressed(tmp_path, "zstd", ways["zstd"], np.array))
    blosc = tmp_path / "blosc.h5ad"  # whose filter dies of anndata's empty arrays
    anndata.AnnData(COUNTS).write_h5ad(blosc)
    with h5py.File(blosc, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", data=COUNTS, **plugin.Blosc()).attrs.update(attributes)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COPY, *map(str, [*paths, blosc])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    for path in paths:
        found = anndata.read_h5ad(path.with_suffix(".copy0"))
        np.testing.assert_array_equal(found.to_df(), COUNTS)


def test_copies_are_compressed_as_they_were_where_a_filter_can_be_set_again(plugin, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    numbers = {}
    for name, how in (("zstd", plugin.Zstd()), ("bitshuffle", plugin.Bitshuffle())):
        with h5py.File(compressed(tmp_path, name, how)) as source, h5_in_memory() as (file, disk):
            copy_h5ad(source, file, disk)
            numbers[name] = [each.number for each in failures.filters_of(file["X/data"])]
            np.testing.assert_array_equal(file["X/data"][:], source["X/data"][:])
    # bitshuffle changes its options when they are set: the second time they would be others
    assert numbers == {"zstd": [32015], "bitshuffle": [1]}


def unknown_filter(path: Path, place: str) -> Path:
    """Write a file, and compress something in it with a filter that nobody has."""
    adata = anndata.AnnData(COUNTS)
    adata.obsm["X_user"] = COUNTS[:, :2]
    adata.uns["user"] = np.arange(5)
    adata.obs["n"] = np.arange(200)
    adata.raw = adata.copy()
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        values, attributes = file[place][:], dict(file[place].attrs)
        del file[place]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk(values.shape)
        plan.set_filter(305, h5py.h5z.FLAG_OPTIONAL)  # one that must be there could not be set
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file.id, place.encode(), h5py.h5t.py_create(values.dtype), space, plan)
        made.write_direct_chunk((0,) * values.ndim, b"not to be read without it")
        h5py.Dataset(made).attrs.update(attributes)
    return path


@pytest.mark.parametrize("place", ["X", "obs/n", "obsm/X_user", "uns/user", "raw/X"])
def test_a_filter_that_is_missing_is_named_before_any_work(place: str, tmp_path: Path) -> None:
    path = unknown_filter(tmp_path / "in.h5ad", place)
    said = []
    for use in (check, open_data, CountAutoencoder().fit, lambda p: tl.autoencode(p, output=tmp_path / "out.h5ad")):
        with pytest.raises(FileError) as error:
            use(path)
        said.append(str(error.value))
    assert said == said[:1] * 4
    assert error.value.code == "missing-filter"
    assert "HDF5's filter 305), which is not installed" in error.value.what
    assert place in error.value.where
    assert "damaged" not in str(error.value)


def test_the_plugin_that_would_have_it_is_named(
    plugin,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = compressed(tmp_path, "zstd", plugin.Zstd())
    there = h5py.h5z.filter_avail
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: number < 32000 and there(number))
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)  # cannot be imported
    with pytest.raises(FileError) as error:
        check(path)
    assert "Zstandard (HDF5's filter 32015)" in error.value.what
    assert error.value.remedy == "pip install hdf5plugin"


def test_of_a_backed_anndata(tmp_path: Path) -> None:
    adata = anndata.read_h5ad(unknown_filter(tmp_path / "in.h5ad", "X"), backed="r")
    with pytest.raises(FileError) as error:
        CountAutoencoder().fit(adata, max_epochs=1)
    assert error.value.code == "missing-filter"


def test_what_cannot_be_written_is_refused_before_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = anndata.AnnData(COUNTS)
    adata.X[3] = 0
    adata.obs["odd"] = "text"
    adata.write_h5ad(path := tmp_path / "in.h5ad")

    def fails(*_: object, **__: object) -> None:
        raise TypeError("no method to write it")

    monkeypatch.setattr(h5ad_copy, "write_elem", fails)  # as of an element that only a newer anndata writes
    monkeypatch.setattr(CountAutoencoder, "fit", lambda *_, **__: pytest.fail("it was fitted"))
    wanted = OutputSpec("ae")
    with pytest.raises(InputError, match="cannot be written: no method to write it") as error:
        open_files_for(CountAutoencoder(), path, tmp_path / "out.h5ad", wanted, None, drop_empty=True)
    assert error.value.where == f"{path}: obs/odd"
