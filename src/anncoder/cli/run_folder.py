"""Run folder beside an output: model, settings, history, metrics and log of a training.

A run works in ``unfinished/``. Until its outputs have their names, the results of the run before stay where they are;
then those of the new run take their place. A run that fails, or is killed, costs nothing, and the model in the folder
is the one that made the outputs.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anncoder.errors import FileError
from anncoder.io.atomic import atomic_path, others_in, refuse_occupied
from anncoder.io.model_folder import FILES, MANIFEST, against_model
from anncoder.training.checkpoint import NAME as CHECKPOINT

MODEL, SETTINGS, HISTORY, METRICS, LOG = "model", "resolved.yaml", "history.csv", "metrics.json", "run.log"
REPORT = "report.html"  # of a run with --report
RECORDS = (SETTINGS, HISTORY, METRICS, LOG)  # of how the model came to be
UNFINISHED = "unfinished"
OUTPUTS, REPLACED = "outputs.json", "replaced"  # in it: what the outputs were before, and the model that is replaced
PREVIOUS = "previous"  # where earlier versions, which trained in the run folder itself, kept the results before

OTHER_NAME = "choose another name for the output"


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
    refuse_occupied(folder / UNFINISHED, _against_unfinished)
    if (folder / MODEL).exists() and not os.access(folder / MODEL, os.W_OK):  # a folder that is moved is written to
        what = f"{str(folder / MODEL)!r} cannot be replaced: it may not be written"
        raise FileError("not-ours", what, str(output), f"{OTHER_NAME}, or change the permissions")
    other = ""
    with suppress(OSError, ValueError, AttributeError):
        other = str(json.loads((folder / METRICS).read_text(encoding="utf-8")).get("output", ""))
    if other not in ("", output_name(output)) and (output.parent / other).exists():  # "out.h5ad" and "out/" share one
        what = f"{str(folder)!r} has the model of {other!r}, which it would replace"
        raise FileError("not-ours", what, str(output), OTHER_NAME)


def _against_run(folder: Path) -> str:
    # files of the user's own may stand in it: they stay
    ours = any((folder / name).exists() for name in (LOG, SETTINGS, UNFINISHED, PREVIOUS, f"{MODEL}/{MANIFEST}"))
    return "" if ours else f"it holds neither {LOG} nor {SETTINGS}"


def _against_unfinished(folder: Path) -> str:
    # removed as a whole; a kill may have left temporaries, and only some of the files of a model
    temporaries = [path.name for path in folder.iterdir() if path.name.startswith(".anncoder-")]
    if why := others_in(folder, (MODEL, *RECORDS, CHECKPOINT, OUTPUTS, REPLACED, *temporaries)):
        return why
    models = [folder / name for name in (MODEL, REPLACED) if (folder / name).is_dir()]
    return next(filter(None, (others_in(model, FILES) for model in models)), "")


def start_run(folder: Path) -> Path:
    """Return ``unfinished/`` of a run folder, made or cleared for a new run; a checkpoint in it stays."""
    part = folder / UNFINISHED
    part.mkdir(parents=True, exist_ok=True)
    if (folder / PREVIOUS).is_dir():  # an earlier version was killed: it put them back in its next run
        _take(folder / PREVIOUS, folder)
        with suppress(OSError):  # it holds something else
            (folder / PREVIOUS).rmdir()
    if (folder / CHECKPOINT).exists():
        (folder / CHECKPOINT).replace(part / CHECKPOINT)
    _settle(folder)
    part.mkdir(exist_ok=True)
    for path in part.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != CHECKPOINT:
            path.unlink()
    return part


@contextmanager
def results_replaced(folder: Path, outputs: Iterable[Path]) -> Iterator[None]:
    """Replace the results in a run folder by those in ``unfinished/``, if the block writes the outputs.

    After a kill the next run does that: it finds what the outputs were before, and sees that they are others now.
    """
    before = {os.path.relpath(path, folder.parent): _stamp(path) for path in outputs}
    write_json(folder / UNFINISHED / OUTPUTS, before)
    try:
        yield
    finally:
        _settle(folder)


def _stamp(output: Path) -> list[int] | None:
    try:
        status = output.stat()
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size]


def _settle(folder: Path) -> None:
    # whatever a kill left undone the next call does
    part = folder / UNFINISHED
    try:
        before = dict(json.loads((part / OUTPUTS).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        return
    if all(_stamp(folder.parent / path) not in (None, stamp) for path, stamp in before.items()):
        _take(part, folder)
        shutil.rmtree(part)
    else:
        (part / OUTPUTS).unlink()


def _take(source: Path, folder: Path) -> None:
    # the model first: its outputs are there. A folder cannot be renamed over another
    if (source / MODEL).exists():
        if (folder / MODEL).exists():
            (folder / MODEL).replace(folder / UNFINISHED / REPLACED)
            _drop_report(folder / REPORT)
        (source / MODEL).replace(folder / MODEL)
    for name in RECORDS:
        if (source / name).exists():
            (source / name).replace(folder / name)


def _drop_report(path: Path) -> None:
    # it is of the model before; a file of the user's own stays
    with suppress(OSError):
        with path.open("rb") as file:
            ours = b'name="generator" content="anncoder"' in file.read(1024)
        if ours:
            path.unlink()


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write the run's messages to a plain file as well, after what is in it."""
    # names of files need not be UTF-8
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
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
