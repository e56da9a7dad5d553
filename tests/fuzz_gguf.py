"""Fuzzing what is loaded: files whose bytes and structure are damaged are an error of ours or a working model.

    python tests/fuzz_gguf.py --count 200000 [--seed 0]

Each case starts from a small random model of one of the architectures, is changed in one to three ways, and is opened,
loaded on the CPU, run on one token, and its tokenizer given some text. What ends otherwise than in a RocforgeError or
in logits and ids, takes over SECONDS, or takes over BYTES, is a failure; its seed makes the same file again.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize
from gguf_files import SCALARS, image, pair, tensor

from rocforge.errors import RocforgeError
from rocforge.load import load

SECONDS = 5.0
BYTES = 1 << 30
DIM, FFN, HEADS, KV_HEADS, HEAD_DIM, EXPERTS = 32, 32, 4, 2, 8, 3
TEXT = "The <|end|>quick  brown </s> fox\n\n\n1234 <unk>é漢🦙 <s>" * 3
F32, Q8_0, BF16, F16 = (GGMLQuantizationType[name] for name in ("F32", "Q8_0", "BF16", "F16"))


@dataclass
class Entry:
    """A row of a tensor table with its bytes; dims as GGUF has them, `offset` where it is not what the bytes need."""

    name: str
    dims: list[int]
    qtype: int
    data: bytes
    offset: int | None = None


@dataclass
class Model:
    """A file before it is written: metadata as (key, kind, value), and tensors."""

    pairs: list[tuple[Any, str, Any]] = field(default_factory=list)
    tensors: list[Entry] = field(default_factory=list)

    def bytes(self) -> bytes:
        rows, data = [], b""
        for entry in self.tensors:
            rows.append(
                tensor(entry.name, entry.dims, entry.qtype, len(data) if entry.offset is None else entry.offset)
            )
            data += entry.data + bytes(-len(entry.data) % 32)
        return image([pair(*each) for each in self.pairs], rows, data)


def architectures() -> dict[str, Model]:
    """A model of each."""
    names = ("llama", "mixtral", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "gpt-oss")
    return {name: Model(list(_pairs(name)), list(_tensors(name))) for name in names}


def _pairs(name: str) -> Iterator[tuple[str, str, Any]]:
    arch = "llama" if name == "mixtral" else name
    yield "general.architecture", "string", arch
    numbers = {"context_length": 64, "embedding_length": DIM, "block_count": 2, "feed_forward_length": FFN}
    numbers |= {"attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD_DIM}
    numbers |= {"attention.key_length": HEAD_DIM, "attention.value_length": HEAD_DIM}
    if name in ("mixtral", "qwen3moe", "gpt-oss"):
        numbers |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": FFN}
    if name in ("gemma2", "gemma3", "phi3", "gpt-oss"):
        numbers |= {"attention.sliding_window": 16}
    for key, value in numbers.items():
        yield f"{arch}.{key}", "uint32", value
    floats = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}
    if name in ("llama", "gpt-oss"):
        floats |= {"rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.0}
        floats |= {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0}
        yield f"{arch}.rope.scaling.type", "string", "yarn"
        yield f"{arch}.rope.scaling.original_context_length", "uint32", 32
    if name == "gemma2":
        floats |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    for key, value in floats.items():
        yield f"{arch}.{key}", "float32", value
    yield from _sentencepiece() if name in ("llama", "mixtral", "gemma2", "gemma3", "phi3") else _byte_level()


def _sentencepiece() -> Iterator[tuple[str, str, Any]]:
    pieces = ["▁", *"Thequickbrownfx1234", "▁t", "he", "▁the", "qu", "▁qu", "ick", "12"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(pieces), "<|end|>"]
    plain = len(tokens) - 260
    yield "tokenizer.ggml.model", "string", "llama"
    yield "tokenizer.ggml.tokens", "[string]", tokens
    yield "tokenizer.ggml.scores", "[float32]", [0.0] * 259 + [-float(i) for i in range(plain + 1)]
    yield "tokenizer.ggml.token_type", "[int32]", [2, 3, 3, *[6] * 256, *[1] * plain, 4]
    yield "tokenizer.ggml.bos_token_id", "uint32", 1
    yield "tokenizer.ggml.add_space_prefix", "bool", True


def _byte_level() -> Iterator[tuple[str, str, Any]]:
    from rocforge.text.bpe import byte_of_char

    merges = ["t h", "th e", "q u", "i c", "ic k", "Ġ the", "1 2"]
    tokens = [*byte_of_char(), *(merge.replace(" ", "") for merge in merges), "<|begin|>", "<|end|>"]
    yield "tokenizer.ggml.model", "string", "gpt2"
    yield "tokenizer.ggml.pre", "string", "qwen2"
    yield "tokenizer.ggml.tokens", "[string]", tokens
    yield "tokenizer.ggml.merges", "[string]", merges
    yield "tokenizer.ggml.token_type", "[int32]", [1] * (len(tokens) - 2) + [3, 4]
    yield "tokenizer.ggml.bos_token_id", "uint32", len(tokens) - 2
    yield "tokenizer.ggml.eos_token_id", "uint32", len(tokens) - 1
    yield "tokenizer.ggml.add_bos_token", "bool", True


def _tensors(name: str) -> Iterator[Entry]:
    rng = np.random.default_rng(0)
    vocabulary = next(len(value) for key, _, value in _pairs(name) if key == "tokenizer.ggml.tokens")

    def entry(path: str, *shape: int, qtype: int = F32) -> Entry:
        values = rng.normal(1 if len(shape) == 1 else 0, 0.1, shape).astype(np.float32)
        data = values.astype(np.float16) if qtype == F16 else quantize(values, qtype)
        return Entry(path, [*reversed(shape)], int(qtype), data.tobytes())

    yield entry("token_embd.weight", vocabulary, DIM, qtype=Q8_0)
    yield entry("output_norm.weight", DIM)
    if name != "qwen3":
        yield entry("output.weight", vocabulary, DIM, qtype=BF16)
    if name == "llama":
        yield entry("rope_freqs.weight", HEAD_DIM // 2)
    if name == "phi3":
        yield entry("rope_factors_long.weight", HEAD_DIM // 2)
        yield entry("rope_factors_short.weight", HEAD_DIM // 2)
    rows, kv_rows = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    projections = {"attn_q": rows, "attn_k": kv_rows, "attn_v": kv_rows}
    if name == "phi3":
        projections = {"attn_qkv": rows + 2 * kv_rows}
    for i in range(2):
        b = f"blk.{i}."
        yield entry(b + "attn_norm.weight", DIM, qtype=BF16 if i else F32)
        for part, size in projections.items():
            yield entry(f"{b}{part}.weight", size, DIM, qtype=Q8_0)
            if name in ("qwen2", "gpt-oss"):
                yield entry(f"{b}{part}.bias", size)
        yield entry(b + "attn_output.weight", DIM, rows, qtype=F16)
        norms = {"qwen3": ["attn_q_norm", "attn_k_norm"], "qwen3moe": ["attn_q_norm", "attn_k_norm"]}
        norms |= {"gemma2": ["post_attention_norm", "post_ffw_norm"], "gpt-oss": ["post_attention_norm"]}
        norms["gemma3"] = norms["gemma2"] + norms["qwen3"]
        for norm in norms.get(name, []) + ["ffn_norm"] * (name != "gpt-oss"):
            yield entry(f"{b}{norm}.weight", HEAD_DIM if norm in norms["qwen3"] else DIM)
        if name == "gpt-oss":
            yield entry(b + "attn_output.bias", DIM)
            yield entry(b + "attn_sinks.weight", HEADS)
        yield from _feed_forward(entry, name, b)


def _feed_forward(entry: Callable[..., Entry], name: str, b: str) -> Iterator[Entry]:
    if name == "phi3":
        yield entry(b + "ffn_up.weight", 2 * FFN, DIM)
        yield entry(b + "ffn_down.weight", DIM, FFN)
        return
    experts = name in ("mixtral", "qwen3moe", "gpt-oss")
    if experts:
        yield entry(b + "ffn_gate_inp.weight", EXPERTS, DIM)
    if name == "gpt-oss":
        yield entry(b + "ffn_gate_inp.bias", EXPERTS)
    for part, rows, columns in (("gate", FFN, DIM), ("up", FFN, DIM), ("down", DIM, FFN)):
        path, shape = (f"{b}ffn_{part}_exps", (EXPERTS,)) if experts else (f"{b}ffn_{part}", ())
        yield entry(path + ".weight", *shape, rows, columns, qtype=Q8_0)
        if name == "gpt-oss":
            yield entry(path + ".bias", *shape, rows, qtype=BF16)


HUGE = [2**k + d for k in (7, 8, 15, 16, 24, 31, 32, 40, 48, 60, 62, 63) for d in (-1, 0, 1)]
FLOATS = [0.0, -0.0, -1.0, 1.0, 1e-45, 1e-300, 1e38, 1e300, math.inf, -math.inf, math.nan, 0.5, 3.14]
STRINGS = [
    "",
    "x",
    "llama",
    "gpt2",
    "yarn",
    "linear",
    "longrope",
    "\0",
    "é漢🦙",
    "<s>",
    "▁",
    " ",
    "a" * 5000,
    b"\xff\xfe",
]
KEYS = [
    "attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa", "rope.scale_linear",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.original_context_length", "expert_count", "expert_used_count",
    "expert_feed_forward_length", "expert_weights_scale", "attn_logit_softcapping", "final_logit_softcapping",
]  # fmt: skip
TOKENIZER_KEYS = [
    "model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id",
    "padding_token_id", "eot_token_id", "eom_token_id", "fim_pad_token_id", "add_bos_token", "add_eos_token",
    "add_space_prefix", "remove_extra_whitespaces",
]  # fmt: skip


def _scalar(rng: random.Random) -> tuple[str, Any]:
    """A value of any type: small, near the sizes of words, no number, or text."""
    kind = rng.choice([*SCALARS, "string"])
    if kind == "string":
        return kind, rng.choice(STRINGS)
    if kind == "bool":
        return kind, rng.random() < 0.5
    if kind.startswith("float"):
        value = rng.choice([*FLOATS, rng.uniform(-100, 100)])
        return kind, value if kind == "float64" or not 4e38 < abs(value) < math.inf else 3e38
    bits, signed = int(kind.lstrip("uint")), not kind.startswith("u")
    value = rng.choice([rng.randint(-2, 70), rng.choice(HUGE), -rng.choice(HUGE)]) % (1 << bits)
    return kind, value - (1 << bits) if signed and value >> (bits - 1) else value


def _value(rng: random.Random) -> tuple[str, Any]:
    """A scalar, or an array of them, empty, short or nested."""
    kind, value = _scalar(rng)
    shape = rng.random()
    if shape < 0.7:
        return kind, value
    if shape < 0.95:
        return f"[{kind}]", [value] * rng.choice([0, 1, 2, 3, 300])
    return f"[[{kind}]]", [[value] * rng.randint(0, 2)] * rng.randint(0, 3)


def replace_value(rng: random.Random, model: Model) -> None:
    """A key's value becomes any other."""
    i = rng.randrange(len(model.pairs))
    model.pairs[i] = (model.pairs[i][0], *_value(rng))


