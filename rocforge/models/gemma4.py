"""gemma4: wider heads in the layers that see everything, experts beside the feed-forward, inputs for each layer."""

from types import MappingProxyType
from typing import Any

from rocforge.errors import GGUFError
from rocforge.gguf.metadata import MOST, REQUIRED
from rocforge.models.gemma import Gemma2
from rocforge.nn import MLP, Attention, Block, MoE
from rocforge.nn.batch import Batch
from rocforge.nn.block import POST_NORMS
from rocforge.nn.module import Module
from rocforge.nn.moe import NormedRouter
from rocforge.nn.parallel_experts import ParallelExperts
from rocforge.nn.per_layer import LayerEnd, LayerInputs, PerLayerInput
from rocforge.nn.reader import ROPE_TENSORS, Reader

SHARED, INPUTS = "attention.shared_kv_layers", "embedding_length_per_layer_input"


class Gemma4(Gemma2):
    """The last layers may share the keys and values of the last one before them that sees as much.

    Source: https://huggingface.co/docs/transformers/model_doc/gemma4.
    """

    architectures = ("gemma4",)
    models = "Gemma 4"
    defaults = MappingProxyType({"final_logit_softcapping": 30.0})

    def __init__(self, read: Reader):
        self._keeps: dict[bool, Attention] = {}
        super().__init__(read)

    def add_parts(self, read: Reader) -> None:
        del self._keeps
        shared = [layer for layer, block in enumerate(self.blk) if block.attn.shares]
        keys = ("attn_k", "attn_v", "attn_k_norm")
        self.unread = frozenset(f"blk.{layer}.{name}.weight" for layer in shared for name in keys)
        inner, sizes = inputs(read), (self.config.vocabulary, self.config.dim, self.config.layers)
        self.layer_inputs = LayerInputs(*sizes, inner, read.eps) if inner else None

    def prepare_layers(self, tokens: Any, x: Any, batch: Batch) -> None:
        if self.layer_inputs is not None:
            batch.layer_inputs = self.layer_inputs(tokens, x)

    def block(self, layer: int, read: Reader) -> Module:
        if ROPE_TENSORS["factors"] not in read.tensors:
            raise GGUFError(f"tensor {ROPE_TENSORS['factors']} is missing")
        inner, dim = inputs(read), read.config.dim
        end = LayerEnd(PerLayerInput(dim, inner, layer, read.eps) if inner else None)
        attn, dense = self.attention(layer, read), MLP(**read.mlp(layer), activation="geglu")
        if not read.has(layer, "ffn_gate_inp"):
            return Block(attn, dense, read.rms_norm, post=POST_NORMS, after=end)
        router = NormedRouter(dim, read.experts, read.eps)
        routed = MoE(**read.moe(layer), activation="geglu", scaled=True, router=router)
        both = ParallelExperts(dense, routed, read.rms_norm)
        return Block(attn, both, read.rms_norm, pre=("attn_norm", None), post=POST_NORMS, after=end)

    def attention(self, layer: int, read: Reader) -> Attention:
        """A layer's attention; of its rope only the layers that see everything have factors."""
        window = read.window(layer, every=REQUIRED)
        return self.attention_of(
            layer,
            read,
            window,
            **read.attention(layer, "_swa" if window else ""),
            rope=read.window_rope(True, base=10000.0) if window else read.rope(True),
            values_are_keys=not read.has(layer, "attn_v"),
        )

    def attention_of(self, layer: int, read: Reader, window: int | None, **sizes: Any) -> Attention:
        """A layer's attention, with keys and values of its own or those of a layer before it."""
        shares = None
        if layer >= read.config.layers - self.sharing_layers(read):
            shares = self._keeps.get(window is None)
            if shares is None:
                raise read.error(SHARED, "such as leave a layer of the same window before those that share")
        attn = Attention(**sizes, window=window, scale=1.0, norms="head", normalizes_values=True, shares=shares)
        if shares is None:
            self._keeps[window is None] = attn
        return attn

    def sharing_layers(self, read: Reader) -> int:
        """How many of the last layers have no keys and values of their own."""
        return read.integer(SHARED, 0, read.config.layers, default=0)


def inputs(read: Reader) -> int:
    """Elements of each layer's input; 0 for none."""
    return read.integer(INPUTS, 0, MOST, default=0)
