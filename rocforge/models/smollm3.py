"""smollm3: SmolLM3, without positions in every fourth layer."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader

NO_ROPE_STEP = 4


class SmolLM3(Transformer):
    """Source: https://huggingface.co/blog/smollm3."""

    architectures = ("smollm3",)
    models = "SmolLM 3"

    def block(self, layer: int, read: Reader) -> Block:
        rope = None if (layer + 1) % NO_ROPE_STEP == 0 else read.rope(False)
        return Block(Attention(**read.attention(layer), rope=rope), MLP(**read.mlp(layer)), read.rms_norm)
