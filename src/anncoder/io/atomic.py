"""Atomic writes of files and folders, with locks: the old one or the new, never half.

Every output is written under a temporary name in the folder of its target, forced to disk, and renamed over the
target: a kill, a full disk or an exception leaves what was there before. What a killed process leaves behind is
removed by the next one that writes into the same folder.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from anncoder.errors import AnncoderError, ConfigError, FileError, ResourceError, listed

LOCK = ".anncoder-lock-"
PATIENCE, PAUSE = 1.0, 0.02  # seconds until a lock that is held is taken to be a writer's, and between two tries
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Give a temporary path beside a target file; on a clean exit it becomes the target.

    Parameters
    ----------
    target
        The file to write; of a symbolic link, the file it points to. Its folder must exist and be writable. A file
        that is replaced keeps its permissions.

    Yields
    ------
    Path
        A path in the same folder, with the same name in a folder of its own, that does not exist yet.

    Raises
    ------
    ResourceError
        The folder does not exist or cannot be written, or the disk is full. The target is as it was.
    """
    target = Path(target).expanduser().resolve()
    with _disk_errors(target), _scratch(target.parent) as scratch:
        temporary = scratch / target.name
        yield temporary
        if target.is_file():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)


@contextmanager
def atomic_folder(target: str | Path, *, against: Callable[[Path], str]) -> Iterator[Path]:
    """Give a temporary folder beside a target folder; on a clean exit it becomes the target.

    Parameters
    ----------
    target
        The folder to write. An existing one is replaced, with all that is in it, if that is nothing or all ours, and
        its permissions are kept.
    against
        As in :func:`refuse_occupied`.

    Yields
    ------
    Path
        An empty folder with the same parent.

    Raises
    ------
    FileError
        The target exists and is something else.
    ResourceError
        The parent does not exist or cannot be written, or the disk is full. The target is as it was.
    """
    refuse_occupied(Path(target), against)
    target = Path(target).expanduser().resolve()
    with _disk_errors(target), _scratch(target.parent) as scratch:
        temporary = scratch / target.name
        temporary.mkdir()
        yield temporary
        if target.is_dir():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        for file in sorted(temporary.rglob("*")):
            sync(file)
        sync(temporary)
        if not target.exists():
            temporary.replace(target)
        elif not _swap(temporary, target):
            _replace_in_two_steps(temporary, target, scratch)
        sync(target.parent)


def refuse_occupied(target: Path, against: Callable[[Path], str]) -> None:
    """Raise a FileError unless a folder can be written here: nothing stands there, an empty folder, or one of ours.

    Asked before hours of training, not after.

    Parameters
    ----------
    target
        The folder.
    against
        Returns the reason why a folder is not one of ours; an empty text if it is.
    """
    if target.is_symlink() and not target.exists():
        what = f"{str(target)!r} is a link to nothing that exists"
        raise FileError("not-ours", what, str(target), "choose another name, or remove the link")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if why := against(target) if target.is_dir() else "it is a file":
        what = f"{str(target)!r} exists and was not written by anncoder, or changed since: {why}"
        raise FileError("not-ours", what, str(target), "choose another name, or move it away first")


def others_in(folder: Path, names: Collection[str]) -> str:
    """Return, as a sentence, the other names in a folder; empty if there are none."""
    ignored = (*names, ".DS_Store", "Thumbs.db", "desktop.ini")  # which systems put into any folder
    others = sorted(repr(path.name) for path in folder.iterdir() if path.name not in ignored)
    return f"it holds {listed(others, 3)}" if others else ""


