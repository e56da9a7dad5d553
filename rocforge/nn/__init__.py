"""Modules: state plus a call. A model is a tree of them, with GGUF's tensor names as paths."""

from rocforge.nn.attention import Attention
from rocforge.nn.block import Block, MixerBlock
from rocforge.nn.delta_net import GatedDeltaNet
from rocforge.nn.kimi_delta import KimiDeltaNet
from rocforge.nn.latent_attention import LatentAttention
from rocforge.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
from rocforge.nn.mamba1 import Mamba1
from rocforge.nn.mamba2 import Mamba2
from rocforge.nn.mlp import MLP, MergedMLP
from rocforge.nn.module import Module
from rocforge.nn.moe import Experts, MoE
from rocforge.nn.parameter import Parameter
from rocforge.nn.shared_experts import SharedExpert, SharedMoE
from rocforge.nn.state import PagedKV, Recurrent, SharedKV
from rocforge.nn.transformer import Transformer

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Embedding",
    "Experts",
    "GatedDeltaNet",
    "KimiDeltaNet",
    "LatentAttention",
    "LayerNorm",
    "Linear",
    "Mamba1",
    "Mamba2",
    "MergedMLP",
    "MixerBlock",
    "MoE",
    "Module",
    "PagedKV",
    "Parameter",
    "RMSNorm",
    "Recurrent",
    "SharedExpert",
    "SharedKV",
    "SharedMoE",
    "Transformer",
]
