"""Transformer: embedding, blocks, final norm, output; the part that all models share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import numpy as np

from rocforge.device.arrays import asnumpy, get_array_module, on_device
from rocforge.device.blas_threads import blas_threads
from rocforge.device.distributed import ALONE, Group
from rocforge.device.libraries import cupy_module
from rocforge.nn.adapters import Adapters, AdapterState
from rocforge.nn.batch import Batch, Chunk
from rocforge.nn.cache import KVCache
from rocforge.nn.fuse import Fused
from rocforge.nn.fuse_steps import Stream
from rocforge.nn.layers import Classifier, Embedding, Linear
from rocforge.nn.low_rank import TokenAdapters, adapted
from rocforge.nn.module import Module
from rocforge.nn.reader import Reader
from rocforge.nn.save import Source, save
from rocforge.nn.state import blocks_for, states_of
from rocforge.nn.tree import Snapshot
from rocforge.ops.activation import add, scale, softcap
from rocforge.ops.arguments import check_integers
from rocforge.ops.state import BLOCK_SIZE
from rocforge.text.tokenizer import Tokenizer


class Transformer(Module):
    """A language model of one stack of blocks. A subclass says in `block` what its layers are made of.

    Args:
        read: the hyperparameters of a file.

    Attributes:
        config: its sizes.
        device: where its weights are, "cpu" or "gpu:N".
        tokenizer: the file's, from `rf.load`; else None.
        group: of the cards that each have a part of the model.
        cards: on the first of several cards, the others' processes (rocforge.engine.cards.Cards); else None.
        elsewhere: names of the tensors that other cards alone have.
        predictors: layers of the file behind the model's, which predict further tokens. They are not loaded.
        unread: names of tensors that files have and this model does without. They are not loaded; `save` writes them.
        metadata: a copy of the file's key-value pairs, which `save` writes.
        source: what else of the file that takes.
        embedding_scale: factor on the embeddings, or None.
        softcap: cap on the logits, or None.
        logit_scale: factor on the logits, or None.
        position_embd: embedding of positions, added to that of the tokens, or None.
        generates: whether it continues text. An encoder, whose tokens see those after them, has hidden states alone.
        ranks_by: which hidden states of a sequence a model that ranks goes by: "last", "cls" (the first) or "mean".
        architectures: values of general.architecture that a class reads.
        models: names of such models.
        output_norm_name: the name of the norm before the output.
        classifier_activation: of a classifier's hidden layer, "tanh" or "gelu".
        defaults: values of the architecture's metadata keys that old files lack.
        passes_values: whether later layers take the first one's values.

    >>> model(tokenizer.encode("import os")).shape
    (3, 4096)
    """

    architectures: tuple[str, ...] = ()
    models = ""
    output_norm_name = "output_norm"
    classifier_activation = "tanh"
    unread: frozenset[str] = frozenset()
    passes_values = False
    _fused: tuple[Snapshot, Fused] | None = None
    defaults: Mapping[str, Any] = MappingProxyType({})
    group: Group = ALONE
    cards: Any = None
    elsewhere: frozenset[str] = frozenset()

    def __init__(self, read: Reader):
        self.config, self.device = read.config, "cpu"
        self.predictors, self.generates = read.predictors, read.causal
        self.ranks_by = "last" if read.causal else "cls"
        self.tokenizer: Tokenizer | None = None
        self._adapters = AdapterState()
        self.embedding_scale: float | None = None
        self.softcap: float | None = None
        self.logit_scale: float | None = None
        self.token_embd = Embedding(self.config.vocabulary, self.config.dim)
        self.position_embd = self.positions(read)
        if self.position_embd is not None and self.config.context > (rows := self.position_embd.weight.shape[0]):
            raise ValueError(
                f"context is {self.config.context}; allowed is up to {rows}, the positions that are learnt"
            )
        self.blk = [self.block(layer, read) for layer in range(self.config.layers)]
        setattr(self, self.output_norm_name, self.norm(read))
        head = Linear(self.config.dim, self.config.vocabulary, bias="optional", optional=True)
        self.output: Any = head if self.generates else None
        labels, activation = len(read.labels), self.classifier_activation
        self.cls = Classifier(self.config.dim, labels, activation, read.eps) if labels else None
        self.add_parts(read)
        self.metadata = read.tensors.metadata.copy()
        self.source = Source(read.tensors, dict(self.named_parameters()), self.unread)

    def block(self, layer: int, read: Reader) -> Module:
        """The layer of that index: called with the residual stream (tokens, dim) and the batch, it gives the stream."""
        raise TypeError(f"{type(self).__name__} does not say what its blocks are made of")

    @property
    def layers(self) -> list[Module]:
        """What the stream goes through between embedding and norm, in order; each called with it and the batch."""
        return self.blk

    def positions(self, read: Reader) -> Module | None:
        """An embedding of positions."""

    def add_parts(self, read: Reader) -> None:
        """Set further modules outside the blocks."""

    def prepare_layers(self, tokens: Any, x: Any, batch: Batch) -> None:
        """Put what layers need beside the stream into batch.layer_inputs; x are the embeddings (tokens, dim)."""

    def norm(self, read: Reader) -> Module:
        """The norm before the output."""
        return read.rms_norm()

    def _fill(self, arrays: Mapping[str, Any], prefix: str = "") -> None:
        super()._fill(arrays, prefix)
        if isinstance(self.output, Linear) and self.output.weight is None:  # tied: the output is the embedding
            self.output._put("weight", self.token_embd.weight)
            self.output._tied, self.token_embd._tied = (self.token_embd,), (self.output,)

    def is_read(self, name: str) -> bool:
        """Whether a tensor of that name is loaded: not of a predictor of further tokens, of another card, an output or
        a classifier that the model does without, or one of `unread`."""
        prefix, _, rest = name.partition(".")
        if (prefix == "output" and self.output is None) or (prefix == "cls" and self.cls is None):
            return False
        layer = rest.partition(".")[0]
        if name in self.elsewhere or name in self.unread:
            return False
        return not (self.predictors and prefix == "blk" and layer.isdigit() and int(layer) >= self.config.layers)

    def arrays_of(self, name: str, array: Any) -> dict[str, Any]:
        """What a tensor of the file is to this model: parameters' names and arrays; of most families itself."""
        return {name: array}

    @property
    def fused(self) -> Fused:
        """The blocks as they are run: another object once the tree, or what adapters update of it, has changed, and the
        same until then."""
        snapshot, tables = self.snapshot(), self._adapters.tables
        if self._fused is None or self._fused[0] is not snapshot or self._fused[1].tables is not tables:
            self._fused = snapshot, Fused(self.layers, getattr(self, self.output_norm_name), self.output, tables)
        return self._fused[1]

    @property
    def adapters(self) -> Adapters:
        """The LoRA adapters, by name, which `lora=` of requests and calls chooses from.

        >>> model.adapters["quiet"] = rf.LoRA({"output": (np.ones((1, 512)), np.zeros((4096, 1)))})
        >>> model.adapters
        Adapters('quiet': LoRA(1 matrix, rank 1))
        >>> rf.generate(model, tokenizer, "import numpy as", lora="quiet", max_tokens=1, temperature=0)
        ' np'
        >>> del model.adapters["quiet"]
        """
        if self.group.size > 1:
            raise ValueError("adapters are for a model on one card; this one is on several")
        return Adapters(self, self.device, self.config.architecture, self._adapters)

    def _on_device(self) -> AbstractContextManager[Any]:
        """For a pass: its device; on the CPU, no more threads than there are processors free."""
        return blas_threads.limited() if self.device == "cpu" else on_device(self.device)

    @contextlib.contextmanager
    def _on_all_cards(self, name: str, tokens: Any, batch: Batch | None, lora: str | None) -> Iterator[None]:
        """For a pass: where several cards have the model, all of them run it."""
        if self.cards is None or (batch is not None and batch.cache is self.cards.cache):  # a step of the engine
            yield
            return
        if batch is not None or lora is not None:
            raise ValueError("a batch or an adapter of one's own is for a model on one card; this one is on several")
        self.cards.check_unchanged(self)
        tokens = asnumpy(tokens)
        check_integers("model", "tokens", tokens)
        self._check_shape(tokens)
        if not 0 <= tokens.min() <= tokens.max() < self.config.vocabulary:
            raise IndexError(
                f"tokens are {tokens.min()} to {tokens.max()}; allowed are 0 to {self.config.vocabulary - 1}"
            )
        with self.cards.together():
            self.cards.post(name, tokens)
            yield

    def __call__(self, tokens: Any, batch: Batch | None = None, *, lora: str | None = None) -> Any:
        with self._on_all_cards("logits", tokens, batch, lora), self._on_device():
            return super().__call__(tokens, batch, lora=lora)

    def forward(self, tokens: Any, batch: Batch | None = None, *, lora: str | None = None) -> Any:
        """Logits of the tokens of a batch. Of the last layer's feed-forward there are only the rows they come from.

        Args:
            tokens: integers, shape (tokens,), of any number of sequences one after another.
            batch: says which token is whose; None: one sequence from its start, all logits wanted.
            lora: without a batch, the name of the adapter that the sequence has. A batch's chunks say theirs.

        Returns:
            float32, shape (rows whose logits are wanted, vocabulary).

        Raises:
            IndexError: a token id is not in the vocabulary. Tokens on a device are not looked at, which would wait for
                it: such an id reads memory that is not the embedding's.
            ValueError: tokens is not one-dimensional, empty, or not of the batch's length; there is no such adapter; or
                the model is an encoder.
            TypeError: tokens are no integers.
        """
        check_generates(self)
        fused, batch = self.fused, self._batch_of(tokens, batch, lora)
        with adapted(fused.tables, batch.adapters):
            return self._logits(fused.leave(self._stream(tokens, batch, fused)))

    def logits(self, hidden: Any, *, lora: str | None = None) -> Any:
        """Logits of hidden states, as `hidden` gives them or any others: a logit lens has them of an earlier layer.

        Args:
            hidden: floats, shape (rows, dim), normalized, on the model's device.
            lora: the name of the adapter that the rows have.

        Returns:
            float32, shape (rows, vocabulary).

        >>> with model.capture("blk.1") as seen:
        ...     logits = model(tokenizer.encode("import os"))
        >>> model.logits(model.output_norm(seen["blk.1"])).shape
        (3, 4096)
        """
        check_generates(self)
        if self.group.size > 1:
            raise ValueError("logits of hidden states are of a model on one card; this one is on several")
        with self._on_device(), adapted(self.fused.tables, self._all_with(lora, len(hidden))):
            return self._logits(hidden)

    @property
    def ranks(self) -> bool:
        """Whether the model scores sequences, as rerankers do."""
        return self.cls is not None and self.cls.loaded

    def scores(self, hidden: Any) -> Any:
        """What a model that ranks says of hidden states, as `ranks_by` says: a score, or probabilities of its labels.

        Args:
            hidden: floats, shape (rows, dim), normalized, on the model's device.

        Returns:
            float32, shape (rows, labels).

        Raises:
            ValueError: the model does not rank.
        """
        if self.cls is None or not self.ranks:
            raise ValueError("the model does not rank: its file has no cls.output.weight, or another pooling_type")
        with self._on_device():
            return self.cls(hidden)

    def project(self, pooled: Any) -> Any:
        """What the model makes of pooled hidden states (rows, dim): the same, where its file has nothing for it."""
        return pooled

    def _all_with(self, lora: str | None, rows: int) -> TokenAdapters | None:
        if lora is None:
            return None
        ids = np.full(rows, self.adapters.placed(lora).id, np.int32)
        ids = ids if self.device == "cpu" else cupy_module().asarray(ids)
        return TokenAdapters(ids, ids)

    def _logits(self, hidden: Any) -> Any:
        logits = self.output(hidden)
        if self.logit_scale is not None:
            logits = scale(logits, self.logit_scale)
        return softcap(logits, self.softcap) if self.softcap else logits

    def hidden(self, tokens: Any, batch: Batch | None = None, *, lora: str | None = None) -> Any:
        """The last hidden states: what the output takes, normalized; as embeddings of texts are made of.

        Args:
            tokens, batch, lora: as in a call.

        Returns:
            float32, shape (rows whose logits are wanted, dim).

        >>> model.hidden(tokenizer.encode("import os")).shape
        (3, 512)
        """
        if self.elsewhere:
            raise ValueError("hidden states are of a model whose cards all have every layer; the last card has these")
        with self._on_all_cards("hidden", tokens, batch, lora), self._on_device():
            fused, batch = self.fused, self._batch_of(tokens, batch, lora)
            with adapted(fused.tables, batch.adapters):
                return fused.leave(self._stream(tokens, batch, fused), plain=True)

    def _check_shape(self, tokens: Any) -> tuple[int, ...]:
        if isinstance(tokens, str):
            raise TypeError(f"tokens is {tokens!r:.80}; allowed are token ids: model(tokenizer.encode(text))")
        shape: tuple[int, ...] = np.shape(tokens) if get_array_module(tokens) is np else tokens.shape
        if len(shape) != 1 or not shape[0]:
            raise ValueError(f"tokens of shape {shape}; allowed is one axis with at least one token")
        return shape

    def _batch_of(self, tokens: Any, batch: Batch | None, lora: str | None) -> Batch:
        """The batch, or that of one new sequence; it fits the tokens."""
        shape = self._check_shape(tokens)
        if batch is None:
            return self.trivial_batch(shape[0], lora)
        if lora is not None:
            raise ValueError(f"lora is {lora!r} beside a batch; allowed is None: chunks of a batch say their adapters")
        if shape[0] != len(batch.positions):
            raise ValueError(f"tokens of shape {shape} do not fit a batch of {len(batch.positions)} tokens")
        return batch

    def _stream(self, tokens: Any, batch: Batch, fused: Fused) -> Stream:
        """The residual stream past all blocks, of the rows that are wanted."""
        if get_array_module(tokens) is np:
            tokens = np.asarray(tokens)
        check_integers("model", "tokens", tokens)
        # angles come first of all: a decode step's attention reads them before it waits for the kernel queued before it
        for frequencies in fused.frequencies:
            batch.rotation(frequencies)
        x = self.embed(tokens, batch)
        self.prepare_layers(tokens, x, batch)
        rows = batch.logits_rows
        every = rows is None or (isinstance(rows, np.ndarray) and len(rows) == len(tokens))
        return fused(x, batch, None if every else rows)

    def embed(self, tokens: Any, batch: Batch) -> Any:
        """The embeddings of tokens, float32 (tokens, dim), as the first block takes them."""
        x = self.token_embd(tokens)
        if self.embedding_scale is not None:
            x = scale(x, self.embedding_scale)
        return x if self.position_embd is None else add(x, self.position_embd(batch.positions))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a GGUF file of the weights as they are now, and of the metadata, the tokenizer's among it.

        What was not changed is written bit for bit as it was loaded, from a GPU too. A weight that was replaced is
        written in the form that it has now: packed, float16 or float32. Constants such as a norm's epsilon are those of
        `metadata`. The file appears once it is complete; memory is taken for one tensor at a time.

        Raises:
            ValueError: a module is of another class than the architecture has there, which a file cannot say; or `path`
                is the file that the model was loaded from.
            UnsupportedModelError, GGUFError: weights and metadata do not make a model.
            OSError: the file cannot be written.

        >>> model, tokenizer = rf.load("model.gguf")
        >>> model.blk[0].ffn_down.weight = rf.quantize(model.blk[0].ffn_down.weight.dequantize(), "Q4_0")
        >>> model.save("edited.gguf")
        """
        if self.group.size > 1:
            raise ValueError("a card has a part of the model alone, which is no file; load it on one to save it")
        save(self, path)

    def new_cache(self, blocks: int | Sequence[int], block_size: int = BLOCK_SIZE, slots: int = 1) -> KVCache:
        """A cache for what this model's layers declare, on its device; blocks, block_size and slots as in KVCache.

        >>> model.new_cache(blocks=2).paged[0].keys.shape
        (4, 2, 32, 2, 64)
        """
        return KVCache(states_of(self), blocks, block_size, slots, self.device)

    def trivial_batch(self, tokens: int, lora: str | None = None) -> Batch:
        """The batch of one new sequence, with a cache of its own, all logits wanted, and the adapter of that name.

        >>> model.trivial_batch(3).positions
        array([0, 1, 2], dtype=int32)
        """
        blocks, placed = blocks_for(tokens), None if lora is None else self.adapters.placed(lora)
        chunk = Chunk(0, tokens, range(blocks), lora=placed)
        return Batch.of(self.new_cache(blocks), [chunk], all_logits=True)


def check_generates(model: Transformer) -> None:
    """Raise a ValueError where a model is an encoder, which has no logits."""
    if not model.generates:
        problem = f"{model.config.architecture} is an encoder: it has no logits, and generates nothing"
        raise ValueError(f"{problem}; rf.embed and model.hidden give its vectors")
