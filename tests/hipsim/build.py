"""Builds the simulator into a cache folder, once for each state of its sources and each version of the wheel."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stubs import LIBRARIES, stub_source, wheel_symbols

HERE = Path(__file__).resolve().parent
ABI = HERE / "include" / "hipsim" / "device_abi.h"
RUNTIME_LIBRARY = "libamdhip64.so.7"
PARTS = {  # the sources of each library; the libraries that have none are all stubs
    "libamdhip64.so.7": "errors device memory queue stream graph copy fiber execute overlap faults module",
    "libhiprtc.so.7": "hiprtc",
    "libhipblas.so.3": "hipblas",
    "libhiprand.so.1": "hiprand",
    "librccl.so.1": "rccl",
}
CXX_OPTIONS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden"]
# The folder may serve several checkouts, and outlive each: the sources are those of the process.
HIPCC = """#!/bin/sh
here="${HIPSIM_COMPILE%/*}"
PYTHONPATH="$here" exec "$HIPSIM_PYTHON" -s -S "$here/hipcc.py" "$@"
"""


def wheel_folder() -> Path:
    """The site-packages folder with CuPy for ROCm in it."""
    found = importlib.util.find_spec("cupy_backends")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("hipsim: cupy-rocm-7-0 is not installed for this Python")
    return Path(found.submodule_search_locations[0]).parent


def cache_folder() -> Path:
    return Path(os.environ.get("HIPSIM_CACHE") or Path.home() / ".cache" / "rocforge-hipsim")


def state_key(symbols: dict[str, list[str]]) -> str:
    """A hash of all that goes into the build."""
    digest = hashlib.sha256(repr((sorted(symbols.items()), sys.version)).encode())
    for path in [HERE / "build.py", HERE / "stubs.py", *sorted((HERE / "src").iterdir()), ABI]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compiler_key() -> str:
    """A hash of what turns a kernel's source into code, and of the settings that it depends on."""
    digest = hashlib.sha256(os.environ.get("HIPSIM_ASAN", "").encode())
    for path in [HERE / "compile.py", *sorted((HERE / "include" / "hipsim").iterdir())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"hipsim: {' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def build_library(name: str, wanted: list[str], folder: Path) -> None:
    """Links the parts of one library, and stubs for those of the wheel's symbols that no part defines."""
    objects = [str(folder / f"{part}.o") for part in PARTS.get(name, "").split()]
    defined = set(run(["nm", "--defined-only", "-j", *objects]).split()) if objects else set()
    stubs = folder / f"{name}.stubs.c"
    stubs.write_text(stub_source(name, [symbol for symbol in wanted if symbol not in defined]))
    runtime = [] if name == RUNTIME_LIBRARY else [str(folder / "lib" / RUNTIME_LIBRARY)]
    output = str(folder / "lib" / name)
    options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", output]
    run(["g++", *options, "-x", "c++", str(stubs), "-x", "none", *objects, *runtime])


def compile_part(part: str, folder: Path) -> None:
    source, output = HERE / "src" / f"{part}.cpp", folder / f"{part}.o"
    run(["g++", *CXX_OPTIONS, f"-I{HERE / 'include'}", "-c", str(source), "-o", str(output)])


def build() -> Path:
    """Builds if need be; returns the folder, in which lib/ holds the libraries and bin/ a hipcc."""
    symbols = wheel_symbols(wheel_folder())
    folder = cache_folder() / state_key(symbols)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").exists():
            return folder
        (folder / "lib").mkdir(exist_ok=True)
        (folder / "bin").mkdir(exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_part, " ".join(PARTS.values()).split(), itertools.repeat(folder)))
        for name in sorted(LIBRARIES, key=lambda name: name != RUNTIME_LIBRARY):
            build_library(name, symbols[name], folder)
        hipcc = folder / "bin" / "hipcc"
        hipcc.write_text(HIPCC)
        hipcc.chmod(0o755)
        (folder / "complete").touch()
    return folder
