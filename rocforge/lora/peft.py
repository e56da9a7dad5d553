"""Adapters as Hugging Face's PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

Source: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from rocforge.errors import UnsupportedModelError
from rocforge.lora.adapter import LoRA

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
"""Hugging Face's names of a layer's linear modules, and GGUF's."""
_TOP = {"embed_tokens": "token_embd", "lm_head": "output"}
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:embedding_)?(?P<half>[AB])(?:\.weight)?")
_LAYER = re.compile(r"(?:.+\.)?layers\.(?P<layer>\d+)\.(?P<name>.+)")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_peft(folder: Path, interleaved: Mapping[str, int]) -> LoRA:
    """The adapter in a folder.

    Args:
        folder: with the config and the weights.
        interleaved: path -> heads, of the modules whose rows GGUF has in another order: pairs that rope rotates lie
            side by side there, and half a head apart in the adapter.

    Raises:
        FileNotFoundError: a file is missing.
        UnsupportedModelError: it is no LoRA adapter, or one of a kind that is not supported, or a file is malformed.
    """
    config = _config(folder / CONFIG)
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, array in _tensors(folder / WEIGHTS).items():
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise UnsupportedModelError(f"{folder}: tensor {name!r} is neither lora_A nor lora_B of a module")
        halves.setdefault(found["module"], {})[found["half"]] = array
    updates = {}
    for module, parts in halves.items():
        if parts.keys() != {"A", "B"}:
            raise UnsupportedModelError(f"{folder}: {module} has lora_{min(parts)} alone")
        path, b = _path_of(folder, module), parts["B"]
        if path in interleaved:
            b = _interleaved(b, interleaved[path])
        updates[path] = (parts["A"], b, _scale(config, module, b.shape[1]))
    return LoRA(updates)


def _config(path: Path) -> dict[str, Any]:
    config = _parsed(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{path}: peft_type is {kind!r}; supported is 'LORA'")
    for key in ("use_dora", "fan_in_fan_out", "alora_invocation_tokens"):
        if config.get(key):
            raise UnsupportedModelError(f"{path}: {key} is {config[key]!r}, which is not supported")
    return config


def _parsed(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UnsupportedModelError(f"{path} is not JSON: {error}") from error
    alpha = config.get("lora_alpha") if isinstance(config, dict) else None
    if not isinstance(alpha, int | float):
        raise UnsupportedModelError(f"{path}: lora_alpha is {alpha!r}; allowed are numbers")
    return dict(config)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise UnsupportedModelError(f"{path} is no safetensors file: {error}") from error
    return {name: _floats(f"{path}: tensor {name!r}", tensor) for name, tensor in tensors}


def _floats(what: str, tensor: Mapping[str, Any]) -> np.ndarray:
    dtype = tensor["dtype"]
    if dtype not in _DTYPES:
        raise UnsupportedModelError(f"{what} is of {dtype}; supported are {', '.join(_DTYPES)}")
    array = np.frombuffer(tensor["data"], _DTYPES[dtype]).reshape(tensor["shape"])
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False) if dtype == "F64" else array


def _path_of(folder: Path, module: str) -> str:
    """The path in GGUF's names."""
    layer = _LAYER.fullmatch(module)
    name = module.rpartition(".")[2] if layer is None else layer["name"]
    known = _TOP if layer is None else _NAMES
    if name not in known:
        what = "experts' matrices are" if ".experts" in module else "that module is"
        raise UnsupportedModelError(f"{folder}: {module}: {what} not supported; supported are {', '.join(known)}")
    return known[name] if layer is None else f"blk.{int(layer['layer'])}.{known[name]}"


def _interleaved(b: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head as rope takes them in GGUF: element i beside the one half a head after it."""
    return b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or / sqrt(rank); the alpha of the pattern that the module's name ends in, if there is one."""
    patterns = config.get("alpha_pattern") or {}
    own = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
    alpha = float(own[0] if own else config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
