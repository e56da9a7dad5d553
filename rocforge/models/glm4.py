"""chatglm and glm4: ChatGLM 3, GLM-4, GLM-4-0414 and GLM-Z1, whose ffn_up holds the rows of gate and up."""

from rocforge.nn import Attention, Block, MergedMLP, Transformer
from rocforge.nn.block import POST_NORMS
from rocforge.nn.reader import Reader


class ChatGLM(Transformer):
    """Source: ChatGLM, https://arxiv.org/abs/2406.12793."""

    architectures = ("chatglm",)
    models = "ChatGLM 3, GLM 4"
    post: tuple[str | None, str | None] = (None, None)

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(self.neox(read)))
        return Block(attn, MergedMLP(**read.mlp(layer)), read.rms_norm, post=self.post)

    def neox(self, read: Reader) -> bool:
        """Whether the rope pairs elements that are half a head apart."""
        return False


class Glm4(ChatGLM):
    """With norms on both sides of attention and feed-forward."""

    architectures = ("glm4",)
    models = "GLM 4 0414, GLM Z1"
    post = POST_NORMS

    def neox(self, read: Reader) -> bool:
        return any(read.value("rope.dimension_sections", ()))  # files of vision models have them, and pair so
