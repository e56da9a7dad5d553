"""Adapters as Hugging Face's PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

Source: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rocforge.checkpoints.checkpoint import rotated_pairs
from rocforge.checkpoints.families import FAMILIES, LAYER, TOP
from rocforge.checkpoints.safetensors import Safetensors
from rocforge.checkpoints.vocabulary import read_json
from rocforge.errors import CheckpointError, UnsupportedModelError
from rocforge.lora.adapter import LoRA

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?(?P<half>[AB])(?:\.weight)?")
_LAYER = re.compile(r"(?:.+\.)?layers\.(?P<layer>\d+)\.(?P<name>.+)")


def read_peft(folder: Path, architecture: str, rotated: Mapping[str, int]) -> LoRA:
    """The adapter in a folder.

    Args:
        folder: with the config and the weights.
        architecture: of the model, as GGUF names it.
        rotated: path -> heads, of the modules whose rows GGUF has in another order (`rotated_pairs`).

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is malformed.
        UnsupportedModelError: it is no LoRA adapter, or one of a kind that is not supported.
    """
    config, tensors = _config(folder / CONFIG), Safetensors(folder, WEIGHTS)
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name in tensors:
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise UnsupportedModelError(f"{folder}: tensor {name!r} is neither lora_A nor lora_B of a module")
        halves.setdefault(found["module"], {})[found["half"]] = tensors.float32(name)
    updates = {}
    for module, parts in halves.items():
        if parts.keys() != {"A", "B"}:
            raise CheckpointError(f"{folder}: {module} has lora_{min(parts)} alone")
        path, b = _path_of(folder, module, architecture), parts["B"]
        scale = _scale(config, module, b.shape[-1])
        updates[path] = parts["A"], rotated_pairs(b, rotated[path]) if path in rotated else b, scale
    return LoRA(updates)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; an adapter of PEFT's has it beside {WEIGHTS}")
    config = read_json(path)
    kind, alpha = config.get("peft_type"), config.get("lora_alpha")
    if kind != "LORA":
        raise UnsupportedModelError(f"{path}: peft_type is {kind!r}; supported is 'LORA'")
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: lora_alpha is {alpha!r}; it should be a number")
    for key in ("use_dora", "fan_in_fan_out", "alora_invocation_tokens"):
        if config.get(key):
            raise UnsupportedModelError(f"{path}: {key} is {config[key]!r}, which is not supported")
    return config


def _path_of(folder: Path, module: str, architecture: str) -> str:
    """The path in GGUF's names."""
    layer = _LAYER.fullmatch(module)
    if layer is None:
        name, known = module.rpartition(".")[2], {key.rpartition(".")[2]: path for key, path in TOP.items()}
    else:
        families = [family.layer for family in FAMILIES.values() if family.architecture == architecture]
        name, known = layer["name"], {key: path for names in (LAYER, *families) for key, path in names.items()}
    if name not in known:
        what = "matrices of experts are" if ".experts" in module else "that module is"
        raise UnsupportedModelError(f"{folder}: {module}: {what} not supported")
    return known[name] if layer is None else f"blk.{int(layer['layer'])}.{known[name]}"


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or / sqrt(rank); the alpha of the pattern that the module's name ends in, if there is one."""
    patterns = config.get("alpha_pattern") or {}
    own = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
    alpha = float(own[0] if own else config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
