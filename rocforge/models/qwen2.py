"""qwen2: Qwen 1.5, 2 and 2.5."""

from rocforge.nn import MLP, Attention, Transformer
from rocforge.nn.transformer import Block


class Qwen2(Transformer):
    """Source: Qwen2 Technical Report, https://arxiv.org/abs/2407.10671."""

    neox = True

    def block(self, layer: int) -> Block:
        return Block(Attention(self.config, layer, self.frequencies, qkv_bias=True), MLP(self.config))
