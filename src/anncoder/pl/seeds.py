"""Agreement of fits with other seeds, drawn: clusters, neighbours, pseudotime."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from anncoder.errors import ConfigError
from anncoder.evaluation.comparison import Evaluation
from anncoder.evaluation.stability import AGAIN, BETWEEN, OF_PCA, Stability
from anncoder.pl.groups import PALETTE

TITLES = {
    "leiden_ari": "Leiden clusters, ARI",
    "kmeans_ari": "k-means clusters, ARI",
    "neighbors": "neighbours in common",
    "pseudotime": "pseudotime, Spearman",
}
COLORS = {BETWEEN: PALETTE[0], AGAIN: PALETTE[8], OF_PCA: PALETTE[1]}


def stability(found: Evaluation | Stability) -> np.ndarray[Any, Any]:
    """Draw how much fits with other seeds agree: a panel a score, a dot a pair of fits, a bar their mean.

    One fit clustered again with other seeds is the floor: so much clusters move by themselves. PCA, which has no seed,
    stands beside it.

    Parameters
    ----------
    found
        What ``ac.evaluate(model, adata, seeds=5)`` returned, or its ``stability``.

    Returns
    -------
    numpy.ndarray
        The axes, one a score.

    Raises
    ------
    ConfigError
        It is something else, or was made without ``seeds``.
    """
    moved: Any = found.stability if isinstance(found, Evaluation) else found
    if not isinstance(moved, Stability):
        what = "the evaluation was made without other seeds" if moved is None else f"found is a {type(found).__name__}"
        raise ConfigError("bad-value", what, "found", "found = ac.evaluate(model, adata, seeds=5)")
    names = [OF_PCA, AGAIN, BETWEEN]  # the last is at the top
    shown = [score for score in TITLES if moved.pairs[score].notna().any()]
    size = (2.2 + 2.2 * len(shown), 2.5)
    figure, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained", sharey=True, squeeze=False)
    random = np.random.default_rng(0)
    for ax, score in zip(axes[0], shown, strict=True):
        for row, name in enumerate(names):
            values = moved.pairs.loc[moved.pairs["compared"] == name, score].dropna().to_numpy(float)
            height = row + random.uniform(-0.16, 0.16, len(values))
            ax.scatter(values, height, s=22, color=COLORS[name], alpha=0.7, linewidths=0, clip_on=False)
            ax.vlines(values.mean() if len(values) else [], row - 0.32, row + 0.32, color="black", linewidth=2)
        ax.axvline(1, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        low = float(moved.pairs[score].min())
        ax.set(yticks=range(len(names)), yticklabels=names, xlim=(min(0.0, low) - 0.03, 1.06), ylim=(-0.6, 2.6))
        ax.set_title(TITLES[score], fontsize=10)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    of_fits = f"{len(moved.seeds)} fits, {moved.n_obs:,} cells; a dot a pair, the line their mean; 1: no difference"
    figure.supxlabel("\n".join([of_fits, *moved.notes[:3]]), fontsize=9)
    return np.asarray(axes[0])
