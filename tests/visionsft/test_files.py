"""Atomic writing: all of a file or nothing of it, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from visionsft.errors import WriteError
from visionsft.files import atomic_folder, atomic_path, write_text


def test_the_file_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "new" / "map.tif"
    with atomic_path(target) as path:
        assert path.parent == target.parent
        assert path.suffix == ".tif"
        path.write_text("pixels")
        assert not target.exists()
    assert target.read_text() == "pixels"
    assert os.listdir(target.parent) == ["map.tif"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise KeyError("class")

    with pytest.raises(KeyError):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["scores.json"]


def test_errors_about_other_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input\.tif"), atomic_path(tmp_path / "out.tif"):
        (tmp_path / "input.tif").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path: Path, code: int) -> None:
    target = tmp_path / "map.tif"
    with pytest.raises(WriteError, match=r"can't write .*map\.tif: .*MB free") as caught, atomic_path(target):
        raise OSError(code, os.strerror(code))
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) == []


def test_a_writer_that_hides_the_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save says "PytorchStreamWriter failed" and no errno; the disk itself tells what happened."""
    monkeypatch.setattr("visionsft.files.free_bytes", lambda folder: 0)
    with pytest.raises(WriteError, match="the disk is full"), atomic_path(tmp_path / "last.ckpt"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/5: file write failed")


def test_a_runtime_error_with_space_left_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), atomic_path(tmp_path / "last.ckpt"):
        raise RuntimeError("shape mismatch")


def test_a_limit_that_the_system_sets(tmp_path: Path) -> None:
    """A real write that the kernel refuses half-way."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from visionsft.errors import WriteError; from visionsft.files import write_text\n"
        "try: write_text(sys.argv[1], 'x' * 5000)\n"
        "except WriteError as error: print(error)"
    )
    answer = subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"], capture_output=True, text=True)
    assert "a.txt: File too large" in answer.stdout, answer.stderr
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(WriteError, match="can't write"):
        write_text(tmp_path / "runs" / "demo" / "config.yaml", "")


def test_a_killed_process_leaves_no_final_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from visionsft.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path:\n"
        "    path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    target = tmp_path / "scores.json"
    assert subprocess.run([sys.executable, "-c", code, target]).returncode == -signal.SIGKILL
    assert not target.exists()
    assert all(name.startswith(".") for name in os.listdir(tmp_path))


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "maps"
    with atomic_folder(target) as folder:
        (folder / "old.png").touch()
        assert not target.exists()

    def fail() -> None:
        with atomic_folder(target) as folder:
            (folder / "new.png").touch()
            raise KeyError("class")

    with pytest.raises(KeyError):
        fail()
    assert os.listdir(target) == ["old.png"]
    with atomic_folder(target) as folder:
        (folder / "new.png").touch()
    assert os.listdir(target) == ["new.png"]
    assert os.listdir(tmp_path) == ["maps"]


def test_a_killed_processes_half_folder_is_not_taken_up(tmp_path: Path) -> None:
    """In containers, the next process may well have the same number."""
    left = tmp_path / f".maps.{os.getpid()}.partial"
    left.mkdir()
    (left / "half.png").touch()
    with atomic_folder(tmp_path / "maps") as folder:
        (folder / "whole.png").touch()
    assert os.listdir(tmp_path / "maps") == ["whole.png"]


def test_a_full_disk_is_named_for_folders(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"can't write .*maps: .*MB free"), atomic_folder(tmp_path / "maps"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []
