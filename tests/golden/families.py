"""Small random models of families, made of what a model itself says of its tensors, as GGUF files.

A Family names an architecture and its metadata; the tensors are the parameters of the model that rocforge builds of
those, so that another program which reads the file agrees with it on their names and shapes, or refuses the file.
Values depend on the family's name and the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from golden.blocks import Source, random_tensor
from golden.family_models import FAMILIES
from golden.family_parts import NEEDED, NO_BIAS, XIELU, Family
from golden.models import VOCAB, add_vocabulary
from rocforge.models import build_model

GAINS = {
    "attn_q": 1.4,
    "attn_k": 1.4,
    "attn_qkv": 1.4,
    "attn_output": 1.5,
    "ffn_gate": 1.5,
    "ffn_down": 1.5,
    "output": 3.0,
}
"""Of matrices, over the one that keeps the size of what they multiply; 1 for others."""
PROMPT, GREEDY = 48, 16
ROWS = np.array([0, 20, PROMPT - 1, PROMPT + GREEDY - 1])
"""Positions whose logits are stored."""


class Skeleton(dict[str, Any]):
    """Stands for a file of that metadata while its model is built: the embedding, and the layers' names."""

    def __init__(self, family: Family, keys: dict[str, Any]):
        super().__init__({"token_embd.weight": np.empty((VOCAB, keys["embedding_length"]), np.float32)})
        for layer in range(keys["block_count"]):
            names = ("attn_output.weight", *family.present)
            self.update({name: np.empty(0, np.float32) for name in in_layer(layer, names)})
            if "ffn_up.weight" in family.present:  # with the gate's rows
                size = (2 * keys["feed_forward_length"], keys["embedding_length"])
                self[f"blk.{layer}.ffn_up.weight"] = np.empty(size, np.float32)
        self.update({name: np.array(values, np.float32) for name, values in family.constants.items()})
        named = {full_name(family.arch, key): value for key, value in keys.items()}
        self.metadata = {"general.architecture": family.arch, **named, "tokenizer.ggml.token_type_count": 2}


def in_layer(layer: int, names: Iterable[str]) -> list[str]:
    """Names of a layer's tensors, and whole ones as they are."""
    return [name if name.startswith("blk.") else f"blk.{layer}.{name}" for name in names]


def full_name(arch: str, key: str) -> str:
    """A key as files have it."""
    return key if key in XIELU else f"{arch}.{key}"


def metadata(family: Family) -> dict[str, Any]:
    """Metadata below the architecture's prefix; sizes are odd enough to betray shapes that are swapped."""
    common = {
        "context_length": 128,
        "vocab_size": VOCAB,
        "embedding_length": 192,
        "block_count": 3,
        "feed_forward_length": 320,
        "attention.head_count": 6,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 32,
        "rope.freq_base": 10000.0,
    }
    return {**common, **family.metadata}


def tensors(name: str, of: dict[str, Family] = FAMILIES) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Yields name, shape, mean and standard deviation of each tensor of a family's model."""
    family = of[name]
    keys = metadata(family)
    model = build_model(Skeleton(family, keys))
    unread = {path for layer in range(keys["block_count"]) for path in in_layer(layer, family.unread)}
    for path in sorted(unread):
        yield path, family.unread.get(path) or family.unread[path.split(".", 2)[2]], 0.0, 0.1
    for path, parameter in model.named_parameters():
        last = ".".join(path.split(".")[-2:])
        if last in family.without or (family.without[:1] == NO_BIAS and path.endswith(".bias") and last not in NEEDED):
            continue
        part = path.split(".")[-2]
        if "attn_kv_b.weight" in family.present and part in ("attn_k_b", "attn_v_b"):  # a file has both in one
            if part == "attn_k_b":
                heads, rank, own = parameter.shape
                rows = heads * (own + keys["attention.value_length"])
                yield path.replace("k_b", "kv_b"), (rows, rank), 0.0, 1 / math.sqrt(rank)
            continue
        gain = family.gains.get(part, 1.0)
        if path.endswith("ssm_a"):
            yield path, parameter.shape, -0.3, 0.1
            continue
        if path.endswith("bias"):
            yield path, parameter.shape, 0.0, 0.3
        elif len(parameter.shape) == 1:
            yield path, parameter.shape, gain, 0.2 * gain
        elif part in ("token_embd", "position_embd", "token_types", "per_layer_token_embd"):
            yield path, parameter.shape, 0.0, 0.25
        else:
            yield path, parameter.shape, 0.0, gain * GAINS.get(part, 1.0) / math.sqrt(parameter.shape[-1])


def build(path, name: str, qtype: T = T.F32, seed: int = 0, of: dict[str, Family] = FAMILIES) -> None:
    """Writes the file of a model of a family; matrices of this type where their rows are whole blocks, else Q8_0."""
    family = of[name]
    w = gguf.GGUFWriter(path, family.arch)
    w.add_name("random weights")
    add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string, list: w.add_array}
    for key, value in metadata(family).items():
        add[type(value)](full_name(family.arch, key), value)
    add_vocabulary(w)
    w.add_token_type_count(2)
    for tensor, shape, mean, std in tensors(name, of):
        kind = _type(qtype, tensor, shape)
        w.add_tensor(tensor, random_tensor(Source(name, tensor, seed=seed), kind, shape, mean, std), raw_dtype=kind)
    for tensor, values in family.constants.items():
        w.add_tensor(tensor, np.array(values, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def _type(qtype: T, name: str, shape: tuple[int, ...]) -> T:
    if len(shape) == 1 or name.startswith(("position_embd", "token_types")) or "ffn_gate_inp" in name or shape[-1] % 32:
        return T.F32
    return qtype if shape[-1] % gguf.GGML_QUANT_SIZES[qtype][0] == 0 else T.Q8_0


def prompt(name: str) -> np.ndarray:
    """The prompt tokens of a family, int32."""
    return (Source(name, "prompt").uniform(PROMPT) * VOCAB).astype(np.int32)


def load(name: str) -> dict[str, np.ndarray]:
    """llama.cpp's results: `tokens` int32, the prompt and those chosen greedily; `logits` float32 (ROWS, VOCAB)."""
    with np.load(Path(__file__).parent / "families.npz") as f:
        return {key: f[f"{name}/{key}"] for key in ("tokens", "logits")}
