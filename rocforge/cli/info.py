"""`rocforge info`: whether this machine can run on a GPU, and if not why; the device, the kernels, the versions."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rocforge import __version__
from rocforge.cli.options import Device, Json
from rocforge.cli.output import binary_size, table, write_json
from rocforge.device import kernel_cache, tuned, tuning
from rocforge.device.arrays import DeviceInfo, device_info
from rocforge.device.cards import card_of
from rocforge.device.kernels import source_folder
from rocforge.models import ARCHITECTURES

_PACKAGES = ("numpy", "cupy-rocm-7-0", "cupy-cuda13x", "gguf", "tokenizers", "jinja2", "huggingface_hub")


def info(device: Device = None, as_json: Json = False) -> None:
    """Show the device, the kernels and the versions."""
    described = device_info(device)
    found: dict[str, Any] = {"device": asdict(described), "kernels": _kernels(), "tuning": _tuning(described)}
    found["versions"] = versions()
    found["architectures"] = list(ARCHITECTURES)
    if as_json:
        write_json(found)
        return
    about, kernels = found["device"], found["kernels"]
    free, total = binary_size(about["memory_free"]), binary_size(about["memory_total"])
    rows = [
        ("verdict", f"cannot run on a GPU: {about['reason']}" if about["reason"] else "can run on a GPU"),
        ("device", f"{about['device']}: {about['name']} ({about['arch']})"),
        ("memory", f"{free} of {total} free"),
        ("runtime", about["runtime"]),
        ("kernels", f"{kernels['sources']} sources in {kernels['folder']}"),
        ("compiled", f"{kernels['compiled']} files, {binary_size(kernels['compiled_nbytes'])}, in {kernels['cache']}"),
        *([("tuning", _tuning_text(found["tuning"]))] if found["tuning"] else []),
        ("architectures", ", ".join(ARCHITECTURES)),
        *found["versions"].items(),
    ]
    table(rows, ["", ""])


def _kernels() -> dict[str, Any]:
    """Where the sources are and how many; where compiled kernels are kept, and how many files of them."""
    folder, files = source_folder(), kernel_cache.files()
    return {
        "folder": str(folder),
        "sources": len(list(folder.glob("*.hip"))),
        "cache": str(kernel_cache.folder()),
        "compiled": len(files),
        "compiled_nbytes": sum(status.st_size for _, status in files),
    }


def _tuning(device: DeviceInfo) -> dict[str, Any] | None:
    """Kernel settings of a GPU: the basis of the shipped ones, those `rocforge tune` measured, and their file."""
    if device.device == "cpu" or device.reason is not None:
        return None
    card = card_of(int(device.device.removeprefix("gpu:")))
    path = tuned.path_of(card)
    return {"shipped": tuning.shipped(card.arch).basis, "file": str(path), "measured": tuned.measured(card)}


def _tuning_text(found: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in found["measured"].items())
    return f"{found['shipped']} for this architecture; {values or 'nothing else'} in {found['file']}"


def versions() -> dict[str, str]:
    """Versions of rocforge, Python, the system and the installed dependencies."""
    versions = {"rocforge": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


COMMANDS = [info]
