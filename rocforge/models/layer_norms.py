"""Families with layer norms, around llama's attention: nemotron, orion, stablelm, starcoder2, codeshell, olmo."""

from rocforge.errors import UnsupportedModelError
from rocforge.nn import MLP, Attention, Block, Module, Transformer
from rocforge.nn.reader import Reader


class Nemotron(Transformer):
    """Nemotron-4, Minitron; the feed-forward squares a ReLU. Source: https://arxiv.org/abs/2402.16819."""

    architectures: tuple[str, ...] = ("nemotron",)
    models = "Nemotron 4, Minitron"
    activation, gate = "relu_squared", False

    def norm(self, read: Reader) -> Module:
        return read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        return Block(attn, MLP(**read.mlp(layer), activation=self.activation, gate=self.gate), read.layer_norm)


class StarCoder2(Nemotron):
    """StarCoder 2 and CodeShell. Source: https://arxiv.org/abs/2402.19173."""

    architectures = ("starcoder2", "codeshell")
    models = "StarCoder 2, CodeShell"
    activation = "gelu"


class Orion(Nemotron):
    """Source: https://arxiv.org/abs/2401.12246."""

    architectures = ("orion",)
    models = "Orion"
    activation, gate = "swiglu", True


class StableLM(Orion):
    """StableLM 2, and 3B-4E1T; the 12B has no ffn_norm: attention and feed-forward stand side by side.

    Source: https://arxiv.org/abs/2402.17834.
    """

    architectures = ("stablelm",)
    models = "StableLM 2, 3B-4E1T"

    def block(self, layer: int, read: Reader) -> Block:
        if read.has(layer, "ffn_norm"):
            return super().block(layer, read)
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        return Block(attn, MLP(**read.mlp(layer)), read.layer_norm, pre=("attn_norm", None), parallel=True)


class Olmo(Transformer):
    """OLMo 1, whose norms have no weights. Source: https://arxiv.org/abs/2402.00838."""

    architectures = ("olmo",)
    models = "OLMo 1"

    def __init__(self, read: Reader):
        if (clamp := read.number("attention.clamp_kqv", 0.0, 1e12, default=0.0)) > 0:
            raise UnsupportedModelError(f"olmo with attention.clamp_kqv, here {clamp:g}, is not supported")
        super().__init__(read)

    def norm(self, read: Reader) -> Module:
        return read.layer_norm(affine=False)

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False))
        return Block(attn, MLP(**read.mlp(layer)), lambda: read.layer_norm(affine=False))
