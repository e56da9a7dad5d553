"""command-r and cohere2: Command R, R7B and A: attention and feed-forward side by side."""

from rocforge.nn import MLP, Attention, Block, Module, Transformer
from rocforge.nn.reader import Reader


class CommandR(Transformer):
    """Source: https://huggingface.co/CohereLabs/c4ai-command-r-v01."""

    architectures = ("command-r",)
    models = "Command R, Aya 23"

    def __init__(self, read: Reader):
        super().__init__(read)
        self.logit_scale = read.factor("logit_scale")

    def norm(self, read: Reader) -> Module:
        return read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False))
        return self.parallel(attn, layer, read)

    def parallel(self, attn: Attention, layer: int, read: Reader) -> Block:
        """The block with that attention."""
        return Block(attn, MLP(**read.mlp(layer)), read.layer_norm, pre=("attn_norm", None), parallel=True)


class Cohere2(CommandR):
    """Three layers of four see a window; the fourth has no positions. Source: https://arxiv.org/abs/2504.00698."""

    architectures = ("cohere2",)
    models = "Command R7B, Command A"

    def block(self, layer: int, read: Reader) -> Block:
        window = read.window(layer, every=4)
        attn = Attention(**read.attention(layer), rope=read.rope(False) if window else None, window=window)
        return self.parallel(attn, layer, read)