def nudge_number(rng: random.Random, model: Model) -> None:
    """A number becomes another of its type."""
    i = rng.choice([i for i, (_, kind, _) in enumerate(model.pairs) if kind in ("uint32", "float32")] or [0])
    key, kind, _ = model.pairs[i]
    integer = rng.choice([0, 1, 2, 3, 5, 7, 8, 16, 31, 33, 64, rng.randrange(1 << 32), (1 << 32) - 1])
    model.pairs[i] = (key, kind, integer if kind == "uint32" else rng.choice([f for f in FLOATS if not abs(f) > 1e39]))


def add_key(rng: random.Random, model: Model) -> None:
    """A key that is read where it is there, of any value, in place of one of that name if there is one."""
    arch = model.pairs[0][2] if model.pairs and isinstance(model.pairs[0][2], str) else "llama"
    ours, theirs = rng.choice(KEYS), rng.choice(TOKENIZER_KEYS)
    key = rng.choice([f"{arch}.{ours}", f"tokenizer.ggml.{theirs}", "tokenizer.chat_template"])
    model.pairs = [each for each in model.pairs if each[0] != key] + [(key, *_value(rng))]


def drop_key(rng: random.Random, model: Model) -> None:
    model.pairs.pop(rng.randrange(len(model.pairs)))


