"""granite and minicpm: a llama with constants on embeddings, scores, what layers add, and logits."""

import math

from rocforge.nn import MLP, Attention, Block, Module, MoE, Transformer
from rocforge.nn.reader import Reader
from rocforge.nn.shared_experts import with_shared


class Granite(Transformer):
    """Granite 3, dense and with experts. Source: https://huggingface.co/ibm-granite/granite-3.1-8b-base."""

    architectures: tuple[str, ...] = ("granite", "granitemoe")
    models = "Granite 3, dense and with experts"

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale = read.factor("embedding_scale")
        self.logit_scale = 1.0 / (read.factor("logit_scale") or 1.0)

    def block(self, layer: int, read: Reader) -> Block:
        mixer, ffn = self.mixer(layer, read), self.feed_forward(layer, read)
        return Block(mixer, ffn, read.rms_norm, residual_scale=read.factor("residual_scale"))

    def mixer(self, layer: int, read: Reader) -> Module:
        """A layer's attention, or what stands in its place."""
        rope = read.rope(False) if read.flag("rope.scaling.finetuned", default=True) else None
        return Attention(**read.attention(layer), rope=rope, scale=read.factor("attention.scale"))

    def feed_forward(self, layer: int, read: Reader) -> Module:
        """A layer's."""
        if not read.experts:
            return MLP(**read.mlp(layer))
        return with_shared(MoE(**read.moe(layer)), read.shared_expert(layer))


class GraniteWindows(Granite):
    """Layers with windows and without, all with sinks; which have positions is said for each."""

    architectures = ("granite_swa",)
    models = "Granite with windows"

    def mixer(self, layer: int, read: Reader) -> Module:
        return Attention(
            **read.attention(layer),
            rope=read.rope(False) if read.per_layer("attention.rope_pattern", True)[layer] else None,
            window=read.window(layer),
            scale=read.factor("attention.scale"),
            sinks=True,
        )

    def feed_forward(self, layer: int, read: Reader) -> Module:
        if not read.experts:
            return super().feed_forward(layer, read)
        merged = read.rows(layer, "ffn_gate_shexp") == 0
        return with_shared(MoE(**read.moe(layer)), read.shared_expert(layer), gated="merged" if merged else True)


class MiniCPM(Transformer):
    """MiniCPM 1 and 2, and 4. Source: https://arxiv.org/abs/2404.06395."""

    architectures = ("minicpm",)
    models = "MiniCPM 1, 2, 4"

    def __init__(self, read: Reader):
        super().__init__(read)
        self.embedding_scale = read.factor("embedding_scale", default=12.0)
        self.logit_scale = 1.0 / (read.factor("logit_scale", default=read.config.dim / 256.0) or 1.0)

    def block(self, layer: int, read: Reader) -> Block:
        attn = Attention(**read.attention(layer), rope=read.rope(False))
        residual_scale = read.factor("residual_scale", default=1.4 / math.sqrt(read.config.layers))
        return Block(attn, MLP(**read.mlp(layer)), read.rms_norm, residual_scale=residual_scale)
