"""Small random models of every supported architecture, written as GGUF files from nothing but their names.

A model is a function of (variant, recipe), tensor by tensor (see blocks.py), so none is stored. Quantized tensors have
the types that llama.cpp's quantizer picks for the recipe. Gains are chosen so that attention is neither uniform nor
one-hot, soft caps and clamps bite, and sliding windows are shorter than the prompt: a wrong rope or mask shows in the
logits.
"""

import math
from dataclasses import dataclass, field

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

from golden.blocks import BLOCK_SCALES, Source, random_tensor

VOCAB = 288
PROMPT = 64
MERGES = (
    "Ġ a|Ġ t|h e|i n|r e|o n|Ġt he|e r|Ġ s|a t|o r|e n|Ġ c|Ġ f|"
    "e s|i s|i t|a n|a l|d e|Ġ =|l f|s e|se lf|Ġ (|e t|u r|f or"
)
SPECIALS = ("<|begin|>", "<|end|>", "<|user|>", "<|pad|>")


@dataclass(frozen=True)
class Variant:
    """The shape of one small model; `metadata` holds keys below the architecture's prefix."""

    arch: str
    layers: int = 2
    dim: int = 256
    ffn: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 0
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    metadata: dict = field(default_factory=dict)


def _longrope(context: int, original: int) -> dict:
    return {
        "context_length": context,
        "rope.dimension_count": 48,
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": 1.19,
        "attention.sliding_window": 2047,
    }


_GEMMA = {"layers": 4, "head_dim": 128, "kv_heads": 1, "tied": True, "post_norms": True}

