"""olmo2: OLMo 2, whose norms stand behind attention and feed-forward, and on whole queries and keys."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.block import POST_NORMS
from rocforge.nn.reader import Reader


class Olmo2(Transformer):
    """Source: 2 OLMo 2 Furious, https://arxiv.org/abs/2501.00656."""

    architectures = ("olmo2",)
    models = "OLMo 2"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True), norms="whole")
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm, pre=(None, None), post=POST_NORMS)
