"""embed: vectors of texts, from a model's last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TypeAlias, cast

import numpy as np

from rocforge.nn.passes import token_ids
from rocforge.nn.pooling import POOLINGS, empty, pool_into, pooling_of
from rocforge.nn.transformer import Transformer

Text: TypeAlias = str | Sequence[int]


def embed(
    model: Transformer,
    texts: Text | Sequence[Text],
    pooling: str | None = None,
    normalize: bool = True,
    lora: str | None = None,
) -> np.ndarray:
    """Vectors of texts, of which similar ones have a high cosine: the last hidden states, normalized, and pooled.

    Texts share flat batches, whatever the device.

    Args:
        model: from `rf.load`.
        texts: a text or its token ids; or a list of those.
        pooling: of a text's tokens, special ones included: "mean" of all, "last" or "cls", the first; or "rank": what
            a reranker's classifier says. None: as the model's file says, "mean" where it does not.
        normalize: divide each vector by its Euclidean norm.
        lora: the name of an adapter, one of `model.adapters`.

    Returns:
        float32 NumPy array, shape (dim,) for one text, else (texts, dim). With "rank" scores, or probabilities of
        labels, as the file's `classifier.output_labels` names them: (labels,) or (texts, labels).

    Raises:
        ValueError: a text without tokens or beyond the model's context, an unknown pooling, or "rank" of a model that
            is no reranker.
        TypeError: a text is neither a str nor token ids.

    Source: the poolings are those of llama.cpp's llama-embedding.

    >>> vectors = rf.embed(model, ["def f(x):", "def g(y):", "import os"])
    >>> vectors @ vectors[0]
    array([1.        , 0.83355594, 0.53428304], dtype=float32)
    """
    pooling = pooling_of(model) if pooling is None else pooling
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; allowed are {', '.join(POOLINGS)}")
    one = isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], Integral))
    sequences = [_ids(model, text) for text in cast("Sequence[Text]", [texts] if one else texts)]
    vectors = empty(model, len(sequences), pooling)
    for _ in pool_into(vectors, model, sequences, pooling, normalize, lora):
        pass
    return vectors[0] if one else vectors


def _ids(model: Transformer, text: Text) -> list[int]:
    ids = token_ids(model, text)
    if not 0 < len(ids) <= model.config.context:
        raise ValueError(f"a text has {len(ids)} tokens; allowed are 1 to {model.config.context}, the model's context")
    return ids
