"""The benchmark command: both sides do the same work, and what it prints is what it measured."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.speed.__main__ import parsed, run_benchmark
from benchmarks.speed.choice import COMPARISONS, chosen
from benchmarks.speed.comparisons import Bench, interleaved, quiet
from benchmarks.speed.textbook import TextbookNetwork, fit_textbook, textbook_nb, textbook_zinb
from scipy import sparse as sp

from anncoder.data.sources import PerCell
from anncoder.errors import ConfigError
from anncoder.likelihoods.reference import nb_reference, zinb_reference
from anncoder.models.count import CountAutoencoder


def test_the_textbook_formulae_are_the_likelihoods() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((6, 5), 2.0, dtype=torch.float64), generator=generator)
    mu, theta = (torch.rand(6, 5, generator=generator, dtype=torch.float64) + 0.3 for _ in range(2))
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(textbook_nb(x, mu, theta), nb_reference(x, mu, theta), rtol=1e-5, atol=1e-5)
    wanted = zinb_reference(x, mu, theta, logits.sigmoid())
    torch.testing.assert_close(textbook_zinb(x, mu, theta, logits), wanted, rtol=1e-4, atol=1e-5)


def test_the_textbook_network_starts_with_our_loss(counts) -> None:  # type: ignore[no-untyped-def]
    """With the same weights both compute the same number: the comparison is of speed alone."""
    ours = CountAutoencoder(n_latent=3, n_hidden=(8,)).fit(counts, max_epochs=1, progress=False)
    network = ours.network_
    assert network is not None
    theirs = TextbookNetwork(counts.n_vars, 8, 3)
    mean = network.standardize.mean
    with torch.no_grad():
        first, latent = theirs.encoder[0], theirs.encoder[3]
        first.weight.copy_(network.encoder.first.weight.T)
        first.bias.copy_(network.encoder.first.bias - mean @ network.encoder.first.weight)
        latent.load_state_dict(network.encoder.rest[0].state_dict())
        theirs.decoder[0].load_state_dict(network.decoder[0].state_dict())
        theirs.decoder[3].load_state_dict(network.heads.mean.state_dict())
        theirs.log_theta.copy_(network.heads.gene_log_theta)
        for norm, own in ((theirs.encoder[1], network.encoder.after[0][0]), (theirs.decoder[1], network.decoder[1][0])):
            norm.eps = own.eps
            norm.load_state_dict(own.state_dict())
        theirs.eval()
        x = torch.from_numpy(np.asarray(counts.X.todense(), dtype=np.float32))
        sizes = x.sum(1) / ours.library_size_
        source = ours._source(counts, None, 0.0)
        loader = source.loader(PerCell(sizes.numpy()), np.ones(len(x), dtype=bool), batch_size=1000)
        batch = next(iter(loader.epoch(0)))
        torch.testing.assert_close(theirs(x, sizes), network(batch).total, rtol=1e-4, atol=0)


def test_the_textbook_network_learns() -> None:
    generator = np.random.default_rng(0)
    counts = sp.csr_matrix(generator.poisson(generator.gamma(1, 1, (1, 30)) + 0.1, (200, 30)).astype(np.float32))
    short, longer = (fit_textbook(counts, n_hidden=8, n_latent=2, batch_size=32, epochs=epochs) for epochs in (1, 15))
    assert longer < short


def test_a_ratio_is_other_over_ours() -> None:
    import time

    result = interleaved("it", lambda: time.sleep(0.01), lambda: time.sleep(0.05), 3)
    assert 3 < result.ratio < 6
    assert result.lowest <= result.ratio <= result.highest


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_benchmark(parsed(["--only", "losses", "--repeats", "1", "--cells", "512", "-o", str(tmp_path / "it.json")]))
    output = capsys.readouterr().out
    written = json.loads((tmp_path / "it.json").read_text())
    assert [r["name"][:4] for r in written["results"]] == ["NB l", "ZINB"]
    assert all(r["ratio"] > 1 for r in written["results"])
    assert all(f"{r['ratio']:.2f}" in output for r in written["results"])
    assert written["about"]["versions"]["torch"] == version("torch")


def test_unknown_comparisons_are_refused() -> None:
    assert len(chosen(())) == len(COMPARISONS)
    with pytest.raises(ConfigError, match="losses"):
        chosen(("nothing",))


def test_every_comparison_runs_on_few_cells() -> None:
    generator = np.random.default_rng(0)
    counts = sp.csr_matrix(generator.poisson(0.4, (600, 40)).astype(np.float32))
    for name in ("floor", "textbook", "disk"):
        with quiet():
            results = list(COMPARISONS[name](Bench(counts, repeats=1, epochs=1)))
        assert results
        assert all(result.ratio > 0 for result in results)
