"""AutoImpute on real cells: a tenth of the non-zero values hidden and imputed.

The publication's smallest set (blakeley) is not at hand; the protocol is its own, on the 542 cells of five lines of
sc_mixology (CEL-seq2): genes with more than two counts in more than three cells, normalised to the median, the 1,000
genes of the largest variance over mean, log2(1 + x).
"""

from __future__ import annotations

from statistics import median
from typing import Any

import anndata
import numpy as np
from benchmarks.data import real
from benchmarks.published import Claim, Row
from scipy.sparse import csr_matrix

from anncoder import AutoImpute
from anncoder.models.published.autoimpute import hidden_values

PENALTIES = (80.0, 56.0, 40.0, 28.0, 20.0, 14.0, 10.0)
MASKED = 0.1


def cells() -> anndata.AnnData:
    """Return the cells, log2-normalised, 542 x 1,000."""
    counts = anndata.read_h5ad(real("celseq2_5cl.h5ad")).X.toarray()
    counts = counts[:, (counts > 2).sum(axis=0) > 3]
    sizes = counts.sum(axis=1, keepdims=True)
    x = counts / sizes * np.median(sizes)
    chosen = np.sort(np.argsort(-x.var(axis=0) / x.mean(axis=0), kind="stable")[:1000])
    return anndata.AnnData(csr_matrix(np.log2(1 + x[:, chosen]).astype(np.float32)))


def soft_impute(x: Any, penalty: float, start: Any, steps: int = 25) -> Any:
    """Return the completion of the non-zero values with soft-thresholded singular values, gene means taken off, (n, g).

    Mazumder, Hastie, Tibshirani 2010, Journal of Machine Learning Research 11, 2287-2322.
    """
    seen = x != 0
    mean = x.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    filled = start - mean
    for _ in range(steps):
        whole = np.where(seen, x - mean, filled)
        # by the eigenvectors of the smaller square: whole = U S V', and U' whole = S V'
        squares, u = np.linalg.eigh(whole @ whole.T)
        s = np.sqrt(np.maximum(squares, 1e-12))
        filled = (u * np.maximum(1 - penalty / s, 0)) @ (u.T @ whole)
    return filled + mean


def linear_rmse(x: csr_matrix, mask_frac: float, seed: int) -> float:
    """Return the RMSE of soft-impute on the values that the masked test hides, of the best penalty (told by them)."""
    hidden = hidden_values(x, mask_frac, seed)
    dense = x.toarray().astype(np.float64)
    at, truth = (values[hidden] for values in (np.stack(x.nonzero(), axis=1), x.data))
    kept = dense.copy()
    kept[tuple(at.T)] = 0
    best, completed = np.inf, kept
    for penalty in PENALTIES:
        completed = soft_impute(kept, penalty, completed)
        best = min(best, float(np.sqrt(np.square(completed[tuple(at.T)] - truth).mean())))
    return best


def measure(seed: int) -> Row:
    """Return the numbers of one mask."""
    data = cells()
    found = AutoImpute(transform="none").masked_test(data, mask_frac=MASKED, seed=seed)
    row = {f"RMSE, {name}": float(found.loc[name, "rmse"]) for name in ("model", "gene_mean", "zeros")}
    row |= {f"MAE, {name}": float(found.loc[name, "mae"]) for name in ("model", "gene_mean")}
    return row | {"RMSE, soft-impute": linear_rmse(data.X, MASKED, seed)}


def _below(rows: list[Row], other: str, factor: float) -> bool:
    return all(row["RMSE, model"] < factor * row[other] for row in rows)


def _ratio(rows: list[Row], other: str) -> float:
    return median(row["RMSE, model"] / row[other] for row in rows)


CLAIMS = [
    Claim("RMSE is below the gene mean of non-zeros' for every mask", lambda rows: _below(rows, "RMSE, gene_mean", 1)),
    Claim("it is at most 0.98 of it (median)", lambda rows: _ratio(rows, "RMSE, gene_mean") <= 0.98),
    Claim("it is within 2 % of soft-impute's (median)", lambda rows: _ratio(rows, "RMSE, soft-impute") <= 1.02),
]
