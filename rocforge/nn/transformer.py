"""Transformer: embedding, blocks, final norm, output; the part that all decoder-only models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from rocforge.device.arrays import get_array_module, on_device
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.fuse import Fused, Stream
from rocforge.nn.layers import Embedding, Linear
from rocforge.nn.module import Module
from rocforge.nn.reader import Reader
from rocforge.nn.state import blocks_for, states_of
from rocforge.nn.tree import Snapshot
from rocforge.ops.activation import scale, softcap
from rocforge.ops.arguments import check_integers
from rocforge.ops.state import BLOCK_SIZE


class Transformer(Module):
    """A decoder-only language model. A subclass says in `block` what its layers are made of.

    Args:
        read: the hyperparameters of a file.

    Attributes:
        config: its sizes.
        device: where its weights are, "cpu" or "gpu:N".
        embedding_scale: factor on the embeddings, or None.
        softcap: cap on the logits, or None.
        architectures: values of general.architecture that a class reads.
        defaults: values of the architecture's metadata keys that old files lack.
    """

    architectures: tuple[str, ...] = ()
    _fused: tuple[Snapshot, Fused] | None = None
    defaults: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, read: Reader):
        self.config, self.device = read.config, "cpu"
        self.embedding_scale: float | None = None
        self.softcap: float | None = None
        self.token_embd = Embedding(self.config.vocabulary, self.config.dim)
        self.blk = [self.block(layer, read) for layer in range(self.config.layers)]
        self.output_norm = self.norm(read)
        self.output = Linear(self.config.dim, self.config.vocabulary, optional=True)

    def block(self, layer: int, read: Reader) -> Module:
        """The layer of that index: called with the residual stream (tokens, dim) and the batch, it gives the stream."""
        raise TypeError(f"{type(self).__name__} does not say what its blocks are made of")

    def norm(self, read: Reader) -> Module:
        """The norm before the output."""
        return read.rms_norm()

    def _fill(self, arrays: Mapping[str, Any], prefix: str = "") -> None:
        super()._fill(arrays, prefix)
        if self.output.weight is None:  # tied: the output is the embedding
            self.output.weight = self.token_embd.weight

    @property
    def fused(self) -> Fused:
        """The blocks as they are run: another object once the tree has changed, and the same until then."""
        snapshot = self.snapshot()
        if self._fused is None or self._fused[0] is not snapshot:
            self._fused = snapshot, Fused(self.blk, self.output_norm, self.output)
        return self._fused[1]

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
        logits = self.output(self.fused.leave(self._stream(tokens, batch)))
        return softcap(logits, self.softcap) if self.softcap else logits

    def hidden(self, tokens: Any, batch: Batch | None = None) -> Any:
        """The last hidden states: what the output takes, normalized; as embeddings of texts are made of.

        Args:
            tokens, batch: as in a call.

        Returns:
            float32, shape (rows whose logits are wanted, dim).
        """
        with on_device(self.device):
            return self.fused.leave(self._stream(tokens, batch), plain=True)

    def _stream(self, tokens: Any, batch: Batch | None) -> Stream:
        """The residual stream past all blocks, of the rows that are wanted."""
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
        for frequencies in self.fused.frequencies:
            batch.rotation(frequencies)
        x = self.token_embd(tokens)
        if self.embedding_scale is not None:
            x = scale(x, self.embedding_scale)
        rows = batch.logits_rows
        every = rows is None or (isinstance(rows, np.ndarray) and len(rows) == len(tokens))
        return self.fused(x, batch, None if every else rows)

    def new_cache(self, blocks: int | Sequence[int], block_size: int = BLOCK_SIZE, slots: int = 1) -> KVCache:
        """A cache for what this model's layers declare, on its device; blocks, block_size and slots as in KVCache."""
        return KVCache(states_of(self), blocks, block_size, slots, self.device)

    def trivial_batch(self, tokens: int) -> Batch:
        """The batch of one new sequence, with a cache of its own and all logits wanted."""
        blocks = blocks_for(tokens)
        return Batch.of(self.new_cache(blocks), [Chunk(0, tokens, range(blocks))], all_logits=True)
