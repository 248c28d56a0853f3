"""Pictures: how training went, what the latent looks like beside PCA, what denoising did to a pair of genes.

Every function draws into axes and returns them; none changes matplotlib's settings or shows a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from anncoder.autoencoder import Autoencoder
from anncoder.config import unknown_key
from anncoder.data.adata import place
from anncoder.errors import InputError


def history(source: Autoencoder | anndata.AnnData, *, key: str = "ae", ax: Axes | None = None) -> Axes:
    """Draw the training and validation loss of every epoch; the best epoch is marked.

    Parameters
    ----------
    source
        A fitted model, or the AnnData it was written to.
    key
        Name of the results in the AnnData.
    ax
        Axes to draw into; None for new ones.

    Raises
    ------
    InputError
        The AnnData holds no results of that name.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
    losses = source.history_ if isinstance(source, Autoencoder) else _results(source, key)["history"]
    watched = "valid_loss" if "valid_loss" in losses else "train_loss"
    epochs = losses["epoch"] + 1
    ax.plot(epochs, losses["train_loss"], label="training", color="tab:blue")
    if watched == "valid_loss":
        ax.plot(epochs, losses["valid_loss"], label="validation", color="tab:orange")
    best = int(np.argmin(losses[watched].to_numpy()))
    ax.axvline(epochs.iloc[best], color="0.6", linestyle=":", label=f"best epoch ({int(epochs.iloc[best])})")
    ax.set(xlabel="epoch", ylabel="loss per cell and gene", title="training")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def embeddings(adata: anndata.AnnData, panels: Mapping[str, str], *, color: str) -> np.ndarray[Any, Any]:
    """Draw two-dimensional embeddings side by side, coloured by an obs column.

    Parameters
    ----------
    adata
        Cells with the embeddings in obsm, each (n_obs, >= 2).
    panels
        Title of each panel, and the obsm slot it shows.
    color
        obs column of categories.

    Returns
    -------
    numpy.ndarray
        The axes, one a panel.

    Raises
    ------
    ConfigError
        There is no such slot or column.
    """
    if color not in adata.obs:
        raise unknown_key(color, [str(c) for c in adata.obs.columns], where="color (a column of obs)")
    groups = adata.obs[color].astype("category")
    colors = plt.get_cmap("tab10" if len(groups.cat.categories) <= 10 else "tab20")
    size = np.clip(20_000 / max(adata.n_obs, 1), 1, 25)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels) + 1.6, 4.2), layout="constrained", squeeze=False
    )
    for ax, (title, slot) in zip(axes[0], panels.items(), strict=True):
        if slot not in adata.obsm:
            raise unknown_key(slot, list(adata.obsm.keys()), where="panels (slots of obsm)")
        points = np.asarray(adata.obsm[slot])
        for i, name in enumerate(groups.cat.categories):
            of_group = (groups == name).to_numpy()
            ax.scatter(*points[of_group, :2].T, s=size, color=colors(i % colors.N), linewidths=0, label=str(name))
        ax.set(title=title, xticks=[], yticks=[])
        ax.set_box_aspect(1)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, markerscale=max(1.0, 5 / size**0.5))
    return np.asarray(axes[0])


def gene_pair(
    adata: anndata.AnnData,
    gene_x: str,
    gene_y: str,
    *,
    layer: str | None = None,
    key: str = "ae",
    color: str | None = None,
) -> np.ndarray[Any, Any]:
    """Draw two genes against each other, as counted and as denoised.

    Parameters
    ----------
    adata
        Cells with the denoised layer ``"{key}_denoised"``.
    gene_x, gene_y
        Names of the genes.
    layer
        Where the raw counts are; None for ``X``.
    key
        Name of the results.
    color
        obs column of categories, or None.

    Returns
    -------
    numpy.ndarray
        The two axes.

    Raises
    ------
    ConfigError
        There is no such gene.
    InputError
        Nothing was denoised under this name.
    """
    if f"{key}_denoised" not in adata.layers:
        raise InputError(
            f"there is no {place(f'{key}_denoised')}",
            code="not-denoised",
            where="layers",
            remedy="ac.tl.denoise(adata, model)",
        )
    for gene in (gene_x, gene_y):
        if gene not in adata.var_names:
            raise unknown_key(gene, list(adata.var_names.astype(str)), where="var_names")
    codes = None if color is None else pd.factorize(adata.obs[color], sort=True)[0]
    _, axes = plt.subplots(1, 2, figsize=(8.4, 4), layout="constrained")
    for ax, title, slot in zip(axes, ("raw counts", "denoised counts"), (layer, f"{key}_denoised"), strict=True):
        x, y = (adata.obs_vector(gene, layer=slot) for gene in (gene_x, gene_y))
        ax.scatter(np.log1p(x), np.log1p(y), s=10, c=codes, cmap="tab10", linewidths=0, alpha=0.7)
        ax.set(title=title, xlabel=f"{gene_x}  log(1 + counts)", ylabel=f"{gene_y}  log(1 + counts)")
        ax.spines[["top", "right"]].set_visible(False)
    return np.asarray(axes)


def _results(adata: anndata.AnnData, key: str) -> Any:
    if key not in adata.uns or "history" not in adata.uns[key]:
        raise InputError(
            f"uns[{key!r}] holds no results of anncoder",
            code="no-results",
            where="uns",
            remedy="ac.tl.autoencode(adata) first",
        )
    return adata.uns[key]
