"""step35: Step 3.5 Flash."""

from __future__ import annotations

from typing import Any

from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.reader import LARGEST, Reader
from rocforge.nn.shared_experts import with_shared


class Step35(Transformer):
    """Gated heads, whose number differs between layers with a window and without; units of some layers are cut.

    Source: https://huggingface.co/stepfun-ai/Step-3.5-Flash.
    """

    architectures = ("step35",)
    models = "Step 3.5 Flash"

    def block(self, layer: int, read: Reader) -> Block:
        window = read.window(layer)
        attn = Attention(
            **read.attention(layer),
            rope=read.window_rope(True, base=10000.0) if window else read.rope(True, share=2),
            window=window,
            norms="head" if read.has(layer, "attn_q_norm") else None,
            gate="heads" if read.has(layer, "attn_gate") else False,
        )
        return Block(attn, self.feed_forward(layer, read), read.rms_norm)

    def feed_forward(self, layer: int, read: Reader) -> Module:
        """A layer's."""
        cut = self.unit(layer, "swiglu_clamp_shexp", read)
        if not read.has(layer, "ffn_gate_inp"):
            return MLP(**read.mlp(layer), **cut)
        how = {**read.gating("sigmoid"), "selection_bias": "optional", **self.unit(layer, "swiglu_clamp_exp", read)}
        return with_shared(MoE(**read.moe(layer), **how), read.shared_expert(layer), **cut)

    def unit(self, layer: int, key: str, read: Reader) -> dict[str, Any]:
        """The activation of a layer's feed-forward, which a limit over zero cuts."""
        limit = read.number_of(layer, key, 0.0, LARGEST, default=0.0)
        return {"activation": "swiglu_clipped", "constants": (limit,)} if limit else {}
