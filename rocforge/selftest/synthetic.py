"""Models of published shapes with random weights, for measuring speed: in memory, as rf.load takes an open file.

Tensors have the names, shapes and types of the published files of a recipe, so a token moves the bytes it moves there;
the values are random, of a size that keeps activations finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType as T

from rocforge.formats.blocks import block_elements, block_nbytes
from rocforge.quant import QuantizedArray

POOL_BLOCKS = 1 << 16
"""Random blocks of a type, which a matrix repeats."""


class Shape(NamedTuple):
    """Sizes from a model's published configuration; `ffn` is an expert's, where there are experts, of which a token
    takes `used`."""

    arch: str
    layers: int
    dim: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope_base: float
    tied: bool
    experts: int = 0
    used: int = 0


SHAPES = {
    "tiny": Shape("llama", 2, 256, 512, 4, 2, 64, 1000, 10000.0, False),
    "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, 500000.0, True),
    "llama-3.2-3b": Shape("llama", 28, 3072, 8192, 24, 8, 128, 128256, 500000.0, True),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 500000.0, False),
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 1000000.0, False),
    "llama-3.1-70b": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128256, 500000.0, False),
    "qwen3-30b-a3b": Shape("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, 1000000.0, False, 128, 8),
    "gpt-oss-20b": Shape("gpt-oss", 24, 2880, 2880, 64, 8, 64, 201088, 150000.0, False, 32, 4),
    "gpt-oss-120b": Shape("gpt-oss", 36, 2880, 2880, 64, 8, 64, 201088, 150000.0, False, 128, 4),
}
RECIPES = ("F16", "Q8_0", "Q4_K_M", "MXFP4_MOE", "Q5_K", "IQ4_XS", "IQ3_S", "IQ2_XS")


def type_of(recipe: str, name: str, layer: int, shape: Shape) -> T:
    """The type that a tensor has under a recipe: as llama.cpp's quantizer gives it in F16, Q8_0, Q4_K_M and MXFP4_MOE;
    the other recipes are one type for all matrices but the output, which is Q6_K as in llama.cpp's mixes of these."""
    last, n = name.split(".")[-2], shape.layers
    if last == "ffn_gate_inp":
        return T.F32
    if recipe == "MXFP4_MOE":
        return T.MXFP4 if last.endswith("_exps") else T.Q8_0
    if recipe in ("F16", "Q8_0"):
        return T[recipe]
    if last == ("token_embd" if shape.tied else "output"):
        return T.Q6_K
    if recipe != "Q4_K_M":
        return T[recipe]
    more = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
    return T.Q6_K if more and last in ("attn_v", "ffn_down", "ffn_down_exps", "ffn_down_shexp") else T.Q4_K


def random_blocks(qtype: T, rng: np.random.Generator) -> np.ndarray:
    """uint8 (POOL_BLOCKS, bytes of a block), values near 0.02 in size."""
    if qtype in (T.F16, T.F32):
        values = rng.normal(0, 0.02, (POOL_BLOCKS, 1)).astype(np.float16 if qtype is T.F16 else np.float32)
        return values.view(np.uint8)
    blocks = rng.integers(0, 256, (POOL_BLOCKS, block_nbytes(qtype)), np.uint8)

    def scales(at: int, size: float) -> None:
        values = size * rng.uniform(0.7, 1.3, (POOL_BLOCKS, 1))
        blocks[:, at : at + 2] = values.astype(np.float16).view(np.uint8)

    if qtype is T.Q8_0:
        scales(0, 2.7e-4)
    elif qtype in (T.Q4_K, T.Q5_K):
        scales(0, 8e-5 if qtype is T.Q4_K else 4e-5)
        scales(2, 6e-4)
    elif qtype in (T.IQ4_XS, T.IQ3_S, T.IQ2_XS):
        scales(0, {T.IQ4_XS: 2e-5, T.IQ3_S: 1.5e-4, T.IQ2_XS: 5e-4}[qtype])
    elif qtype is T.Q6_K:
        blocks[:, 192:208] = rng.integers(-16, 17, (POOL_BLOCKS, 16), np.int8).view(np.uint8)
        scales(208, 1.2e-4)
    elif qtype is T.MXFP4:
        blocks[:, 0] = rng.integers(119, 122, POOL_BLOCKS)
    return blocks


