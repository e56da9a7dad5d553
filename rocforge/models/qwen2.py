"""qwen2: Qwen 1.5, 2 and 2.5."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader


class Qwen2(Transformer):
    """Source: Qwen2 Technical Report, https://arxiv.org/abs/2407.10671."""

    architectures = ("qwen2",)
    models = "Qwen 1.5, 2, 2.5"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True), bias=True)
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm)
