"""qwen: the first Qwen."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader


class Qwen(Transformer):
    """Source: Qwen Technical Report, https://arxiv.org/abs/2309.16609."""

    architectures = ("qwen",)
    models = "Qwen 1"

    def block(self, layer: int, read: Reader) -> Block:
        sizes = read.mlp(layer)
        mlp = MLP(sizes["dim"], sizes["ffn"] // 2)  # the file counts gate and up together
        return Block(Attention(**read.attention(layer), rope=read.rope(True)), mlp, read.rms_norm)
