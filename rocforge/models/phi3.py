"""phi3: Phi-3, 3.5 and 4, whose weights hold q, k, v and gate, up together."""

from rocforge.nn import Attention, Block, MergedMLP, Transformer
from rocforge.nn.reader import Reader


class Phi3(Transformer):
    """Source: Phi-3 Technical Report, https://arxiv.org/abs/2404.14219; LongRoPE: https://arxiv.org/abs/2402.13753.

    The window that Phi-3's files name is not applied, as llama.cpp does not: the converted files have it wrong.
    """

    architectures = ("phi3",)
    models = "Phi 3, 3.5, 4"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        return Block(attn, MergedMLP(**read.mlp(layer)), read.rms_norm)
