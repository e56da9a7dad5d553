"""arcee: AFM-4.5B, a llama whose feed-forward squares a ReLU."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader


class Arcee(Transformer):
    """Source: https://huggingface.co/arcee-ai/AFM-4.5B."""

    architectures = ("arcee",)
    models = "AFM 4.5B"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False))
        return Block(attn, MLP(**read.mlp(layer), activation="relu_squared", gate=False), read.rms_norm)
