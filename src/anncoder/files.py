"""Files that are either the old one or the new one, never half of each.

Every output is written under a temporary name in the folder of its target, forced to disk, and renamed over the
target: a kill, a full disk or an exception leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anncoder.errors import AnncoderError, FileError, ResourceError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Give a temporary path beside a target file; on a clean exit it becomes the target.

    Parameters
    ----------
    target
        The file to write. Its folder must exist and be writable.

    Yields
    ------
    Path
        A path in the same folder, with the same suffix, that does not exist yet.

    Raises
    ------
    ResourceError
        The folder does not exist or cannot be written, or the disk is full. The target is as it was.
    """
    target = Path(target)
    scratch = _scratch_folder(target)
    temporary = scratch / target.name
    try:
        with _disk_errors(target):
            yield temporary
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_folder(target: str | Path, *, mark: str) -> Iterator[Path]:
    """Give a temporary folder beside a target folder; on a clean exit it becomes the target.

    Parameters
    ----------
    target
        The folder to write. An existing one is replaced only if it is empty or holds the file ``mark``.
    mark
        File name by which a folder is known to be one of ours.

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
    target = Path(target)
    _refuse_foreign(target, mark)
    scratch = _scratch_folder(target)
    temporary = scratch / target.name
    try:
        with _disk_errors(target):
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            _sync(temporary)
            if target.exists():
                # a folder cannot be renamed over another: the old one steps aside, and back if the rename fails
                target.replace(scratch / "old")
            try:
                temporary.replace(target)
            except OSError:
                if (scratch / "old").exists():
                    (scratch / "old").replace(target)
                raise
            _sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def writable_folder(folder: Path) -> None:
    """Raise a ResourceError unless files can be made in a folder; asked before hours of training, not after."""
    if not folder.is_dir():
        raise ResourceError(
            f"the output folder {str(folder)!r} does not exist",
            code="no-folder",
            where=str(folder),
            remedy=f"make it first: mkdir -p {folder}",
        )
    with _disk_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


def same_file(left: str | Path, right: str | Path) -> bool:
    """Tell whether two paths name one existing file."""
    return Path(left).exists() and Path(right).exists() and Path(left).samefile(right)


def _scratch_folder(target: Path) -> Path:
    parent = target.parent
    writable_folder(parent)
    # a folder of its own, not a suffix: writers that look at the suffix (.h5ad, .zarr) see the final name
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=parent))


def _refuse_foreign(target: Path, mark: str) -> None:
    if not target.exists():
        return
    if target.is_dir() and ((target / mark).exists() or not any(target.iterdir())):
        return
    raise FileError(
        f"{str(target)!r} exists and was not written by anncoder",
        code="not-ours",
        where=str(target),
        remedy="choose another name, or move it away first",
    )


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except AnncoderError:
        raise
    except OSError as error:
        raise ResourceError(
            f"cannot write {str(target)!r}: {error.strerror or error}",
            code="cannot-write",
            where=str(target),
            remedy="check the folder's permissions and the free space; what was there before is unchanged",
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