VARIANTS = {
    "llama": Variant("llama", dim=512, ffn=768, heads=8, tied=True),
    "llama3": Variant("llama", layers=3, heads=8, head_dim=32, metadata={"rope.freq_base": 500000.0}),
    "llama-linear": Variant("llama", metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama-yarn": Variant(
        "llama",
        metadata={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
    ),
    "mixtral": Variant("llama", ffn=256, experts=8, metadata={"expert_count": 8, "expert_used_count": 2}),
    "qwen2": Variant("qwen2", ffn=608, qkv_bias=True, metadata={"rope.freq_base": 1000000.0}),
    "qwen3": Variant("qwen3", head_dim=128, qk_norm=True, tied=True, metadata={"rope.freq_base": 1000000.0}),
    "qwen3moe": Variant(
        "qwen3moe",
        qk_norm=True,
        experts=12,
        metadata={
            "rope.freq_base": 1000000.0,
            "expert_count": 12,
            "expert_used_count": 4,
            "expert_feed_forward_length": 256,
        },
    ),
    "gemma2": Variant(
        "gemma2",
        **_GEMMA,
        metadata={
            "attention.sliding_window": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": Variant(
        "gemma3",
        **{**_GEMMA, "layers": 6},
        qk_norm=True,
        metadata={
            "attention.sliding_window": 20,
            "rope.freq_base": 1000000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "phi3": Variant("phi3", metadata=_longrope(4096, 4096)),
    "phi3-long": Variant("phi3", metadata=_longrope(128, 32)),
    "gpt-oss": Variant(
        "gpt-oss",
        layers=4,
        heads=8,
        qkv_bias=True,
        experts=4,
        metadata={
            "context_length": 131072,
            "attention.sliding_window": 16,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 256,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
    ),
    "olmo2": Variant("olmo2", layers=3, qk_norm=True, post_norms=True, metadata={"rope.freq_base": 500000.0}),
    "llama-types": Variant("llama", layers=4),
}
RECIPES = ("F32", "Q8_0", "Q4_K_M")
# Where seed 0 leaves a near tie of two tokens or two experts, or brings llama.cpp's int8 rounding near its bound.
SEEDS = {
    ("mixtral", "Q8_0"): 10,
    ("mixtral", "Q4_K_M"): 1,
    ("qwen3moe", "Q8_0"): 8,
    ("gemma2", "F32"): 5,
    ("gemma3", "Q4_K_M"): 10,
}
MIXED = [T.BF16, T.F16, T.Q8_0, T.MXFP4, T.NVFP4, T.IQ1_M, *BLOCK_SCALES]
MODELS = [(v, r) for v in VARIANTS if v != "llama-types" for r in RECIPES] + [("llama-types", "MIXED")]
UNRECORDED = ("olmo2",)
"""Variants of which llama.cpp's logits are not stored: float64 arithmetic alone judges them."""
CASES = [(v, r) for v, r in MODELS if v not in UNRECORDED]


def tensors(v: Variant):
    """Yields name, shape (rows first), mean and standard deviation of each tensor."""
    gemma, oss, olmo = v.arch.startswith("gemma"), v.arch == "gpt-oss", v.arch == "olmo2"

    def matrix(name, *shape, gain=1.0):
        return f"{name}.weight", shape, 0.0, gain / math.sqrt(shape[-1])

    def norm(name, size, mean=1.0):
        return f"{name}.weight", (size,), mean, 0.2 * mean

    def bias(name, *shape, std=0.5):
        return f"{name}.bias", shape, 0.0, std

    yield "token_embd.weight", (VOCAB, v.dim), 0.0, 0.02 if gemma else 0.25
    yield norm("output_norm", v.dim, 15.0 if gemma else 1.0)
    if not v.tied:
        yield matrix("output", VOCAB, v.dim, gain=3.0)
    q, kv = v.heads * v.head_dim, v.kv_heads * v.head_dim
    projections = {"attn_q": (q, 1.4), "attn_k": (kv, 1.4), "attn_v": (kv, 1.0)}
    if v.arch == "phi3":
        projections = {"attn_qkv": (q + 2 * kv, 1.4)}
    ffn = v.metadata.get("expert_feed_forward_length", v.ffn)
    for i in range(v.layers):
        b = f"blk.{i}."
        if not olmo:
            yield norm(b + "attn_norm", v.dim)
        for name, (rows, gain) in projections.items():
            yield matrix(b + name, rows, v.dim, gain=gain)
            if v.qkv_bias:
                yield bias(b + name, rows)
        if v.qk_norm:
            yield norm(b + "attn_q_norm", q if olmo else v.head_dim, 1.4)
            yield norm(b + "attn_k_norm", kv if olmo else v.head_dim, 1.4)
        yield matrix(b + "attn_output", v.dim, q, gain=1.5)
        if oss:
            yield bias(b + "attn_output", v.dim)
            yield b + "attn_sinks.weight", (v.heads,), 1.0, 1.5
        if v.post_norms or oss:
            yield norm(b + "post_attention_norm", v.dim)
        if v.post_norms:
            yield norm(b + "post_ffw_norm", v.dim)
        if not oss and not olmo:
            yield norm(b + "ffn_norm", v.dim)
        if v.experts:
            yield matrix(b + "ffn_gate_inp", v.experts, v.dim, gain=2.0)
        if v.arch == "phi3":
            yield matrix(b + "ffn_up", 2 * ffn, v.dim, gain=1.5)
            yield matrix(b + "ffn_down", v.dim, ffn, gain=1.5)
            continue
        suffix, shape = ("_exps", (v.experts,)) if v.experts else ("", ())
        for name, rows, cols, gain in (
            ("ffn_gate", ffn, v.dim, 3.0 if oss else 1.5),
            ("ffn_up", ffn, v.dim, 3.0 if oss else 1.0),
            ("ffn_down", v.dim, ffn, 0.5 if oss else 1.5),
        ):
            yield matrix(b + name + suffix, *shape, rows, cols, gain=gain)
            if oss:
                yield bias(b + name + suffix, *shape, rows)
        if oss:
            yield bias(b + "ffn_gate_inp", v.experts)


def rope_factors(v: Variant) -> dict[str, np.ndarray]:
    """Frequency factors of the variants that have them, float32, one per rotated pair."""
    if v.arch == "phi3":
        ramp = np.arange(24) / 24
        return {"rope_factors_short": 1 + 0.5 * ramp, "rope_factors_long": 1 + 15 * ramp * ramp}
    if v is VARIANTS["llama3"]:
        return {"rope_freqs": np.array([1.0] * 6 + [1.25, 1.75, 2.5, 4.0] + [8.0] * 6)}
    return {}


def _more_bits(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def qtype_of(v: Variant, recipe: str, name: str, shape: tuple) -> T:
    """The type that llama.cpp's quantizer gives a tensor under a recipe; MXFP4 for the experts of gpt-oss."""
    if len(shape) == 1 or recipe == "F32" or name.endswith(".bias") or "ffn_gate_inp" in name:
        return T.F32
    layer = int(name.split(".")[1]) if name.startswith("blk.") else None
    part = name.split(".")[-2].removesuffix("_exps")
    if v.arch == "gpt-oss" and name.endswith("_exps.weight"):
        return T.MXFP4
    if recipe == "MIXED":
        order = [n for n, s, *_ in tensors(v) if len(s) > 1]
        return MIXED[order.index(name) % len(MIXED)]
    if recipe == "Q8_0":
        return T.Q8_0
    qtype = T.Q4_K
    if part == "output" or (v.tied and part == "token_embd"):
        qtype = T.Q6_K
    elif v.experts == 8 and part in ("attn_k", "attn_v"):
        qtype = T.Q8_0
    elif part in ("attn_v", "ffn_down") and _more_bits(layer, v.layers):
        qtype = T.Q6_K
    elif part == "attn_qkv" or (v.experts == 8 and part == "attn_output"):
        qtype = T.Q5_K
    if shape[-1] % 256:
        qtype = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}[qtype]
    return qtype


def add_vocabulary(w: gguf.GGUFWriter) -> None:
    """A byte-level BPE vocabulary of 256 bytes, 28 merges and 4 special tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    merges = MERGES.split("|")
    tokens = [letters[b] for b in range(256)] + [m.replace(" ", "") for m in merges] + list(SPECIALS)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * 284 + [gguf.TokenType.CONTROL] * 4)
    w.add_token_merges(merges)
    w.add_bos_token_id(284)
    w.add_eos_token_id(285)
    w.add_pad_token_id(287)
    w.add_add_bos_token(False)


def metadata(v: Variant) -> dict:
    """Metadata below the architecture's prefix."""
    return {
        "context_length": 256,
        "vocab_size": VOCAB,
        "embedding_length": v.dim,
        "block_count": v.layers,
        "feed_forward_length": v.ffn,
        "attention.head_count": v.heads,
        "attention.head_count_kv": v.kv_heads,
        "attention.key_length": v.head_dim,
        "attention.value_length": v.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": v.head_dim,
        "rope.freq_base": 10000.0,
        **v.metadata,
    }


def build(path, variant: str, recipe: str) -> None:
    """Writes the GGUF file of (variant, recipe), one of MODELS, to `path`; the same bytes every time."""
    if (variant, recipe) not in MODELS:
        raise ValueError(f"no golden model {variant!r} in {recipe!r}; there are {MODELS}")
    v = VARIANTS[variant]
    w = gguf.GGUFWriter(path, v.arch)
    w.add_name("random weights")  # not the variant: llama.cpp looks for tokens by name where it reads "phi3" here
    add = {int: w.add_uint32, float: w.add_float32, str: w.add_string}
    for key, value in metadata(v).items():
        add[type(value)](f"{v.arch}.{key}", value)
    add_vocabulary(w)
    for name, shape, mean, std in tensors(v):
        qtype = qtype_of(v, recipe, name, shape)
        source = Source(variant, recipe, name, seed=SEEDS.get((variant, recipe), 0))
        w.add_tensor(name, random_tensor(source, qtype, shape, mean, std), raw_dtype=qtype)
    for name, factors in rope_factors(v).items():
        w.add_tensor(f"{name}.weight", factors.astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def prompt(variant: str) -> np.ndarray:
    """The 64 prompt tokens of a variant, int32, without special tokens."""
    return (Source(variant, "prompt").uniform(PROMPT) * (VOCAB - len(SPECIALS))).astype(np.int32)
