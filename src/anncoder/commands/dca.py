"""``anncoder dca``: the published command's tables, from a table or an h5ad file, and an h5ad file beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd

from anncoder.autoencoder import Array
from anncoder.checkpoint import refuse_target
from anncoder.checks import check
from anncoder.commands.outcome import signals
from anncoder.commands.output import read_input, refuse_unwritable, write_output
from anncoder.commands.table import read_table
from anncoder.config import unknown_key
from anncoder.data.adata import read_matrix
from anncoder.data.scan import scan, structure, unreadable
from anncoder.data.summary import library_sizes
from anncoder.dca import Results, results, write_info, write_obs
from anncoder.dca_words import Words
from anncoder.device import refuse_size
from anncoder.errors import ConfigError, FileError, InputError, some
from anncoder.estimators.dca import DCA
from anncoder.files import atomic_path, locked, same_file, writable_folder
from anncoder.outputs import refuse_output
from anncoder.progress import announce

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
H5AD, MODEL = "dca.h5ad", "model"
TABLES = ("mean.tsv", "latent.tsv", "dispersion.tsv", "dropout.tsv")
TEST_SHARE = 0.1


class DCARequest(NamedTuple):
    """What was asked for on the command line."""

    data: Path
    outdir: Path
    words: Words
    transpose: bool = False
    testsplit: bool = False
    saveweights: bool = False
    denoisesubset: Path | None = None
    quiet: bool = False


def run_dca(request: DCARequest) -> None:
    """Read, fit, and write the tables, the h5ad file and, if asked, the model."""
    model, training = request.words.model(), request.words.training()
    _refuse_outdir(request)
    with locked(_claimed(request.outdir)):
        _fit_and_write(request, model, training)


def _fit_and_write(request: DCARequest, model: DCA, training: dict[str, Any]) -> None:
    adata = _with_counts(_read(request))
    check(adata, integers=request.words.check_counts).raise_if_bad()
    refuse_unwritable(adata)
    genes = _columns(adata, request.denoisesubset)
    refuse_size(3 * adata.n_obs * adata.n_vars * 4)
    split = _split(adata.n_obs, request)
    model.fit(adata[split == "train"], progress=None if not request.quiet else False, **training)
    found = results(model, adata, denoise=True, latent=True, info=True)
    with signals.held():
        request.outdir.mkdir(parents=True, exist_ok=True)
        _write_tables(request.outdir, adata, found, genes)
        _write_h5ad(request, adata, found, model, split)
        if request.saveweights:
            model.save(request.outdir / MODEL)
    ours = (*TABLES, H5AD, MODEL) if request.saveweights else (*TABLES, H5AD)
    announce(f"wrote {request.outdir}: {', '.join(name for name in sorted(ours) if (request.outdir / name).exists())}")


def widths(text: str) -> tuple[int, ...]:
    """Return the widths in a text such as ``"64,32,64"``."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(
            f"hiddensize = {text!r} is not a list of widths",
            code="bad-value",
            where="--hiddensize",
            remedy="--hiddensize 64,32,64",
        ) from None


def refuse_unsupported(options: Sequence[str], normtype: str) -> None:
    """Raise a ConfigError for options of the published command that this one does not have."""
    history = "the loss of every epoch is in uns['dca_loss_history'] of dca.h5ad"
    trials = "anncoder search INPUT.h5ad -o OUTPUT.h5ad --model dca tries settings, and trains the best"
    for option in options:
        raise ConfigError(
            f"`anncoder dca` has no {option}",
            code="bad-option",
            where=option,
            remedy=history if option == "--tensorboard" else trials,
        )
    if normtype != "zheng":
        raise unknown_key(normtype, ["zheng"], where="--normtype")


def _claimed(outdir: Path) -> Path:
    # what is locked: of a folder that is yet to be made, its name in the nearest one that is there
    if outdir.exists():
        return outdir / H5AD
    return next(folder for folder in outdir.absolute().parents if folder.exists()) / outdir.name


