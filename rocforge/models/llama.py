"""llama: Llama 2 to 3.2, Mistral, and Mixtral's experts; and the families that differ from it in their names alone."""

from rocforge.nn import MLP, Attention, Block, MoE, Transformer
from rocforge.nn.reader import Reader


class Llama(Transformer):
    """Source: Touvron et al., https://arxiv.org/abs/2302.13971; Mixtral: Jiang et al., https://arxiv.org/abs/2401.04088."""

    architectures: tuple[str, ...] = ("llama", "internlm2", "xverse", "ernie4_5")
    models = "Llama 2 to 3.3, Mistral, Mixtral, InternLM 2, XVERSE, ERNIE 4.5 dense"
    neox = False

    def block(self, layer: int, read: Reader) -> Block:
        ffn = MoE(**read.moe(layer)) if read.experts else MLP(**read.mlp(layer))
        return Block(self.attention(layer, read), ffn, read.rms_norm)

    def attention(self, layer: int, read: Reader) -> Attention:
        """A layer's."""
        return Attention(**read.attention(layer), rope=read.rope(self.neox))


class Exaone(Llama):
    """EXAONE 3 and 3.5. Source: https://arxiv.org/abs/2408.03541."""

    architectures = ("exaone",)
    models = "EXAONE 3, 3.5"
    neox = True
