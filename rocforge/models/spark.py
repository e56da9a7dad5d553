"""spark2_5: Spark 2.5, with gated heads, of which layers with a window have their own number."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader


class Spark(Transformer):
    """Source: llama.cpp's spark2-5."""

    architectures = ("spark2_5",)
    models = "Spark 2.5"

    def block(self, layer: int, read: Reader) -> Block:
        window = read.window(layer)
        rope = read.window_rope(True, base=read.rope_base) if window else read.rope(True)
        attn = Attention(**read.attention(layer), rope=rope, window=window, gate="heads")
        return Block(attn, MLP(**read.mlp(layer), activation="geglu"), read.rms_norm)
