"""The GPT line: gpt2, starcoder, bloom, mpt, gptneox, falcon, phi2."""

from rocforge.models.normed_embedding import NormedEmbedding
from rocforge.nn import MLP, Attention, Block, Module, Transformer
from rocforge.nn.layers import Embedding
from rocforge.nn.reader import Reader


class Gpt2(Transformer):
    """GPT-2 and StarCoder, which learn an embedding of positions. Source: Radford et al., Language Models are
    Unsupervised Multitask Learners, 2019; Li et al., https://arxiv.org/abs/2305.06161."""

    architectures: tuple[str, ...] = ("gpt2", "starcoder")
    models = "GPT-2, StarCoder"

    def positions(self, read: Reader) -> Module | None:
        return Embedding(read.integer("context_length", 1), read.config.dim)

    def norm(self, read: Reader) -> Module:
        return read.layer_norm()

    def block(self, layer: int, read: Reader) -> Block:
        mlp = MLP(**read.mlp(layer), activation="gelu", gate=False)
        return Block(self.attention(layer, read), mlp, read.layer_norm)

    def attention(self, layer: int, read: Reader) -> Attention:
        """A layer's."""
        return Attention(**read.attention(layer), rope=None)


class Bloom(NormedEmbedding, Gpt2):
    """Scores are biased by distance (ALiBi), and embeddings normalized. Source: https://arxiv.org/abs/2211.05100."""

    architectures = ("bloom",)
    models = "BLOOM, BLOOMZ"

    def positions(self, read: Reader) -> None:
        """There are none."""

    def attention(self, layer: int, read: Reader) -> Attention:
        return Attention(**read.attention(layer), rope=None, alibi=8.0)


class Mpt(Gpt2):
    """Scores are biased by distance (ALiBi), or positions are learnt; queries, keys and values may be clipped.

    Source: https://www.databricks.com/blog/mpt-7b.
    """

    architectures = ("mpt",)
    models = "MPT"

    def positions(self, read: Reader) -> Module | None:
        return super().positions(read) if self.alibi(read) is None else None

    def alibi(self, read: Reader) -> float | None:
        """The largest bias."""
        return read.factor("attention.max_alibi_bias")

    def attention(self, layer: int, read: Reader) -> Attention:
        clip = read.factor("attention.clamp_kqv")
        return Attention(**read.attention(layer), rope=None, alibi=self.alibi(read), clip=clip)


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
