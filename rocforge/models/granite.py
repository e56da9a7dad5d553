"""granite and minicpm: a llama with constants on embeddings, scores, what layers add, and logits."""

import math

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader


class Granite(Transformer):
    """Granite 3. Source: https://huggingface.co/ibm-granite/granite-3.1-8b-base."""

    architectures = ("granite",)

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale = read.factor("embedding_scale")
        self.logit_scale = 1.0 / (read.factor("logit_scale") or 1.0)

    def block(self, layer: int, read: Reader) -> Block:
        rope = read.rope(False) if read.flag("rope.scaling.finetuned", default=True) else None
        attn = Attention(**read.attention(layer), rope=rope, scale=read.factor("attention.scale"))
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm, residual_scale=read.factor("residual_scale"))


class MiniCPM(Transformer):
    """MiniCPM 1 and 2, and 4. Source: https://arxiv.org/abs/2404.06395."""

    architectures = ("minicpm",)

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale = read.factor("embedding_scale", default=12.0)
        self.logit_scale = 1.0 / (read.factor("logit_scale", default=read.config.dim / 256.0) or 1.0)

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False))
        residual_scale = read.factor("residual_scale", default=1.4 / math.sqrt(read.config.layers))
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm, residual_scale=residual_scale)
