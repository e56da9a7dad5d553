"""Logits of a GGUF model in float64, for a whole sequence at once: the plain formulas, no cache, no batching.

Weights are dequantized with the `gguf` package; nothing of rocforge is used. The formulas are those of the published
models: LLaMA (arXiv:2302.13971), rotary embeddings (arXiv:2104.09864), YaRN (arXiv:2309.00071), LongRoPE
(arXiv:2402.13753), Mixtral (arXiv:2401.04088), Qwen3 (arXiv:2505.09388), Gemma 2 (arXiv:2408.00118), Gemma 3
(arXiv:2503.19786), Phi-3 (arXiv:2404.14219), gpt-oss (arXiv:2508.10925). Where files leave a choice (the sliding
window of phi3, the rounding of YaRN's bounds), llama.cpp's is taken.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import gguf
import numpy as np

INTERLEAVED_ROPE = {"llama"}  # pairs (2i, 2i + 1); everywhere else (i, i + half)
SLIDING_PATTERN = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}  # the last layer of every so many sees everything


class Weights:
    """A GGUF file's metadata below the architecture's prefix, and its tensors as float64."""

    def __init__(self, path, overrides: Mapping):
        self.reader = gguf.GGUFReader(path)
        self.arch = self.reader.fields["general.architecture"].contents()
        self.overrides = overrides
        self.tensors = {t.name: t for t in self.reader.tensors if t.name not in overrides}

    def get(self, key: str, default=None):
        if key in self.overrides:
            return self.overrides[key]
        field = self.reader.fields.get(f"{self.arch}.{key}")
        return default if field is None else field.contents()

    def __getitem__(self, name: str) -> np.ndarray:
        t = self.tensors[name]
        return gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)

    def maybe(self, name: str) -> np.ndarray | None:
        return self[name] if name in self.tensors else None


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)))


def gelu_float16(x: np.ndarray) -> np.ndarray:
    """What llama.cpp computes on a CPU where |x| < 10: argument and result rounded to float16 (a table)."""
    rounded = gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16).astype(np.float64)
    return np.where(x <= -10, 0.0, np.where(x >= 10, x, rounded))


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    y = x @ w[f"{name}.weight"].T
    bias = w.maybe(f"{name}.bias")
    return y if bias is None else y + bias


def rope_frequencies(w: Weights, sliding: bool) -> tuple[np.ndarray, float]:
    """Radians per position of each rotated pair, and the factor on cosine and sine."""
    dims = w.get("rope.dimension_count", w.get("attention.key_length"))
    base = w.get("rope.freq_base", 10000.0)
    scaling, factor = w.get("rope.scaling.type", "none"), w.get("rope.scaling.factor", 1.0)
    original = w.get("rope.scaling.original_context_length", w.get("context_length"))
    magnitude = w.get("rope.scaling.attn_factor", 1.0)
    if w.arch == "gemma3" and sliding:
        base, scaling = 10000.0, "none"
    pair = np.arange(dims // 2)
    frequencies = base ** (-2.0 * pair / dims)
    factors = w.maybe("rope_freqs.weight")
    if factors is None:
        factors = w.maybe(f"rope_factors_{'long' if w.get('context_length') > original else 'short'}.weight")
    if factors is not None:
        frequencies /= factors
    if scaling == "linear":
        frequencies /= factor
    if scaling == "yarn":  # pairs that turn often within the original context stay; those that turn little are slowed

        def pair_with(turns):
            return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(pair_with(32)), 0), min(math.ceil(pair_with(1)), dims - 1)
        slow = np.clip((pair - low) / max(high - low, 0.001), 0, 1)
        frequencies *= 1 - slow + slow / factor
        magnitude *= 1 + 0.1 * math.log(factor)
    return frequencies, magnitude


def rope(x: np.ndarray, frequencies: np.ndarray, magnitude: float, interleaved: bool) -> np.ndarray:
    """Rotates x of shape (tokens, heads, head_dim); dimensions beyond the rotated ones pass."""
    n = len(frequencies)
    angle = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if interleaved else (slice(0, n), slice(n, 2 * n))
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def attend(q, k, v, window: int, softcap: float, sinks: np.ndarray | None) -> np.ndarray:
    """Causal attention: q (tokens, heads, dim), k and v (tokens, kv_heads, dim); a window of 0 is no window."""
    tokens, heads, dim = q.shape
    k, v = (np.repeat(a, heads // a.shape[1], axis=1) for a in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    behind = np.arange(tokens)[:, None] - np.arange(tokens)
    hidden = (behind < 0) | (behind >= window) if window else behind < 0
    scores = np.where(hidden, -np.inf, scores)
    if sinks is not None:  # a learned score per head that takes weight and gives nothing
        column = np.broadcast_to(sinks[:, None, None], (heads, tokens, 1))
        weights = softmax(np.concatenate([scores, column], axis=-1))[..., :-1]
    else:
        weights = softmax(scores)
    return np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, heads * dim)


def attention(w: Weights, block: str, x: np.ndarray, sliding: bool) -> np.ndarray:
    heads, kv_heads = w.get("attention.head_count"), w.get("attention.head_count_kv")
    if f"{block}attn_qkv.weight" in w.tensors:
        qkv = linear(w, block + "attn_qkv", x)
        size = qkv.shape[1] // (heads + 2 * kv_heads)
        q, k, v = np.split(qkv, [heads * size, (heads + kv_heads) * size], axis=1)
    else:
        q, k, v = (linear(w, block + name, x) for name in ("attn_q", "attn_k", "attn_v"))
    normed = f"{block}attn_q_norm.weight" in w.tensors
    if normed and w.arch == "olmo2":  # all heads of a token are one row
        q, k = qk_norms(w, block, q, k)
    q, k, v = q.reshape(len(x), heads, -1), k.reshape(len(x), kv_heads, -1), v.reshape(len(x), kv_heads, -1)
    if normed and w.arch != "olmo2":
        q, k = qk_norms(w, block, q, k)
    frequencies, magnitude = rope_frequencies(w, sliding)
    q, k = (rope(a, frequencies, magnitude, w.arch in INTERLEAVED_ROPE) for a in (q, k))
    window = w.get("attention.sliding_window", 0) if sliding else 0
    softcap = w.get("attn_logit_softcapping", 0.0)
    return linear(w, block + "attn_output", attend(q, k, v, window, softcap, w.maybe(block + "attn_sinks.weight")))


def qk_norms(w: Weights, block: str, q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    eps = w.get("attention.layer_norm_rms_epsilon")
    return rms_norm(q, w[block + "attn_q_norm.weight"], eps), rms_norm(k, w[block + "attn_k_norm.weight"], eps)


def gated(arch: str, gate: np.ndarray, up: np.ndarray, gelu) -> np.ndarray:
    if arch == "gpt-oss":
        gate = np.minimum(gate, 7.0)
        return gate * sigmoid(1.702 * gate) * (np.clip(up, -7.0, 7.0) + 1)
    if arch.startswith("gemma"):
        return gelu(gate) * up
    return gate * sigmoid(gate) * up


def feed_forward(w: Weights, block: str, x: np.ndarray, gelu) -> np.ndarray:
    if f"{block}ffn_gate_inp.weight" in w.tensors:
        return mixture(w, block, x)
    up = linear(w, block + "ffn_up", x)
    if f"{block}ffn_gate.weight" in w.tensors:
        gate = linear(w, block + "ffn_gate", x)
    else:
        gate, up = np.split(up, 2, axis=1)
    return linear(w, block + "ffn_down", gated(w.arch, gate, up, gelu))


def mixture(w: Weights, block: str, x: np.ndarray) -> np.ndarray:
    """The top experts of each token, weighted by the softmax over them (which equals softmax, choice, division)."""
    router = linear(w, block + "ffn_gate_inp", x)
    chosen = np.argsort(-router, axis=1)[:, : w.get("expert_used_count")]
    weights = softmax(np.take_along_axis(router, chosen, axis=1))
    parts = {part: w[f"{block}ffn_{part}_exps.weight"] for part in ("gate", "up", "down")}
    biases = {part: w.maybe(f"{block}ffn_{part}_exps.bias") for part in parts}

    def project(part, expert, x):
        y = x @ parts[part][expert].T
        return y if biases[part] is None else y + biases[part][expert]

    y = np.zeros_like(x)
    for expert in np.unique(chosen):
        rows, place = np.nonzero(chosen == expert)
        hidden = gated(w.arch, project("gate", expert, x[rows]), project("up", expert, x[rows]), None)
        y[rows] += weights[rows, place, None] * project("down", expert, hidden)
    return y


def logits(path, tokens, gelu=gelu, overrides: Mapping = MappingProxyType({})) -> np.ndarray:
    """Logits after every token, float64 (tokens, vocab), of the GGUF file at `path`.

    `gelu` replaces the activation of the gemma models. To ask how far the logits move with a part of the model,
    `overrides` replaces metadata (keys below the architecture's prefix) and leaves out the tensors it names.
    """
    w = Weights(path, overrides)
    eps = w.get("attention.layer_norm_rms_epsilon")
    table = w["token_embd.weight"]
    x = table[np.asarray(tokens)]
    if w.arch.startswith("gemma"):
        x = x * math.sqrt(x.shape[1])
    pattern = SLIDING_PATTERN.get(w.arch)
    for i in range(w.get("block_count")):
        block = f"blk.{i}."
        sliding = pattern is not None and i % pattern != pattern - 1
        before_ffn = "post_attention_norm" if w.arch == "gpt-oss" else "ffn_norm"
        post, pre = w.arch.startswith("gemma") or w.arch == "olmo2", w.arch != "olmo2"
        y = attention(w, block, rms_norm(x, w[block + "attn_norm.weight"], eps) if pre else x, sliding)
        x = x + (rms_norm(y, w[block + "post_attention_norm.weight"], eps) if post else y)
        y = feed_forward(w, block, rms_norm(x, w[f"{block}{before_ffn}.weight"], eps) if pre else x, gelu)
        x = x + (rms_norm(y, w[block + "post_ffw_norm.weight"], eps) if post else y)
    output = w.maybe("output.weight")
    y = rms_norm(x, w["output_norm.weight"], eps) @ (table if output is None else output).T
    softcap = w.get("final_logit_softcapping", 0.0)
    return softcap * np.tanh(y / softcap) if softcap else y
