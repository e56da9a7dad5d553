"""gemma2 and gemma3: norms on both sides of each layer, and windows in most of them."""

import math
from types import MappingProxyType

from rocforge.nn import MLP, Attention, Transformer
from rocforge.nn.transformer import Block


class Gemma2(Transformer):
    """Every other layer sees a window; scores and logits are capped. Source: https://arxiv.org/abs/2408.00118."""

    neox = True
    defaults = MappingProxyType(
        {"attention.sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    )
    default_pattern = 2
    wide_layers = 46
    head_norms = False

    @property
    def embedding_scale(self) -> float:
        return math.sqrt(self.config.dim)

    def block(self, layer: int) -> Block:
        c = self.config
        # the 27B models scale scores by the share of the model's width that a head has
        wide = c.layers == self.wide_layers
        attention = Attention(
            c,
            layer,
            self.frequencies_of(layer),
            window=self.window_of(layer),
            head_norms=self.head_norms,
            post_norm=True,
            scale=1 / math.sqrt(c.dim // c.heads) if wide else None,
        )
        return Block(attention, MLP(c, "geglu", post_norm=True))


class Gemma3(Gemma2):
    """Five layers of six see a window, with a rope base of their own. Source: https://arxiv.org/abs/2503.19786."""

    defaults = MappingProxyType({})
    default_pattern = 6
    default_window_base = 10000.0
    wide_layers = 62
    head_norms = True
