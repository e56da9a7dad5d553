"""Models by names and shapes of their tensors, of which llama.cpp's quantizer has said what each tensor becomes."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType

from rocforge.gguf.quantized import Form

PATH = Path(__file__).with_name("mixes.json")
COLUMNS, ROWS = 256, 2
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
DENSE = ("ffn_gate", "ffn_up", "ffn_down")
RWKV = tuple(
    f"time_mix_{name}" for name in ("w1", "a2", "v1", "g2", "decay_w2", "first", "lerp_fused", "key", "value", "output")
)
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@dataclass(frozen=True)
class Case:
    """Sizes that mixes go by, the parts of a layer, and whether the output is the embedding."""

    arch: str
    layers: int
    heads: int
    kv_heads: int
    parts: tuple[str, ...] = ATTENTION + DENSE
    experts: int = 0
    tied: bool = False
    columns: int = COLUMNS

    def tensors(self) -> dict[str, Form]:
        """Shape and type of each tensor, by name."""
        found = {"token_embd.weight": (ROWS, self.columns), "output_norm.weight": (self.columns,)}
        if not self.tied:
            found["output.weight"] = (ROWS, self.columns)
        for layer in range(self.layers):
            block = f"blk.{layer}."
            found[f"{block}attn_norm.weight"] = (self.columns,)
            for part in self.parts:
                experts = (self.experts,) if part.endswith("_exps") else ()
                found[f"{block}{part}.weight"] = (*experts, ROWS, self.columns)
                if self.arch == "gpt-oss":
                    found[f"{block}{part}.bias"] = (*experts, ROWS)
            if self.experts:
                found[f"{block}ffn_gate_inp.weight"] = (self.experts, self.columns)
        return {name: Form(shape, GGMLQuantizationType.F32) for name, shape in found.items()}

    def metadata(self) -> dict:
        """What llama.cpp wants to know of a model before it quantizes it."""
        keys = {
            "context_length": 64,
            "embedding_length": self.columns,
            "block_count": self.layers,
            "feed_forward_length": self.columns,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.sliding_window": 16,
            "rope.dimension_count": 16,
            "attention.key_length": 16,
            "attention.value_length": 16,
        }
        if self.experts:
            keys |= {"expert_count": self.experts, "expert_used_count": 2, "expert_feed_forward_length": self.columns}
        return {"general.architecture": self.arch, **{f"{self.arch}.{key}": value for key, value in keys.items()}}


CASES = {
    "llama": Case("llama", 17, 8, 2),
    "llama-tied": Case("llama", 10, 8, 8, tied=True),
    "llama-70b": Case("llama", 80, 64, 8, ("attn_k", "attn_v", "ffn_down")),
    "mixtral": Case("llama", 12, 32, 8, ATTENTION + EXPERTS, experts=8),
    "qwen3moe": Case("qwen3moe", 16, 32, 4, ATTENTION + EXPERTS, experts=16),
    "gemma3": Case("gemma3", 18, 4, 2, tied=True),
    "gpt-oss": Case("gpt-oss", 12, 8, 2, ATTENTION + EXPERTS, experts=4, columns=288),
    "phi3": Case("phi3", 9, 4, 4, ("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    "rwkv": Case("llama", 2, 4, 4, (*RWKV, "channel_mix_value")),
    "odd": Case("llama", 3, 4, 2, columns=80),
}


def in_runs(types: Iterable[str]) -> str:
    """Types one after another but F32, those that repeat once with their number."""
    runs = ((name, len(list(run))) for name, run in itertools.groupby(name for name in types if name != "F32"))
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in runs)


def recorded() -> dict[str, str]:
    """ "case mix", and "case mix imatrix" where that differs -> the types of the tensors in order, in runs."""
    return json.loads(PATH.read_text())
