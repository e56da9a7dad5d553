"""gemma, gemma2 and gemma3: the later ones with norms on both sides of each layer, and windows in most of them."""

import math
from types import MappingProxyType

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.block import POST_NORMS
from rocforge.nn.module import Module
from rocforge.nn.reader import Reader


class Gemma(Transformer):
    """Source: https://arxiv.org/abs/2403.08295."""

    architectures = ("gemma",)
    models = "Gemma 1"

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale = math.sqrt(self.config.dim)

    def block(self, layer: int, read: Reader) -> Module:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        return Block(attn, MLP(**read.mlp(layer), activation="geglu"), read.rms_norm)


class Gemma2(Gemma):
    """Every other layer sees a window; scores and logits are capped. Source: https://arxiv.org/abs/2408.00118."""

    architectures = ("gemma2",)
    models = "Gemma 2"
    defaults = MappingProxyType(
        {"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    )
    scaled_by_width = 46

    def __init__(self, read: Reader):
        super().__init__(read)
        self.softcap = read.factor("final_logit_softcapping")

    def block(self, layer: int, read: Reader) -> Module:
        attn = Attention(
            **read.attention(layer),
            rope=read.rope(True),
            window=read.window(layer, every=2),
            scale=self.score_scale(layer, read),
            softcap=read.factor("attn_logit_softcapping"),
        )
        return Block(attn, MLP(**read.mlp(layer), activation="geglu"), read.rms_norm, post=POST_NORMS)

    def score_scale(self, layer: int, read: Reader) -> float | None:
        """The 27B models, known by their number of layers, scale scores by the share of the width that a head has."""
        if read.config.layers != self.scaled_by_width:
            return None
        return 1 / math.sqrt(read.config.dim // read.attention(layer)["heads"])


class Gemma3(Gemma2):
    """Five layers of six see a window, with a rope base of their own. Source: https://arxiv.org/abs/2503.19786."""

    architectures = ("gemma3",)
    models = "Gemma 3"
    defaults = MappingProxyType({})
    scaled_by_width = 62

    def block(self, layer: int, read: Reader) -> Module:
        window = read.window(layer, every=6)
        attn = Attention(
            **read.attention(layer),
            rope=read.window_rope(True, base=10000.0) if window else read.rope(True),
            window=window,
            scale=self.score_scale(layer, read),
            softcap=read.factor("attn_logit_softcapping"),
            norms="head",
        )
        return Block(attn, MLP(**read.mlp(layer), activation="geglu"), read.rms_norm, post=POST_NORMS)
