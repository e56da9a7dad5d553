"""Pooling: one vector of each sequence, from the last hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rocforge.device.arrays import asnumpy, to_device
from rocforge.gguf.metadata import Metadata
from rocforge.nn.passes import hidden_states
from rocforge.nn.transformer import Transformer

POOLINGS = ("mean", "last", "cls", "rank")
_BY_NUMBER = {1: "mean", 2: "cls", 3: "last"}
"""llama.cpp's `pooling_type`; others ask for no vector of a sequence."""


def pooling_of(model: Transformer) -> str:
    """The pooling that the model's file names; "mean" where it names none."""
    if model.ranks:
        return "rank"
    kind = Metadata(model.metadata, f"{model.config.architecture}.").integer("pooling_type", default=1)
    return _BY_NUMBER.get(kind, "mean")


def empty(model: Transformer, sequences: int, pooling: str) -> np.ndarray:
    """Zeros for the vectors of so many sequences: float32 (sequences, dim), or (sequences, labels) for "rank".

    Raises:
        ValueError: "rank", of a model that does not.
    """
    if pooling != "rank":
        return np.zeros((sequences, model.config.dim), np.float32)
    if model.cls is None or not model.ranks:
        raise ValueError("pooling is 'rank'; the model's file has no cls.output.weight, or another pooling_type")
    return np.zeros((sequences, model.cls.labels), np.float32)


def pool_into(
    vectors: np.ndarray,
    model: Transformer,
    sequences: Sequence[Sequence[int]],
    pooling: str,
    normalize: bool,
    lora: str | None,
    pass_tokens: int | None = None,
) -> Iterator[None]:
    """Compute the vectors of sequences of token ids; they are complete when the iterator ends.

    Args:
        vectors: float32, `empty`'s.
        pooling: one of POOLINGS.
        normalize: divide each by its Euclidean norm; scores are left as they are.
        lora: the name of the adapter that all have.
        pass_tokens: as in `hidden_states`; between two items is a pass at most.
    """
    by = model.ranks_by if pooling == "rank" else pooling
    pooled = np.zeros((len(sequences), model.config.dim), np.float32)
    for number, start, hidden in hidden_states(model, sequences, lora, pass_tokens):
        length = len(sequences[number])
        if by == "mean":
            pooled[number] += asnumpy(hidden).sum(axis=0) / np.float32(length)
        elif by == "cls" and start == 0:
            pooled[number] = asnumpy(hidden[0])
        elif by == "last" and start + len(hidden) == length:
            pooled[number] = asnumpy(hidden[-1])
        yield
    if not len(pooled):
        return
    finish = model.scores if pooling == "rank" else model.project
    vectors[:] = asnumpy(finish(to_device(pooled, model.device)))
    if normalize and pooling != "rank":
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
