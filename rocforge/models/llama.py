"""llama: Llama 2 to 3.2, Mistral, and Mixtral's experts."""

from rocforge.nn import MLP, Attention, MoE, Transformer
from rocforge.nn.transformer import Block


class Llama(Transformer):
    """Source: Touvron et al., https://arxiv.org/abs/2302.13971; Mixtral: Jiang et al., https://arxiv.org/abs/2401.04088."""

    def block(self, layer: int) -> Block:
        c = self.config
        attention = Attention(c, layer, self.frequencies, qkv_bias="optional", output_bias="optional")
        return Block(attention, MoE(c) if c.experts else MLP(c, bias="optional"))
