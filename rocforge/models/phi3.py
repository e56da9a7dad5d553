"""phi3: Phi-3, 3.5 and 4, whose weights hold q, k, v and gate, up together."""

from rocforge.nn import Attention, FusedMLP, Transformer
from rocforge.nn.transformer import Block


class Phi3(Transformer):
    """Source: Phi-3 Technical Report, https://arxiv.org/abs/2404.14219; LongRoPE: https://arxiv.org/abs/2402.13753.

    The window that Phi-3's files name is not applied, as llama.cpp does not: the converted files have it wrong.
    """

    neox = True

    def block(self, layer: int) -> Block:
        return Block(Attention(self.config, layer, self.frequencies, fused_qkv=True), FusedMLP(self.config))
