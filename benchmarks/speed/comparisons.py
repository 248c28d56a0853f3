"""What is compared: each comparison times its two sides in turn, so that both meet the same machine.

A ratio is *other / ours*: how many times faster we are, or what share of a floor we reach.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import torch
from benchmarks.speed.textbook import fit_textbook, textbook_nb, textbook_zinb
from scipy.sparse import csr_matrix, vstack

from anncoder.data.loaders.disk import POOL
from anncoder.data.loaders.memory import Stored
from anncoder.device import threads_set
from anncoder.likelihoods import nb_nll, zinb_nll
from anncoder.models.count import CountAutoencoder

Side = Callable[[], object]
SPELL = 0.2  # seconds


class Result(NamedTuple):
    """A measured ratio."""

    name: str
    ratio: float  # median over the repeats
    lowest: float
    highest: float
    ours: float  # median seconds
    other: float
    note: str = ""


class Bench(NamedTuple):
    """What every comparison gets."""

    counts: csr_matrix  # (n, g)
    repeats: int
    epochs: int


def interleaved(name: str, ours: Side, other: Side, repeats: int, note: str = "", *, at_least: float = 0) -> Result:
    """Time two sides in turn; calls beforehand do not count.

    What takes less than ``at_least`` seconds is called as often as fills them: in training a loss follows a loss, and
    one call alone would find its data, and the compiled code, thrown out of the caches by the other side.
    """
    calls = []
    for side in (ours, other):
        side()
        calls.append(max(1, round(at_least / _took(side, 1))))
    times = [[_took(side, n) for side, n in zip((ours, other), calls, strict=True)] for _ in range(repeats)]
    return compared(name, times, note)


def _took(side: Side, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        side()
    return (time.perf_counter() - began) / calls


def losses(bench: Bench) -> Iterator[Result]:
    """Time loss forward and backward, one thread, against the textbook formula."""
    n, g = 256, bench.counts.shape[1]
    counts = Stored.of(bench.counts).take(np.arange(n))
    dense = counts.to_dense()
    generator = torch.Generator().manual_seed(0)
    log_mean = (dense.mean(0) + 0.01).log() + 0.3 * torch.randn(n, g, generator=generator)
    gene, entry = torch.randn(g, generator=generator), torch.randn(n, g, generator=generator)
    pi_logits = torch.randn(n, g, generator=generator) - 2

    def run(loss: Callable[..., torch.Tensor], *parameters: torch.Tensor) -> Side:
        leaves = [p.clone().requires_grad_() for p in parameters]
        return lambda: torch.autograd.grad(loss(*leaves).sum() / (n * g), leaves)

    with threads_set(1):
        yield interleaved(
            "NB loss, one thread, against the textbook formula",
            run(lambda m, t: nb_nll(counts, m, t), log_mean, gene),
            run(lambda m, t: textbook_nb(dense, m.exp(), t.exp().expand_as(m)), log_mean, gene),
            bench.repeats,
            f"{n} x {g:,}, {float((dense > 0).float().mean()):.1%} non-zero",
            at_least=SPELL,
        )
        yield interleaved(
            "ZINB loss with gene-cell dispersion, one thread",
            run(lambda m, t, p: zinb_nll(counts, m, t, p), log_mean, entry, pi_logits),
            run(lambda m, t, p: textbook_zinb(dense, m.exp(), t.exp(), p), log_mean, entry, pi_logits),
            bench.repeats,
            at_least=SPELL,
        )


def against_textbook(bench: Bench) -> Iterator[Result]:
    """Time a whole fit against textbook torch, 64-32-64 NB."""
    adata = anndata.AnnData(bench.counts)
    for batch_size in (128, 1024):
        yield interleaved(
            f"fit of 64-32-64 NB, batch {batch_size}, against textbook torch",
            lambda b=batch_size: _fit(adata, (64,), 32, b, bench.epochs),  # type: ignore[misc]
            lambda b=batch_size: fit_textbook(  # type: ignore[misc]
                bench.counts, n_hidden=64, n_latent=32, batch_size=b, epochs=bench.epochs
            ),
            bench.repeats,
            f"{adata.n_obs:,} cells, {bench.epochs} epochs",
        )


def against_scvi(bench: Bench) -> Iterator[Result]:
    """Time a whole fit against scvi-tools' SCVI, 128-10-128 NB, where it is installed."""
    try:
        import scvi
    except ImportError:
        return
    adata = anndata.AnnData(bench.counts.copy())
    scvi.model.SCVI.setup_anndata(adata)
    scvi.settings.verbosity = 40
    reached: dict[str, float] = {}

    def theirs(batch_size: int) -> None:
        model = scvi.model.SCVI(adata, gene_likelihood="nb")
        model.train(
            max_epochs=bench.epochs,
            batch_size=batch_size,
            accelerator="cpu",
            enable_progress_bar=False,
            logger=None,
            check_val_every_n_epoch=1,
        )
        reached["theirs"] = float(model.history["reconstruction_loss_validation"].iloc[-1, 0])

    def ours(batch_size: int) -> None:
        model = _fit(adata, (128,), 10, batch_size, bench.epochs)
        reached["ours"] = float(model.history_["valid_nll"].iloc[-1]) * adata.n_vars

    for batch_size in (128, 1024):
        result = interleaved(
            f"fit of 128-10-128 NB, batch {batch_size}, against SCVI.train",
            lambda b=batch_size: ours(b),  # type: ignore[misc]
            lambda b=batch_size: theirs(b),  # type: ignore[misc]
            bench.repeats,
        )
        nll = f"validation NLL a cell: ours {reached['ours']:.1f}, SCVI {reached['theirs']:.1f}"
        yield result._replace(note=f"{bench.epochs} epochs; {nll}")


