"""Writes GGUF files of published shapes with random weights, for measuring speed and memory.

    python benches/random_gguf.py llama-3.1-8b Q4_K_M model.gguf

Tensors have the names, shapes and types of the published files of a recipe, so a token moves the bytes it moves there;
the values are random, of a size that keeps activations finite. The tokenizer is byte-level BPE with random merges, of
the published number of tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from rocforge.bpe import byte_of_char

POOL_BLOCKS = 1 << 16
"""Random blocks of a type that its tensors repeat, each from another one on."""


class Shape(NamedTuple):
    """Sizes from a model's published configuration."""

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


SHAPES = {
    "tiny": Shape("llama", 2, 256, 512, 4, 2, 64, 1000, 10000.0, False),
    "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, 500000.0, True),
    "llama-3.2-3b": Shape("llama", 28, 3072, 8192, 24, 8, 128, 128256, 500000.0, True),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 500000.0, False),
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 1000000.0, False),
    "llama-3.1-70b": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128256, 500000.0, False),
}
RECIPES = ("F16", "Q8_0", "Q4_K_M")


def type_of(recipe: str, name: str, layer: int, shape: Shape) -> T:
    """The type that a tensor has under a recipe, as llama.cpp's quantizer gives it."""
    if recipe != "Q4_K_M":
        return T[recipe]
    last, n = name.split(".")[-2], shape.layers
    more = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
    six = last == ("token_embd" if shape.tied else "output") or (more and last in ("attn_v", "ffn_down"))
    return T.Q6_K if six else T.Q4_K


def random_blocks(qtype: T, rng: np.random.Generator) -> np.ndarray:
    """uint8 (POOL_BLOCKS, bytes of a block), values near 0.02 in size."""
    if qtype in (T.F16, T.F32):
        values = rng.normal(0, 0.02, (POOL_BLOCKS, 1)).astype(np.float16 if qtype is T.F16 else np.float32)
        return values.view(np.uint8)
    blocks = rng.integers(0, 256, (POOL_BLOCKS, gguf.GGML_QUANT_SIZES[qtype][1]), np.uint8)

    def scales(at: int, size: float) -> None:
        values = size * rng.uniform(0.7, 1.3, (POOL_BLOCKS, 1))
        blocks[:, at : at + 2] = values.astype(np.float16).view(np.uint8)

    if qtype is T.Q8_0:
        scales(0, 2.7e-4)
    elif qtype is T.Q4_K:
        scales(0, 8e-5)
        scales(2, 6e-4)
    elif qtype is T.Q6_K:
        blocks[:, 192:208] = rng.integers(-16, 17, (POOL_BLOCKS, 16), np.int8).view(np.uint8)
        scales(208, 1.2e-4)
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
            "ffn_norm": (s.dim,),
            "ffn_gate": (s.ffn, s.dim),
            "ffn_up": (s.ffn, s.dim),
            "ffn_down": (s.dim, s.ffn),
        }
        if s.arch == "qwen3":
            sizes |= {"attn_q_norm": (s.head_dim,), "attn_k_norm": (s.head_dim,)}
        for name, size in sizes.items():
            yield f"blk.{layer}.{name}.weight", layer, size
    yield "output_norm.weight", 0, (s.dim,)
    if not s.tied:
        yield "output.weight", 0, (s.vocabulary, s.dim)


def random_merges(count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Tokens of a byte-level BPE, `count` of them, 256 single bytes first; and the merges that make the rest."""
    tokens, merges = list(byte_of_char()), []
    known = set(tokens)
    while len(tokens) < count:
        first, second = (tokens[i] for i in (rng.random(2) ** 2 * len(tokens)).astype(int))
        if len(first + second) > 16 or first + second in known:
            continue
        tokens.append(first + second)
        known.add(first + second)
        merges.append(f"{first} {second}")
    return tokens, merges


def write(path: Path, shape: Shape, recipe: str, context: int = 8192) -> None:
    """Write the file of a shape and a recipe."""
    s, rng = shape, np.random.default_rng(0)
    w = gguf.GGUFWriter(path, s.arch)
    w.add_vocab_size(s.vocabulary)
    w.add_context_length(context)
    w.add_embedding_length(s.dim)
    w.add_block_count(s.layers)
    w.add_feed_forward_length(s.ffn)
    w.add_head_count(s.heads)
    w.add_head_count_kv(s.kv_heads)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(s.rope_base)
    w.add_layer_norm_rms_eps(1e-5)
    tokens, merges = random_merges(s.vocabulary, rng)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    w.add_token_merges(merges)
    w.add_add_bos_token(False)
    pools: dict[T, np.ndarray] = {}
    for name, layer, size in tensors_of(shape):
        if len(size) == 1:
            w.add_tensor(name, rng.normal(1, 0.02, size).astype(np.float32))
            continue
        qtype = type_of(recipe, name, layer, shape)
        pool = pools.setdefault(qtype, None)
        if pool is None:
            pool = pools[qtype] = random_blocks(qtype, rng)
        elements, nbytes = gguf.GGML_QUANT_SIZES[qtype]
        rows, columns = size
        blocks = np.resize(np.roll(pool, int(rng.integers(POOL_BLOCKS)), axis=0), (rows * columns // elements, nbytes))
        row = columns // elements * nbytes
        w.add_tensor(name, blocks.reshape(rows, row), raw_shape=(rows, row), raw_dtype=qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    write(options.path, SHAPES[options.shape], options.recipe)


if __name__ == "__main__":
    main()
