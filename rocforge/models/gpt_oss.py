"""gpt-oss: experts with biases, attention sinks, a window in every other layer."""

from types import MappingProxyType

from rocforge.nn import Attention, MoE, Transformer
from rocforge.nn.transformer import Block


class GptOss(Transformer):
    """Source: gpt-oss model card, https://arxiv.org/abs/2508.10925."""

    neox = True
    defaults = MappingProxyType({"attention.sliding_window": 128})
    default_pattern = 2

    def block(self, layer: int) -> Block:
        c = self.config
        attention = Attention(
            c,
            layer,
            self.frequencies_of(layer),
            window=self.window_of(layer),
            qkv_bias=True,
            output_bias=True,
            sinks=True,
        )
        experts = MoE(c, "swiglu_oai", bias=True, softmax_before=False, norm="post_attention_norm")
        return Block(attention, experts)
