"""Data to try things on: real cells that come with scanpy, and simulated ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from scipy.sparse import csr_matrix

from anncoder import simulate as simulator
from anncoder.errors import InputError
from anncoder.splatter import SplatParameters

__all__ = ["pbmc68k_counts", "simulate", "simulate_to_file"]


def pbmc68k_counts() -> anndata.AnnData:
    """Return 700 real blood cells with their raw counts and published labels; nothing is downloaded.

    scanpy carries them as logarithms of counts per 10,000; together with each cell's total the integers can be had
    back exactly: ``expm1(raw.X) * n_counts / 10,000``.

    Returns
    -------
    AnnData
        700 cells x 765 genes. ``X``: raw counts, CSR float32. ``obs["bulk_labels"]``: published cell type (10 of
        them), ``obs["n_counts"]``: molecules of the cell over all genes, and the published ``louvain`` clusters.

    Raises
    ------
    InputError
        The values of the installed scanpy are not integers when taken back.

    References
    ----------
    Zheng et al. 2017, doi 10.1038/ncomms14049; the reduced set of ``scanpy.datasets.pbmc68k_reduced``.
    """
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is old, and some versions of anndata say so at length
        reduced = sc.datasets.pbmc68k_reduced()
    logs = csr_matrix(reduced.raw.X)
    per_entry = np.repeat(reduced.obs["n_counts"].to_numpy(dtype=np.float64), np.diff(logs.indptr))
    values = np.expm1(logs.data.astype(np.float64)) * per_entry / 1e4
    counts = np.rint(values)
    if np.abs(values - counts).max() > 0.1:
        raise InputError("scanpy's pbmc68k_reduced is not what it was", code="unexpected-data", where="raw.X")
    matrix = csr_matrix((counts.astype(np.float32), logs.indices, logs.indptr), shape=logs.shape)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    obs = reduced.obs[["bulk_labels", "n_counts", "louvain"]].copy()
    return anndata.AnnData(matrix, obs=obs, var=reduced.raw.var[[]].copy())


def simulate(*, keep_means: bool = False, **parameters: Any) -> anndata.AnnData:
    """Simulate counts of groups or paths of cells with a known truth, in memory.

    Parameters
    ----------
    keep_means
        Keep the expected counts before noise as ``layers["true_mean"]``, dense (n_obs, n_vars).
    **parameters
        Of :class:`anncoder.splatter.SplatParameters`: ``n_obs``, ``n_vars``, ``n_groups``, ``mode``, ``n_batches``,
        ``dropout_mid``, ``seed``...

    Returns
    -------
    AnnData
        As :func:`anncoder.simulate.simulate` describes it.

    Raises
    ------
    ConfigError
        Unknown parameter, or a value out of range.

    Examples
    --------
    >>> import anncoder as ac
    >>> ac.datasets.simulate(n_obs=100, n_vars=50, n_groups=3, seed=1).shape
    (100, 50)
    """
    return simulator.simulate(SplatParameters(**parameters), keep_means=keep_means)


def simulate_to_file(
    path: str | Path,
    *,
    keep_means: bool = False,
    progress: Callable[[int], object] | None = None,
    **parameters: Any,
) -> None:
    """Simulate any number of cells straight to an ``.h5ad`` file, with flat memory.

    Parameters
    ----------
    path
        File to write, whole or not at all.
    keep_means
        Write the expected counts before noise as ``layers["true_mean"]``.
    progress
        Called with the number of cells after every block.
    **parameters
        As in :func:`simulate`; the same parameters give the same counts.

    Raises
    ------
    ConfigError
        Unknown parameter, or a value out of range.
    ResourceError
        The file cannot be written.
    """
    simulator.simulate_to_file(path, SplatParameters(**parameters), keep_means=keep_means, progress=progress)
