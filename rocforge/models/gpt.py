"""The GPT line: gpt2, starcoder, gptneox, falcon, phi2."""

from rocforge.nn import MLP, Attention, Block, Module, Transformer
from rocforge.nn.layers import Embedding
from rocforge.nn.reader import Reader


class Gpt2(Transformer):
    """GPT-2 and StarCoder, which learn an embedding of positions. Source: Radford et al., Language Models are
    Unsupervised Multitask Learners, 2019; Li et al., https://arxiv.org/abs/2305.06161."""

    architectures = ("gpt2", "starcoder")
    models = "GPT-2, StarCoder"

    def positions(self, read: Reader) -> Module:
        return Embedding(read.integer("context_length", 1), read.config.dim)

    def norm(self, read: Reader) -> Module:
        return read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=None)
        return Block(attn, MLP(**read.mlp(layer), activation="gelu", gate=False), read.layer_norm)


class GptNeoX(Transformer):
    """GPT-NeoX and Pythia. Source: Black et al., https://arxiv.org/abs/2204.06745."""

    architectures = ("gptneox",)
    models = "GPT-NeoX, Pythia"

    def norm(self, read: Reader) -> Module:
        return read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        mlp = MLP(**read.mlp(layer), activation="gelu", gate=False)
        return Block(attn, mlp, read.layer_norm, parallel=read.flag("use_parallel_residual"))


class Phi2(GptNeoX):
    """Phi 1, 1.5 and 2. Source: https://arxiv.org/abs/2309.05463."""

    architectures = ("phi2",)
    models = "Phi 1, 1.5, 2"

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        mlp = MLP(**read.mlp(layer), activation="gelu", gate=False)
        return Block(attn, mlp, read.layer_norm, pre=self.norms(layer, read), parallel=True)

    def norms(self, layer: int, read: Reader) -> tuple[str, str | None]:
        """The names of those of attention and feed-forward."""
        return "attn_norm", None


class Falcon(Phi2):
    """Source: Almazrouei et al., https://arxiv.org/abs/2311.16867."""

    architectures = ("falcon",)
    models = "Falcon"

    def norms(self, layer: int, read: Reader) -> tuple[str, str | None]:
        return ("attn_norm_2", "attn_norm") if read.has(layer, "attn_norm_2") else ("attn_norm", None)
