"""Families with layers of a fixed state: mamba, mamba2, jamba, granitehybrid, nemotron_h, falcon-h1, lfm2."""

from __future__ import annotations

from typing import Any

from rocforge.gguf.metadata import MOST
from rocforge.models.granite import Granite
from rocforge.nn import MLP, Attention, Block, Linear, Mamba1, Mamba2, MixerBlock, Module, MoE, Transformer
from rocforge.nn.batch import Batch
from rocforge.nn.block import SideBySide
from rocforge.nn.parameter import Parameter
from rocforge.nn.reader import Reader
from rocforge.nn.shared_experts import with_shared
from rocforge.nn.short_conv import ShortConvMixer
from rocforge.ops.activation import add
from rocforge.ops.norm import rms_norm


def mamba2_sizes(read: Reader) -> dict[str, Any]:
    """Sizes of the layers with a state, as `nn.Mamba2` takes them."""
    heads, inner = read.integer("ssm.time_step_rank", 1, MOST), read.integer("ssm.inner_size", 1, MOST)
    groups = read.integer("ssm.group_count", 1, heads)
    if inner % heads or inner % groups or heads % groups:
        raise read.error("ssm.inner_size", f"multiples of {heads} heads and {groups} groups, which divide the heads")
    return {
        "dim": read.config.dim,
        "heads": heads,
        "groups": groups,
        "state_dim": read.integer("ssm.state_size", 1, MOST),
        "inner": inner,
        "width": read.integer("ssm.conv_kernel", 2, 64),
        "eps": read.eps,
    }


class Mamba2Model(Transformer):
    """Source: Dao and Gu, https://arxiv.org/abs/2405.21060."""

    architectures = ("mamba2",)
    models = "Mamba 2, Codestral Mamba"

    def block(self, layer: int, read: Reader) -> Module:
        return MixerBlock(Mamba2(**mamba2_sizes(read)), read.rms_norm, stateful=True)


def mamba1_sizes(read: Reader) -> dict[str, Any]:
    """Sizes of the layers with a state, as `nn.Mamba1` takes them."""
    return {
        "dim": read.config.dim,
        "inner": read.integer("ssm.inner_size", 1, MOST),
        "state_dim": read.integer("ssm.state_size", 1, MOST),
        "rank": read.integer("ssm.time_step_rank", 1, MOST),
        "width": read.integer("ssm.conv_kernel", 2, 64),
        "eps": read.eps,
    }


class Mamba(Transformer):
    """Source: https://arxiv.org/abs/2312.00752; Falcon Mamba: https://arxiv.org/abs/2410.05355."""

    architectures = ("mamba",)
    models = "Mamba, Falcon Mamba"

    def block(self, layer: int, read: Reader) -> Module:
        norms = "plain" if read.flag("ssm.dt_b_c_rms", default=False) else None
        return MixerBlock(Mamba1(**mamba1_sizes(read), norms=norms), read.rms_norm, stateful=True)


class Jamba(Transformer):
    """Attention where a layer has key heads, experts where it has a router. Source: https://arxiv.org/abs/2403.19887."""

    architectures = ("jamba",)
    models = "Jamba"

    def block(self, layer: int, read: Reader) -> Block:
        attention = read.per_layer("attention.head_count_kv")[layer] > 0
        mixer = Attention(**read.attention(layer), rope=None) if attention else self.mamba(read)
        routed = read.has(layer, "ffn_gate_inp")
        ffn = MoE(**read.moe(layer), normalize=False) if routed else MLP(**read.mlp(layer))
        return Block(mixer, ffn, read.rms_norm)

    def mamba(self, read: Reader) -> Module:
        """What a layer has in place of attention."""
        return Mamba1(**mamba1_sizes(read), norms="weights")


class GraniteHybrid(Granite):
    """Granite 4. Source: https://huggingface.co/ibm-granite/granite-4.0-h-small."""

    architectures = ("granitehybrid",)
    models = "Granite 4"

    def mixer(self, layer: int, read: Reader) -> Module:
        if read.per_layer("attention.head_count_kv")[layer] == 0:
            return Mamba2(**mamba2_sizes(read))
        return super().mixer(layer, read)


