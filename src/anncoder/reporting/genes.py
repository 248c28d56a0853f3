"""Genes that a latent explains best and worst: share of deviance or of squared error.

Of counts each cell's molecules are divided at random: one half is embedded and decoded, the other is scored, so that no
method is rewarded for copying what it was shown. The deviance is Poisson's, ``2 sum(y log(y / mu) - y + mu)``, and the
share explained is ``1 - deviance / deviance of the gene mean``, as R² is of squared errors (Cameron, Windmeijer 1997,
doi 10.1016/S0304-4076(96)01818-0, equation 2.4). A perfect model does not reach 1: counting noise remains, and it is
nearly all that there is of a gene of few molecules. Values that are not counts are scored by their squared error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import xlogy

from anncoder.data.summary import library_sizes
from anncoder.evaluation.baselines import Cells, GeneMean, Method, Principal, Trained, input_of
from anncoder.evaluation.heldout import rates, split_molecules, whole
from anncoder.models.base import Autoencoder

HALF = 0.5  # share of the molecules that are scored
FEWEST_MOLECULES = 50  # among those scored, of a gene to be listed
LISTED = 10  # genes at either end


def explained_genes(model: Autoencoder, scored: Cells, others: Cells, seed: int) -> pd.DataFrame:
    """Return the share of each gene that a model and PCA of its width explain, best first.

    Parameters
    ----------
    model
        A fitted model with a decoder.
    scored, others
        As :func:`anncoder.evaluation.comparison.apart` returns them: cells to score, cells that PCA and the gene means
        are fitted to, (n, g) each.
    seed
        Start of the division of the molecules, and of the solver of PCA.

    Returns
    -------
    pandas.DataFrame
        A row a gene, by its name: ``molecules`` (those scored; of expression values the number of cells), ``model``
        and ``pca``, shares of at most 1. Genes of fewer than 50 molecules scored, or without any variation, are left
        out.
    """
    methods: dict[str, Method] = {
        "model": Trained(model),
        "pca": Principal(model, others, model.config.width, seed),
        "mean": GeneMean(model, others),
    }
    counts = model.reads_counts and whole(scored.matrix)
    losses, weight = (_deviances if counts else _squares)(model, methods, scored, others, seed)
    of_mean = losses.pop("mean")
    use = (weight >= FEWEST_MOLECULES if counts else weight > 0) & (of_mean > 0)
    shares = {name: 1 - loss[use] / of_mean[use] for name, loss in losses.items()}
    table = pd.DataFrame({"molecules": weight[use], **shares}, index=model.var_names_[use])
    return table.sort_values("model", ascending=False, kind="stable")


def _deviances(
    model: Autoencoder, methods: dict[str, Method], scored: Cells, others: Cells, seed: int
) -> tuple[dict[str, Any], Any]:
    # of each method (g,) deviances of the half of the molecules that it has not seen; (g,) molecules
    kept, aside = split_molecules(scored.matrix, HALF, np.random.default_rng([seed, 10]))
    alive = library_sizes(kept) > 0
    cells, aside = scored._replace(matrix=kept).take(alive), aside[alive]
    floor = GeneMean(model, scored).mean + GeneMean(model, others).mean  # above zero for all that is scored
    found = {}
    for name, method in methods.items():
        total = np.zeros(aside.shape[1])
        for rows, rate in rates(method, cells, HALF / (1 - HALF), others, floor):
            y = aside[rows].toarray().astype(np.float64)
            mu = np.where(rate > 0, rate, 1)  # a gene without molecules anywhere: no deviance
            total += 2 * (xlogy(y, y / mu) - y + rate).sum(axis=0)
        found[name] = total
    return found, np.asarray(aside.sum(axis=0, dtype=np.float64)).ravel()


def _squares(
    model: Autoencoder, methods: dict[str, Method], scored: Cells, others: Cells, seed: int
) -> tuple[dict[str, Any], Any]:
    # of each method (g,) squared errors of its reconstruction; (g,) number of cells, 0 for genes that do not vary
    del seed, others
    x = input_of(model, scored.matrix)
    found = {}
    for name, method in methods.items():
        total, start = np.zeros(x.shape[1]), 0
        for block in method.reconstructed(scored):
            stop = start + len(block)
            total += np.square(block - x[start:stop].toarray(), dtype=np.float64).sum(axis=0)
            start = stop
        found[name] = total
    varies = np.asarray(x.multiply(x).mean(axis=0)).ravel() > np.square(np.asarray(x.mean(axis=0)).ravel()) + 1e-12
    return found, np.where(varies, x.shape[0], 0)


def best_and_worst(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the genes explained best, and those explained worst with the worst first, at most ten each."""
    n = min(LISTED, (len(table) + 1) // 2)
    return table.head(n), table.tail(min(n, len(table) - n)).iloc[::-1]
