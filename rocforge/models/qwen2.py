"""qwen2 and qwen2vl: Qwen 1.5, 2 and 2.5; of the vision models the text part, whose positions are plain ones."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader


class Qwen2(Transformer):
    """Source: Qwen2 Technical Report, https://arxiv.org/abs/2407.10671."""

    architectures = ("qwen2", "qwen2vl")
    models = "Qwen 1.5, 2, 2.5; Qwen 2 VL's and 2.5 VL's text part"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True), bias=True)
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm)
