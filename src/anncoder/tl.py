"""scanpy's manners: results are written into the AnnData, under names of their own.

Nothing of the user's is touched: ``X``, ``raw``, layers and every slot that is not ours stay what they are.
"""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
from natsort import natsorted

from anncoder.autoencoder import Array, Autoencoder, Scale
from anncoder.config import split_settings, unknown_key
from anncoder.data.genes import align
from anncoder.dca import dca as dca
from anncoder.device import refuse_size
from anncoder.errors import InputError
from anncoder.estimators import ESTIMATORS
from anncoder.models import MODELS
from anncoder.progress import announce, logger
from anncoder.refusals import refuse_no_decoder
from anncoder.slots import next_step, refuse_foreign, sign, target_of


def autoencode(
    adata: anndata.AnnData,
    model: str = "count",
    *,
    layer: str | None = None,
    key_added: str = "ae",
    denoise: bool = False,
    copy: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Any:
    """Fit an autoencoder and write its latent into ``adata``.

    Parameters
    ----------
    adata
        Raw counts, (n_obs, n_vars), in ``X`` or a layer.
    model
        ``"count"``, ``"denoising"``, ``"undercomplete"``, or one of the published systems: see docs/models.md.
    layer
        Where the counts are; None for ``X``.
    key_added
        Name under which results are written.
    denoise
        Write the expected counts too; a dense (n_obs, n_vars) layer.
    copy
        Leave ``adata`` alone and return a copy with the results.
    progress
        True for a progress bar, False for silence, None for a bar where there is a terminal or notebook.
    **settings
        Hyper-parameters of the model (``n_latent``, ``n_hidden``, ``likelihood``...) and settings of its fit
        (``max_epochs``, ``seed``, ``threads``...), as :class:`anncoder.CountAutoencoder` and its siblings have them.

    Returns
    -------
    Autoencoder or AnnData
        The fitted model; with ``copy=True`` the copy of ``adata``.

    Sets the following fields:

    ``adata.obsm["X_{key_added}"]`` : (n_obs, n_latent) float32
        Latent of each cell.
    ``adata.var["{key_added}_{name}"]``, ``adata.obs["{key_added}_{name}"]`` : (n_vars,) or (n_obs,)
        What the model says of each gene and cell beside that, such as the inverse dispersion ``theta`` of count models
        with ``dispersion="gene"``: :meth:`Autoencoder.of_genes`, :meth:`Autoencoder.of_cells`. Genes that the model
        does not know have NaN; what has several columns is in ``varm``.
    ``adata.layers["{key_added}_denoised"]`` : (n_obs, n_vars) float32
        Expected counts (expression, of models with ``transform="none"``), with ``denoise=True``.
    ``adata.uns[key_added]`` : dict
        ``params_json`` (every setting), ``history`` (data frame), ``valid_obs`` (names of held-out cells), ``schema``,
        ``version``.

    Results of another model under the same key are replaced, all of them.

    Raises
    ------
    ConfigError
        Unknown model or setting; the nearest known one is named.
    InputError
        The data are not raw counts; see :func:`anncoder.check`.

    Examples
    --------
    >>> import anncoder as ac
    >>> adata = ac.datasets.pbmc68k_counts()
    >>> model = ac.tl.autoencode(adata, "count", n_latent=10, max_epochs=2, progress=False)
    >>> adata.obsm["X_ae"].shape
    (700, 10)
    """
    if model not in ESTIMATORS:
        raise unknown_key(str(model), sorted(ESTIMATORS), where="model")
    hyper, training = split_settings(settings, MODELS[model].config)
    unfitted: Autoencoder = ESTIMATORS[model](**hyper)
    if denoise:
        refuse_no_decoder(unfitted.config)
    target = target_of(adata, copy=copy)
    refuse_foreign(target, key_added)
    if denoise:
        refuse_size(target.n_obs * target.n_vars * 4)
    fitted = unfitted.fit(target, layer=layer, progress=progress, **training)
    _write_latent(target, fitted, key_added)
    if denoise:
        _write_denoised(target, fitted, fitted.denoise(target, scale=_natural_scale(fitted)), key_added)
    if progress is not False:
        announce(next_step(target, key_added))
    return target if copy else fitted


def embed(
    adata: anndata.AnnData,
    model: Autoencoder,
    *,
    layer: str | None = None,
    key_added: str = "ae",
    allow_missing: float = 0.0,
    copy: bool = False,
) -> anndata.AnnData | None:
    """Write the latent of a fitted model into ``adata``; genes are matched by name.

    Parameters
    ----------
    adata
        New or old cells, raw counts.
    model
        A fitted model.
    layer
        Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``.
    key_added
        Name under which results are written.
    allow_missing
        Share of the model's genes that may be missing; they are taken as zero.
    copy
        Leave ``adata`` alone and return a copy with the results.

    Returns
    -------
    AnnData or None
        The copy, with ``copy=True``.

    Sets the following fields:

    ``adata.obsm["X_{key_added}"]`` : (n_obs, n_latent) float32
        Latent of each cell.
    ``adata.var["{key_added}_{name}"]``, ``adata.obs["{key_added}_{name}"]`` : (n_vars,) or (n_obs,)
        As :func:`autoencode` writes them.
    ``adata.uns[key_added]`` : dict
        As :func:`autoencode` writes it.

    Results of another model under the same key are replaced, all of them.

    Raises
    ------
    InputError
        Too many genes are missing, or the values are not what the model was fitted on.
    """
    target = target_of(adata, copy=copy)
    refuse_foreign(target, key_added)
    _write_latent(target, model, key_added, layer=layer, allow_missing=allow_missing)
    return target if copy else None


def denoise(
    adata: anndata.AnnData,
    model: Autoencoder,
    *,
    scale: Scale | None = None,
    layer: str | None = None,
    key_added: str = "ae",
    copy: bool = False,
) -> anndata.AnnData | None:
    """Write the expected expression of a fitted model into a new layer of ``adata``.

    Parameters
    ----------
    adata
        Cells whose genes are all known to the model, in any order.
    model
        A fitted model.
    scale
        ``"counts"``: at each cell's own library size; ``"normalized"``: at the median library size. None for what the
        model reads: ``"counts"``, and ``"normalized"`` for a model fitted with ``transform="none"``.
    layer
        Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``.
    key_added
        Name under which results are written.
    copy
        Leave ``adata`` alone and return a copy with the results.

    Returns
    -------
    AnnData or None
        The copy, with ``copy=True``.

    Sets the following fields:

    ``adata.layers["{key_added}_denoised"]`` : (n_obs, n_vars) float32
        Expected expression.
    ``adata.uns[key_added]`` : dict
        As :func:`autoencode` writes it.

    Results of another model under the same key are replaced, all of them.

    Raises
    ------
    InputError
        ``adata`` has genes that the model does not know.
    ResourceError
        The dense layer would not fit into memory.
    """
    target = target_of(adata, copy=copy)
    refuse_foreign(target, key_added)
    alignment = align(list(model.var_names_), list(target.var_names.astype(str)))
    if alignment.n_extra:
        raise InputError(
            f"the model does not know {alignment.n_extra:,} of the genes here: a layer has all of them",
            code="unknown-genes",
            where="var_names",
            remedy="adata = adata[:, model.var_names_].copy()",
        )
    genes = list(target.var_names.astype(str))
    scale = _natural_scale(model) if scale is None else scale
    _write_denoised(target, model, model.denoise(target, scale=scale, layer=layer, genes=genes), key_added)
    return target if copy else None


def _write_latent(
    adata: anndata.AnnData, model: Autoencoder, key: str, layer: str | None = None, allow_missing: float = 0.0
) -> None:
    latent = model.embed(adata, layer=layer, allow_missing=allow_missing)
    if not np.isfinite(latent).all():
        raise InputError(
            f"{int((~np.isfinite(latent).all(axis=1)).sum()):,} cells have a latent that is not finite",
            code="latent-not-finite",
            where=f"obsm['X_{key}']",
            remedy="fit again with a lower learning_rate",
        )
    dead = int((latent.var(axis=0) < 1e-8).sum())
    if dead and len(latent) > 1:
        logger.warning(
            "%d of %d latent units are the same for all cells: a smaller n_latent would do",
            dead,
            latent.shape[1],
        )
    sign(adata, model, key)
    adata.obsm[f"X_{key}"] = np.ascontiguousarray(latent, dtype=np.float32)
    for name, values in model.of_cells(adata, layer=layer, allow_missing=allow_missing).items():
        adata.obs[f"{key}_{name}"] = _column(values)
    for name, values in model.of_genes().items():
        of_known = pd.DataFrame(values, index=model.var_names_)
        here = of_known.reindex(adata.var_names.astype(str)).to_numpy(np.float32)
        if values.ndim == 1:
            adata.var[f"{key}_{name}"] = here[:, 0]
        else:
            adata.varm[f"{key}_{name}"] = here


def _column(values: np.ndarray[Any, Any]) -> Any:
    # scanpy wants groups of cells as categories, "10" behind "9"
    return pd.Categorical(values, categories=natsorted(set(values))) if values.dtype == object else values


def _write_denoised(adata: anndata.AnnData, model: Autoencoder, denoised: Array, key: str) -> None:
    sign(adata, model, key)
    adata.layers[f"{key}_denoised"] = np.ascontiguousarray(denoised, dtype=np.float32)


def _natural_scale(model: Autoencoder) -> Scale:
    return "counts" if model.reads_counts else "normalized"
