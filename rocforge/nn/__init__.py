"""Modules: state plus a call. A model is a tree of them, with GGUF's tensor names as paths."""

from rocforge.nn.attention import Attention
from rocforge.nn.layers import Embedding, Linear, RMSNorm
from rocforge.nn.mlp import MLP, FusedMLP, MoE
from rocforge.nn.module import Module, Parameter
from rocforge.nn.state import PagedKV, Recurrent
from rocforge.nn.transformer import Transformer

__all__ = [
    "MLP",
    "Attention",
    "Embedding",
    "FusedMLP",
    "Linear",
    "MoE",
    "Module",
    "PagedKV",
    "Parameter",
    "RMSNorm",
    "Recurrent",
    "Transformer",
]
