"""qwen3, qwen3moe, qwen3vl and qwen3vlmoe: Qwen 3, dense and with experts; of the vision models the text part."""

from rocforge.nn import MLP, Attention, Block, MoE, Transformer
from rocforge.nn.reader import Reader


class Qwen3(Transformer):
    """Source: Qwen3 Technical Report, https://arxiv.org/abs/2505.09388."""

    architectures: tuple[str, ...] = ("qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe")
    models = "Qwen 3, dense and with experts; Qwen 3 VL's text part"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True), norms="head")
        ffn = MoE(**read.moe(layer)) if read.experts else MLP(**read.mlp(layer))
        return Block(attn, ffn, read.rms_norm)