def _refuse_outdir(request: DCARequest) -> None:
    # before any work is done: a place to write to, and not over the input; made later, for there may be no results
    if not request.outdir.exists():
        writable_folder(next(folder for folder in request.outdir.absolute().parents if folder.exists()))
        return
    writable_folder(request.outdir)
    refuse_output(request.outdir / H5AD)
    for name in (*TABLES, H5AD):
        if same_file(request.data, request.outdir / name):
            raise ConfigError(
                f"the input would be replaced by the output {name}",
                code="output-is-input",
                where=str(request.data),
                remedy="choose another OUTDIR",
            )
    if request.saveweights:
        refuse_target(request.outdir / MODEL)


def _read(request: DCARequest) -> anndata.AnnData:
    suffixes = request.data.suffixes
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else request.data.suffix
    if kind in SEPARATORS:
        return read_table(request.data, SEPARATORS[kind], by_cell=request.transpose)
    if request.transpose:
        announce("--transpose has no meaning for an AnnData file, which is cells x genes")
    return read_input(request.data)


def _with_counts(adata: anndata.AnnData) -> anndata.AnnData:
    # as DCA's command: genes and cells without any count are left out, and said to be
    if adata.X is None or unreadable(adata.X) or structure(adata.X).fault:
        return adata  # the check of the fit says what is wrong
    found = scan(adata.X, math.inf)
    cells, genes = found.empty_obs, found.empty_vars
    if len(cells) == adata.n_obs or not len(cells) + len(genes):
        return adata
    announce(f"left out {len(cells):,} cells and {len(genes):,} genes, which have no count")
    return adata[np.delete(np.arange(adata.n_obs), cells), np.delete(np.arange(adata.n_vars), genes)].copy()


def _columns(adata: anndata.AnnData, path: Path | None) -> Any:
    # positions of the genes that are written
    if path is None:
        return np.arange(adata.n_vars)
    try:
        names = [line.split(",")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"cannot read the list of genes {str(path)!r}", code="unreadable", where=str(path), remedy="check the path"
        ) from error
    names = [name for name in names if name]
    missing = [name for name in names if name not in adata.var_names]
    if missing or not names:
        raise InputError(
            f"{len(missing):,} of {len(names):,} genes are not in the data: {some(missing)}",
            code="unknown-genes",
            where="--denoisesubset",
            remedy="one name a line, of genes that have a count",
        )
    return adata.var_names.get_indexer(names)


def _split(n_obs: int, request: DCARequest) -> Any:
    split = np.full(n_obs, "train", dtype="<U5")
    if request.testsplit:
        order = np.random.default_rng([request.words.random_state, 4]).permutation(n_obs)
        split[order[: max(round(TEST_SHARE * n_obs), 1)]] = "test"
    return split


def _write_tables(outdir: Path, adata: anndata.AnnData, found: Results, genes: Any) -> None:
    names = adata.var_names[genes]
    assert found.denoised is not None
    _write_by_gene(outdir / "mean.tsv", found.denoised[:, genes], adata.obs_names, names)
    _write(outdir / "latent.tsv", pd.DataFrame(found.latent, index=adata.obs_names), header=False)
    for table, values in (("dispersion.tsv", found.dispersion), ("dropout.tsv", found.dropout)):
        if values is None:
            (outdir / table).unlink(missing_ok=True)  # of another model: it would be taken for this one's
        elif values.ndim == 1:
            _write(outdir / table, pd.DataFrame(values[genes], index=names), header=False)
        elif values.shape[1] == 1 and adata.n_vars != 1:
            _write(outdir / table, pd.DataFrame(values, index=adata.obs_names), header=False)
        else:
            _write_by_gene(outdir / table, values[:, genes], adata.obs_names, names)


def _write_by_gene(path: Path, values: Array, cells: pd.Index, genes: pd.Index) -> None:
    _write(path, pd.DataFrame(values.T, index=genes, columns=cells), header=True)


def _write(path: Path, frame: pd.DataFrame, *, header: bool) -> None:
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, sep="\t", header=header, index_label="", float_format="%.7g")


def _write_h5ad(request: DCARequest, adata: anndata.AnnData, found: Results, model: DCA, split: Any) -> None:
    write_obs(adata, library_sizes(read_matrix(adata, None)), model.library_size_, request.words, split)
    write_info(adata, found, model)
    adata.obsm["X_dca"], adata.layers["dca_denoised"] = found.latent, found.denoised
    write_output(adata, request.outdir / H5AD, wrote=("obsm/X_dca", "layers/dca_denoised"))
