"""``anncoder dca``: DCA's published command line, its text tables in and out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from anncoder.cli.exit import signals
from anncoder.config import unknown_key
from anncoder.data.adata import RAW, matrix_of, read_matrix, resolve_layer, slot_label
from anncoder.data.check import check
from anncoder.data.formats.foreign import refuse_no_table
from anncoder.data.matrix.notes import said_once
from anncoder.data.matrix.scan import scan, structure, unreadable
from anncoder.data.summary import library_sizes
from anncoder.device import refuse_size
from anncoder.errors import AnncoderError, ConfigError, FileError, InputError, counted, listed
from anncoder.io.atomic import atomic_path, locked, same_file, writable_folder
from anncoder.io.h5ad_write import read_input, refuse_unwritable, write_output
from anncoder.io.model_folder import refuse_target
from anncoder.io.output_paths import refuse_output
from anncoder.models.base import Array
from anncoder.models.published.dca import DCA
from anncoder.tl.dca_scanpy import OURS, WORDS, Results, in_our_words, refuse_data, results, write_info, write_obs
from anncoder.training.progress import announce

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
H5AD, MODEL = "dca.h5ad", "model"
TABLES = ("mean.tsv", "latent.tsv", "dispersion.tsv", "dropout.tsv")
TEST_SHARE = 0.1
LAYOUT = "names in the first row and column; commas in .csv, tabs in .tsv and .txt"

logger = logging.getLogger("anncoder")


class DCARequest(NamedTuple):
    """Arguments and options of ``anncoder dca``."""

    data: Path
    outdir: Path
    options: dict[str, Any]  # all, by the words of the command
    transpose: bool = False
    testsplit: bool = False
    saveweights: bool = False
    denoisesubset: Path | None = None
    quiet: bool = False


@said_once()
def run_dca(request: DCARequest) -> None:
    """Read, fit, and write the tables, the h5ad file and, if asked, the model."""
    _refuse_unsupported(request.options)
    words = {word: value for word, value in request.options.items() if word in OURS}
    with own_words():
        model, training = in_our_words(words | {"hiddensize": widths(words["hiddensize"])})
    _refuse_outdir(request)
    with locked(_claimed(request.outdir)), own_words():
        _fit_and_write(request, model, training)


@contextmanager
def own_words() -> Iterator[None]:
    """Let an error about a setting name the option of this command, which has names of its own."""
    try:
        yield
    except ConfigError as error:
        setting = error.where.rpartition(".")[2]
        word = {"n_latent": "hiddensize", "ae_type": "type"}.get(setting, WORDS.get(setting, ("",))[-1])
        if not word:
            raise
        remedy = "anncoder dca --help lists the options"
        if error.code == "latent-too-wide":
            remedy = "let the middle width of --hiddensize be below the number of genes"
        raise ConfigError(error.code, error.what, f"--{word}", remedy) from error


def _fit_and_write(request: DCARequest, model: DCA, training: dict[str, Any]) -> None:
    rounds = model.config.check_counts
    adata = _with_counts(_of_layer(_read(request), request.options["layer"]), rounds=rounds)
    refuse_data(adata, check_counts=model.config.check_counts)
    refuse_unwritable(adata)
    genes = _columns(adata, request.denoisesubset)
    refuse_size(3 * adata.n_obs * adata.n_vars * 4)
    split = _split(adata.n_obs, training["seed"], testsplit=request.testsplit)
    training["mask_var"] = None  # DCA reads all genes
    model.fit(adata[split == "train"], progress=None if not request.quiet else False, **training)
    found = results(model, adata, denoise=True, latent=True, info=True)
    with signals.saving():
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
        what = f"hiddensize = {text!r} is not a list of widths"
        raise ConfigError("bad-value", what, "--hiddensize", "--hiddensize 64,32,64") from None


def _refuse_unsupported(options: dict[str, Any]) -> None:
    # options of the published command that this one does not have
    history = "the loss of every epoch is in uns['dca_loss_history'] of dca.h5ad"
    trials = "anncoder search INPUT.h5ad -o OUTPUT.h5ad --model dca tries settings, and trains the best"
    for name in ("hyper", "hypern", "hyperepoch", "tensorboard"):
        if options[name]:
            remedy = history if name == "tensorboard" else trials
            raise ConfigError("bad-option", f"`anncoder dca` has no --{name}", f"--{name}", remedy)
    if options["normtype"] != "zheng":
        raise unknown_key(options["normtype"], ["zheng"], where="--normtype")


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
            what = f"the input would be replaced by the output {name}"
            raise ConfigError("output-is-input", what, str(request.data), "choose another OUTDIR")
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


def _of_layer(adata: anndata.AnnData, layer: str | None) -> anndata.AnnData:
    # the counts of a layer in the place of X, where this command reads and writes them; raw has genes of its own
    layer = resolve_layer(layer, adata.layers)
    if layer is None or matrix_of(adata, layer) is None:
        check(adata, layer=layer)  # which says which layers there are
        return adata
    announce(f"dca.h5ad has the counts of {slot_label(layer)} in X")
    if layer == RAW:
        return adata.raw.to_adata()
    adata.X = adata.layers[layer]
    return adata


def _with_counts(adata: anndata.AnnData, *, rounds: bool) -> anndata.AnnData:
    # as DCA's command: genes and cells without any count are left out, and said to be
    if adata.X is None or unreadable(adata.X) or structure(adata.X).fault or not adata.var_names.is_unique:
        return adata  # the check of the fit says what is wrong
    found = scan(adata.X, math.inf, rounds=rounds)
    cells, genes = found.empty_obs, found.empty_vars
    if len(cells) == adata.n_obs or not len(cells) + len(genes):
        return adata
    announce(f"left out {counted(len(cells), 'cell')} and {counted(len(genes), 'gene')} without any count")
    return adata[np.delete(np.arange(adata.n_obs), cells), np.delete(np.arange(adata.n_vars), genes)].copy()


def _columns(adata: anndata.AnnData, path: Path | None) -> Any:
    # positions of the genes that are written
    if path is None:
        return np.arange(adata.n_vars)
    try:
        names = [line.split(",")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read the list of genes {str(path)!r}"
        raise FileError("unreadable", what, str(path), "check the path") from error
    names = [name for name in names if name]
    missing = [name for name in names if name not in adata.var_names]
    if missing or not names:
        what = f"of {counted(len(names), 'gene')} the data do not have {len(missing):,}: {listed(missing)}"
        raise InputError("unknown-genes", what, "--denoisesubset", "one name a line, of genes that have a count")
    return adata.var_names.get_indexer(names)


def _split(n_obs: int, seed: int, *, testsplit: bool) -> Any:
    split = np.full(n_obs, "train", dtype="<U5")
    if testsplit:
        order = np.random.default_rng([seed, 4]).permutation(n_obs)
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
    write_obs(adata, library_sizes(read_matrix(adata, None)), model, split)
    write_info(adata, found, model)
    adata.obsm["X_dca"], adata.layers["dca_denoised"] = found.latent, found.denoised
    write_output(adata, request.outdir / H5AD, wrote=("obsm/X_dca", "layers/dca_denoised"))


def read_table(path: Path, separator: str, *, by_cell: bool) -> anndata.AnnData:
    """Return the counts of a text table with names in its first row and column.

    Parameters
    ----------
    path
        The file, which may be compressed.
    separator
        Between the values.
    by_cell
        A row is a cell, not a gene.

    Raises
    ------
    FileError
        The file cannot be read.
    InputError
        It holds something else than numbers, has no names in its first row, or has one twice.
    """
    try:
        refuse_no_table(path)
        columns, frame = _table(path, separator)
    except FileNotFoundError:
        raise FileError("no-file", f"no such file: {str(path)!r}", str(path), "check it") from None
    except AnncoderError:
        raise
    except (OSError, ValueError) as error:
        what = f"cannot read {str(path)!r} as a table: {str(error).splitlines()[0]}"
        raise FileError("unreadable", what, str(path), f"give a table with {LAYOUT}") from error
    texts = [name for name, dtype in zip(columns, frame.dtypes, strict=True) if dtype.kind not in "iufb"]
    if texts or not columns:
        what = f"{len(texts):,} of {counted(len(columns), 'column')} hold something else than numbers: {listed(texts)}"
        what = what if columns else "the table has no columns"
        raise InputError("not-numeric", what, str(path), f"leave only counts, with {LAYOUT}")
    _refuse_no_header(path, columns)
    names = pd.Index(columns, dtype=object), pd.Index(list(frame.index), dtype=object)
    for index, what in zip(names, ("column", "row"), strict=True):
        if twice := list(index[index.duplicated()].unique()):
            stand = "stands" if len(twice) == 1 else "stand"
            said = f"{counted(len(twice), 'name')} {stand} for more than one {what}: {listed(twice)}"
            raise InputError("duplicate-names", said, str(path), f"give each {what} a name of its own")
    values = frame.to_numpy(np.float64)
    var, obs = (pd.DataFrame(index=index) for index in (names if by_cell else reversed(names)))
    return anndata.AnnData(csr_matrix(values if by_cell else values.T), obs, var)


def _table(path: Path, separator: str) -> tuple[list[str], pd.DataFrame]:
    # pandas makes numbers of names (007), nothing of NA, and x.1 of a second x: it is given none to read
    separator = _separator(path, separator)
    top = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
    header = [str(name) for name in top.iloc[0]]
    by_row = pd.read_csv(path, sep=separator, nrows=1).index  # one that counts, unless rows are longer than the first
    longer = 0 if isinstance(by_row, pd.RangeIndex) else by_row.nlevels
    if longer > 1 or (longer and not header[0]):
        raise ValueError(f"the first row has {len(header):,} values and the second {len(header) + longer:,}")
    columns = header if longer else header[1:]  # R names no corner
    frame = pd.read_csv(path, sep=separator, header=0, names=range(len(columns) + 1), converters={0: str})
    return columns, frame.set_index(0)


def _separator(path: Path, expected: str) -> str:
    # tables of R and of spreadsheets have semicolons or tabs in a .csv, too
    line = str(
        pd.read_csv(path, sep="\0", header=None, nrows=1, dtype=str, keep_default_na=False, engine="c").iloc[0, 0]
    )
    found = max((expected, ",", "\t", ";"), key=line.count)
    if line.count(expected) or not line.count(found):
        return expected
    names = {",": "commas", "\t": "tabs", ";": "semicolons"}
    announce(f"{path.name}: the values stand between {names[found]}")
    return found


def _refuse_no_header(path: Path, columns: list[str]) -> None:
    if pd.to_numeric(pd.Series(columns), errors="coerce").isna().any():
        return
    if len(set(columns)) < len(columns):  # no names: the counts of the first gene, or cell
        what = f"the first row holds numbers, some of them twice, and no names: {listed(columns)}"
        raise InputError("no-header", what, str(path), f"give a table with {LAYOUT}")
    logger.warning("warning: the first row of %s holds numbers, which are taken as names: %s", path, listed(columns))
