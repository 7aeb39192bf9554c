"""Files: written under a temporary name beside the target, so that no half file ever has the final name."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from visionsft.errors import WriteError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ALMOST_NOTHING = 64 * 1024  # bytes


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `target` when the block ends well, and is removed otherwise.

    The temporary name keeps the suffix, by which many writers choose their format. Missing parent folders are
    made. A full disk raises `WriteError`, whatever the writer in the block made of it.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        with disk_trouble(target, temporary=temporary):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


@contextmanager
def disk_trouble(target: Path, *, temporary: Path | None = None) -> Iterator[None]:
    """Raise `WriteError` where writing `target` (under its `temporary` name) fails for want of space or rights."""
    temporary = temporary or target
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch and GDAL report a full disk as errors of their own
        if _is_about_writing(error, temporary):
            raise WriteError(_explain(error, target)) from error
        raise


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """The same for a folder, which is empty at first; a folder `target` that exists is replaced in the end."""
    target = Path(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with disk_trouble(target, temporary=temporary):
            # left by a process that was killed and had the same number
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: str | Path, text: str) -> None:
    """Write `text` as UTF-8, all or nothing."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8", newline="\n")


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_about_writing(error: OSError | RuntimeError, temporary: Path) -> bool:
    if isinstance(error, OSError) and (error.errno in _FULL or error.filename in _names(temporary)):
        return True
    return free_bytes(temporary.parent) < _ALMOST_NOTHING


def _names(temporary: Path) -> set[str]:
    return {str(path) for path in (temporary, *temporary.parents)}


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds `folder`, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _explain(error: OSError | RuntimeError, target: Path) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "the disk is full"
    return f"can't write {target}: {reason} ({free_bytes(target.parent) / 1e6:.1f} MB free on that disk)"
