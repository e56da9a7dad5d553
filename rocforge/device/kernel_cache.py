"""The cache of compiled kernels on disk: one file each, named by a hash of everything that determines its code.

Writes are atomic, files are private to their owner, and the least recently used are evicted.
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
    """The cache folder: ROCFORGE_CACHE_DIR, else `rocforge/kernels` in the user's cache folder.

    A temporary folder of this process if that one belongs to another user or is not writable.
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
    """The file of the code that these parts determine; it need not exist."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return folder() / (digest.hexdigest()[:40] + SUFFIX)


def found(path: Path) -> bool:
    """Whether a file exists; marks it as used now."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def store(path: Path, code: bytes) -> None:
    """Write a file of code, and evict others if the cache is full."""
    write(path, code)
    _trim(files())


def write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
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
    """Evict the least recently used files, above LIMIT, down to three quarters of it."""
    total = sum(status.st_size for _, status in listed)
    if total <= LIMIT:
        return
    for path, status in sorted(listed, key=lambda item: item[1].st_mtime):
        if total <= LIMIT * 3 // 4:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= status.st_size
