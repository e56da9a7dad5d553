"""The environment variables under which a process sees the simulated device."""

from __future__ import annotations

import os
import subprocess
import sys

from build import HERE, RUNTIME_LIBRARY, build, compiler_key

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
        "LD_LIBRARY_PATH": _prepend(folder / "lib", "LD_LIBRARY_PATH"),
        "PATH": _prepend(folder / "bin", "PATH"),
        # CuPy's own cache does not look into included headers; the simulator's does, and rocforge's is one for each
        # state of the simulator.
        "CUPY_CACHE_IN_MEMORY": "1",
        "ROCFORGE_CACHE_DIR": os.environ.get("ROCFORGE_CACHE_DIR") or str(folder / f"rocforge-{compiler_key()}"),
    }
    if asan:
        library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        variables["LD_PRELOAD"] = os.path.realpath(library.stdout.strip())
        variables["ASAN_OPTIONS"] = "detect_leaks=0:halt_on_error=0:suppress_equal_pcs=0:handle_segv=0:handle_sigbus=0"
    return {**os.environ, **variables}


def _prepend(folder: os.PathLike, variable: str) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))
