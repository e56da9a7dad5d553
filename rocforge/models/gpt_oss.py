"""gpt-oss: experts with biases, attention sinks, a window in every other layer."""

from types import MappingProxyType

from rocforge.nn import Attention, Block, MoE, Transformer
from rocforge.nn.reader import Reader


class GptOss(Transformer):
    """Source: gpt-oss model card, https://arxiv.org/abs/2508.10925."""

    architectures = ("gpt-oss",)
    models = "gpt-oss"
    defaults = MappingProxyType({"attention.sliding_window": 128})

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(
            **read.attention(layer),
            rope=read.rope(True),
            window=read.window(layer, every=2),
            bias=True,
            output_bias=True,
            sinks=True,
        )
        experts = MoE(**read.moe(layer), activation="swiglu_oai", bias=True, softmax_before=False)
        return Block(attn, experts, read.rms_norm, pre=("attn_norm", "post_attention_norm"))
