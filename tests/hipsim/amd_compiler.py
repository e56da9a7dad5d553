"""AMD's own compiler, without a GPU: the hiprtc of ROCm 7.14, taken from a wheel on PyPI that bundles it.

    python tests/hipsim/amd_compiler.py        downloads and unpacks it into the simulator's cache folder

hiprtc compiles for whatever --offload-arch it is given. What it compiles here, behind its own headers and with its own
LLVM, is what a machine with an AMD GPU compiles.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

WHEEL = "vapoursynth-dfttest2-hiprtc==11.1.0"
ROCM = "7.14"
LIBRARIES = {"libhiprtc.so.7": "libhiprtc-*", "libamd_comgr.so.3": "libamd_comgr-*"}
"""The names that programs load, and those of the wheel's files."""


def folder() -> Path:
    """Where the libraries lie once `fetch` has been called."""
    cache = Path(os.environ.get("HIPSIM_CACHE") or Path.home() / ".cache" / "rocforge-hipsim")
    return cache / f"rocm-{ROCM}"


def available() -> bool:
    return (folder() / "libhiprtc.so.7").exists()


def fetch() -> Path:
    """Download and unpack, where that has not been done; returns the folder."""
    home = folder()
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_suffix(".lock"), "w") as lock, tempfile.TemporaryDirectory(dir=home.parent) as work:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not available():
            options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12"]
            options += ["--platform=manylinux_2_28_x86_64", f"--dest={work}"]
            subprocess.run([sys.executable, "-m", "pip", "download", *options, WHEEL], check=True)
            unpacked = Path(work) / "unpacked"
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
                wheel.extractall(unpacked)
            libraries = next(unpacked.glob("*.libs"))
            for name, pattern in LIBRARIES.items():
                (libraries / name).symlink_to(next(libraries.glob(pattern)).name)
            shutil.rmtree(home, ignore_errors=True)
            libraries.rename(home)
    return home


NO_CODE = "warning: argument unused during compilation: '-c' [-Wunused-command-line-argument]"
"""What hiprtc says of every program that it is to make no code of."""


class CompileError(Exception):
    """What hiprtc says of a program that does not compile."""


@functools.cache
def _hiprtc() -> ctypes.CDLL:
    return ctypes.CDLL(str(folder() / "libhiprtc.so.7"))


def compile_program(text: str, options: Sequence[str], name: str = "program.hip") -> tuple[bytes, str]:
    """A program's code object, an ELF file, and what the compiler has to say of it.

    One program at a time is compiled in a process: several at a time take processes.

    Raises:
        CompileError: with the compiler's log.
    """
    hiprtc, program = _hiprtc(), ctypes.c_void_p()
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _check(hiprtc.hiprtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
    try:
        status = hiprtc.hiprtcCompileProgram(program, len(options), words)
        log = _bytes_of(program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            raise CompileError(log)
        return _bytes_of(program, "Code"), log
    finally:
        hiprtc.hiprtcDestroyProgram(ctypes.byref(program))


def check_program(text: str, options: Sequence[str]) -> None:
    """Compiles a program as far as the rules of the language go, with templates as they are used, and makes no code.

    Raises:
        CompileError: with the compiler's log.
    """
    try:
        compile_program(text, [*options, "-fsyntax-only"])
    except CompileError as error:  # hiprtc misses the code
        if not str(error).startswith(NO_CODE) or "error:" in str(error):
            raise


def _bytes_of(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_hiprtc(), f"hiprtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(_hiprtc(), f"hiprtcGet{what}")(program, data))
    return data.raw


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"hiprtc: status {status}")


if __name__ == "__main__":
    print(fetch())