class NemotronH(Transformer):
    """Nemotron-H and Nemotron Nano 2: a layer has attention, a state, or a feed-forward.

    Source: https://arxiv.org/abs/2504.03624.
    """

    architectures = ("nemotron_h",)
    models = "Nemotron-H, Nemotron Nano 2"

    def block(self, layer: int, read: Reader) -> Module:
        ffn, kv_heads = (read.per_layer(key)[layer] for key in ("feed_forward_length", "attention.head_count_kv"))
        if ffn:
            return MixerBlock(self.feed_forward(layer, read), read.rms_norm, stateful=False)
        mixer = Attention(**read.attention(layer), rope=None) if kv_heads else Mamba2(**mamba2_sizes(read))
        return MixerBlock(mixer, read.rms_norm, stateful=True)

    def feed_forward(self, layer: int, read: Reader) -> Module:
        """A layer's."""
        return MLP(**read.mlp(layer), activation="relu_squared", gate=False)


class LatentMoE(MoE):
    """Experts between two projections (ffn_latent_down, ffn_latent_up); the router sees what comes before them."""

    def __init__(self, dim: int, latent: int, experts: int, **options: Any):
        super().__init__(latent, experts=experts, **options)
        self.ffn_gate_inp = Linear(dim, experts)
        self.ffn_latent_down, self.ffn_latent_up = Linear(dim, latent), Linear(latent, dim)

    def choose(self, x: Any, router_x: Any = None, expert_scales: Any = None) -> tuple[Any, Any, Any]:
        return self.ffn_latent_down(x), *self.route(x if router_x is None else router_x, expert_scales)

    def forward(self, x: Any, router_x: Any = None) -> Any:
        return self.ffn_latent_up(super().forward(x, router_x))


class NemotronHMoE(NemotronH):
    """Nemotron 3: experts without gates beside a shared one. Source: https://arxiv.org/abs/2512.20848."""

    architectures = ("nemotron_h_moe",)
    models = "Nemotron 3 Nano, Super"

    def feed_forward(self, layer: int, read: Reader) -> Module:
        how: dict[str, Any] = {"activation": "relu_squared", "gate": False, "sigmoid": True, "selection_bias": True}
        how["normalize"] = read.flag("expert_weights_norm", default=False)
        latent = read.integer("moe_latent_size", 0, MOST, default=0)
        routed = LatentMoE(latent=latent, **read.moe(layer), **how) if latent else MoE(**read.moe(layer), **how)
        return with_shared(routed, read.shared_expert(layer), activation="relu_squared", gated=False)


class FalconH1Block(Module):
    """A block whose second norm is the tensor ffn_norm, without .weight, as the published files name it."""

    def __init__(self, mixer: Module, ffn: Module, read: Reader):
        self.attn_norm, self.mixer, self.ffn, self.eps = read.rms_norm(), mixer, ffn, read.eps
        self.ffn_norm = Parameter(read.config.dim)

    def forward(self, x: Any, batch: Batch) -> Any:
        x = add(x, self.mixer(self.attn_norm(x), batch))
        return add(x, self.ffn(rms_norm(x, self.ffn_norm, self.eps)))


class FalconH1(Transformer):
    """Attention and a state side by side. Source: https://arxiv.org/abs/2507.22448."""

    architectures = ("falcon-h1",)
    models = "Falcon-H1"

    def block(self, layer: int, read: Reader) -> FalconH1Block:
        attn = Attention(**read.attention(layer), rope=read.rope(True))
        mixer = SideBySide(attn, Mamba2(**mamba2_sizes(read), norm=read.has(layer, "ssm_norm")))
        return FalconH1Block(mixer, MLP(**read.mlp(layer)), read)


class Lfm2(Transformer):
    """LFM2: short convolutions, and attention where a layer has key heads. Source: https://arxiv.org/abs/2511.23404."""

    architectures = ("lfm2",)
    models = "LFM2"
    output_norm_name = "token_embd_norm"

    def block(self, layer: int, read: Reader) -> Block:
        return Block(self.mixer(layer, read), self.feed_forward(layer, read), read.rms_norm)

    def mixer(self, layer: int, read: Reader) -> Module:
        """A layer's attention, or convolution."""
        if read.per_layer("attention.head_count_kv")[layer] == 0:
            return ShortConvMixer(read.config.dim, read.integer("shortconv.l_cache", 2, 64))
        return Attention(**read.attention(layer), rope=read.rope(True), norms="head", window=read.window(layer))

    def feed_forward(self, layer: int, read: Reader) -> Module:
        """A layer's."""
        return MLP(**read.mlp(layer))
