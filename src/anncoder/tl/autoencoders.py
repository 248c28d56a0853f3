"""``tl.autoencode``, ``tl.embed`` and ``tl.denoise``: results written into an AnnData.

In place of an AnnData they take files, of any size, and write copies of them that have the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from anncoder.config import TrainingConfig, split_settings, unknown_key
from anncoder.data.adata import RAW, modality_of
from anncoder.data.genes import AUTO
from anncoder.data.matrix.notes import said_once
from anncoder.data.opening import Paths
from anncoder.data.sources import DiskSource, open_source
from anncoder.device import refuse_size, threads_set
from anncoder.errors import ConfigError
from anncoder.models import find
from anncoder.models.base import Array, Autoencoder, refuse_no_model
from anncoder.tl.files import (
    OutputSpec,
    column_of,
    known_genes,
    natural_scale,
    of_cells_here,
    of_genes_here,
    open_files_for,
    refuse_genes_outside_raw,
    refuse_unknown_genes,
    say_genes_left_out,
    with_unknown_genes,
    write_files,
    write_results,
)
from anncoder.tl.latent_check import LatentCheck
from anncoder.tl.slots import denoised_as, next_step, refuse_foreign, sign, target_of
from anncoder.training.progress import announce
from anncoder.training.results import Scale, refuse_scale


@said_once()
def autoencode(
    adata: anndata.AnnData | Paths,
    model: str | Autoencoder = "count",
    *,
    mod: str | None = None,
    layer: str | None = None,
    key_added: str = "ae",
    denoise: bool | Scale = False,
    copy: bool = False,
    output: str | Path | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Any:
    """Fit an autoencoder and write its latent into ``adata``.

    Parameters
    ----------
    adata
        Raw counts, (n_obs, n_vars), in ``X`` or a layer; or files of them, for ``output``.
    model
        ``"count"``, ``"denoising"``, ``"undercomplete"``, or one of the published systems: see docs/models.md. Or a
        model as an object, one of your own too (docs/own-model.md): it is fitted here.
    mod
        Of a MuData in place of ``adata``: the modality, such as ``"rna"``, that is read and into which results are
        written (``mdata.mod["rna"].obsm["X_ae"]``); ``mdata.update()`` then tells the whole of new columns of obs.
    layer
        Where the counts are; None and ``"X"`` for ``X``, ``"raw.X"`` for those of ``raw``: the genes are then those of
        ``raw.var``, and what is written has those of ``var``.
    key_added
        Name under which results are written.
    denoise
        Write the expected counts too, a dense (n_obs, n_vars) layer; or their scale: ``"counts"``, ``"normalized"``
        (at the median library size) or ``"log1p"``, which is what scanpy plots.
    copy
        Leave ``adata`` alone and return a copy with the results; for an AnnData, not for files.
    output
        Where to write, if ``adata`` is the path of an ``.h5ad`` file or ``.zarr`` folder, or a list or glob of paths:
        an ``.h5ad`` file, or a folder, in which each keeps its name. The inputs are read and copied a
        block at a time, and left as they are.
    progress
        True for a progress bar, False for silence, None for a bar in a terminal or a notebook.
    **settings
        Hyper-parameters of the model (``n_latent``, ``n_hidden``, ``likelihood``...; an object has them already) and
        settings of its fit (``max_epochs``, ``seed``, ``threads``, ``mask_var``...), as
        :class:`anncoder.CountAutoencoder` and its siblings have them.

    Returns
    -------
    Autoencoder or AnnData
        The fitted model; with ``copy=True`` the copy of ``adata``.

    Sets the following fields:

    ``adata.obsm["X_{key_added}"]`` : (n_obs, n_latent) float32
        Latent of each cell.
    ``adata.var["{key_added}_{name}"]``, ``adata.obs["{key_added}_{name}"]`` : (n_vars,) or (n_obs,)
        The model's other results for each gene and cell, such as the inverse dispersion ``theta`` of count models
        with ``dispersion="gene"``: :meth:`Autoencoder.of_genes`, :meth:`Autoencoder.of_cells`. Genes that the model
        does not know have NaN; what has several columns is in ``varm``.
    ``adata.layers["{key_added}_denoised"]`` : (n_obs, n_vars) float32
        Expected counts (expression, of models with ``transform="none"``), with ``denoise=True``. Models of logarithms
        are below expected counts, those that fill in zeros above: see "What `denoise` means" in docs/models.md. NaN in
        the genes that ``mask_var`` leaves out.
    ``adata.uns[key_added]`` : dict
        ``params_json`` (every setting), ``history`` (data frame), ``valid_obs`` (names of held-out cells), ``schema``,
        ``version``, ``n_genes`` (of the model), ``latent_fingerprint`` (the same for a model and those adapted from
        it), and of a denoised layer ``denoised_scale`` (and ``denoised_batch``, ``denoised_covariates``).

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
    unfitted, training = _model_of(model, settings)
    scale = natural_scale(unfitted) if denoise is True else denoise or None
    if scale is not None:
        refuse_scale(unfitted.config, scale)
    if isinstance(adata, str | Path | list | tuple):
        wanted = OutputSpec(key_added, scale=scale)
        where = _output(output, copy=copy, mod=mod)
        return _autoencode_files(adata, unfitted, wanted, where, layer=layer, progress=progress, **training)
    whole, target = _target(adata, mod, copy=copy, output=output)
    refuse_foreign(target, key_added, unfitted)
    if denoise:
        refuse_size(target.n_obs * target.n_vars * 4)
    if denoise and layer == RAW and target.raw is not None:
        refuse_genes_outside_raw(target.var_names.astype(str), target.raw.var_names.astype(str))
    with _threads_of(training):
        fitted = unfitted.fit(target, layer=layer, progress=progress, **training)
        _write_latent(target, fitted, key_added)
        if scale is not None:
            denoised = _denoised(target, fitted, scale=scale, layer=layer)
            _write_denoised(target, fitted, denoised, key_added, denoised_as(scale, None))
    if progress is not False:
        announce(next_step(key_added, *target.obsm[f"X_{key_added}"].shape))
    return whole if copy else fitted


