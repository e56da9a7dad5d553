"""Modules: state plus a call. A model is a tree of them, with GGUF's tensor names as paths."""

from rocforge.nn.attention import Attention
from rocforge.nn.block import Block, MixerBlock
from rocforge.nn.delta_net import GatedDeltaNet
from rocforge.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
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
    "LayerNorm",
    "Linear",
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
