"""The demo model in PyTorch: llama as GGUF defines it (RMSNorm, SwiGLU, grouped queries, interleaved rotary pairs).

Parameters carry the names of GGUF's tensors, so the checkpoint and the GGUF file name the same things. Rotary pairs are
neighbours (2i, 2i + 1) from the start, which is GGUF's convention for `llama`; no permutation is needed on export.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Past = list[Tensor]  # keys and values of the tokens before, each (batch, kv heads, time, head_size); empty at first


@dataclass(frozen=True)
class Config:
    """Sizes of the model; the field names are those of GGUF's metadata where it has one."""

    vocab_size: int = 4096
    context_length: int = 1024
    embedding_length: int = 512
    block_count: int = 4
    feed_forward_length: int = 1024
    head_count: int = 8
    head_count_kv: int = 2
    rope_freq_base: float = 10000.0
    rms_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.embedding_length // self.head_count

    as_dict = asdict


def rotary_table(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each (context_length, head_size / 2) float32."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float64) / config.head_size
    angles = torch.arange(config.context_length, dtype=torch.float64)[:, None] * config.rope_freq_base**-exponents
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbours of x (..., time, head_size) by its position's angle (RoFormer, 2021)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


class Block(nn.Module):
    """One transformer layer: attention and a gated feed-forward net, each on the normed residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, kv_width = config.embedding_length, config.head_count_kv * config.head_size
        self.config = config
        self.attn_norm = nn.RMSNorm(width, config.rms_epsilon)
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, kv_width, bias=False)
        self.attn_v = nn.Linear(width, kv_width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, config.rms_epsilon)
        self.ffn_gate = nn.Linear(width, config.feed_forward_length, bias=False)
        self.ffn_up = nn.Linear(width, config.feed_forward_length, bias=False)
        self.ffn_down = nn.Linear(config.feed_forward_length, width, bias=False)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None) -> Tensor:
        shape = (*x.shape[:-1], -1, self.config.head_size)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.attn_q, self.attn_k, self.attn_v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        causal = True
        if past is not None:
            causal = not past
            k, v = past[:] = [torch.cat(parts, dim=2) for parts in zip(past, (k, v), strict=True)] if past else [k, v]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        return self.attn_output(out.transpose(1, 2).flatten(-2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None = None) -> Tensor:
        x = x + self.attention(self.attn_norm(x), cos, sin, past)
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    """Token ids (batch, time) to logits (batch, time, vocab_size); the output is tied to the embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocab_size, config.embedding_length)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.block_count))
        self.output_norm = nn.RMSNorm(config.embedding_length, config.rms_epsilon)
        cos, sin = rotary_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialize(self) -> None:
        """Normal weights of deviation 0.02, those that write to the residual stream smaller (GPT-2, 2019)."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                writes = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * self.config.block_count) ** 0.5 if writes else 0.02)

    def forward(self, tokens: Tensor, cache: list[Past] | None = None) -> Tensor:
        """With a cache, one empty list a layer at first, `tokens` is a whole prompt and then one token a call."""
        x = self.token_embd(tokens)
        start = cache[0][0].shape[2] if cache and cache[0] else 0
        positions = slice(start, start + tokens.shape[1])
        for index, block in enumerate(self.blk):
            x = block(x, self.cos[positions], self.sin[positions], cache[index] if cache else None)
        return F.linear(self.output_norm(x), self.token_embd.weight)
