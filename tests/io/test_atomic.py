"""Files are the old ones or the new ones, whatever happens in between."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from anncoder.errors import FileError, ResourceError
from anncoder.io import atomic
from anncoder.io.atomic import (
    atomic_folder,
    atomic_path,
    locked,
    others_in,
    refuse_occupied,
    same_file,
    sweep,
    writable_folder,
)
from anncoder.io.hdf5 import new_h5

MARK = "mark.json"


def names(folder: Path) -> list[str]:
    """Return everything in a folder, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


def against(folder: Path) -> str:
    return "" if (folder / MARK).exists() else others_in(folder, [])


def write_folder(target: Path, text: str) -> None:
    with atomic_folder(target, against=against) as temporary:
        (temporary / MARK).write_text(text)
        (temporary / "sub").mkdir()
        (temporary / "sub" / "more.txt").write_text(text)


class TestAtomicPath:
    def test_writes_and_replaces(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        for text in ("one", "two"):
            with atomic_path(target) as temporary:
                assert temporary.parent.parent == tmp_path
                assert temporary.name == "a.txt"
                temporary.write_text(text)
            assert target.read_text() == text
            assert names(tmp_path) == ["a.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_an_exception_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")

        def fails() -> None:
            with atomic_path(target) as temporary:
                temporary.write_text("half")
                raise error

        with pytest.raises(error):
            fails()
        assert target.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_a_failed_rename_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left") as caught, atomic_path(target) as temporary:
            temporary.write_text("new")
        assert str(target) in caught.value.where
        assert target.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_file_and_folder_are_synced_around_the_rename(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        monkeypatch.setattr(atomic, "sync", lambda path: calls.append(("sync", path.name)))
        rename = Path.replace
        monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append(("rename", a.name)), rename(a, b))[1])
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        assert calls == [("sync", "a.txt"), ("rename", "a.txt"), ("sync", tmp_path.name)]

    def test_a_missing_folder_and_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ResourceError, match="does not exist") as caught, atomic_path(tmp_path / "no" / "a"):
            pass
        assert "mkdir -p" in caught.value.remedy
        with pytest.raises(ResourceError, match="is a file"), atomic_path(tmp_path / "file" / "a"):
            pass

    def test_a_body_that_writes_nothing_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ResourceError), atomic_path(tmp_path / "a.txt"):
            pass
        assert names(tmp_path) == []

    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        target, link = tmp_path / "real" / "a.txt", tmp_path / "link.txt"
        target.write_text("old")
        link.symlink_to(target)
        with atomic_path(link) as temporary:
            temporary.write_text("new")
        assert link.is_symlink()
        assert target.read_text() == "new"

    def test_a_name_as_long_as_the_file_system_allows(self, tmp_path: Path) -> None:
        target = tmp_path / ("n" * 250 + ".txt")
        with atomic_path(target) as temporary:
            temporary.write_text("new")
        assert target.read_text() == "new"

    @pytest.mark.skipif(os.name == "nt", reason="no umask there")
    def test_permissions_follow_the_umask_or_the_file_that_is_replaced(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        before = os.umask(0o027)
        try:
            with atomic_path(target) as temporary:
                temporary.write_text("new")
            write_folder(tmp_path / "f", "new")
        finally:
            os.umask(before)
        assert target.stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o750
        assert (tmp_path / "f" / MARK).stat().st_mode & 0o777 == 0o640
        target.chmod(0o600)
        with atomic_path(target) as temporary:
            temporary.write_text("newer")
        assert target.stat().st_mode & 0o777 == 0o600
        (tmp_path / "f").chmod(0o700)
        write_folder(tmp_path / "f", "newer")
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o700


class TestAtomicFolder:
    def test_writes_and_replaces(self, tmp_path: Path) -> None:
        target = tmp_path / "model"
        for text in ("one", "two"):
            write_folder(target, text)
            assert (target / "sub" / "more.txt").read_text() == text
            assert names(tmp_path) == ["model"]

    def test_replaces_where_names_cannot_be_exchanged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atomic, "_swap", lambda *_: False)
        self.test_writes_and_replaces(tmp_path)

    @pytest.mark.parametrize("exchanged", [True, False])
    def test_what_is_in_it_is_synced_before_the_rename_and_the_folder_it_is_in_after(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exchanged: bool
    ) -> None:
        target, calls = tmp_path / "model", []
        swap, rename = atomic._swap, Path.replace
        monkeypatch.setattr(atomic, "sync", lambda path: calls.append(path.name))
        monkeypatch.setattr(atomic, "_swap", lambda a, b: exchanged and (calls.append("named"), swap(a, b))[1])
        monkeypatch.setattr(Path, "replace", lambda a, b: (b == target and calls.append("named"), rename(a, b))[1])
        for text in ("one", "two"):
            write_folder(target, text)
            assert sorted(calls[:3]) == sorted([MARK, "more.txt", "sub"])
            assert (calls[3], calls[4], calls[-1]) == ("model", "named", tmp_path.name)
            calls.clear()

    def test_the_old_folder_comes_back_if_the_second_step_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "model"
        write_folder(target, "old")
        monkeypatch.setattr(atomic, "_swap", lambda *_: False)
        rename = Path.replace

        def fails(source: Path, to: Path) -> Path:
            if to == target and (source / MARK).read_text() == "new":
                raise OSError(5, "Input/output error")
            return rename(source, to)

        monkeypatch.setattr(Path, "replace", fails)
        with pytest.raises(ResourceError, match="Input/output"):
            write_folder(target, "new")
        assert (target / MARK).read_text() == "old"
        assert names(tmp_path) == ["model"]

    def test_an_exception_leaves_the_old_folder(self, tmp_path: Path) -> None:
        target = tmp_path / "model"
        write_folder(target, "old")

        def fails() -> None:
            with atomic_folder(target, against=against) as temporary:
                (temporary / "half").write_text("")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fails()
        assert names(target) == [MARK, "sub"]
        assert names(tmp_path) == ["model"]

    def test_an_empty_folder_is_taken_a_foreign_one_or_a_file_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        write_folder(tmp_path / "empty", "new")
        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign" / "thesis.txt").write_text("precious")
        (tmp_path / "file").write_text("precious")
        for name in ("foreign", "file"):
            with pytest.raises(FileError, match="was not written by anncoder"):
                refuse_occupied(tmp_path / name, against)
            with pytest.raises(FileError, match="was not written by anncoder"):
                write_folder(tmp_path / name, "new")
        assert (tmp_path / "foreign" / "thesis.txt").read_text() == "precious"
        assert (tmp_path / "file").read_text() == "precious"
        assert names(tmp_path) == ["empty", "file", "foreign"]

    def test_what_is_in_the_way_is_named(self, tmp_path: Path) -> None:
        for name in "dcbae":
            (tmp_path / name).touch()
        with pytest.raises(FileError, match="it holds 'b', 'c', 'd' and 1 more") as caught:
            refuse_occupied(tmp_path, lambda folder: others_in(folder, ["a"]))
        assert (caught.value.code, caught.value.remedy) == ("not-ours", "choose another name, or move it away first")


