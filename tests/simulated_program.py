"""Small programs that run in a process of their own on simulated devices, under tests/hipsim/run."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "hipsim" / "run"
WHEELS = {distribution.name for distribution in importlib.metadata.distributions()}
needs_wheel = pytest.mark.skipif("cupy-rocm-7-0" not in WHEELS, reason="the simulator runs the cupy-rocm-7-0 wheel")

PREAMBLE = """
import cupy as cp
import numpy as np
if cp.cuda.is_available():
    a, b = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
def kernel(source, name="k"):
    return cp.RawKernel(source, name)
def finish():
    cp.cuda.Device().synchronize()
"""


def simulate(program: str, arch: str = "gfx942", *options: str, **settings: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(RUN), "--arch", arch, *options, "python", "-c", PREAMBLE + program]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, timeout=300)


def output_of(program: str, arch: str = "gfx942", *options: str, **settings: str) -> str:
    done = simulate(program, arch, *options, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def error_of(program: str, arch: str = "gfx942", *options: str, **settings: str) -> str:
    done = simulate(program, arch, *options, **settings)
    assert done.returncode == 1, f"status {done.returncode}: {done.stdout}{done.stderr}"
    return done.stderr.strip().splitlines()[-1]
