"""Compiled kernels on disk: whole files, for their owner alone, bounded, told apart by all that decides the code."""

import os
import stat

import pytest

from rocforge.device import kernel_cache


def test_stored_and_found(cache):
    """What is stored is found, by its parts in their order, and by nothing else."""
    path = kernel_cache.file_of("hip 7", "gfx1100", "text")
    assert not kernel_cache.found(path)
    kernel_cache.store(path, b"code")
    assert kernel_cache.found(path) and path.read_bytes() == b"code"
    others = [("hip 7", "gfx1103", "text"), ("hip 8", "gfx1100", "text"), ("hip 7", "gfx1100t", "ext"), ("hip 7",)]
    assert len({path, *(kernel_cache.file_of(*parts) for parts in others)}) == 1 + len(others)


def test_private(cache):
    """The folder and its files can be read and written by their owner alone."""
    path = kernel_cache.file_of("x")
    kernel_cache.store(path, b"code")
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (cache, path)]
    assert modes == [0o700, 0o600]


def test_folder_that_others_can_write(cache):
    """Code is not taken from a folder where somebody else may have put it."""
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert kernel_cache.folder() != cache and kernel_cache.folder().is_dir()


def test_folder_that_cannot_be_made(cache):
    """Where there can be no such folder, there is one for this process."""
    cache.parent.write_text("a file")
    path = kernel_cache.file_of("x")
    kernel_cache.store(path, b"code")
    assert kernel_cache.found(path) and cache not in path.parents


def test_bounded(cache, monkeypatch):
    """Past the limit the longest unused go."""
    monkeypatch.setattr(kernel_cache, "LIMIT", 400)
    paths = [kernel_cache.file_of(str(i)) for i in range(5)]
    for i, path in enumerate(paths[:4]):
        kernel_cache.store(path, bytes(100))
        os.utime(path, (i, i))
    kernel_cache.found(paths[0])  # used just now
    kernel_cache.store(paths[4], bytes(100))
    assert [path.exists() for path in paths] == [True, False, False, True, True]


def test_nothing_is_left_of_a_failed_write(cache, monkeypatch):
    """A full disk leaves no half of a file, under any name."""

    def fail(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(kernel_cache.os, "replace", fail)
    with pytest.raises(OSError, match="space"):
        kernel_cache.store(kernel_cache.file_of("x"), b"code")
    assert not list(cache.iterdir())
