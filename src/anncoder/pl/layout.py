"""Two-dimensional map of a latent by scikit-learn's t-SNE, started from the components.

UMAP would do as well, but umap-learn compiles itself anew in every process, for ten seconds and more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from anncoder.models.base import Array

PERPLEXITY = 30.0
FEWEST = 4  # cells: t-SNE of fewer is none
MOVED = 1e-4  # in standard deviations of all coordinates


def tsne(values: Array, *, seed: int = 0) -> Array:
    """Return a t-SNE of some points, (n, 2) float32.

    Points are moved a little at random before: t-SNE of thousands of identical ones, such as the latent of a model that
    has learned nothing, does not end.

    Parameters
    ----------
    values
        (n, k) coordinates, with Euclidean distances; at least :data:`FEWEST` points.
    seed
        Of the moves and of the start, which is the first two components.

    References
    ----------
    van der Maaten, Hinton 2008, JMLR 9:2579; started from components as in Kobak, Berens 2019, doi
    10.1038/s41467-019-13056-x.
    """
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    scale = max(float(values.std()), 1e-6)
    moved = values + np.random.default_rng([seed, 12]).normal(0, MOVED * scale, values.shape)
    start: Any = "pca" if values.shape[1] > 1 else "random"
    with threadpool_limits(1, "openmp"):  # of scikit-learn's own OpenMP, which spins where other programs run
        found = TSNE(2, perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(moved)
    return np.asarray(found, dtype=np.float32)