def allow_open(n_files: int) -> None:
    """Let this process have so many files open at once, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # not there on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = n_files if hard == resource.RLIM_INFINITY else min(n_files, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def writable_folder(folder: Path) -> None:
    """Raise a ResourceError unless files can be made in a folder; asked before hours of training, not after."""
    if not folder.is_dir():
        what = f"the output folder {str(folder)!r} {'is a file' if folder.exists() else 'does not exist'}"
        remedy = "choose another folder" if folder.exists() else f"make it first: mkdir -p {folder}"
        raise ResourceError("no-folder", what, str(folder), remedy)
    with _disk_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def locked(target: str | Path) -> Iterator[None]:
    """Keep other processes from writing a target for the time of a block; a lock dies with its process.

    Raises
    ------
    ResourceError
        Another process holds it, or its folder cannot be written.
    """
    target = Path(target).expanduser().resolve()
    writable_folder(target.parent)
    path = target.parent / f"{LOCK}{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}"
    # with some patience: a sweep holds every lock for a moment, to see if it is held
    lock = FileLock(path, timeout=PATIENCE, poll_interval=PAUSE, fallback_to_soft=False)
    with _disk_errors(target):
        try:
            lock.acquire()
        except Timeout:
            what = f"another process is writing {str(target)!r}"
            remedy = "wait until it is done, or choose another output"
            raise ResourceError("output-in-use", what, str(target), remedy) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:  # better to work without a lock than not at all
                raise
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no open file
            path.unlink(missing_ok=True)  # before it is given back: nobody may hold a lock on a name that is gone
        lock.release()


def path_given(folder: object) -> Path:
    """Return the path of a folder that a user gave; a ConfigError if it is something else."""
    if not isinstance(folder, str | os.PathLike):
        what = f"expected the path of a folder, got {type(folder).__name__}"
        raise ConfigError("bad-value", what, "folder", "give a path: 'pbmc.ac'")
    return Path(folder).expanduser()


def same_file(left: str | Path, right: str | Path) -> bool:
    """Tell whether two paths name one existing file, through links and however they are spelled."""
    return Path(left).exists() and Path(right).exists() and Path(left).samefile(right)


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    # a folder of its own, not a suffix: writers that look at the suffix (.h5ad, .zarr) see the final name, and a
    # name that is as long as the file system allows can still be written
    writable_folder(parent)
    sweep(parent)
    scratch = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the temporaries of processes that were killed, of this machine only: others' may be alive."""
    if os.name == "nt":  # there is no harmless way to ask whether a process lives
        return
    for lock in folder.glob(f"{LOCK}*"):
        with suppress(OSError), FileLock(lock, timeout=0, fallback_to_soft=False):  # nobody holds it
            lock.unlink(missing_ok=True)
    for scratch in folder.glob(f"{_prefix()}*"):
        number = scratch.name.removeprefix(_prefix()).split("-")[0]
        if not number.isdigit() or _lives(int(number)):
            continue
        for aside in scratch.glob("aside/*"):  # killed between the two steps: put the old folder back
            if not (folder / aside.name).exists():
                aside.replace(folder / aside.name)
        shutil.rmtree(scratch, ignore_errors=True)


@cache
def _prefix() -> str:
    # process numbers mean something on one machine only, and there only in one container
    space = Path("/proc/self/ns/pid")
    machine = socket.gethostname() + (str(space.readlink()) if space.is_symlink() else "")
    return f".anncoder-{hashlib.sha256(machine.encode()).hexdigest()[:8]}-"


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _swap(left: Path, right: Path) -> bool:
    # Linux can exchange two names in one step (renameat2 with RENAME_EXCHANGE), on most local file systems
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(renameat2(here, os.fsencode(left), here, os.fsencode(right), exchange) == 0)


def _replace_in_two_steps(temporary: Path, target: Path, scratch: Path) -> None:
    # a folder cannot be renamed over another: the old one steps aside, and back if the rename fails
    aside = scratch / "aside" / target.name
    aside.parent.mkdir()
    target.replace(aside)
    try:
        temporary.replace(target)
    except BaseException:
        aside.replace(target)
        raise


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except AnncoderError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        what = f"cannot write {str(target)!r}: {why.splitlines()[0] if why else type(error).__name__}"
        remedy = "check the folder's permissions and the free space; what was there before is unchanged"
        raise ResourceError("cannot-write", what, str(target), remedy) from error


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, and not only on its way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
