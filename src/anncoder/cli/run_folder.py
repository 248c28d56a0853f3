"""Run folder beside an output: model, settings, history, metrics and log of a training."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anncoder.errors import FileError
from anncoder.io.atomic import atomic_path, others_in, refuse_occupied
from anncoder.io.model_folder import FILES, MANIFEST, against_model

MODEL, SETTINGS, HISTORY, METRICS, LOG = "model", "resolved.yaml", "history.csv", "metrics.json", "run.log"
RECORDS = (SETTINGS, HISTORY, METRICS, LOG)  # of how the model came to be
RESULTS = (MODEL, *RECORDS)
PREVIOUS, UNFINISHED = "previous", "unfinished"
# on the way into previous/, out of it, and away: what a kill leaves there is known by its name
STEPPING, RETURNING, FORGOTTEN = "stepping", "returning", "forgotten"


def run_folder(output: Path) -> Path:
    """Return the name of the run folder of an output: an ``.h5ad`` file without its ending, or a folder."""
    folder = output.resolve().parent if output.name in ("", "..") else output.parent
    # only our own ending: "out.v1" and "out.v2" are two folders, and have two runs
    return folder / f"{output_name(output).removesuffix('.h5ad')}.anncoder"


def output_name(output: Path) -> str:
    """Return what an output is called, of "." and "a/..", too, which do not say it."""
    return output.resolve().name if output.name in ("", "..") else output.name


def refuse_run_folder(output: Path) -> None:
    """Raise a FileError if something that is not its run folder has its name, or the name of what it is to replace."""
    folder = run_folder(output)
    refuse_occupied(folder, _against_run)
    refuse_occupied(folder / MODEL, against_model)
    if (folder / MODEL).exists() and not os.access(folder / MODEL, os.W_OK):  # a folder that is moved is written to
        raise FileError(
            "not-ours",
            f"{str(folder / MODEL)!r} cannot be replaced: it may not be written",
            str(output),
            "choose another name for the output, or change the permissions",
        )
    for part in (PREVIOUS, UNFINISHED, FORGOTTEN, STEPPING, RETURNING):
        refuse_occupied(folder / part, _against_part)
    of = _output_of(folder)
    if of not in ("", output_name(output)) and (output.parent / of).exists():
        raise FileError(
            "not-ours",
            f"{str(folder)!r} has the model of {of!r}, which it would replace",
            str(output),
            "choose another name for the output",
        )


def _output_of(folder: Path) -> str:
    # what was written by the run whose folder it is: "out.h5ad" and "out/" would share one
    for place in (folder, folder / PREVIOUS):
        with suppress(OSError, ValueError, AttributeError):
            return str(json.loads((place / METRICS).read_text(encoding="utf-8")).get("output", ""))
    return ""


def _against_run(folder: Path) -> str:
    # files of the user's own may stand in it: they stay
    signs = (LOG, SETTINGS, PREVIOUS, STEPPING, RETURNING, f"{MODEL}/{MANIFEST}")
    ours = any((folder / name).exists() for name in signs)
    return "" if ours else f"it holds neither {LOG} nor {SETTINGS}"


def _against_part(folder: Path) -> str:
    # removed as a whole; a kill may have left only some of its files
    model = folder / MODEL
    return others_in(folder, RESULTS) or (others_in(model, FILES) if model.is_dir() else "")


def new_run_folder(output: Path) -> Path:
    """Make the run folder of an output, or clear the one that is there for a new run.

    The model of the output stays where it is until there is a new one; its settings, history, metrics and log step
    aside into ``previous/``, so that files of two runs never stand side by side. A run that fails, or is killed, does
    not cost a model.
    """
    folder = run_folder(output)
    folder.mkdir(exist_ok=True)
    _clear(folder, UNFINISHED, FORGOTTEN)
    if (folder / RETURNING).exists():
        _put_back(folder)
    if (folder / PREVIOUS / MODEL).exists() and not (folder / PREVIOUS / MODEL / MANIFEST).exists():
        _clear(folder, PREVIOUS)  # what an earlier version was killed while it forgot
    if (folder / PREVIOUS / MODEL).exists():
        # killed before its results had their names: what stands under them is still of the model before it
        _move(folder, folder / UNFINISHED, RESULTS)  # whole: half a model in its place would be refused for ever
        (folder / PREVIOUS / MODEL).replace(folder / MODEL)
        _clear(folder, UNFINISHED)  # that of this run is to be its own
    if (folder / MODEL).exists() and not (folder / PREVIOUS).exists():
        _move(folder, folder / STEPPING, RECORDS)
        (folder / STEPPING).replace(folder / PREVIOUS)
    for name in RECORDS:  # of a run that came to nothing: what came before it stays the previous one
        (folder / name).unlink(missing_ok=True)
    return folder


def set_aside(folder: Path) -> None:
    """Let the model of the run before join the rest in ``previous/``: a new one is there to be saved."""
    if (folder / MODEL).exists():
        _move(folder, folder / PREVIOUS, (MODEL,))


@contextmanager
def older_kept(folder: Path) -> Iterator[Path]:
    """Put back what the run before left if this one does not come to its end; what it left goes to ``unfinished/``.

    The model beside an output is then still the one that made it.
    """
    try:
        yield folder
    except BaseException:
        if (folder / PREVIOUS).exists():
            new_model = (folder / PREVIOUS / MODEL).exists()
            _move(folder, folder / UNFINISHED, RESULTS if new_model else RECORDS)
            _put_back(folder)
        raise


def _put_back(folder: Path) -> None:
    # under another name first: what a kill leaves of it is known to belong back
    if (folder / PREVIOUS).exists():
        (folder / PREVIOUS).replace(folder / RETURNING)
    if (folder / RETURNING).exists():
        _move(folder / RETURNING, folder, RESULTS)
        _clear(folder, RETURNING)


def forget_previous(folder: Path) -> None:
    """Remove what the run before left."""
    if (folder / PREVIOUS).exists():  # at once, by its name: half of it would be taken for the whole
        _clear(folder, FORGOTTEN)
        (folder / PREVIOUS).replace(folder / FORGOTTEN)
        _clear(folder, FORGOTTEN)


def _clear(folder: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)


def _move(source: Path, target: Path, names: tuple[str, ...]) -> None:
    # the files of a run; the user's own stay where they are
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).exists():
            (source / name).replace(target / name)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write the run's messages to a plain file as well; a new run starts it anew."""
    # names of files need not be UTF-8
    handler = logging.FileHandler(path, mode="w", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("anncoder")
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        handler.emit(logger.makeRecord(logger.name, logging.ERROR, "", 0, str(error), (), None))
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
