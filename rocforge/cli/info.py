"""`rocforge info`: whether this machine can run on a GPU, and if not why; the device, the kernels, the versions."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rocforge import __version__
from rocforge.arrays import device_info
from rocforge.cli.options import Device, Json
from rocforge.cli.output import binary_size, table, write_json
from rocforge.kernels import source_folder
from rocforge.models import ARCHITECTURES

_PACKAGES = ("numpy", "cupy-rocm-7-0", "cupy-cuda13x", "gguf", "tokenizers", "jinja2", "huggingface_hub")


def info(device: Device = None, as_json: Json = False) -> None:
    """Show the device, the kernels and the versions."""
    found = {"device": asdict(device_info(device)), "kernels": _kernels(), "versions": versions()}
    found["architectures"] = list(ARCHITECTURES)
    if as_json:
        write_json(found)
        return
    about = found["device"]
    free, total = binary_size(about["memory_free"]), binary_size(about["memory_total"])
    rows = [
        ("verdict", f"cannot run on a GPU: {about['reason']}" if about["reason"] else "can run on a GPU"),
        ("device", f"{about['device']}: {about['name']} ({about['arch']})"),
        ("memory", f"{free} of {total} free"),
        ("runtime", about["runtime"]),
        ("kernels", f"{found['kernels']['sources']} sources in {found['kernels']['folder']}"),
        ("compiled", f"{found['kernels']['compiled']} files in {found['kernels']['cache']}"),
        ("architectures", ", ".join(ARCHITECTURES)),
        *found["versions"].items(),
    ]
    table(rows, ["", ""])


def _kernels() -> dict[str, Any]:
    """Where the sources are and how many; where CuPy keeps machine code, and how many files of it (of any program)."""
    folder = source_folder()
    cache = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    compiled = sum(path.suffix in (".cubin", ".hsaco") for path in cache.iterdir()) if cache.is_dir() else 0
    return {
        "folder": str(folder),
        "sources": len(list(folder.glob("*.hip"))),
        "cache": str(cache),
        "compiled": compiled,
    }


def versions() -> dict[str, str]:
    """Of rocforge, Python, the system, and of what rocforge builds on, as far as it is installed."""
    versions = {"rocforge": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


COMMANDS = [info]
