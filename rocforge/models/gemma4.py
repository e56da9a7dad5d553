"""gemma4: wider heads in the layers that see everything, experts beside the feed-forward, inputs for each layer."""

from types import MappingProxyType
from typing import Any

from rocforge.errors import GGUFError
from rocforge.gguf.metadata import MOST, REQUIRED
from rocforge.models.gemma import NORMS, Gemma2
from rocforge.nn import MLP, Attention, Block, MoE
from rocforge.nn.batch import Batch
from rocforge.nn.moe import NormedRouter
from rocforge.nn.parallel_experts import ParallelExperts
from rocforge.nn.per_layer import LayerEnd, LayerInputs, PerLayerInput
from rocforge.nn.reader import ROPE_TENSORS, Reader

SHARED = "attention.shared_kv_layers"


class Gemma4(Gemma2):
    """The last layers may share the keys and values of the last one before them that sees as much.

    Source: https://huggingface.co/docs/transformers/model_doc/gemma4.
    """

    architectures = ("gemma4",)
    models = "Gemma 4"
    defaults = MappingProxyType({})

    def __init__(self, read: Reader):
        if ROPE_TENSORS["factors"] not in read.tensors:
            raise GGUFError(f"tensor {ROPE_TENSORS['factors']} is missing")
        self._keeps: dict[bool, Attention] = {}
        super().__init__(read)
        del self._keeps
        shared = [layer for layer, block in enumerate(self.blk) if block.attn.shares]
        self._unread = {
            f"blk.{layer}.{name}.weight" for layer in shared for name in ("attn_k", "attn_v", "attn_k_norm")
        }
        inner, config = _inner(read), self.config
        sizes = config.vocabulary, config.dim, config.layers
        self.layer_inputs = LayerInputs(*sizes, inner, read.eps) if inner else None

    def prepare_layers(self, tokens: Any, x: Any, batch: Batch) -> None:
        if self.layer_inputs is not None:
            batch.layer_inputs = self.layer_inputs(tokens, x)

    def block(self, layer: int, read: Reader) -> Block:
        inner, dim = _inner(read), read.config.dim
        end = LayerEnd(PerLayerInput(dim, inner, layer, read.eps) if inner else None)
        attn, dense = self.attention(layer, read), MLP(**read.mlp(layer), activation="geglu")
        if not read.has(layer, "ffn_gate_inp"):
            return Block(attn, dense, read.rms_norm, post=NORMS, after=end)
        sizes = {key: read.moe(layer)[key] for key in ("dim", "ffn", "experts", "used")}
        router, merged = NormedRouter(dim, read.experts, read.eps), read.has(layer, "ffn_gate_up_exps")
        routed = MoE(**sizes, activation="geglu", merged=merged, scaled=True, router=router)
        both = ParallelExperts(dense, routed, read.rms_norm)
        return Block(attn, both, read.rms_norm, pre=("attn_norm", None), post=NORMS, after=end)

    def attention(self, layer: int, read: Reader) -> Attention:
        """A layer's attention; of its rope only the layers that see everything have factors."""
        window = read.window(layer, every=REQUIRED)
        sizes = read.attention(layer, "_swa" if window else "")
        attn = Attention(
            **sizes,
            rope=read.window_rope(True, base=10000.0) if window else read.rope(True),
            window=window,
            scale=1.0,
            norms="head",
            values_are_keys=not read.has(layer, "attn_v"),
            normalizes_values=True,
            shares=self.shared(layer, window, read),
        )
        if not attn.shares:
            self._keeps[window is None] = attn
        return attn

    def shared(self, layer: int, window: int | None, read: Reader) -> Attention | None:
        """The layer whose keys and values one shares, or None."""
        own = read.config.layers - read.integer(SHARED, 0, read.config.layers, default=0)
        if layer < own:
            return None
        if (window is None) not in self._keeps:
            raise read.error(SHARED, "less than leave a layer with a window and one without before those that share")
        return self._keeps[window is None]

    def is_read(self, name: str) -> bool:
        """Files have keys and values also of layers that share others'."""
        return super().is_read(name) and name not in self._unread


def _inner(read: Reader) -> int:
    return read.integer("embedding_length_per_layer_input", 0, MOST, default=0)
