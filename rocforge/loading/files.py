"""What models are loaded from: GGUF files and checkpoints, as they are or quantized on the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from rocforge.checkpoints.checkpoint import Checkpoint
from rocforge.gguf.file import GGUFFile, open_gguf
from rocforge.gguf.hub import resolve
from rocforge.gguf.mixes import Mix
from rocforge.gguf.quantized import Quantized
from rocforge.ops.quantize import quantize


def open_model(path: str | os.PathLike[str]) -> GGUFFile | Checkpoint:
    """Open a GGUF file, one of the Hugging Face Hub ("hf:owner/repo[:quant]"), or a folder with a checkpoint."""
    return Checkpoint(Path(path)) if Path(path).is_dir() else open_gguf(resolve(path))


def quantized(file: GGUFFile | Checkpoint, mix: str | None) -> GGUFFile | Checkpoint | Quantized:
    """The file with its tensors as a mix has them, each made when it is asked for; None: the file itself."""
    if mix is None:
        return file
    made = Quantized(file, Mix(mix), pack)
    made.check()
    return made


def pack(values: np.ndarray, qtype: GGMLQuantizationType, importance: np.ndarray | None) -> np.ndarray:
    """The blocks of float32 rows."""
    packed: np.ndarray = quantize(values, qtype).data
    return packed
