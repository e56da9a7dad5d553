"""The environment variables under which a process sees the simulated device."""

from __future__ import annotations

import os
import subprocess
import sys

import amd_compiler
from build import HERE, RUNTIME_LIBRARY, build

ARCHS = {32: "gfx1100", 64: "gfx942"}  # one for each wave size


def simulated_environment(arch: str) -> dict[str, str]:
    """The present environment with the simulator built and put in front."""
    folder = build()
    asan = os.environ.get("HIPSIM_ASAN", "") not in ("", "0")
    variables = {
        "HIPSIM_ARCH": arch,
        "HIPSIM_PYTHON": sys.executable,
        "HIPSIM_COMPILE": str(HERE / "compile.py"),
        "HIPSIM_KERNELS": str(folder.parent / "kernels"),
        "HIPSIM_RUNTIME": str(folder / "lib" / RUNTIME_LIBRARY),
        "ROCM_HOME": str(folder),
        "LD_LIBRARY_PATH": os.pathsep.join([*_other_hiprtc(), _prepend(folder / "lib", "LD_LIBRARY_PATH")]),
        "PATH": _prepend(folder / "bin", "PATH"),
        # CuPy's own cache does not look into included headers; the simulator's does.
        "CUPY_CACHE_IN_MEMORY": "1",
    }
    if asan:
        library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        variables["LD_PRELOAD"] = os.path.realpath(library.stdout.strip())
        variables["ASAN_OPTIONS"] = "detect_leaks=0:halt_on_error=0:suppress_equal_pcs=0:handle_segv=0:handle_sigbus=0"
    return {**os.environ, **variables}


def _other_hiprtc() -> list[str]:
    """The folder of the libhiprtc that is to be loaded in place of the simulator's, if any."""
    chosen = os.environ.get("HIPSIM_HIPRTC", "")
    if chosen not in ("", "amd"):
        raise SystemExit(f"hipsim: HIPSIM_HIPRTC is amd or not set, not {chosen!r}")
    return [str(amd_compiler.fetch())] if chosen else []


def _prepend(folder: os.PathLike, variable: str) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))
