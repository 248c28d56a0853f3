"""Exit codes, error messages and signals (control-C, SIGTERM) of a command."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from anncoder.errors import AnncoderError, ResourceError, out_of_memory

BUG = 1
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # what shells expect of a process that a signal ended
OURS = (errno.ENOENT, errno.EBADF, errno.EINVAL)  # bugs: the user's files are looked for before they are used


class Signals:
    """Handler of control-C and SIGTERM: they end the command, but wait for a minibatch or for results being saved.

    Attributes
    ----------
    number
        The last signal that came, or None.
    message
        What to say when one comes.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a command."""
        self.number: int | None = None
        self.message = "interrupted; no results were written"
        self._saving = self._polled = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; while one is polled for, or results are saved, only the second one stops at once."""
        waits = (self._saving or self._polled) and self.number is None
        self.number = number
        if not waits:
            raise KeyboardInterrupt(self.message)
        until = "the results are saved" if self._saving else "this minibatch is done"
        logging.getLogger("anncoder").warning("stopping when %s; once more to stop now", until)

    @contextmanager
    def polled(self) -> Iterator[Callable[[], bool]]:
        """Give a function that tells whether a signal came; once it was called, signals wait for its next call."""

        def stops() -> bool:
            self._polled = True
            return self.number is not None

        try:
            yield stops
        finally:
            self._polled = False

    @contextmanager
    def saving(self, message: str = "the results until then were saved") -> Iterator[None]:
        """Let a block finish; a signal that comes in it, or came before it, then ends the command with a message."""
        self._saving, self.message = True, "interrupted while results were being saved"
        try:
            yield
        finally:
            self._saving = False
        self.message = f"interrupted; {message}"
        if self.number is not None:
            raise KeyboardInterrupt(self.message)


signals = Signals()


@contextmanager
def outcome(*, debug: bool, quiet: bool = False) -> Iterator[None]:
    """Turn the errors and signals of a command into a message on stderr and an exit code."""
    with _handling_signals(), _log_on_stderr(quiet=quiet):
        try:
            yield
        except KeyboardInterrupt as stop:
            _leave(str(stop), EXIT_CODES[signal.Signals(signals.number or signal.SIGINT)], debug=debug)
        except BrokenPipeError:
            raise  # `anncoder check x | head`: typer knows that this is no error
        except Exception as error:  # noqa: BLE001 - the last door: anything else is a bug
            if known := _users_error(error):
                _leave(f"error: {known}", known.exit_code, debug=debug)
            if signals.number is not None and _of_signal(error):
                _leave(signals.message, EXIT_CODES[signal.Signals(signals.number)], debug=debug)
            message = f"{type(error).__name__}: {error}\n  this is a bug in anncoder"
            _leave(f"error: {message}; run again with --debug and report it", BUG, debug=debug)


def _of_signal(error: BaseException | None) -> bool:
    # an exception that a signal raises in compiled code is wrapped into another
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _users_error(error: Exception) -> AnncoderError | None:
    """Return the error that a user can do something about, or None for a bug."""
    if isinstance(error, AnncoderError):
        return error
    what = (str(error).splitlines() or [type(error).__name__])[0]
    if out_of_memory(error):
        remedy = "use fewer genes or cells, or a smaller batch_size"
        return ResourceError("out-of-memory", f"out of memory: {what}", remedy=remedy)
    outside = isinstance(error, OSError) and error.errno is not None and error.errno not in OURS
    if isinstance(error, OSError) and (outside or "temporary directory" in what):
        remedy = "check the permissions and the free space"
        return ResourceError("cannot-write", what, str(error.filename or ""), remedy)
    return None


def _leave(message: str, code: int, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"{message}\n")
    raise typer.Exit(code)


@contextmanager
def _handling_signals() -> Iterator[None]:
    signals.reset()
    before = {number: signal.signal(number, signals) for number in EXIT_CODES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _log_on_stderr(*, quiet: bool) -> Iterator[None]:
    logger = logging.getLogger("anncoder")
    before, handler = logger.level, logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.setLevel(logging.DEBUG)  # the log of a run has everything
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
