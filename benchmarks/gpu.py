"""Our step and textbook torch on one CUDA GPU, in turn, and the share of the floor that ours reaches.

    python benchmarks/gpu.py [--cells 200000] [--genes 2000] [--batch 1024 4096] [--repeats 5] [--epochs 4] [-o FILE]

The network is 64-32-64 with the negative binomial likelihood, one dispersion a gene; the counts are made up, 93 % of
them zeros. Seconds are of whole epochs after the first one, which compiles. Textbook torch is dense minibatches of a
``DataLoader``, and, as "resident", dense minibatches of a matrix that is on the GPU. Ours is as ``fit`` does it by
default, with TF32 products, and with these but the step not recorded as a CUDA graph.

The floor of a step is the largest of three times, from rates measured in the same run: its matrix products at the rate
of a large one; the bytes that any step must move (each logit written and read, its gradient written and read twice, 20
bytes, and the minibatch's stored values) at the rate of a large copy; and its launches, ``NODES`` of them, as nodes of
a replayed graph.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from benchmarks.speed.textbook import TextbookNetwork
from scipy.sparse import csr_matrix, vstack
from torch.utils.data import DataLoader, TensorDataset

from anncoder import CountAutoencoder
from anncoder.device import choose_device
from anncoder.errors import AnncoderError

HIDDEN, LATENT = 64, 32
NODES = 35  # launches of a step of this network that cannot do with fewer
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "tf32": {"precision": "tf32"},
    "tf32, not recorded": {"precision": "tf32", "cuda_graph": False},
}


def counts(n_obs: int, n_vars: int, seed: int = 0) -> csr_matrix:
    """Return counts of cells whose genes differ in mean as genes do; 7 % of them are not zero."""
    random = np.random.default_rng(seed)
    mean = random.lognormal(-3.6, 1.6, n_vars)
    parts = []
    for start in range(0, n_obs, 5000):
        rate = mean * random.lognormal(0, 0.4, (min(5000, n_obs - start), 1))
        parts.append(csr_matrix(random.poisson(rate).astype(np.float32)))
    matrix = vstack(parts, format="csr")
    matrix[np.diff(matrix.indptr) == 0, 0] = 1  # no cell without a count
    return matrix


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return how long a call takes, the device waited for, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ours(adata: anndata.AnnData, batch_size: int, epochs: int, device: torch.device, **settings: Any) -> float:
    """Return the seconds of an epoch of ours."""
    model = CountAutoencoder(n_hidden=(HIDDEN,), n_latent=LATENT).fit(
        adata,
        batch_size=batch_size,
        max_epochs=epochs + 1,
        valid_fraction=0,
        early_stopping=False,
        device=str(device),
        progress=False,
        **settings,
    )
    return float(model.history_["seconds"].iloc[1:].median())


def textbook(adata: anndata.AnnData, batch_size: int, epochs: int, device: torch.device, *, resident: bool) -> float:
    """Return the seconds of an epoch of textbook torch."""
    dense = torch.from_numpy(np.asarray(adata.X.todense(), dtype=np.float32))
    sizes = dense.sum(1)
    data = [dense, sizes / sizes.median()]
    if resident:
        data = [t.to(device) for t in data]
    loader = DataLoader(TensorDataset(*data), batch_size=batch_size, shuffle=True)
    network = TextbookNetwork(adata.n_vars, HIDDEN, LATENT).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)

    def minibatches() -> Any:
        if not resident:
            return ((x.to(device), f.to(device)) for x, f in loader)
        order = torch.randperm(len(dense), device=device).split(batch_size)
        return ((data[0][rows], data[1][rows]) for rows in order)

    def epoch() -> None:
        for x, size_factor in minibatches():
            optimizer.zero_grad()
            torch.autograd.backward(network(x, size_factor))
            optimizer.step()

    return median_seconds(epoch, epochs, device)


def rates(device: torch.device) -> dict[str, float]:
    """Return what the GPU can do: float32 and TF32 products, copies, and the nodes of a graph."""
    a, b = (torch.randn(8192, 8192, device=device) for _ in range(2))
    line = torch.randn(1 << 28, device=device)
    other, short = torch.empty_like(line), torch.zeros(32, device=device)
    found = {"copy, bytes/s": 2 * 4 * line.numel() / median_seconds(lambda: other.copy_(line), 10, device)}
    before = torch.get_float32_matmul_precision()
    for name, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        found[f"{name} products, FLOP/s"] = 2 * 8192**3 / median_seconds(lambda: a @ b, 10, device)
    torch.set_float32_matmul_precision(before)
    graph = torch.cuda.CUDAGraph()
    short.add_(1)
    with torch.cuda.graph(graph):
        for _ in range(200):
            short.add_(1)
    found["graph node, s"] = median_seconds(graph.replay, 20, device) / 200
    return found


def floor(found: dict[str, float], batch_size: int, n_vars: int, stored: float, precision: str) -> dict[str, float]:
    """Return the least seconds of a step by each of three measures; ``stored`` values has a cell."""
    flop = 4 * n_vars * HIDDEN + 6 * 2 * HIDDEN * LATENT + 6 * HIDDEN * n_vars
    return {
        "products": batch_size * flop / found[f"{precision} products, FLOP/s"],
        "bytes": batch_size * (20 * n_vars + 12 * stored) / found["copy, bytes/s"],
        "launches": NODES * found["graph node, s"],
    }


def compare(adata: anndata.AnnData, batch_size: int, repeats: int, epochs: int, device: torch.device) -> dict[str, Any]:
    """Return the seconds of an epoch of every side, taken in turn."""
    sides: dict[str, Callable[[], float]] = {
        f"ours, {name}": lambda settings=settings: ours(adata, batch_size, epochs, device, **settings)  # type: ignore[misc]
        for name, settings in WAYS.items()
    }
    sides["textbook"] = lambda: textbook(adata, batch_size, max(epochs // 2, 1), device, resident=False)
    sides["textbook, resident"] = lambda: textbook(adata, batch_size, epochs, device, resident=True)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(side())
    return seconds


def report(seconds: dict[str, list[float]], n_obs: int, batch_size: int, floors: dict[str, dict[str, float]]) -> None:
    """Print a table: cells a second, how much faster than each textbook, share of the floor; medians and ranges."""
    steps = -(-n_obs // batch_size)
    print(f"\nbatch {batch_size:,}: {steps:,} steps an epoch")
    for name, times in seconds.items():
        words = [f"{name:<24} {n_obs / statistics.median(times):>12,.0f} cells/s"]
        if name.startswith("ours"):
            for other in ("textbook", "textbook, resident"):
                ratios = [b / a for a, b in zip(times, seconds[other], strict=True)]
                middle = statistics.median(ratios)
                words.append(f"{middle:6.1f} ({min(ratios):.1f}-{max(ratios):.1f}) x {other}")
            least = floors["float32" if name == "ours, float32" else "tf32"]
            which = max(least, key=lambda k: least[k])
            words.append(f"{least[which] * steps / statistics.median(times):.0%} of the floor ({which})")
        print("   ".join(words), flush=True)


def main() -> int:
    """Read the command line and run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    try:
        device = choose_device("cuda")
        adata = anndata.AnnData(counts(options.cells, options.genes))
        stored = adata.X.nnz / adata.n_obs
        found = rates(device)
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}; {stored / options.genes:.1%} non-zero")
        print("\n".join(f"{name:<28} {value:.3g}" for name, value in found.items()))
        results = {}
        for batch_size in options.batch:
            floors = {p: floor(found, batch_size, options.genes, stored, p) for p in ("float32", "tf32")}
            seconds = compare(adata, batch_size, options.repeats, options.epochs, device)
            report(seconds, adata.n_obs, batch_size, floors)
            results[str(batch_size)] = {"seconds of an epoch": seconds, "seconds of a step at least": floors}
    except AnncoderError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.output is not None:
        options.output.write_text(json.dumps({"rates": found, "batches": results}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
