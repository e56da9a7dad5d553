"""What the sources in rawkernels/ compile to without a GPU: by AMD's hiprtc, and by NVIDIA's NVRTC.

Each compilation has a place in a pool of processes, since either compiles one program at a time in a process.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nvidia_compiler
import pytest

from rocforge.device import kernels, tuning
from rocforge.device.cards import AMD, Card
from rocforge.device.compiler import COMPLETE, options
from rocforge.device.kernels import macros, source_folder, with_defines

sys.path.append(str(Path(__file__).parent / "hipsim"))
import amd_compiler
import code_objects

needs_amd_compiler = pytest.mark.skipif(
    not amd_compiler.available() and os.environ.get("CI") != "true",
    reason="needs AMD's compiler: python tests/hipsim/amd_compiler.py",
)
needs_nvrtc = pytest.mark.skipif(
    nvidia_compiler.library() is None and os.environ.get("CI") != "true",
    reason=f"needs NVRTC: pip install {nvidia_compiler.WHEEL}",
)
SOURCES = sorted(path.name for path in source_folder().glob("*.hip"))
REPRESENTATIVES = ["gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1151", "gfx1201"]
"""One target of each set of instructions."""
SMALL = "quantize.hip"
Defines = tuple[tuple[str, str], ...]
Case = tuple[str, Defines, str]
"""A source, its defines, and a target: what is compiled at once."""


def variants(source: str) -> list[Defines]:
    """The sets of defines that a source is compiled with."""
    return [tuple(defines.items()) for defines in kernels.variants(source)]


def targets(source: str) -> list[str]:
    """The AMD targets that a source is for."""
    return [target for target in AMD if kernels.is_for(source, target)]


def family(target: str) -> str:
    """CDNA, or RDNA 2, 3, 3.5 or 4: gfx9, gfx103, gfx110, gfx115, gfx120."""
    return "gfx9" if AMD[target] == 64 else target[:-1]


def every_case() -> Iterator[Case]:
    """Each variant of each source, for each of its targets."""
    for source in SOURCES:
        yield from ((source, *rest) for rest in itertools.product(variants(source), targets(source)))


EVERY_TARGET = bool(os.environ.get("EVERY_TARGET"))
"""Whether tests look at more targets than a plain run does, as they do each night."""


def covering_cases() -> Iterator[Case]:
    """Each variant of each source for a representative, RDNA's and CDNA's in turn, and each source for all of them; and
    one source for each target."""
    for source in SOURCES:
        found, members = variants(source), [target for target in REPRESENTATIVES if target in targets(source)]
        rdna = [target for target in members if AMD[target] == 32]
        cdna = [target for target in members if target not in rdna]
        in_turn = [target for both in itertools.zip_longest(rdna[::-1], cdna) for target in both if target]
        for i in range(max(len(found), len(in_turn)) if in_turn else 0):
            yield source, found[i % len(found)], in_turn[i % len(in_turn)]
    yield from ((SMALL, variants(SMALL)[0], target) for target in targets(SMALL) if target not in REPRESENTATIVES)


def program(source: str, defines: Defines, card: Card) -> str:
    """The text that rocforge compiles for a card, as it is shipped."""
    return with_defines(source, macros(source, dict(defines), card, tuning.shipped(card.arch)))


def card_with(target: str) -> Card:
    """A card of an architecture, whose name HIP gives with its features."""
    wave = AMD.get(target, 32)
    arch = f"{target}:sramecc+:xnack-" if wave == 64 else target
    return Card(target, arch, wave, compute_units=1, shares_host_memory=False)


def code_for(source: str, defines: Defines, target: str) -> dict[str, code_objects.Kernel]:
    """The kernels of a source, by name, compiled with the options and the text that rocforge passes.

    Raises:
        CompileError: it does not compile, or not without a warning.
    """
    text, warnings = program(source, defines, card_with(target)), ("-Wall", "-Wno-unused")
    code, log = amd_compiler.compile_program(text, options(card_with(target)) + warnings)
    if log:
        raise amd_compiler.CompileError(log)
    return code_objects.kernels_of(code, target)


def check(source: str, defines: Defines, target: str, header: str) -> None:
    """Compiles a source for an AMD target, behind a header, and makes no code.

    Raises:
        CompileError: it does not compile.
    """
    amd_compiler.check_program(header + program(source, defines, card_with(target)), options(card_with(target)))


def nvidia_code_for(source: str, defines: Defines, target: str) -> nvidia_compiler.Code:
    """A source compiled with the options and the text that rocforge passes: for sm_N as on a card; for compute_N to PTX
    alone, and unoptimized, which takes a tenth of the time.

    Raises:
        CompileError: it does not compile.
    """
    card = card_with(target.replace("compute", "sm"))
    arch = COMPLETE.get(card.arch, card.arch)
    if target == card.arch:
        given = (*options(card, arch), "--ptxas-options=-v")
    else:
        given = (*options(card, arch.replace("sm", "compute")), "--device-debug")
    return nvidia_compiler.compile_program(program(source, defines, card), given)


@functools.cache
def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


@functools.cache
def compilation(source: str, defines: Defines, target: str) -> Future[Any]:
    """What `code_for` or `nvidia_code_for` makes of a case, under way."""
    return _processes().submit(code_for if target in AMD else nvidia_code_for, source, defines, target)


def under_check(source: str, defines: Defines, target: str, header: str) -> Future[None]:
    """`check`, under way."""
    return _processes().submit(check, source, defines, target, header)


def stop() -> None:
    """Ends the processes; what has not begun is not compiled."""
    _processes().shutdown(cancel_futures=True)
    _processes.cache_clear()
    compilation.cache_clear()
