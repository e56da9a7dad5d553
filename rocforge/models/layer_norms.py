"""Families with layer norms: nemotron, starcoder2, codeshell, orion, jais, stablelm, olmo, dbrx."""

from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.reader import Reader


class Nemotron(Transformer):
    """Nemotron-4, Minitron, Jais 2; the feed-forward squares a ReLU. Source: https://arxiv.org/abs/2402.16819."""

    architectures: tuple[str, ...] = ("nemotron", "jais2")
    models = "Nemotron 4, Minitron; Jais 2"
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


class Jais(Nemotron):
    """Scores are biased by distance (ALiBi), and scaled by their heads' elements, not the root of these.

    Source: Sengupta et al., https://arxiv.org/abs/2308.16149.
    """

    architectures = ("jais",)
    models = "Jais 1"

    def block(self, layer: int, read: Reader) -> Block:
        alibi, scale = read.factor("attention.max_alibi_bias"), 1 / read.head_dim(layer)
        attn = Attention(**read.attention(layer), rope=None, alibi=alibi, scale=scale)
        return Block(attn, MLP(**read.mlp(layer)), read.layer_norm)


class Olmo(Transformer):
    """OLMo 1, whose norms have no weights. Source: https://arxiv.org/abs/2402.00838."""

    architectures = ("olmo",)
    models = "OLMo 1"

    def norm(self, read: Reader) -> Module:
        return read.layer_norm(affine=False)

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False), clip=read.factor("attention.clamp_kqv"))
        return Block(attn, MLP(**read.mlp(layer)), lambda: read.layer_norm(affine=False))


class DBRX(Transformer):
    """Experts, and layer norms without biases. Source: https://huggingface.co/databricks/dbrx-base."""

    architectures = ("dbrx",)
    models = "DBRX"

    def norm(self, read: Reader) -> Module:
        return read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True), clip=read.factor("attention.clamp_kqv"))
        return Block(attn, MoE(**read.moe(layer)), read.layer_norm, pre=("attn_norm", "attn_output_norm"))
