"""qwen35: Qwen 3.5 and 3.6; three layers of four have a state of fixed size, the fourth gated attention."""

from __future__ import annotations

from typing import Any

from rocforge.errors import UnsupportedModelError
from rocforge.gguf.metadata import MOST
from rocforge.nn import MLP, Attention, Block, GatedDeltaNet, Module, MoE, Transformer
from rocforge.nn.reader import Reader
from rocforge.nn.shared_experts import with_shared

NORMS = ("attn_norm", "post_attention_norm")


class Qwen35(Transformer):
    """Source: https://qwen.ai/blog?id=qwen3.5."""

    architectures = ("qwen35",)
    models = "Qwen 3.5, 3.6 dense"

    def block(self, layer: int, read: Reader) -> Block:
        return Block(self.mixer(layer, read), self.feed_forward(layer, read), read.rms_norm, pre=NORMS)

    def mixer(self, layer: int, read: Reader) -> Module:
        """A layer's attention, or what stands in its place."""
        if read.recurrent(layer, every=4):
            return GatedDeltaNet(**delta_net_sizes(read))
        return Attention(**read.attention(layer), rope=read.rope(True), norms="head", gate="in attn_q")

    def feed_forward(self, layer: int, read: Reader) -> Module:
        """A layer's."""
        return MLP(**read.mlp(layer))


class Qwen35MoE(Qwen35):
    """With experts, and one that every token takes."""

    architectures = ("qwen35moe",)
    models = "Qwen 3.5, 3.6 with experts"

    def feed_forward(self, layer: int, read: Reader) -> Module:
        return with_shared(MoE(**read.moe(layer)), read.shared_expert(layer), gate=True)


class Qwen3Next(Qwen35MoE):
    """Source: https://qwen.ai/blog?id=qwen3-next."""

    architectures = ("qwen3next",)
    models = "Qwen3-Next"

    def mixer(self, layer: int, read: Reader) -> Module:
        if read.has(layer, "ssm_in"):
            raise UnsupportedModelError("qwen3next with ssm_in, of before 2026, is not supported: convert it again")
        if read.recurrent(layer, every=4):
            return GatedDeltaNet(**delta_net_sizes(read), repeated=True, merged=True)
        return super().mixer(layer, read)


def delta_net_sizes(read: Reader) -> dict[str, Any]:
    """Sizes of the layers with a state, as `nn.GatedDeltaNet` takes them."""
    key_dim, value_heads = read.integer("ssm.state_size", 1, MOST), read.integer("ssm.time_step_rank", 1, MOST)
    key_heads, inner = read.integer("ssm.group_count", 1, value_heads), read.integer("ssm.inner_size", 1, MOST)
    if value_heads % key_heads:
        raise read.error("ssm.group_count", f"divisors of ssm.time_step_rank, {value_heads}")
    if inner % value_heads:
        raise read.error("ssm.inner_size", f"multiples of ssm.time_step_rank, {value_heads}")
    return {
        "dim": read.config.dim,
        "key_heads": key_heads,
        "value_heads": value_heads,
        "key_dim": key_dim,
        "value_dim": inner // value_heads,
        "width": read.integer("ssm.conv_kernel", 2, 64),
        "eps": read.eps,
    }