WRITER = """
import sys, time
from pathlib import Path
from anncoder.io.atomic import atomic_folder, atomic_path
folder, turn = Path(sys.argv[1]), 0
while True:
    turn += 1
    text = f"{turn}\\n" * 50_000
    with atomic_path(folder / "a.txt") as temporary:
        temporary.write_text(text)
    with atomic_folder(folder / "model", against=lambda folder: "") as temporary:
        for name in ("mark.json", "b.txt"):
            (temporary / name).write_text(text)
    print(turn, flush=True)
"""


class TestKilled:
    def test_a_killed_writer_leaves_whole_files_and_what_else_it_leaves_is_swept(self, tmp_path: Path) -> None:
        left = 0
        for delay in (0.0, 0.002, 0.004, 0.007, 0.01, 0.013, 0.017, 0.02, 0.025, 0.031):
            with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                time.sleep(delay)
                writer.kill()
            left += len([name for name in names(tmp_path) if name.startswith(".anncoder")])
            sweep(tmp_path)
            files_now = [tmp_path / "a.txt", tmp_path / "model" / "mark.json", tmp_path / "model" / "b.txt"]
            texts = [path.read_text() for path in files_now]
            for text in texts:
                assert len(set(text.splitlines())) == 1
                assert text.count("\n") == 50_000
            assert texts[1] == texts[2]
            assert names(tmp_path) == ["a.txt", "model"]
        assert left > 0  # or this test has tested nothing

    def test_the_next_writer_sweeps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / f"{atomic._prefix()}123-x").mkdir()
        monkeypatch.setattr(atomic, "_lives", lambda number: number != 123)
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("")
        assert names(tmp_path) == ["a.txt"]

    def test_only_the_dead_are_swept(self, tmp_path: Path) -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            pass
        prefix = atomic._prefix()
        alive, dead, elsewhere = f"{prefix}{os.getpid()}-x", f"{prefix}{ended.pid}-x", ".anncoder-00000000-1-x"
        for name in (alive, dead, elsewhere, f"{prefix}word-x"):
            (tmp_path / name / "sub").mkdir(parents=True)
        sweep(tmp_path)
        assert names(tmp_path) == sorted([alive, elsewhere, f"{prefix}word-x"])

    def test_a_folder_that_had_stepped_aside_comes_back(self, tmp_path: Path) -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            pass
        aside = tmp_path / f"{atomic._prefix()}{ended.pid}-x" / "aside" / "model"
        aside.mkdir(parents=True)
        (aside / MARK).write_text("old")
        sweep(tmp_path)
        assert names(tmp_path) == ["model"]
        assert (tmp_path / "model" / MARK).read_text() == "old"


