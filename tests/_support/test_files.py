"""Files are whole or not there, folders are one process's at a time, and what cannot be written is told beforehand."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from explainfix_ext._support.files import check_writable, locked, write_atomic


@pytest.fixture
def small_disk():
    """Files may not be longer than 4 KiB: what a full disk does to a write, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write", [lambda file: file.write(bytes(100_000)), lambda file: torch.save({"a": torch.zeros(100_000)}, file)]
)
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, small_disk, write):
    path = tmp_path / "new" / "file"
    write_atomic(path, lambda file: file.write(b"old"))
    with pytest.raises(OSError, match=r"File too large: '.*new/file'$"):
        write_atomic(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["file"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def stop(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", stop)
    assert os.listdir(tmp_path) == []


# Before the work -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_told_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.tmp").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    before = sorted(os.listdir(tmp_path))
    check_writable(tmp_path / "file", tmp_path / "new" / "newer" / "file")
    for name, error, message in (
        ("folder", IsADirectoryError, "/folder is a folder: it is in the way of a file to write"),
        (".", IsADirectoryError, " is a folder: it is in the way of a file to write"),
        ("x", IsADirectoryError, "/x.tmp is a folder"),
        ("file/new/x", NotADirectoryError, "/file/new/x must be in a folder, .*/file is a file"),
        ("nowhere/x", NotADirectoryError, "/nowhere is a file"),
        ("x" * 253, OSError, "File name too long"),  # with .tmp
    ):
        with pytest.raises(error, match=message):
            check_writable(tmp_path / "good", tmp_path / name)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="new/x cannot be written: no permission to write into"):
        check_writable(tmp_path / "new" / "x")
    assert sorted(os.listdir(tmp_path)) == before


# Locks ---------------------------------------------------------------------------------------------------------------


def test_a_folder_is_locked_once_and_leaves_no_trace(tmp_path):
    folder = tmp_path / "new" / "out"
    with locked(folder):
        told = "another process writes into .*new/out: wait for it, or choose"
        with pytest.raises(FileExistsError, match=told), locked(folder):
            pass
        assert folder.is_dir()
    assert os.listdir(tmp_path) == []
    with locked(folder):
        (folder / "file").write_bytes(b"x")
    with locked(folder), locked(tmp_path / "other"):
        pass
    assert os.listdir(tmp_path / "new" / "out") == ["file"]


def test_a_file_system_without_locks_is_gone_on_with(tmp_path, monkeypatch):
    import fcntl

    def flock(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "out"):
        (tmp_path / "out" / "file").write_bytes(b"x")


_CHILD = """
import os, sys, time
from pathlib import Path
from explainfix_ext._support.files import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(300)
"""


def test_a_killed_process_leaves_no_lock_though_its_children_live(tmp_path: Path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", _CHILD, str(out)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(FileExistsError, match="another process writes into"), locked(out):
            pass
        process.kill()
        process.wait()
        with locked(out):
            os.kill(child, 0)  # it lives
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
