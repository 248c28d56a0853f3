"""How a command ends: one sentence and an exit code, never a bare traceback for the user's mistake."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from anncoder.errors import AnncoderError

BUG, RESOURCE, INTERRUPTED, TERMINATED = 1, 6, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: training ends as it does for control-C, results are saved, and the exit code differs."""


class Stopped(Exception):
    """The command was interrupted and has saved what there was."""

    def __init__(self, *, terminated: bool) -> None:
        super().__init__("interrupted; results until then were saved")
        self.exit_code = TERMINATED if terminated else INTERRUPTED


terminations: list[int] = []


@contextmanager
def outcome(*, debug: bool, quiet: bool = False) -> Iterator[None]:
    """Turn whatever happens in a command into a message on stderr and an exit code."""
    _log_to_stderr(quiet=quiet)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except AnncoderError as error:
        _leave(str(error), error.exit_code, debug=debug)
    except Stopped as stop:
        _leave(str(stop), stop.exit_code, debug=False)
    except KeyboardInterrupt:
        _leave("interrupted; nothing was written", TERMINATED if terminations else INTERRUPTED, debug=debug)
    except MemoryError:
        _leave("out of memory; use fewer genes or cells, or a smaller batch_size", RESOURCE, debug=debug)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
        _leave(f"{type(error).__name__}: {error}", RESOURCE if full else BUG, debug=debug)
    except Exception as error:  # noqa: BLE001 - the last door: a bug is said to be one
        message = f"{type(error).__name__}: {error}\n  this is a bug in anncoder; run again with --debug and report it"
        _leave(message, BUG, debug=debug)


def _leave(message: str, code: int, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"{'' if code in (INTERRUPTED, TERMINATED) else 'error: '}{message}\n")
    raise typer.Exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    terminations.append(number)
    raise Terminated


def _log_to_stderr(*, quiet: bool) -> None:
    logger = logging.getLogger("anncoder")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    for old in [h for h in logger.handlers if getattr(h, "of_command", False)]:
        logger.removeHandler(old)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.of_command = True  # type: ignore[attr-defined]
    logger.addHandler(handler)
