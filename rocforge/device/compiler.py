"""Compiles kernels for a device with hiprtc or NVRTC, and caches the code on disk.

CuPy's own compile path is not used: on ROCm it needs hipcc, and its cache confuses cards of one compute capability,
such as gfx1100 and gfx1103. This cache is keyed by the card's full architecture name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rocforge.device import kernel_cache
from rocforge.device.cards import Card
from rocforge.device.compile_program import compile_program
from rocforge.device.libraries import cupy_module

Compile = Callable[[str, tuple[str, ...], str], bytes]
"""(program, options, kind of code) -> code: `compile_program`, here or in another process."""


def options(card: Card, nvidia_arch: str | None = None) -> tuple[str, ...]:
    """The options of hiprtc or NVRTC for a card; the same for all programs, whose macros are part of the text.

    Args:
        nvidia_arch: of NVRTC; None: the card's, or the newest that CuPy's NVRTC knows.
    """
    arch = card.arch if card.is_amd else nvidia_arch or _nvidia_arch(card.arch)
    target = f"--offload-arch={arch}" if card.is_amd else f"--gpu-architecture={arch}"
    return ("-std=c++17", f"-DRF_WAVE={card.wave}", target, *(() if card.is_amd else ("-ftz=true",)))


def kind(card: Card) -> str:
    """The kind of code: "hip", "cubin", or "ptx", which the driver compiles further, for a card newer than NVRTC."""
    if card.is_amd:
        return "hip"
    return "cubin" if _nvidia_arch(card.arch).startswith("sm_") else "ptx"


COMPLETE = {"sm_90": "sm_90a"}
"""By NVIDIA architecture, the name of its target with the instructions that later ones do not have."""


@functools.cache
def _nvidia_arch(arch: str) -> str:
    known = cupy_module().cuda.nvrtc.getSupportedArchs()
    number = int(arch.removeprefix("sm_"))
    return COMPLETE.get(arch, arch) if number in known else f"compute_{max(each for each in known if each <= number)}"


@functools.cache
def toolkit() -> str:
    """The compiler's and the toolkit's version, which are part of the cache's key."""
    cuda = cupy_module().cuda
    return f"{'hip' if cuda.runtime.is_hip else 'cuda'} {cuda.runtime.runtimeGetVersion()} {cuda.nvrtc.getVersion()}"


def code_file(text: str, card: Card) -> Path:
    """The cache file of a program's code for a card; it need not exist."""
    return kernel_cache.file_of(toolkit(), kind(card), *options(card), text)


def compiled_file(text: str, card: Card, compile: Compile = compile_program) -> Path:
    """The cache file of a program's code for a card, compiled if needed.

    Raises:
        CompileError: with the compiler's log.
    """
    path = code_file(text, card)
    if not kernel_cache.found(path):
        kernel_cache.store(path, compile(text, options(card), kind(card)))
    return path


def load_module(text: str, card: Card, compile: Compile = compile_program) -> Any:
    """A program's module on the current device, as a `cupy.RawModule`; code that does not load is compiled again.

    Raises:
        CompileError: with the compiler's log.
    """
    path = compiled_file(text, card, compile)
    try:
        return _loaded(path)
    except cupy_module().cuda.driver.CUDADriverError:
        path.unlink(missing_ok=True)  # damaged, or removed by another process
    return _loaded(compiled_file(text, card, compile))


def _loaded(path: Path) -> Any:
    module = cupy_module().RawModule(path=str(path))
    module.compile()
    return module
