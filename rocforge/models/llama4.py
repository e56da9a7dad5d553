"""llama4: Llama 4 Scout and Maverick, their text part."""

from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.reader import Reader
from rocforge.nn.shared_experts import with_shared
from rocforge.ops.temperature import Temperature

CHUNK, NO_ROPE_STEP = 8192, 4
WITHOUT_NORMS = 128
"""Experts of Maverick, which does not normalize queries and keys."""


class Llama4(Transformer):
    """Three layers of four see their chunk of the text, with positions; the fourth sees everything, without.

    Source: https://huggingface.co/meta-llama/Llama-4-Scout-17B-16E.
    """

    architectures = ("llama4",)
    models = "Llama 4 Scout, Maverick"

    def block(self, layer: int, read: Reader) -> Block:
        moe = (layer + 1) % read.integer("interleave_moe_layer_step", 1, 1024) == 0
        return Block(
            self.attention(layer, read), self.mixture(layer, read) if moe else MLP(**read.mlp(layer)), read.rms_norm
        )

    def attention(self, layer: int, read: Reader) -> Attention:
        """A layer's."""
        window = read.window(layer, every=4, default=CHUNK)
        if (layer + 1) % NO_ROPE_STEP == 0:
            temperature = Temperature(0.1, CHUNK, offset=1)
            return Attention(**read.attention(layer), rope=None, window=window, chunked=True, temperature=temperature)
        norms = None if read.experts == WITHOUT_NORMS else "head, no weight"
        return Attention(**read.attention(layer), rope=read.rope(False), window=window, chunked=True, norms=norms)

    def mixture(self, layer: int, read: Reader) -> Module:
        """A layer's experts, one a token, and the one that every token takes."""
        sizes = read.moe(layer)
        if sizes["used"] != 1:
            raise read.error("expert_used_count", "1")
        routed = MoE(**sizes, sigmoid=True, normalize=False, weighs_input=True)
        return with_shared(routed, {"dim": sizes["dim"], "ffn": sizes["ffn"]})
