"""llama: Llama 2 to 3.2, Mistral, and Mixtral's experts; and the families that differ from it in their names alone."""

from rocforge.errors import UnsupportedModelError
from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.reader import Reader

ROTATED, BIASED = 32, 40
"""Layers of the Baichuan models that rotate queries and keys, and of those whose scores are biased by distance."""


class Llama(Transformer):
    """Source: Touvron et al., https://arxiv.org/abs/2302.13971; Mixtral: Jiang et al., https://arxiv.org/abs/2401.04088."""

    architectures: tuple[str, ...] = ("llama", "internlm2", "xverse", "ernie4_5")
    models = "Llama 2 to 3.3, Mistral, Mixtral, InternLM 2, XVERSE, ERNIE 4.5 dense"
    neox = False

    def block(self, layer: int, read: Reader) -> Module:
        ffn = MoE(**read.moe(layer)) if read.experts else MLP(**read.mlp(layer))
        return Block(self.attention(layer, read), ffn, read.rms_norm)

    def attention(self, layer: int, read: Reader) -> Attention:
        """A layer's."""
        return Attention(**read.attention(layer), rope=read.rope(self.neox))


class Exaone(Llama):
    """EXAONE 3 and 3.5, openPangu, and the text part of PaddleOCR-VL. Source: https://arxiv.org/abs/2408.03541."""

    architectures = ("exaone", "pangu-embedded", "paddleocr")
    models = "EXAONE 3, 3.5; openPangu Embedded; PaddleOCR-VL's text part"
    neox = True


class Baichuan(Llama):
    """The 7B models; those of 13B have no rope, but biases of distance (ALiBi), as the number of layers alone says.

    Source: https://arxiv.org/abs/2309.10305.
    """

    architectures = ("baichuan",)
    models = "Baichuan 1, 2"

    def __init__(self, read: Reader):
        if (layers := read.config.layers) not in (ROTATED, BIASED):
            raise UnsupportedModelError(
                f"baichuan of {layers} layers is not supported; {ROTATED} are, with rope, and {BIASED}, with ALiBi"
            )
        super().__init__(read)

    def attention(self, layer: int, read: Reader) -> Attention:
        if read.config.layers == ROTATED:
            return super().attention(layer, read)
        return Attention(**read.attention(layer), rope=None, alibi=8.0)


class Refact(Llama):
    """Scores are biased by distance (ALiBi). Source: https://huggingface.co/refactai/Refact-1_6B-fim."""

    architectures = ("refact",)
    models = "Refact 1.6B"

    def attention(self, layer: int, read: Reader) -> Attention:
        return Attention(**read.attention(layer), rope=None, alibi=8.0)


class CogVLM(Llama):
    """Tokens of text have weights of their own, and those of images others (vis_), which are not read.

    Source: https://arxiv.org/abs/2311.03079.
    """

    architectures = ("cogvlm",)
    models = "CogVLM's text part"

    def __init__(self, read: Reader):
        self.unread = frozenset(name for name in read.tensors if ".vis_" in name)
        super().__init__(read)

    def attention(self, layer: int, read: Reader) -> Attention:
        return Attention(**read.attention(layer), rope=read.plain_rope(True, 10000.0))


class Plamo(Llama):
    """Attention and feed-forward side by side. Source: https://huggingface.co/pfnet/plamo-13b."""

    architectures = ("plamo",)
    models = "PLaMo 13B"
    neox = True

    def block(self, layer: int, read: Reader) -> Block:
        mlp = MLP(**read.mlp(layer))
        return Block(self.attention(layer, read), mlp, read.rms_norm, pre=("attn_norm", None), parallel=True)


class OpenELM(Llama):
    """Its layers differ in heads and widths. Source: https://arxiv.org/abs/2404.14619."""

    architectures = ("openelm",)
    models = "OpenELM"

    def attention(self, layer: int, read: Reader) -> Attention:
        return Attention(**read.attention(layer), rope=read.rope(True), norms="head")


class Apertus(Llama):
    """Its feed-forward has no gate, and a unit with constants of its own in each layer.

    Source: https://arxiv.org/abs/2509.14233.
    """

    architectures = ("apertus",)
    models = "Apertus"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True), norms="head")
        constants = [read.general_number(layer, f"xielu.{name}") for name in ("alpha_n", "alpha_p", "beta", "eps")]
        mlp = MLP(**read.mlp(layer), activation="xielu", gate=False, constants=constants)
        return Block(attn, mlp, read.rms_norm)
