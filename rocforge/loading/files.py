"""What models are loaded from: GGUF files and checkpoints, as they are or quantized on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.checkpoints.checkpoint import Checkpoint
from rocforge.device.arrays import resolve_device, to_device
from rocforge.gguf.file import GGUFFile, open_gguf
from rocforge.gguf.hub import resolve
from rocforge.gguf.mixes import Mix
from rocforge.gguf.quantized import Pack, Quantized
from rocforge.ops.device.quantize import DEVICE_QTYPES
from rocforge.ops.quantize import quantize

_SAMPLES, _SAMPLE = 64, 4096
"""Of each file what a fingerprint is of: so many places, with so many bytes."""


def open_model(path: str | os.PathLike[str]) -> GGUFFile | Checkpoint:
    """Open a GGUF file, one of the Hugging Face Hub ("hf:owner/repo[:quant]"), or a folder with a checkpoint."""
    return Checkpoint(Path(path)) if Path(path).is_dir() else open_gguf(resolve(path))


def fingerprint(paths: Sequence[Path]) -> str:
    """What tells files from others, without reading all of them: their sizes, and samples of their bytes."""
    found = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        found.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(sample * size // _SAMPLES)
                found.update(file.read(_SAMPLE))
    return found.hexdigest()


def quantized(file: GGUFFile | Checkpoint, mix: str | None, device: str) -> GGUFFile | Checkpoint | Quantized:
    """The file with its tensors as a mix has them, each made when it is asked for; None: the file itself."""
    if mix is None:
        return file
    made = Quantized(file, Mix(mix), packer(device))
    made.check()
    return made


def packer(device: str | None) -> Pack:
    """The quantizer: on a device the formats that it writes; None: a GPU if there is one."""
    device = resolve_device(device)

    def pack(values: np.ndarray, qtype: GGMLQuantizationType, importance: np.ndarray | None) -> np.ndarray:
        rows = to_device(values, device if qtype.name in DEVICE_QTYPES else "cpu")
        packed: np.ndarray = quantize(rows, qtype, importance).to_device("cpu").data
        return packed

    return pack
