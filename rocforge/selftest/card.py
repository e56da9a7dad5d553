"""What is to be known of the software below: the kernel's driver, and the ROCm that is installed."""

from __future__ import annotations

import os
from pathlib import Path

DRIVERS = {"amdgpu": Path("/sys/module/amdgpu/version"), "nvidia": Path("/sys/module/nvidia/version")}


def driver() -> str:
    """The GPU drivers that the kernel has loaded, with their versions; amdgpu has one where it is AMD's own package."""
    loaded = [
        f"{name} {path.read_text().strip() if path.exists() else 'of the kernel'}"
        for name, path in DRIVERS.items()
        if path.parent.exists()
    ]
    return ", ".join(loaded) or "none"


def rocm_version() -> str:
    """What ROCm's packages say of themselves, in brackets; nothing where there are none."""
    path = Path(os.environ.get("ROCM_PATH") or "/opt/rocm") / ".info" / "version"
    return f" (installed: {path.read_text().strip()})" if path.exists() else ""
