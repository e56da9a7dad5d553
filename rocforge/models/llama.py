"""llama: Llama 2 to 3.2, Mistral, and Mixtral's experts."""

from rocforge.nn import MLP, Attention, Block, MoE, Transformer
from rocforge.nn.reader import Reader


class Llama(Transformer):
    """Source: Touvron et al., https://arxiv.org/abs/2302.13971; Mixtral: Jiang et al., https://arxiv.org/abs/2401.04088."""

    architectures = ("llama",)

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False), bias="optional", output_bias="optional")
        ffn = MoE(**read.moe(layer)) if read.experts else MLP(**read.mlp(layer), bias="optional")
        return Block(attn, ffn, read.rms_norm)
