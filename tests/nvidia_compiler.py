"""NVIDIA's NVRTC without a GPU or its driver, from the wheel nvidia-cuda-nvrtc.

It compiles for whatever architecture it is given. What it makes of a text here is what a machine with an NVIDIA GPU
makes of it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

WHEEL = "nvidia-cuda-nvrtc"


class Code(NamedTuple):
    """A program's PTX, and what the compiler has to say of it."""

    ptx: str
    log: str


class CompileError(Exception):
    """What NVRTC says of a program that does not compile."""


@functools.cache
def library() -> Path | None:
    """The wheel's libnvrtc; None where it is not installed."""
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(file.locate()) for file in files if file.match("libnvrtc.so.*")), None)


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    return ctypes.CDLL(str(library()))


def compile_program(text: str, options: Sequence[str], name: str = "program.hip") -> Code:
    """A program compiled. For an architecture such as sm_90 machine code is made of its PTX, too, by ptxas; for
    compute_90 not.

    Raises:
        CompileError: with the compiler's log.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None))
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), words)
        log = _text_of(program, "ProgramLog")
        if status:
            raise CompileError(log)
        return Code(_text_of(program, "PTX"), log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text_of(program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(getattr(_nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(getattr(_nvrtc(), f"nvrtcGet{what}")(program, data))
    return data.value.decode()


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"NVRTC: status {status}")
