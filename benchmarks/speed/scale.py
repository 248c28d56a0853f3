"""Comparisons that need more cells, more genes or more processes than one machine's memory or one minute have."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from benchmarks.speed.comparisons import Bench, Result, against_scvi, compared

from anncoder.data.adata import read_matrix
from anncoder.data.loaders.disk import DiskLoader
from anncoder.data.opening import open_stores
from anncoder.data.stores import Stores
from anncoder.datasets import simulate, simulate_to_file

ALL_GENES = 13_488  # of the 10x blood cells; with this library size 98.6 % of the entries are zero
LARGE, SMALL = 1_000_000, 100_000  # cells on disk

# one epoch of a fit from a file, after a small one that imports and compiles: seconds, peak MB, peak MB above the start
EPOCH = """
import sys, anndata, anncoder as ac
from benchmarks.speed.machine import peak_memory as peak
from anncoder.datasets import simulate
def fit(data):
    model = ac.CountAutoencoder(n_hidden=(64,), n_latent=32, natural_axes=False)
    return model.fit(data, max_epochs=1, batch_size=1024, threads=int(sys.argv[2]), progress=False)
fit(simulate(n_obs=2100, n_vars=500, seed=0))
start = peak()
print(fit(sys.argv[1]).history_["seconds"].iloc[0], peak(), peak() - start)
"""


def all_genes(bench: Bench) -> Iterator[Result]:
    """Time whole fits on all genes of a cell, nearly all of them zero, against SCVI."""
    n_obs = min(bench.counts.shape[0], 4096)
    counts = read_matrix(simulate(n_obs=n_obs, n_vars=ALL_GENES, lib_loc=5.3, seed=0), None)
    zeros = 1 - counts.nnz / np.prod(counts.shape)
    for result in against_scvi(bench._replace(counts=counts)):
        yield result._replace(name=f"{ALL_GENES:,} genes, {zeros:.1%} zeros: {result.name}")


def memory(bench: Bench) -> Iterator[Result]:
    """Measure one epoch from a file of a million cells, and its memory beside that of a tenth of them."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for n_obs in (LARGE, SMALL):
            path = Path(folder) / f"{n_obs}.h5ad"
            simulate_to_file(path, n_obs=n_obs, n_vars=2000, lib_loc=6.3, seed=1)
            runs = [_numbers(EPOCH, str(path), str(_threads())) for _ in range(3 if n_obs == SMALL else 1)]
            found.append(np.median(runs, axis=0))
            path.unlink()
    (seconds, _, large), (_, _, small) = (row.tolist() for row in found)
    ratio = large / small
    note = f"{large:,.0f} MB above the start for {LARGE:,} cells, {small:,.0f} MB for {SMALL:,}; MB, not seconds"
    yield Result("peak memory, a million cells over a tenth of them", ratio, ratio, ratio, large, small, note)
    yield Result(
        "one epoch of 64-32-64 NB over a million cells on disk", seconds, seconds, seconds, seconds, seconds, "seconds"
    )


def entropy(bench: Bench) -> Iterator[Result]:
    """Measure how mixed minibatches of a file sorted by label are: entropy over that of a full shuffle."""
    labels = np.sort(np.random.default_rng(0).integers(0, 50, 200_000))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sorted.h5ad"
        anndata.AnnData(np.ones((len(labels), 2), dtype=np.float32)).write_h5ad(path)
        shards = open_stores(str(path), None)
        assert shards is not None
        chosen = np.ones(len(labels), dtype=bool)
        loader = DiskLoader(Stores(shards), chosen.astype(np.float32), chosen, batch_size=256, seed=0)
        ours = float(np.mean([_entropy(labels[batch.rows.numpy()]) for batch in loader.epoch(0)]))
    order = np.random.default_rng(1).permutation(len(labels))
    full = float(np.mean([_entropy(labels[order[i : i + 256]]) for i in range(0, len(order), 256)]))
    ratio = ours / full
    yield Result("label entropy of a sorted file's minibatches over a full shuffle's", ratio, ratio, ratio, ours, full)


def processes(bench: Bench) -> Iterator[Result]:
    """Time an epoch of two processes of one thread each against one process of two, 4,096 cells a step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.h5ad"
        simulate(n_obs=8 * 4096, n_vars=2000, lib_loc=6.0, seed=0).write_h5ad(path)
        alone = [sys.executable, "-m", "anncoder"]
        two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "anncoder"]
        times = []
        for _ in range(bench.repeats):
            pair = (_epoch(two, path, threads=1, batch_size=2048), _epoch(alone, path, threads=2, batch_size=4096))
            times.append(pair)
    yield compared("two gloo processes over one, both cores each, 4,096 cells a step", times)


def _epoch(command: list[str], path: Path, *, threads: int, batch_size: int) -> float:
    output = path.with_name("out.h5ad")
    options = ["--threads", str(threads), "--no-evaluation", "--quiet", "--in-place"]
    for word in (f"batch_size={batch_size}", "max_epochs=8", "n_hidden=[64]", "n_latent=32", "early_stopping=false"):
        options += ["--set", word]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [*command, "train", str(path), "-o", str(output), *options], check=True, capture_output=True, env=environment
    )
    history = pd.read_csv(output.with_suffix(".anncoder") / "history.csv")
    return float(history["seconds"].iloc[1:].median())


def _numbers(code: str, *arguments: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def _entropy(labels: Any) -> float:
    _, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    return -float(sum(p * math.log(p) for p in shares))


def _threads() -> int:
    import torch

    return torch.get_num_threads()
