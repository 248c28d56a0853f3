"""A training step of a small minibatch: its fixed cost, and its share of products and likelihood.

    python -m benchmarks.step

One thread, batch 64, 128-10-128 hidden units, negative binomial. CPU milliseconds of a step, of both forms and of
the products and the likelihood alone, taken in turn; medians of the rounds. With 40 genes nearly all of it is fixed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from anncoder import CountAutoencoder
from anncoder.config import TrainingConfig
from anncoder.data.loaders.memory import MemoryLoader, Stored
from anncoder.likelihoods.nb import nb_spec
from anncoder.models.count import CountNetwork
from anncoder.training import loop
from anncoder.training.optimizer import optimizer_of
from anncoder.types import Batch, LinearOutput, Noise, Shape

BATCH, HIDDEN, LATENT, CELLS = 64, 128, 10, 2048


class Quiet:
    """No progress."""

    def step(self) -> None:
        """Do nothing."""

    def epoch(self, record: Any) -> None:
        """Do nothing."""


def loader_of(n_genes: int) -> MemoryLoader:
    """Return minibatches of cells with a tenth of the counts above zero."""
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(rng.gamma(0.3, 0.5, (1, n_genes)), (CELLS, n_genes)).astype(np.float32))
    sizes = np.ones(CELLS, dtype=np.float32)
    return MemoryLoader(Stored.of(counts), sizes, np.arange(CELLS), batch_size=BATCH, seed=0)


def epoch_of(loader: MemoryLoader, *, graph: bool) -> Callable[[], object]:
    """Return a function that takes the steps of an epoch; with an autograd graph, the readable form, or without."""
    model = CountAutoencoder(n_latent=LATENT, n_hidden=(HIDDEN,))
    config = TrainingConfig(batch_size=BATCH).with_defaults_of(model.config)
    network = CountNetwork(model.config, Shape(next(iter(loader.epoch(0))).counts.n_vars), Noise(0))
    if graph:
        network.links = None
    state = loop.State(network, optimizer_of(network, config, torch.device("cpu")), config)

    def epoch() -> None:
        state.mean = loop.RunningMean()
        loop.fit_epoch(network, loader, state, config, Quiet())

    return epoch


def arithmetic_of(loader: MemoryLoader) -> Callable[[], object]:
    """Return a function that does the products of the layers and the likelihood of an epoch, and nothing else."""
    batches: list[Batch] = list(loader.epoch(0))
    g = batches[0].counts.n_vars
    into, out, wide, narrow = (
        torch.randn(*s) / 10 for s in ((g, HIDDEN), (g, HIDDEN), (HIDDEN, LATENT), (BATCH, LATENT))
    )
    hidden, bias, log_theta = torch.randn(BATCH, HIDDEN), torch.zeros(g), torch.zeros(g)
    weight = torch.full((BATCH,), 1 / (BATCH * g))

    @torch.no_grad()
    def epoch() -> None:
        from anncoder.nn.sparse import centred_transposed_matmul, sparse_matmul

        for batch in batches:
            sparse_matmul(batch.counts, into)
            for _ in range(2):  # around the latent, forward and both gradients
                hidden @ wide, narrow @ wide.T, hidden.T @ narrow
            output = LinearOutput(hidden, out, bias)
            nb_spec(batch.counts, log_theta, batch.size_factor).run([output, log_theta], weight)
            centred_transposed_matmul(batch.counts, None, hidden)

    return epoch


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{'genes':>6} {'readable':>9} {'no graph':>9} {'arithmetic':>11}   CPU ms a step")
    for n_genes in (40, 2000):
        loader = loader_of(n_genes)
        forms = [epoch_of(loader, graph=True), epoch_of(loader, graph=False), arithmetic_of(loader)]
        times: list[list[float]] = []
        for _ in range(rounds + 2):
            row = []
            for form in forms:
                began = time.process_time()
                form()
                row.append((time.process_time() - began) / len(loader) * 1e3)
            times.append(row)
        readable, without, arithmetic = np.median(times[2:], axis=0)
        ratios = f"{without / readable:.2f} of the readable form, {without / arithmetic:.2f} times the arithmetic"
        print(f"{n_genes:>6} {readable:>9.2f} {without:>9.2f} {arithmetic:>11.2f}   {ratios}")


if __name__ == "__main__":
    main()
