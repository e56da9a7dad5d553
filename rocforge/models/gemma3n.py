"""gemma3n: several residual streams, of which a layer computes one; inputs for each layer, shared keys and values."""

import math

from rocforge.models.gemma4 import INPUTS, SHARED, Gemma4, inputs
from rocforge.nn import MLP
from rocforge.nn.altup import AltUpBlock, Expand, Laurel, Merge, SparseMLP
from rocforge.nn.module import Module
from rocforge.nn.per_layer import PerLayerInput
from rocforge.nn.reader import Reader

RANK = 64
"""Of LAuReL, which files do not say."""
SPARSE = 1.6448533535003662
"""Deviations above the mean of a twentieth of normally distributed numbers."""
SPARSE_LAYERS, OWN_LAYERS = 10, 20
"""Layers with a sparse feed-forward, and with keys and values of their own, where files do not say."""


class Gemma3n(Gemma4):
    """Source: https://huggingface.co/docs/transformers/model_doc/gemma3n."""

    architectures = ("gemma3n",)
    models = "Gemma 3n"

    def add_parts(self, read: Reader) -> None:
        super().add_parts(read)
        if self.layer_inputs is None:
            raise read.error(INPUTS, "integers from 1")
        (streams, active), dim = _streams(read), self.config.dim
        self.altup_proj, self.altup_unembd_proj = Expand(dim, streams - 1), Merge(dim, streams - 1, active)

    @property
    def layers(self) -> list[Module]:
        return [self.altup_proj, *self.blk, self.altup_unembd_proj]

    def block(self, layer: int, read: Reader) -> Module:
        window, dim, eps = read.window(layer, every=5), read.config.dim, read.eps
        rope = read.window_rope(True, base=10000.0) if window else read.rope(True)
        attn = self.attention_of(layer, read, window, **read.attention(layer), rope=rope)
        per_layer = PerLayerInput(dim, inputs(read), layer, eps)
        ffn, laurel = self.feed_forward(layer, read), Laurel(dim, RANK, eps)
        return AltUpBlock(dim, *_streams(read), attn, ffn, laurel, per_layer, eps)

    def feed_forward(self, layer: int, read: Reader) -> MLP:
        """A layer's feed-forward, sparse in the first ones."""
        key = "activation_sparsity_scale"
        usual = [SPARSE if i < SPARSE_LAYERS else -math.inf for i in range(read.config.layers)]
        deviations = read.per_layer(key, usual)[layer]
        if not isinstance(deviations, float) or not deviations < math.inf:
            raise read.error(key, "finite numbers, and minus infinity for layers that are not sparse")
        sizes = read.mlp(layer)
        if deviations == -math.inf:
            return MLP(**sizes, activation="geglu")
        return SparseMLP(**sizes, deviations=deviations)

    def sharing_layers(self, read: Reader) -> int:
        layers = read.config.layers
        return read.integer(SHARED, 0, layers, default=max(0, layers - OWN_LAYERS))


def _streams(read: Reader) -> tuple[int, int]:
    """How many there are, and which of them layers compute."""
    streams = read.integer("altup.num_inputs", 2, 16)
    return streams, read.integer("altup.active_idx", 0, streams - 1)
