"""Adapters as GGUF files: those of llama.cpp, which its convert_lora_to_gguf.py writes.

Source: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rocforge.errors import UnsupportedModelError
from rocforge.gguf.file import GGUFFile, open_gguf
from rocforge.gguf.metadata import Metadata
from rocforge.lora.adapter import LoRA
from rocforge.quant import QuantizedArray

SUFFIXES = (".weight.lora_a", ".weight.lora_b")


def read_gguf(path: str | os.PathLike[str], architecture: str) -> LoRA:
    """The adapter in a GGUF file, for a model of an architecture.

    Raises:
        GGUFError: the file is malformed.
        UnsupportedModelError: it is no LoRA adapter, or one of another architecture, or has tensors without a place.
    """
    with open_gguf(path) as file:
        _check(file, path, architecture)
        alpha = Metadata(file.metadata).number("adapter.lora.alpha", -1e6, 1e6, default=0.0)
        unknown = [name for name in file if not name.endswith(SUFFIXES)]
        if unknown:
            raise UnsupportedModelError(
                f"{path}: {', '.join(unknown[:4])}: only tensors that end in {' or '.join(SUFFIXES)} are supported"
            )
        paths = dict.fromkeys(name.rpartition(".weight.")[0] for name in file)
        return LoRA({module: _update(file, path, module, alpha) for module in paths})


def _check(file: GGUFFile, path: Any, architecture: str) -> None:
    metadata = Metadata(file.metadata)
    kind, adapter = (metadata.string(key, default="") for key in ("general.type", "adapter.type"))
    if kind != "adapter" or adapter != "lora":
        raise UnsupportedModelError(
            f"{path} is no LoRA adapter: general.type is {kind!r} and adapter.type {adapter!r}; "
            "allowed are 'adapter' and 'lora'"
        )
    of = metadata.string("general.architecture")
    if of != architecture:
        raise UnsupportedModelError(f"{path} is an adapter of architecture {of!r}; the model's is {architecture!r}")
    if "adapter.alora.invocation_tokens" in file.metadata:
        raise UnsupportedModelError(f"{path} is an activated LoRA (adapter.alora), which is not supported")


def _update(file: GGUFFile, path: Any, module: str, alpha: float) -> tuple[np.ndarray, np.ndarray, float]:
    """a (rank, columns), b (rows, rank) and their scale."""
    names = [module + suffix for suffix in SUFFIXES]
    missing = [name for name in names if name not in file]
    if missing:
        raise UnsupportedModelError(f"{path}: tensor {missing[0]} is missing beside its other half")
    a, b = (_floats(file[name]) for name in names)
    if a.ndim != 2 or b.ndim != 2:
        raise UnsupportedModelError(f"{path}: {module}: adapters of experts are not supported")
    return a.T if module == "token_embd" else a, b, alpha / b.shape[1] if alpha else 1.0


def _floats(tensor: Any) -> np.ndarray:
    """As an array that outlives the file."""
    return tensor.dequantize() if isinstance(tensor, QuantizedArray) else tensor.copy()