@said_once()
def embed(
    adata: anndata.AnnData | Paths,
    model: Autoencoder,
    *,
    mod: str | None = None,
    layer: str | None = None,
    key_added: str = "ae",
    allow_missing: float = 0.0,
    copy: bool = False,
    output: str | Path | None = None,
) -> anndata.AnnData | None:
    """Write the latent of a fitted model into ``adata``; genes are matched by name.

    Parameters
    ----------
    adata
        New or old cells, raw counts; or files of them, for ``output``.
    model
        A fitted model.
    layer
        Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
    allow_missing
        Share of the model's genes that may be missing; they are taken as zero.
    mod
        Of a MuData in place of ``adata``: the modality, such as ``"rna"``, that is read and written.
    key_added
        Name under which results are written.
    copy
        Leave ``adata`` alone and return a copy with the results; for an AnnData, not for files.
    output
        Where to write, if ``adata`` is the path of an ``.h5ad`` file or ``.zarr`` folder, or a list or glob of paths:
        an ``.h5ad`` file, or a folder, in which each keeps its name.

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
    refuse_no_model(model)
    if isinstance(adata, str | Path | list | tuple):
        where = _output(output, copy=copy, mod=mod)
        write_files(model, adata, where, OutputSpec(key_added), layer=layer, allow_missing=allow_missing)
        return None
    whole, target = _target(adata, mod, copy=copy, output=output)
    refuse_foreign(target, key_added, model)
    _write_latent(target, model, key_added, layer=layer, allow_missing=allow_missing)
    return whole if copy else None


@said_once()
def denoise(
    adata: anndata.AnnData | Paths,
    model: Autoencoder,
    *,
    scale: Scale | None = None,
    batch: str | int | None = None,
    covariates: Mapping[str, Any] | None = None,
    mod: str | None = None,
    layer: str | None = None,
    key_added: str = "ae",
    allow_missing: float = 0.0,
    copy: bool = False,
    output: str | Path | None = None,
) -> anndata.AnnData | None:
    """Write the expected expression of a fitted model into a new layer of ``adata``.

    Parameters
    ----------
    adata
        Cells whose genes are all known to the model, in any order; or files of them, for ``output``.
    model
        A fitted model.
    scale
        ``"counts"``: at each cell's own library size; ``"normalized"``: at the median library size; ``"log1p"``:
        log(1 + that), as scanpy plots expression. None for what the model reads: ``"counts"``, and ``"normalized"`` for
        a model fitted with ``transform="none"``. Denoised values are smooth: ``sc.tl.rank_genes_groups`` of them finds
        differences that nobody counted; test the counts.
    batch
        As which experimental batch every cell is decoded; None for its own. See :meth:`Autoencoder.denoise`.
    covariates
        Values of covariates as with which every cell is decoded, such as ``{"stress": "mean"}``; None for its own.
    layer
        Where the counts are; None for where they were in ``fit``, ``"X"`` for ``X``, ``"raw.X"`` for ``raw``.
    mod
        Of a MuData in place of ``adata``: the modality, such as ``"rna"``, that is read and written.
    key_added
        Name under which results are written.
    copy
        Leave ``adata`` alone and return a copy with the results; for an AnnData, not for files.
    output
        Where to write, if ``adata`` is the path of an ``.h5ad`` file or ``.zarr`` folder, or a list or glob of paths:
        an ``.h5ad`` file, or a folder, in which each keeps its name.
    allow_missing
        Share of the model's genes that may be missing; they are taken as zero, and the layer does not have them.

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
    ConfigError
        The model is not fitted, or not a model.
    InputError
        ``adata`` has genes that the model does not know.
    ResourceError
        The dense layer would not fit into memory.
    """
    refuse_no_model(model)
    scale = natural_scale(model) if scale is None else scale
    if isinstance(adata, str | Path | list | tuple):
        wanted = OutputSpec(key_added, latent=False, scale=scale, batch=batch, covariates=covariates)
        write_files(model, adata, _output(output, copy=copy, mod=mod), wanted, layer=layer, allow_missing=allow_missing)
        return None
    whole, target = _target(adata, mod, copy=copy, output=output)
    refuse_foreign(target, key_added, model)
    refuse_unknown_genes(model, target.var_names.astype(str), allow_missing)
    how: Any = {"batch": batch, "covariates": covariates, "layer": layer, "allow_missing": allow_missing}
    denoised = _denoised(target, model, scale=scale, **how)
    _write_denoised(target, model, denoised, key_added, denoised_as(scale, batch, covariates))
    return whole if copy else None


def _model_of(model: str | Autoencoder, settings: dict[str, Any]) -> tuple[Autoencoder, dict[str, Any]]:
    """Return a model to be fitted, and the settings of its fit."""
    if isinstance(model, str):
        model_class = find(model)
        hyper, training = split_settings(settings, model_class.config_class)
        return model_class(**hyper), training
    if not isinstance(model, Autoencoder):
        if isinstance(model, type) and issubclass(model, Autoencoder):
            what = f"model is a class, {model.__name__}, and not an object of it"
            remedy = f"write {model.__name__}(), or its name, {model.name!r}"
        else:
            what = f"model is neither the name of a model nor an autoencoder: got {type(model).__name__}"
            remedy = "give a name and settings, autoencode(adata, 'count', n_latent=16), or an object"
        raise ConfigError("bad-value", what, "model", remedy)
    for key in settings:
        if key not in TrainingConfig.model_fields:
            raise unknown_key(key, sorted(TrainingConfig.model_fields), where="settings of the fit")
    return model, settings


def _write_latent(
    adata: anndata.AnnData, model: Autoencoder, key: str, layer: str | None = None, allow_missing: float = 0.0
) -> None:
    latent = model.embed(adata, layer=layer, allow_missing=allow_missing)
    check = LatentCheck(key)
    check.add(latent)
    check.close()
    sign(adata, model, key)
    adata.obsm[f"X_{key}"] = np.ascontiguousarray(latent, dtype=np.float32)
    of_cells = of_cells_here(model, adata, layer=layer, allow_missing=allow_missing)
    for name in model.cell_results:
        if name in of_cells:
            adata.obs[f"{key}_{name}"] = column_of(of_cells[name])
        elif f"{key}_{name}" in adata.obs:  # of an earlier call, which knew the batches
            del adata.obs[f"{key}_{name}"]
    for name, values in of_genes_here(model, adata.var_names.astype(str)).items():
        where = adata.var if values.ndim == 1 else adata.varm
        where[f"{key}_{name}"] = values


def _threads_of(training: dict[str, Any]) -> AbstractContextManager[None]:
    # of the whole call: in a forked process, where only one thread works, more would wait for each other for ever
    threads = training.get("threads")
    if threads is not None:
        TrainingConfig.refuse_value("threads", threads)
    return threads_set(threads)


def _write_denoised(adata: anndata.AnnData, model: Autoencoder, denoised: Array, key: str, how: dict[str, str]) -> None:
    sign(adata, model, key, how)
    adata.layers[f"{key}_denoised"] = np.ascontiguousarray(denoised, dtype=np.float32)


def _denoised(adata: anndata.AnnData, model: Autoencoder, *, layer: str | None, **how: Any) -> Array:
    # of the genes of var, which are not those of the model where the counts are in raw
    genes = adata.var_names.astype(str)
    if (model.layer_ if layer is None else layer) == RAW:
        say_genes_left_out(model, genes)
    known = known_genes(model, genes)
    return with_unknown_genes(model.denoise(adata, genes=list(genes[known]), layer=layer, **how), known)


def _autoencode_files(
    files: Paths, model: Autoencoder, wanted: OutputSpec, output: Path, *, layer: str | None, **settings: Any
) -> Autoencoder:
    found = open_files_for(model, files, output, wanted, layer)
    source = open_source(
        found.stores,
        layer,
        counts=model.reads_counts,
        integers=model.config.integers,
        mask_var=settings.get("mask_var", AUTO),
    )
    assert isinstance(source, DiskSource)
    with _threads_of(settings):
        fitted = model.fit(source, layer=layer, **settings)
        write_results(fitted, source, found.outputs, wanted, together=True)
    if settings["progress"] is not False:
        for store, path in zip(*found, strict=True):
            announce(f"{path}: {next_step(wanted.key, store.n_obs, fitted.config.width)}")
    return fitted


def _output(output: str | Path | None, *, copy: bool, mod: str | None) -> Path:
    if mod is not None:
        what = "mod is for a MuData in memory, and these are files"
        raise ConfigError("bad-value", what, "mod", "leave mod out, or read it: mudata.read_h5mu(path)")
    if copy:
        what = "copy is for an AnnData; files are left as they are, and the results are in the output"
        raise ConfigError("bad-value", what, "copy", "leave copy out")
    if output is None:
        what = "results of files are written to a file, and none is named"
        remedy = "output='out.h5ad'; or model.embed(path), which returns an array"
        raise ConfigError("no-output", what, "output", remedy)
    return Path(output).expanduser()


def _target(adata: Any, mod: str | None, *, copy: bool, output: str | Path | None) -> tuple[Any, anndata.AnnData]:
    """Return what is given back, and the AnnData in it to write into."""
    if output is not None:
        what = "output is for files; the results of an AnnData are written into it"
        raise ConfigError("bad-output", what, "output", "leave output out, and adata.write_h5ad(path) after it")
    if mod is None or isinstance(adata, anndata.AnnData):
        if mod is not None:
            what = f"mod = {mod!r} names a modality of a MuData, and this is an AnnData"
            raise ConfigError("bad-value", what, "mod", "leave mod out")
        target = target_of(adata, copy=copy)
        return target, target
    found = modality_of(adata, mod)  # it is a MuData that has it
    whole = adata.copy() if copy else adata
    return whole, target_of(whole.mod[mod] if copy else found, copy=False)
