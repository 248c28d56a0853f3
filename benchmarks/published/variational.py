"""The variational autoencoder beside scvi-tools' SCVI: same cells, split, network, likelihood and number of epochs.

Lopez et al. 2018, doi 10.1038/s41592-018-0229-2. All are scored on the held-out cells by one float64 formula:
``-log p(x | z) + KL(q(z | x) | N(0, 1))`` in nats a cell, the mean over four draws of z. The trivial baseline gives
every cell the distribution of the average cell at its library size. The cells are those of ``pbmc_10x_4k.h5ad`` (4,271
x 2,000) where the folder of real data sets is beside the repository, else the 700 of scanpy. SCVI's row is left out
where scvi-tools is not installed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
from benchmarks.published import Claim, Row, values
from torch import Tensor

from anncoder import VariationalAutoencoder
from anncoder.data.loaders.memory import Stored
from anncoder.datasets import pbmc68k_counts
from anncoder.likelihoods.reference import nb_reference, zinb_reference
from anncoder.models.variational import divergence
from anncoder.types import Batch

PBMC = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pbmc_10x_4k.h5ad"
EPOCHS, WARMUP, N_DRAWS = 60, 20, 4
Parameters = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]  # of z: mean, theta, logit of pi; (n, g) each


def negative_elbo(x: Tensor, mean: Tensor, variance: Tensor, parameters: Parameters) -> float:
    """Return the mean over cells of the negative evidence lower bound in nats, in float64.

    Parameters
    ----------
    x
        (n, g) counts.
    mean, variance
        (n, k) of the posterior.
    parameters
        What the decoder says of a latent, at each cell's own library size.
    """
    total = divergence(mean.double(), variance.double())
    for draw in range(N_DRAWS):
        normal = torch.empty_like(mean).normal_(generator=torch.Generator().manual_seed(draw))
        mu, theta, logits = (None if p is None else p.double() for p in parameters(mean + variance.sqrt() * normal))
        assert mu is not None
        assert theta is not None
        nll = nb_reference(x, mu, theta) if logits is None else zinb_reference(x, mu, theta, logits.sigmoid())
        total = total + nll.sum(1) / N_DRAWS
    return float(total.mean())


def ours(adata: anndata.AnnData, likelihood: Any, seed: int, *, faithful: bool) -> tuple[float, Any]:
    """Return the score of our fit, and which cells it held out, (n_obs,) bool."""
    model = VariationalAutoencoder(likelihood=likelihood, warmup_epochs=WARMUP, faithful=faithful)
    model.fit(adata, max_epochs=EPOCHS, early_stopping=False, keep_best=False, seed=seed, progress=False)
    held_out, network = adata.obs_names.isin(model.valid_obs_), model.network_
    assert network is not None
    counts = Stored.of(adata.X).take(np.flatnonzero(held_out))
    batch = Batch(counts, counts.row_sums() / model.library_size_, torch.zeros(counts.n_rows, dtype=torch.int64))

    def parameters(latent: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        log_mean, log_theta, logits = network.decode(latent, None)  # type: ignore[operator]
        return log_mean.exp() * batch.size_factor.unsqueeze(1), log_theta.exp(), logits

    with torch.no_grad():
        posterior = network.posterior(batch)  # type: ignore[operator]
        return negative_elbo(counts.to_dense().double(), *posterior, parameters), held_out


def theirs(adata: anndata.AnnData, likelihood: Any, seed: int, held_out: Any) -> dict[str, float]:
    """Return the score of SCVI's fit to the same cells, by name; nothing where scvi-tools is not installed."""
    try:
        import scvi
    except ImportError:
        return {}
    scvi.settings.seed, scvi.settings.verbosity = seed, logging.ERROR
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = adata.copy()
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, gene_likelihood=likelihood)
    split = [np.flatnonzero(~held_out), np.flatnonzero(held_out), np.empty(0, dtype=np.int64)]
    model.train(
        max_epochs=EPOCHS,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=None,
        plan_kwargs={"n_epochs_kl_warmup": WARMUP},
        datasplitter_kwargs={"external_indexing": split},
    )
    module, x = model.module.eval(), torch.from_numpy(adata.X[held_out].toarray())
    library, batch = x.sum(1, keepdim=True).log(), torch.zeros(len(x), 1)

    def parameters(latent: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        said = module.generative(latent, library, batch)["px"]
        return said.mu, said.theta, getattr(said, "zi_logits", None)

    with torch.no_grad():
        posterior = module.inference(x, batch)["qz"]
        return {f"SCVI {likelihood}": negative_elbo(x.double(), posterior.loc, posterior.scale**2, parameters)}


def average_cell(adata: anndata.AnnData, held_out: Any) -> float:
    """Return the score of a negative binomial a gene at the cell's library size: no latent, no divergence."""
    x = torch.from_numpy(adata.X.toarray()).double()
    sizes = x.sum(1, keepdim=True)
    fitted, scale = ~torch.from_numpy(held_out), x.sum(1).median()
    normalized = x[fitted] / sizes[fitted] * scale
    mean = normalized.mean(0)
    theta = (mean.square() / (normalized.var(0) - mean).clamp(min=1e-8)).clamp(1e-2, 1e2)
    mu = (mean * sizes / scale)[~fitted].clamp(min=1e-8)
    return float(nb_reference(x[~fitted], mu, theta).sum(1).mean())


def measure(seed: int) -> Row:
    """Return the negative evidence lower bound of held-out cells, in nats a cell."""
    adata = anndata.read_h5ad(PBMC) if PBMC.exists() else pbmc68k_counts()
    row: Row = {}
    for likelihood in ("zinb", "nb"):
        row[f"ours {likelihood}, faithful start"], held_out = ours(adata, likelihood, seed, faithful=True)
        row[f"ours {likelihood}"], held_out = ours(adata, likelihood, seed, faithful=False)
        row |= theirs(adata, likelihood, seed, held_out)
    if "SCVI nb" not in row and seed == 0:
        print("scvi-tools is not installed: no row of SCVI, and nothing is compared with it")
    return row | {"average cell": average_cell(adata, held_out)}


def _near(likelihood: str) -> Callable[[list[Row]], bool]:
    def holds(rows: list[Row]) -> bool:
        if f"SCVI {likelihood}" not in rows[0]:
            return False
        pairs = zip(values(rows, f"ours {likelihood}, faithful start"), values(rows, f"SCVI {likelihood}"), strict=True)
        return abs(float(np.median([ours / theirs - 1 for ours, theirs in pairs]))) <= 0.005

    return holds


def _no_worse(likelihood: str) -> Callable[[list[Row]], bool]:
    return lambda rows: (
        f"SCVI {likelihood}" in rows[0]
        and float(np.median([row[f"ours {likelihood}"] / row[f"SCVI {likelihood}"] for row in rows])) <= 1.0
    )


CLAIMS = [
    Claim("faithful start, zinb: within 0.5 % of SCVI (median over seeds)", _near("zinb")),
    Claim("faithful start, nb: within 0.5 % of SCVI (median over seeds)", _near("nb")),
    Claim("default start, zinb: no worse than SCVI (median)", _no_worse("zinb")),
    Claim("default start, nb: no worse than SCVI (median)", _no_worse("nb")),
    Claim(
        "better than the average cell on every seed",
        lambda rows: all(row[f"ours {name}"] < row["average cell"] for row in rows for name in ("zinb", "nb")),
    ),
]
