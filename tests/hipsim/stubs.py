"""Stubs for the functions of ROCm's libraries that the wheel names and the simulator does not implement."""

from __future__ import annotations

import subprocess
from pathlib import Path

# Library: the prefixes of its functions, and what a stub returns (each library's own "not supported").
LIBRARIES = {
    "libamdhip64.so.7": (("hip", "__hip"), 801),
    "libhiprtc.so.7": (("hiprtc",), 11),
    "libhipblas.so.3": (("hipblas",), 7),
    "librocblas.so.5": (("rocblas_",), 2),
    "librocsolver.so.0": (("rocsolver_",), 2),
    "librocfft.so.0": (("rocfft_",), 1),
    "libhipfft.so.0": (("hipfft",), 16),
    "libhiprand.so.1": (("hiprand",), 1000),
    "libhipsparse.so.4": (("hipsparse",), 10),
    "librccl.so.1": (("nccl",), 3),
    "libroctx64.so.4": (("roctx",), 0),
    "libroctracer64.so.4": (("roctracer_",), 0),
}


def owner(symbol: str) -> str | None:
    """The library a symbol belongs to: the one with the longest matching prefix."""
    matches = [(len(p), name) for name, (prefixes, _) in LIBRARIES.items() for p in prefixes if symbol.startswith(p)]
    return max(matches)[1] if matches else None


def wheel_symbols(site_packages: Path) -> dict[str, list[str]]:
    """What the wheel's extension modules leave undefined, by library."""
    modules = [str(p) for top in ("cupy", "cupy_backends", "cupyx") for p in (site_packages / top).rglob("*.so")]
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", "-j", *modules], capture_output=True, text=True, check=True
    )
    by_library: dict[str, list[str]] = {name: [] for name in LIBRARIES}
    for symbol in sorted({line.split("@")[0] for line in listing.stdout.split()}):
        if library := owner(symbol):
            by_library[library].append(symbol)
    return by_library


def stub_source(library: str, symbols: list[str]) -> str:
    """C++ in which each symbol says its name once under HIPSIM_TRACE and returns the library's error."""
    _, code = LIBRARIES[library]
    lines = ['extern "C" {', "int hipsim_unsupported(const char*, int, int*);"]
    # ld.so asks for symbol versions of a library only if it has a table of versions, which a use of libc brings.
    lines.append("void abort(); void* hipsim_uses_libc = (void*)abort;")
    for symbol in symbols:
        lines.append(f'int {symbol}() {{ static int said; return hipsim_unsupported("{symbol}", {code}, &said); }}')
    return "\n".join([*lines, "}", ""])
