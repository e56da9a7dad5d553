"""The environment variables under which a process sees the simulated devices."""

from __future__ import annotations

import os
import subprocess
import sys

import amd_compiler
from build import HERE, RUNTIME_LIBRARY, build, compiler_key


def simulated_environment(arch: str, hipcc: bool = True) -> dict[str, str]:
    """The present environment with the simulator built and put in front.

    Without hipcc it is that of a machine which has ROCm's libraries, and not its compilers and headers.
    """
    folder = build()
    tools = str(folder / "bin")
    compiler = os.environ.get("HIPSIM_HIPRTC") or compiler_key()
    libraries = [*_other_hiprtc(), str(folder / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    path = [tools, *os.get_exec_path()] if hipcc else [place for place in os.get_exec_path() if place != tools]
    environment = {
        **os.environ,
        "HIPSIM_ARCH": arch,
        "HIPSIM_PYTHON": sys.executable,
        "HIPSIM_COMPILE": str(HERE / "compile.py"),
        "HIPSIM_KERNELS": str(folder.parent / "kernels"),
        "HIPSIM_RUNTIME": str(folder / "lib" / RUNTIME_LIBRARY),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join(path),
        # CuPy's own cache does not look into included headers; the simulator's does, and rocforge's is one for each
        # state of the simulator, and one for AMD's code.
        "CUPY_CACHE_IN_MEMORY": "1",
        "ROCFORGE_CACHE_DIR": os.environ.get("ROCFORGE_CACHE_DIR") or str(folder / f"rocforge-{compiler}"),
    }
    if hipcc:
        environment["ROCM_HOME"] = str(folder)
    elif environment.get("ROCM_HOME") == str(folder):  # run by a process that has it
        del environment["ROCM_HOME"]
    if os.environ.get("HIPSIM_ASAN", "") not in ("", "0"):
        library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        options = "detect_leaks=0:halt_on_error=0:suppress_equal_pcs=0:handle_segv=0:handle_sigbus=0"
        environment |= {"LD_PRELOAD": os.path.realpath(library.stdout.strip()), "ASAN_OPTIONS": options}
    return environment


def _other_hiprtc() -> list[str]:
    """The folder of the libhiprtc that is to be loaded in place of the simulator's, if any."""
    chosen = os.environ.get("HIPSIM_HIPRTC", "")
    if chosen not in ("", "amd"):
        raise SystemExit(f"hipsim: HIPSIM_HIPRTC is amd or not set, not {chosen!r}")
    return [str(amd_compiler.fetch())] if chosen else []