def tensors_of(shape: Shape) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Name, layer and shape of each tensor, in the order of the file."""
    s = shape
    yield "token_embd.weight", 0, (s.vocabulary, s.dim)
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for layer in range(s.layers):
        sizes = {
            "attn_norm": (s.dim,),
            "attn_q": (q, s.dim),
            "attn_k": (kv, s.dim),
            "attn_v": (kv, s.dim),
            "attn_output": (s.dim, q),
            "post_attention_norm" if s.arch == "gpt-oss" else "ffn_norm": (s.dim,),
        }
        if s.arch in ("qwen3", "qwen3moe"):
            sizes |= {"attn_q_norm": (s.head_dim,), "attn_k_norm": (s.head_dim,)}
        if s.arch == "gpt-oss":
            sizes |= {"attn_sinks": (s.heads,)}
        sizes |= _feed_forward(s)
        for name, size in sizes.items():
            yield f"blk.{layer}.{name}.weight", layer, size
            if s.arch == "gpt-oss" and len(size) > 1:
                yield f"blk.{layer}.{name}.bias", layer, size[:-1]
    yield "output_norm.weight", 0, (s.dim,)
    if not s.tied:
        yield "output.weight", 0, (s.vocabulary, s.dim)


def _feed_forward(s: Shape) -> dict[str, tuple[int, ...]]:
    if not s.experts:
        return {"ffn_gate": (s.ffn, s.dim), "ffn_up": (s.ffn, s.dim), "ffn_down": (s.dim, s.ffn)}
    gate, down = (s.experts, s.ffn, s.dim), (s.experts, s.dim, s.ffn)
    return {
        "ffn_gate_inp": (s.experts, s.dim),
        "ffn_gate_exps": gate,
        "ffn_up_exps": gate,
        "ffn_down_exps": down,
    }


def random_tensors(shape: Shape, recipe: str) -> Iterator[tuple[str, Any]]:
    """Name and values of each tensor, in the order of a file: packed matrices, of which those alike share their bytes
    here, for that is quick; and float32 norms, biases, sinks and routers."""
    rng = np.random.default_rng(0)
    matrices: dict[tuple[T, tuple[int, ...]], QuantizedArray] = {}
    for name, layer, size in tensors_of(shape):
        if len(size) == 1 or name.endswith(".bias"):
            yield name, rng.normal("norm" in name, 0.02, size).astype(np.float32)
            continue
        key = type_of(recipe, name, layer, shape), size
        if key[0] is T.F32:
            yield name, rng.normal(0, 0.02, size).astype(np.float32)
            continue
        if key not in matrices:
            matrices[key] = random_matrix(*key, rng)
        yield name, matrices[key]


def random_matrix(qtype: T, size: tuple[int, ...], rng: np.random.Generator) -> QuantizedArray:
    """Matrices (..., rows, columns) of that type and size."""
    count = math.prod(size) // block_elements(qtype)
    blocks = np.resize(random_blocks(qtype, rng), (count, block_nbytes(qtype)))
    return QuantizedArray(blocks.reshape(*size[:-1], -1), size, qtype)


def metadata(shape: Shape, context: int) -> dict[str, Any]:
    """What a file of that shape says of the model, under GGUF's keys."""
    s = shape
    own = {
        "vocab_size": s.vocabulary,
        "context_length": context,
        "embedding_length": s.dim,
        "block_count": s.layers,
        "feed_forward_length": s.ffn,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim,
        "rope.dimension_count": s.head_dim,
        "rope.freq_base": s.rope_base,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if s.experts:
        own |= {"expert_count": s.experts, "expert_used_count": s.used, "expert_feed_forward_length": s.ffn}
    if s.arch == "gpt-oss":
        own |= {"attention.sliding_window": 128}
    return {"general.architecture": s.arch, **{f"{s.arch}.{key}": value for key, value in own.items()}}


class RandomModel(dict[str, Any]):
    """The tensors of a random model by name, with its metadata: what `rocforge.load.load_model` takes for a file."""

    def __init__(self, shape: Shape, recipe: str, context: int = 8192):
        super().__init__(random_tensors(shape, recipe))
        self.metadata = metadata(shape, context)
