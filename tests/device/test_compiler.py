"""Compiling for a device: what decides the code, the files it is kept in, and processes that compile."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cupy as cp
import numpy as np
import pytest

from rocforge.device import compile_process, compiler
from rocforge.device.cards import card_of
from rocforge.device.compile_process import CompileProcess
from rocforge.device.compile_program import CompileError, compile_program

pytestmark = pytest.mark.any_wave

ADD = 'extern "C" __global__ void add(int* x, int n) {{ if (threadIdx.x < n) x[threadIdx.x] += {}; }}'
"""A program for a number."""


def result(module):
    """What a module's kernel makes of seven."""
    x = cp.asarray(np.array([7], np.int32))
    module.get_function("add")((1,), (32,), (x, np.int32(1)))
    return int(x.get()[0])


def test_compiled_once(cache):
    """The second time the code comes from disk, which the compiler is not asked for."""
    compiled = []

    def counted(*job):
        compiled.append(job)
        return compile_program(*job)

    assert [result(compiler.load_module(ADD.format(3), card_of(0), counted)) for _ in range(2)] == [10, 10]
    assert len(compiled) == 1 and compiler.code_file(ADD.format(3), card_of(0)).exists()


def test_damaged_file(cache):
    """Code that does not load is compiled again."""
    path = compiler.compiled_file(ADD.format(4), card_of(0))
    path.write_bytes(b"damaged")
    assert result(compiler.load_module(ADD.format(4), card_of(0))) == 11


def test_cards_of_one_compute_capability(cache):
    """gfx1100 and gfx1103, or one card with other features, have code of their own."""
    arches = ["gfx1030", "gfx1036", "gfx1100", "gfx1103", "gfx90a:sramecc+:xnack-", "gfx90a:sramecc+:xnack+"]
    if not cp.cuda.runtime.is_hip:
        arches = ["sm_75", "sm_80"]
    cards = [dataclasses.replace(card_of(0), arch=arch) for arch in arches]
    assert len({compiler.code_file(ADD.format(1), card) for card in cards}) == len(cards)
    assert all(any(card.arch in option for option in compiler.options(card)) for card in cards)


def test_program_that_does_not_compile(cache):
    """The error is the compiler's log, and nothing is kept."""
    with pytest.raises(CompileError, match="nonsense"):
        compiler.compiled_file(ADD.format("nonsense"), card_of(0))
    assert not compiler.code_file(ADD.format("nonsense"), card_of(0)).exists()


def test_processes(cache):
    """Threads with a process each: the code is right, an error comes back as one, and the processes end."""
    processes = [CompileProcess() for _ in range(2)]

    def compiled(number):
        process = processes[number % 2]
        return result(compiler.load_module(ADD.format(number), card_of(0), process))

    if cp.cuda.runtime.is_hip:
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(compiled, (10, 11))) == [17, 18]
        with pytest.raises(CompileError, match="nonsense"):
            processes[0](ADD.format("nonsense"), compiler.options(card_of(0)), compiler.kind(card_of(0)))
        children = [process._process for process in processes]
        for process in processes:
            process.close()
        assert [child.returncode for child in children] == [0, 0]


def test_process_that_ends(cache, monkeypatch):
    """Where there is no such process, this one compiles."""
    monkeypatch.setattr(compile_process.sys, "executable", "/bin/false")
    assert result(compiler.load_module(ADD.format(5), card_of(0), CompileProcess())) == 12


def test_process_imports_little():
    """A compiling process imports neither NumPy nor CuPy around the binding."""
    script = compile_process.program.__file__
    heavy = {"numpy", "cupy", "rocforge"}
    code = f"import runpy, sys; runpy.run_path({script!r}); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
