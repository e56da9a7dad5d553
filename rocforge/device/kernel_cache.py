"""Compiled kernels on disk: a file each, named by a hash of all that went into it.

Files are written whole or not at all, for their owner's eyes alone, and the longest unused go when there are too many.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

LIMIT = 1 << 30
"""Bytes of all files together. The kernels of a model take some 2 MB for each card."""
SUFFIX = ".code"


@functools.cache
def folder() -> Path:
    """Where the files are: ROCFORGE_CACHE_DIR, else `rocforge/kernels` in the user's cache folder.

    Where that is not the user's own, or cannot be written, it is a temporary folder of this process.
    """
    chosen = os.environ.get("ROCFORGE_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(chosen) if chosen else Path(base) / "rocforge" / "kernels"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            with tempfile.TemporaryFile(dir=path):
                return path
    except OSError:
        pass
    return Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rocforge-kernels-")


def file_of(*parts: str) -> Path:
    """The file for code that these parts decide, whether it is there or not."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return folder() / (digest.hexdigest()[:40] + SUFFIX)


def found(path: Path) -> bool:
    """Whether a file is there; it counts as used now."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def store(path: Path, code: bytes) -> None:
    """Write a file of code, and make room."""
    write(path, code)
    _trim(files())


def write(path: Path, content: bytes) -> None:
    """Write a file in one step for whoever looks."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def files() -> list[tuple[Path, os.stat_result]]:
    """All files with their status."""
    listed = []
    for path in folder().glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process removes files too
            listed.append((path, path.stat()))
    return listed


def _trim(listed: Sequence[tuple[Path, os.stat_result]]) -> None:
    """Remove the longest unused, if there is more than LIMIT, down to three quarters of it."""
    total = sum(status.st_size for _, status in listed)
    if total <= LIMIT:
        return
    for path, status in sorted(listed, key=lambda item: item[1].st_mtime):
        if total <= LIMIT * 3 // 4:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= status.st_size
