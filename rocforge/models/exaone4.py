"""exaone4: EXAONE 4, whose norms stand behind attention and feed-forward."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.block import POST_NORMS
from rocforge.nn.reader import Reader

WITH_WINDOWS = 64
"""Layers of the model that has windows, in three layers of four; the fourth then has no positions."""


class Exaone4(Transformer):
    """Source: EXAONE 4.0, https://arxiv.org/abs/2507.11407."""

    architectures = ("exaone4",)
    models = "EXAONE 4"

    def block(self, layer: int, read: Reader) -> Block:
        windows = read.config.layers == WITH_WINDOWS
        window = read.window(layer, every=4, default=4096) if windows else None
        rope = None if windows and window is None else read.rope(True)
        attn = Attention(**read.attention(layer), rope=rope, window=window, norms="head")
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm, pre=(None, None), post=POST_NORMS)
