"""qwen3 and qwen3moe: Qwen 3, dense and with experts."""

from rocforge.nn import MLP, Attention, MoE, Transformer
from rocforge.nn.transformer import Block


class Qwen3(Transformer):
    """Source: Qwen3 Technical Report, https://arxiv.org/abs/2505.09388."""

    neox = True

    def block(self, layer: int) -> Block:
        c = self.config
        attention = Attention(c, layer, self.frequencies, head_norms=True, qkv_bias="optional")
        return Block(attention, MoE(c) if c.experts else MLP(c))