def duplicate_key(rng: random.Random, model: Model) -> None:
    model.pairs.insert(rng.randrange(len(model.pairs)), rng.choice(model.pairs))


def change_items(rng: random.Random, model: Model) -> None:
    """Items of an array change, come, go or change places."""
    arrays = [i for i, (_, kind, value) in enumerate(model.pairs) if kind.startswith("[") and len(value) > 1]
    if not arrays:
        return
    i = rng.choice(arrays)
    key, kind, value = model.pairs[i]
    items, at = list(value), rng.randrange(len(value))
    if kind == "[string]":
        near = items[at] if isinstance(items[at], str) else "x"
        new = rng.choice([*STRINGS, near[::-1], near + near, near[:-1], f"{near} {near}", rng.choice(items)])
    elif kind == "[float32]":
        new = rng.choice([f for f in FLOATS if not 1e39 < abs(f) < math.inf])
    else:
        new = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 100] if kind[1:-1] in SCALARS else [items[at]])
    how = rng.randrange(5)
    if how == 0:
        items[at] = new
    elif how == 1:
        items.insert(at, new)
    elif how == 2:
        del items[at]
    elif how == 3:
        items = items[:at]
    else:
        rng.shuffle(items)
    model.pairs[i] = (key, kind, items)


def change_tensor(rng: random.Random, model: Model) -> None:
    """A tensor's name, dimensions, type or offset lies, or it is missing, doubled, or has the bytes of another type."""
    i = rng.randrange(len(model.tensors))
    entry = model.tensors[i]
    how = rng.randrange(8)
    if how == 0:
        model.tensors.pop(i)
    elif how == 1:
        model.tensors.insert(i, entry)
    elif how == 2:
        others = [entry.name[::-1], "blk.9.attn_norm.weight", "blk..x", "x", rng.choice(model.tensors).name]
        model.tensors[i] = Entry(rng.choice(others), entry.dims, entry.qtype, entry.data)
    elif how == 3 and entry.dims:
        dims = list(entry.dims)
        dims[rng.randrange(len(dims))] = rng.choice([0, 1, 2, 16, 31, 32, 33, 64, rng.choice(HUGE)])
        model.tensors[i] = Entry(entry.name, dims, entry.qtype, entry.data)
    elif how == 4:
        dims = rng.choice([[], entry.dims[::-1], [*entry.dims, 1], [1, *entry.dims], [math.prod(entry.dims)], [0, 0]])
        model.tensors[i] = Entry(entry.name, dims, entry.qtype, entry.data)
    elif how == 5:
        model.tensors[i] = Entry(entry.name, entry.dims, rng.choice([*GGMLQuantizationType, 99]), entry.data)
    elif how == 6:
        qtype = rng.choice(
            [q for q in GGMLQuantizationType if not entry.dims or entry.dims[0] % GGML_QUANT_SIZES[q][0] == 0]
        )
        block, size = GGML_QUANT_SIZES[qtype]
        nbytes = min(math.prod(entry.dims) // block * size, 1 << 20)
        model.tensors[i] = Entry(entry.name, entry.dims, qtype, rng.randbytes(nbytes))
    else:
        model.tensors[i] = Entry(
            entry.name, entry.dims, entry.qtype, entry.data, rng.choice([0, 1, 32, rng.choice(HUGE)])
        )


def spoil_weights(rng: random.Random, model: Model) -> None:
    """A tensor's bytes are NaN, infinity, zero or noise."""
    i = rng.randrange(len(model.tensors))
    entry, pattern = model.tensors[i], rng.choice([b"\xff", b"\0\0\x80\x7f", b"\0\x7c", b"\0", rng.randbytes(7)])
    data = (pattern * (len(entry.data) // len(pattern) + 1))[: len(entry.data)]
    model.tensors[i] = Entry(entry.name, entry.dims, entry.qtype, data)


STRUCTURE = [
    replace_value, replace_value, nudge_number, nudge_number, add_key, add_key, drop_key, duplicate_key, change_items,
    change_items, change_tensor, change_tensor, spoil_weights,
]  # fmt: skip


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.randint(1, 8)):
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8


def overwrite(rng: random.Random, data: bytearray) -> None:
    width = rng.choice("BIQ")
    size = struct.calcsize(width)
    at = rng.randrange(max(1, len(data) // rng.choice([1, 4]) - size))
    data[at : at + size] = struct.pack(f"<{width}", rng.choice([0, 1, rng.choice(HUGE)]) % (1 << 8 * size))


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def splice(rng: random.Random, data: bytearray) -> None:
    at, origin = rng.randrange(len(data)), rng.randrange(len(data))
    data[at : at + rng.randint(0, 60)] = data[origin : origin + rng.randint(0, 60)]


def case(seed: int, models: dict[str, Model]) -> bytes:
    """The file of a seed."""
    rng = random.Random(seed)
    good = models[rng.choice(sorted(models))]
    model = Model(list(good.pairs), list(good.tensors))
    if rng.random() < 0.8:
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if model.pairs and model.tensors:
                rng.choice(STRUCTURE)(rng, model)
        return model.bytes()
    data = bytearray(model.bytes())
    for _ in range(rng.choice([1, 1, 2])):
        if data:
            rng.choice([flip_bits, flip_bits, overwrite, overwrite, cut, splice])(rng, data)
    return bytes(data)


def runs(path: Path) -> bool:
    """Load a file and use it; False where it raises a RocforgeError."""
    try:
        model, tokenizer = load(path, device="cpu")
        model(np.array([model.config.vocabulary - 1]))
        tokenizer.decode(tokenizer.encode(TEXT))
        tokenizer.decode(tokenizer.encode(TEXT, parse_special_tokens=False))
    except RocforgeError:
        return False
    return True


def problem_of(path: Path) -> str | None:
    """What is wrong with how a file ends; None where nothing is."""
    start, held = time.process_time(), _most_held()
    try:
        with np.errstate(all="ignore"):
            runs(path)
    except BaseException as error:  # the tokenizers library's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    if seconds > SECONDS:
        return f"{seconds:.1f} s of CPU time"
    grown = _most_held() - held
    return f"{grown >> 20} MiB" if grown > BYTES else None


def _most_held() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each has the next")
    options = parser.parse_args()
    models, failed, start = architectures(), 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seed, options.seed + options.count):
            path = Path(folder, f"{seed}.gguf")  # a fresh file: one still mapped must not be cut short
            path.write_bytes(case(seed, models))
            if problem := problem_of(path):
                failed += 1
                print(f"seed {seed}: {problem}", flush=True)
            path.unlink()
    print(f"{options.count} cases, {failed} failed, {time.perf_counter() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