class TestLocked:
    def test_a_lock_that_somebody_sweeps_is_had_a_moment_later(self, tmp_path: Path) -> None:
        fcntl = pytest.importorskip("fcntl")  # which Windows does not have
        with locked(tmp_path / "a"):
            (lock,) = tmp_path.iterdir()
        for removes in (False, True):  # whether the sweep has removed it before our second try
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

            def ends(descriptor: int = descriptor, removes: bool = removes) -> None:
                if removes:
                    lock.unlink()
                os.close(descriptor)

            ending = threading.Timer(0.1, ends)
            ending.start()
            with locked(tmp_path / "a"):
                assert names(tmp_path) == [lock.name]
            ending.join()
            assert names(tmp_path) == []

    def test_a_lock_that_is_held_is_not_had(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atomic, "PATIENCE", 0.1)
        with locked(tmp_path / "a"), pytest.raises(ResourceError) as caught, locked(tmp_path / "a"):
            pass
        assert caught.value.code == "output-in-use"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from anncoder.errors import ResourceError
from anncoder.io.atomic import atomic_path
from anncoder.io.hdf5 import new_h5
target = Path(sys.argv[1])
for limit in [0, 100, 2_000, 20_000, *range(50_000, 1_000_000, 100_000)]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with atomic_path(target) as temporary, new_h5(temporary) as (file, _):
            growing = file.create_dataset("growing", (0,), maxshape=(None,), chunks=(1000,), compression="gzip")
            for turn in range(20):
                file.create_dataset(f"group{turn}/data", data=np.arange(6_000))
                file.attrs[f"attribute{turn}"] = "x" * 500
                growing.resize((turn + 1) * 1500, axis=0)
                growing[-1500:] = np.random.default_rng(turn).random(1500)
    except ResourceError as error:
        assert "File too large" in str(error), error
    else:
        raise SystemExit(f"{limit} bytes were enough")
    assert target.read_text() == "old"
print("survived")
"""


class TestHDF5:
    def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(self, tmp_path: Path) -> None:
        target = tmp_path / "a.h5"
        target.write_text("old")
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(target)], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]
        assert names(tmp_path) == ["a.h5"]

    def test_what_is_written_is_read_back(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / "a.h5") as temporary, new_h5(temporary) as (file, _):
            file["x"] = np.arange(10)
        with h5py.File(tmp_path / "a.h5") as file:
            assert file["x"][:].tolist() == list(range(10))

    def test_other_errors_pass(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="mine"), new_h5(tmp_path / "a.h5"):
            raise ValueError("mine")


def test_one_file_by_many_names(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("")
    (tmp_path / "sub").mkdir()
    (tmp_path / "soft").symlink_to(target)
    os.link(target, tmp_path / "hard")
    for other in ("soft", "hard", "sub/../a.txt", "./a.txt"):
        assert same_file(target, tmp_path / other)
    assert not same_file(target, tmp_path / "sub")
    assert not same_file(target, tmp_path / "missing")


def test_a_writable_folder_is_left_as_it_was(tmp_path: Path) -> None:
    writable_folder(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", denied)  # chmod does not stop root
    with pytest.raises(ResourceError, match="Permission denied"):
        writable_folder(tmp_path)
