"""Transformer: embedding, blocks, final norm, output; the part that all decoder-only models share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module, on_device
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.config import Config
from rocforge.nn.layers import Embedding, Entry, Linear, RMSNorm
from rocforge.nn.module import Module
from rocforge.nn.state import blocks_for, states_of
from rocforge.ops.activation import scale, softcap
from rocforge.ops.arguments import check_integers
from rocforge.ops.embedding import embedding
from rocforge.ops.linear import linear
from rocforge.ops.rope import RopeFrequencies, rope_frequencies
from rocforge.ops.state import BLOCK_SIZE


class Block(Module):
    """One layer: attention, then feed-forward, each with its norm and its residual."""

    def __init__(self, attn: Module, ffn: Module):
        self.attn, self.ffn = attn, ffn

    @property
    def entry(self) -> Entry | None:
        return self.attn.entry

    def forward(self, x: Any, batch: Batch, then: Entry | None = None, rows: Any = None) -> Any:
        """`rows`: those wanted of the result; None: all. Keys and values are stored of all in either case."""
        x = self.attn(x, batch, self.ffn.entry if rows is None else None)
        return self.ffn(x if rows is None else embedding(rows, x), batch, then)


class Transformer(Module):
    """A decoder-only language model. A subclass says in `block` what its layers are made of.

    Args:
        config: the sizes.

    Attributes:
        device: where its weights are, "cpu" or "gpu:N".
        neox: the rotary embedding's style of pairing; see RopeFrequencies.
        embedding_scale: factor on the embeddings, or None.
        defaults: values of the architecture's metadata keys that old files lack.
        default_pattern: of how many layers the last sees everything and the others a window, where the file has a
            window and does not say; None: no layer has a window.
        default_window_base: the rope base of the layers with a window; None: that of all layers.
    """

    neox = False
    embedding_scale: float | None = None
    defaults: Mapping[str, Any] = MappingProxyType({})
    default_pattern: int | None = None
    default_window_base: float | None = None

    def __init__(self, config: Config):
        self.config, self.device = config, "cpu"
        self.frequencies = config.rope.frequencies(self.neox)
        self.window_frequencies = self._window_frequencies()
        self.token_embd = Embedding(config.vocabulary, config.dim)
        self.blk = [self.block(layer) for layer in range(config.layers)]
        self.output_norm = RMSNorm(config.dim, config.norm_eps)
        self.output = Linear(config.dim, config.vocabulary, optional=True)

    def block(self, layer: int) -> Block:
        """The layer of that index."""
        raise TypeError(f"{type(self).__name__} does not say what its blocks are made of")

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer, in tokens, or None where it sees everything."""
        pattern = self.config.window_pattern or self.default_pattern
        return self.config.window or None if (layer + 1) % pattern else None

    def frequencies_of(self, layer: int) -> RopeFrequencies:
        """The rotary embedding of a layer: layers with a window may have their own."""
        return self.window_frequencies if self.window_of(layer) else self.frequencies

    def _window_frequencies(self) -> RopeFrequencies:
        base = self.config.window_rope_base or self.default_window_base
        if base is None:
            return self.frequencies
        return rope_frequencies(self.config.rope.dimensions, base, neox=self.neox)

    def __call__(self, tokens: Any, batch: Batch | None = None) -> Any:
        with on_device(self.device):
            return super().__call__(tokens, batch)

    def forward(self, tokens: Any, batch: Batch | None = None) -> Any:
        """Logits of the tokens of a batch. Of the last layer's feed-forward there are only the rows they come from.

        Args:
            tokens: integers, shape (tokens,), of any number of sequences one after another.
            batch: says which token is whose; None: one sequence from its start, all logits wanted.

        Returns:
            float32, shape (rows whose logits are wanted, vocabulary).

        Raises:
            IndexError: a token id is not in the vocabulary. Tokens on a device are not looked at, which would wait for
                it: such an id reads memory that is not the embedding's.
            ValueError: tokens is not one-dimensional, empty, or not of the batch's length.
            TypeError: tokens are no integers.
        """
        if get_array_module(tokens) is np:
            tokens = np.asarray(tokens)
        if tokens.ndim != 1 or not len(tokens):
            raise ValueError(f"tokens of shape {tokens.shape}; allowed is one axis with at least one token")
        check_integers("model", "tokens", tokens)
        if batch is None:
            batch = self.trivial_batch(len(tokens))
        if len(tokens) != len(batch.positions):
            raise ValueError(f"tokens of shape {tokens.shape} do not fit a batch of {len(batch.positions)} tokens")
        # angles come first of all: a decode step's attention reads them before it waits for the kernel queued before it
        for frequencies in (self.frequencies, self.window_frequencies):
            batch.rotation(frequencies)
        x = self.token_embd(tokens)
        if self.embedding_scale is not None:
            x = scale(x, self.embedding_scale)
        for block, following in itertools.pairwise(self.blk):
            x = block(x, batch, following.entry)
        rows = batch.logits_rows
        if rows is not None and len(rows) == len(tokens):
            rows = None
        return self.logits(self.blk[-1](x, batch, self.entry, rows))

    @property
    def entry(self) -> Entry:
        """Where the residual stream meets the output; a tied one uses the embedding's weight."""
        return Entry(self.output_norm, (self.token_embd if self.output.weight is None else self.output,))

    def logits(self, x: Any) -> Any:
        """Logits (rows, vocabulary) of the residual stream x (rows, dim), plain or Ahead."""
        logits = self.output.observed(linear(self.entry(x), self.entry.layers[0].weight))
        return softcap(logits, self.config.final_softcap) if self.config.final_softcap else logits

    def new_cache(self, blocks: int | Sequence[int], block_size: int = BLOCK_SIZE, slots: int = 1) -> KVCache:
        """A cache for what this model's layers declare, on its device; blocks, block_size and slots as in KVCache."""
        return KVCache(states_of(self), blocks, block_size, slots, self.device)

    def trivial_batch(self, tokens: int) -> Batch:
        """The batch of one new sequence, with a cache of its own and all logits wanted."""
        blocks = blocks_for(tokens)
        return Batch.of(self.new_cache(blocks), [Chunk(0, tokens, range(blocks))], all_logits=True)
