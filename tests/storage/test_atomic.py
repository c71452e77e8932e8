from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from equibit.storage import WriteError, atomic_bytes, atomic_path, atomic_text
from equibit.structures import EquibitError


def test_a_complete_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with atomic_text(path) as file:
        file.write("Å\n")
        assert path.read_text() == "old"
    assert path.read_bytes() == "Å\n".encode()
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(3)])
def test_any_error_keeps_the_old_file_and_leaves_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_bytes(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(WriteError, match=r"out\.npz: no space left on device; free some space"),
        atomic_bytes(tmp_path / "out.npz") as file,
    ):
        file.write(b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_disk_that_fills_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.bin"
    with (
        pytest.raises(WriteError, match="no space left"),
        atomic_path(path),
        open("/dev/full", "wb", buffering=0) as device,
    ):
        device.write(b"x")
    assert os.listdir(tmp_path) == []


def test_errors_of_other_files_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_bytes(tmp_path / "out"):
        (tmp_path / "missing").read_bytes()
    assert os.listdir(tmp_path) == []


def test_missing_folder_folder_and_device_are_refused(tmp_path: Path) -> None:
    for path, reason in [
        (tmp_path / "no" / "file", "there is no folder"),
        (tmp_path, "it is a folder"),
        (Path(os.devnull), "not a regular file"),
    ]:
        with pytest.raises(EquibitError, match=reason), atomic_bytes(path):
            pytest.fail("the block must not run")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_follow_the_umask_or_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    previous = os.umask(0o027)
    try:
        with atomic_bytes(path) as file:
            file.write(b"1")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    with atomic_bytes(path) as file:
        file.write(b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_text(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_the_temporary_path_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "data.npz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"x")
    assert (tmp_path / "data.npz").read_bytes() == b"x"