def against_floor(bench: Bench) -> Iterator[Result]:
    """Measure the share of a training step that is its dense matrix products."""
    adata = anndata.AnnData(bench.counts)
    g = adata.n_vars
    for batch_size in (256, 1024):
        hidden, latent = torch.rand(batch_size, 64), torch.rand(batch_size, 32)
        out, wide, narrow = torch.rand(batch_size, g), torch.rand(64, g), torch.rand(32, 64)
        steps = -(-int(0.9 * adata.n_obs) // batch_size)

        times = []
        for _ in range(bench.repeats + 1):
            model = _fit(adata, (64,), 32, batch_size, 3)
            began = time.perf_counter()
            for _ in range(steps):
                _ = hidden @ wide, out @ wide.T, hidden.T @ out  # output layer: forward, input and weight gradient
                for _ in range(2):  # hidden to latent and back
                    _ = latent @ narrow, hidden @ narrow.T, latent.T @ hidden
            floor = time.perf_counter() - began
            times.append((float(model.history_["seconds"].iloc[1:].median()), floor))
        yield compared(
            f"dense products' share of an epoch, batch {batch_size}", times[1:], "with validation, 64-32-64 NB"
        )


def disk(bench: Bench) -> Iterator[Result]:
    """Time an epoch from files of several pools against one from memory."""
    n_copies = -(-3 * POOL // bench.counts.shape[0])
    adata = anndata.AnnData(vstack([bench.counts] * n_copies, format="csr"))
    with tempfile.TemporaryDirectory() as folder:
        h5ad, zarr = Path(folder) / "it.h5ad", Path(folder) / "it.zarr"
        adata.write_h5ad(h5ad)
        adata.write_zarr(zarr)
        for path in (h5ad, zarr):
            times = []
            for _ in range(bench.repeats):
                pair = [_fit(data, (64,), 32, 1024, 3).history_["seconds"].iloc[1:].median() for data in (path, adata)]
                times.append((float(pair[0]), float(pair[1])))
            note = f"64-32-64 NB, batch 1024, {adata.n_obs:,} cells"
            yield compared(f"speed from {path.suffix[1:]} over speed from memory", times, note)


def start(bench: Bench) -> Iterator[Result]:
    """Time importing and compiling, in processes of their own."""
    ours, torch_alone = (_process(f"import {name}") for name in ("anncoder", "torch"))
    yield interleaved("import torch over import anncoder", ours, torch_alone, bench.repeats)
    first_fit = (
        "import time, numpy as np, torch; from anncoder.types import CSR; from anncoder.likelihoods import nb_nll;"
        "from anncoder.data.loaders.memory import Stored; from scipy.sparse import csr_matrix;"
        "from anncoder.nn import inputs, sparse as s; from anncoder.types import Batch, Noise; b = time.perf_counter();"
        "c = Stored.of(csr_matrix(np.ones((4, 3), np.float32))).take(np.arange(4));"
        "x = inputs.LogNormalize('log1p')(Batch(c, torch.ones(4), torch.arange(4)));"
        "s.SparseLinear(3, 2, Noise(0))(x).sum().backward();"
        "nb_nll(c, torch.zeros(4, 3, requires_grad=True), torch.zeros(3)).sum().backward();"
        "print(time.perf_counter() - b)"
    )
    with tempfile.TemporaryDirectory() as folder:
        took = [float(_output(first_fit, NUMBA_CACHE_DIR=folder)) for _ in range(2)]
    yield Result("compilation of a model's kernels: first use, seconds", took[0], took[0], took[0], took[0], took[1])
    yield Result("the same, from the cache, seconds", took[1], took[1], took[1], took[1], took[0])


def _fit(data: Any, n_hidden: tuple[int, ...], n_latent: int, batch_size: int, epochs: int, **settings: Any) -> Any:
    return CountAutoencoder(n_hidden=n_hidden, n_latent=n_latent).fit(
        data, max_epochs=epochs, batch_size=batch_size, early_stopping=False, progress=False, **settings
    )


def compared(name: str, times: list[Any], note: str = "") -> Result:
    """Return the median and range of the ratios of (ours, other) times."""
    ratios = [other / ours for ours, other in times]
    ours, other = (statistics.median(side) for side in zip(*times, strict=True))
    return Result(name, statistics.median(ratios), min(ratios), max(ratios), ours, other, note)


def _process(code: str) -> Side:
    return lambda: _output(code)


def _output(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Keep other packages' messages out of the table."""
    import logging
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
