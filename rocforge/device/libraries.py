"""Imports CuPy once, on first use; if that fails, names the missing ROCm libraries."""

from __future__ import annotations

import ctypes
import functools
import glob
import re
from types import ModuleType

from rocforge.errors import DeviceError

ROCM = {
    "libamdhip64.so.7": "hip-runtime-amd",
    "libhiprtc.so.7": "hip-runtime-amd",
    "libhipblas.so.3": "hipblas",
    "librocblas.so.5": "rocblas",
    "librocsolver.so.0": "rocsolver",
    "librocfft.so.0": "rocfft",
    "libhipfft.so.0": "hipfft",
    "libhiprand.so.1": "hiprand",
    "libhipsparse.so.4": "hipsparse",
    "librccl.so.1": "rccl",
    "libroctx64.so.4": "roctracer",
    "libroctracer64.so.4": "roctracer",
}
"""Libraries that the wheel cupy-rocm-7-0 loads, and their ROCm 7 packages (Debian, Ubuntu, RHEL and SUSE alike)."""
RUNTIME = "libamdhip64.so"
FOLDERS = ("/opt/rocm*/lib", "/opt/rocm*/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")


@functools.cache
def import_cupy() -> tuple[ModuleType | None, str | None]:
    """CuPy if it imports and finds a device, else None; and the reason why not, in one line."""
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return None, "CuPy is not installed (pip install 'rocforge[rocm]' or 'rocforge[cuda]')"
        return None, f"CuPy is installed but does not import: {_explained(error)}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return None, f"CuPy {cupy.__version__} finds no usable GPU: {error}"
    if count == 0:
        return None, f"CuPy {cupy.__version__} finds no GPU"
    return cupy, None


def cupy_module() -> ModuleType:
    """CuPy, or a DeviceError that says why there is none."""
    module, reason = import_cupy()
    if module is None:
        raise DeviceError(f"no GPU: {reason}")
    return module


def _explained(error: ImportError) -> str:
    """The missing ROCm libraries, if that is the cause; else the import's own message."""
    if _wheel_is_for_rocm() and (missing := missing_libraries()):
        return missing
    lines = str(error).strip().splitlines()
    return next((line.strip() for line in reversed(lines) if ".so" in line), lines[0] if lines else repr(error))


def _wheel_is_for_rocm() -> bool:
    from importlib import metadata  # late, since it takes its time

    return any(metadata.distributions(name="cupy-rocm-7-0"))


def missing_libraries() -> str | None:
    """One line: which ROCm 7 libraries cannot be loaded, and what to do; None if all can."""
    missing = [name for name in ROCM if not _loads(name)]
    if not missing:
        return None
    wanted = f"{RUNTIME}.7"
    if wanted in missing:
        runtimes = installed_runtimes()
        if wanted in runtimes:
            folder = runtimes[wanted]
            return f"{wanted} is in {folder}, which the loader does not search: set LD_LIBRARY_PATH={folder}"
        if runtimes:
            name, folder = max(runtimes.items(), key=lambda item: int(item[0].rpartition(".")[2]))
            major = name.rpartition(".")[2]
            return f"it needs ROCm 7; found ROCm {major} ({folder}/{name}): install ROCm 7 ({_packages(missing)})"
        return f"ROCm 7 is not installed: {', '.join(missing)} are missing; install {_packages(missing)}"
    return f"ROCm 7's {', '.join(missing)} cannot be loaded; install {_packages(missing)}"


def _packages(libraries: list[str]) -> str:
    return ", ".join(dict.fromkeys(ROCM[name] for name in libraries))


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def installed_runtimes() -> dict[str, str]:
    """HIP runtimes of any major version in ROCm's folders: file name -> folder."""
    found = [path for folder in FOLDERS for path in glob.glob(f"{folder}/{RUNTIME}.*")]
    return {
        name: folder for folder, name in (path.rsplit("/", 1) for path in found) if re.fullmatch(r".*\.so\.\d+", name)
    }
