"""seed_oss: Seed-OSS-36B."""

from rocforge.nn import MLP, Attention, Block, Transformer
from rocforge.nn.reader import Reader


class SeedOss(Transformer):
    """Source: https://huggingface.co/ByteDance-Seed/Seed-OSS-36B-Instruct."""

    architectures = ("seed_oss",)
    models = "Seed-OSS"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm, pre=("attn_norm", "post_attention_norm"))
