"""perplexity and compare: how well a model predicts a text, and how far its predictions are from another's.

In the terms of llama.cpp's llama-perplexity: the text is cut into windows of n_ctx tokens, each on its own and with the
begin token in place of its first one, where the model has one; the tokens of a window's second half count. Source:
https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rocforge.device.arrays import asnumpy
from rocforge.nn.passes import begin_token, hidden_states, token_ids
from rocforge.nn.transformer import Transformer

ROWS = 256
"""Tokens whose logits are held at a time."""


@dataclass(frozen=True)
class Perplexity:
    """What `rf.perplexity` gives; `float(...)` of it is the value.

    Attributes:
        nll: float64 (windows, counted): -ln p of each counted token.
        tokens: int32 (windows, n_ctx): the text's windows, as they were cut; the last tokens of each are the counted.

    >>> found = rf.perplexity(model, "def add(a, b):\\n    return a + b\\n" * 12, n_ctx=32)
    >>> found.nll.shape, tokenizer.decode(found.tokens[0, -15:])
    ((4, 15), 'a, b):\\n    return a + b\\ndef add(a,')
    """

    nll: np.ndarray
    tokens: np.ndarray

    @cached_property
    def value(self) -> float:
        """`exp(mean(nll))`."""
        return math.exp(self.nll.mean())

    @cached_property
    def error(self) -> float:
        """The standard error of the value, from the spread of nll."""
        return self.value * _mean_and_error(self.nll)[1]

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"PPL = {self.value:.4f} +/- {self.error:.5f}"

    def __repr__(self) -> str:
        windows, n_ctx = self.tokens.shape
        return f"Perplexity({self}, {self.nll.size} tokens of {windows} windows of {n_ctx})"


@dataclass(frozen=True)
class Comparison:
    """What `rf.compare` gives: of each counted token, (windows, counted), what the model and the base say.

    Attributes:
        model, base: their perplexities.
        kl: float64: the divergence of the model's distribution from the base's, KL(base || model), in nats.
        same_top: bool: whether both find the same token the likeliest.

    >>> found = rf.compare(model, model, "def add(a, b):\\n    return a + b\\n" * 12, n_ctx=32)
    >>> found.kl.shape, found.kl_mean, found.top_agreement
    ((4, 15), 0.0, 1.0)
    """

    model: Perplexity
    base: Perplexity
    kl: np.ndarray
    same_top: np.ndarray

    @cached_property
    def p_difference(self) -> np.ndarray:
        """float64: the probability of the text's token by the model, less that by the base."""
        return np.asarray(np.exp(-self.model.nll) - np.exp(-self.base.nll))

    @property
    def kl_mean(self) -> float:
        """The mean divergence."""
        return float(self.kl.mean())

    @property
    def top_agreement(self) -> float:
        """The share of tokens with the same likeliest one."""
        return float(self.same_top.mean())

    def __repr__(self) -> str:
        return (
            f"Comparison(KL {self.kl_mean:.6f}, same top {self.top_agreement:.2%}, {self.model} and {self.base}, "
            f"{self.kl.size} tokens)"
        )

    def __str__(self) -> str:
        """The statistics of llama-perplexity --kl-divergence."""
        return "\n".join([*_perplexity_lines(self), "", *_kl_lines(self), "", *_probability_lines(self)])


def perplexity(
    model: Transformer,
    text: str | Sequence[int],
    n_ctx: int = 512,
    chunks: int | None = None,
    progress: bool = False,
    lora: str | None = None,
) -> Perplexity:
    """Perplexity of a model on a text, as llama-perplexity measures it.

    Args:
        model: from `rf.load`.
        text: text, in which special tokens are text like any other, or token ids.
        n_ctx: tokens of a window.
        chunks: how many windows; None: all that the text has. What is left behind the last one does not count.
        progress: show a bar on stderr.
        lora: the name of an adapter, one of `model.adapters`.

    Raises:
        ValueError: the text has fewer tokens than a window, or a window fewer than 4 or more than the model's context;
            there is no such adapter.

    >>> rf.perplexity(model, "def add(a, b):\\n    return a + b\\n" * 12, n_ctx=32)
    Perplexity(PPL = 6.3285 +/- 3.30343, 60 tokens of 4 windows of 32)
    """
    tokens = _windows(model, text, n_ctx, chunks)
    parts = [_nll(logits, following) for logits, following in _bar(_logits(model, tokens, lora), tokens, progress)]
    return Perplexity(np.concatenate(parts).reshape(len(tokens), -1), tokens)


def compare(
    model: Transformer,
    base: Transformer,
    text: str | Sequence[int],
    n_ctx: int = 512,
    chunks: int | None = None,
    progress: bool = False,
    lora: str | None = None,
) -> Comparison:
    """How far a model's predictions are from those of another, the base: a quantization from what it was made of, say.

    Args:
        model, base: from `rf.load`, with one vocabulary; on any devices. The text is encoded by the base's tokenizer.
        text, n_ctx, chunks, progress: as in `perplexity`.
        lora: the name of an adapter of the model. The base, which may be that model itself, runs without.

    Raises:
        ValueError: as `perplexity`, or the vocabularies are of different sizes.

    >>> base, _ = rf.load("model.gguf", device="cpu")
    >>> rf.compare(model, base, "def add(a, b):\\n    return a + b\\n" * 12, n_ctx=32)
    Comparison(KL 0.000000, same top 100.00%, PPL = 6.3285 +/- 3.30343 and PPL = 6.3285 +/- 3.30343, 60 tokens)
    """
    sizes = model.config.vocabulary, base.config.vocabulary
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models have vocabularies of {sizes[0]} and {sizes[1]} tokens, and cannot be compared")
    tokens = _windows(base, text, n_ctx, chunks)
    _check_context(model, n_ctx)
    rows: list[tuple[np.ndarray, ...]] = []
    pairs = zip(_logits(model, tokens, lora), _logits(base, tokens), strict=True)
    for (ours, following), (theirs, _) in _bar(pairs, tokens, progress):
        p, q = _log_softmax(theirs), _log_softmax(ours)
        kl = (np.exp(p) * (p - q)).sum(axis=1)
        rows.append((_nll(ours, following), _nll(theirs, following), kl, ours.argmax(axis=1) == theirs.argmax(axis=1)))
    ours, theirs, kl, same = (np.concatenate(part).reshape(len(tokens), -1) for part in zip(*rows, strict=True))
    return Comparison(Perplexity(ours, tokens), Perplexity(theirs, tokens), kl, same)


def _windows(model: Transformer, text: str | Sequence[int], n_ctx: int, chunks: int | None) -> np.ndarray:
    """int32 (windows, n_ctx): a text's tokens."""
    _check_context(model, n_ctx)
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks is {chunks}; allowed is 1 or more, or None for all")
    ids = token_ids(model, text, parse_special_tokens=False)
    if len(ids) < n_ctx:
        raise ValueError(f"the text has {len(ids)} tokens, and a window n_ctx={n_ctx}; allowed is at most the text's")
    count = min(len(ids) // n_ctx, chunks or len(ids))
    return np.array(ids[: count * n_ctx], np.int32).reshape(count, n_ctx)


def _check_context(model: Transformer, n_ctx: int) -> None:
    if not 4 <= n_ctx <= model.config.context:
        raise ValueError(f"n_ctx is {n_ctx}; allowed are 4 to {model.config.context}, the model's context")


def _logits(model: Transformer, tokens: np.ndarray, lora: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """float32 logits (rows, vocabulary) for the windows' counted tokens, at most ROWS at a time, and those tokens."""
    first, last = tokens.shape[1] // 2, tokens.shape[1] - 1
    windows = tokens.copy()
    if (begin := begin_token(model)) is not None:
        windows[:, 0] = begin
    for number, start, hidden in hidden_states(model, windows, lora):
        for row in range(max(first, start), min(last, start + len(hidden)), ROWS):
            stop = min(row + ROWS, last, start + len(hidden))
            yield (
                asnumpy(model.logits(hidden[row - start : stop - start], lora=lora)),
                tokens[number, row + 1 : stop + 1],
            )


def _bar(rows: Any, tokens: np.ndarray, show: bool) -> Iterator[Any]:
    """The same, with a bar of counted tokens."""
    if not show:
        yield from rows
        return
    from tqdm import tqdm

    windows, n_ctx = tokens.shape
    with tqdm(total=windows * (n_ctx - 1 - n_ctx // 2), unit="token", leave=False) as bar:
        for part in rows:
            yield part
            bar.update(len(part[0]) if isinstance(part[0], np.ndarray) else len(part[0][0]))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _nll(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """-ln p of a token for each row."""
    return np.asarray(-_log_softmax(logits)[np.arange(len(tokens)), tokens])


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean, and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(max(values.size - 1, 1)))


def _perplexity_lines(c: Comparison) -> list[str]:
    (ln, error), (ln_base, error_base) = _mean_and_error(c.model.nll), _mean_and_error(c.base.nll)
    ours, theirs = c.model.nll.ravel(), c.base.nll.ravel()
    covariance = float(np.mean(ours * theirs) - ours.mean() * theirs.mean()) / max(ours.size - 1, 1)
    correlation = covariance / (error * error_base) if error * error_base else 1.0
    ratio, ratio_error = ln - ln_base, math.sqrt(max(error**2 + error_base**2 - 2 * covariance, 0))
    values = c.model.value, c.base.value
    spread = c.model.error**2 + c.base.error**2 - 2 * covariance * values[0] * values[1]
    return [
        "====== Perplexity statistics ======",
        f"Mean PPL(Q)                   : {values[0]:10.6f} ± {c.model.error:10.6f}",
        f"Mean PPL(base)                : {values[1]:10.6f} ± {c.base.error:10.6f}",
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * correlation:6.2f}%",
        f"Mean ln(PPL(Q)/PPL(base))     : {ratio:10.6f} ± {ratio_error:10.6f}",
        f"Mean PPL(Q)/PPL(base)         : {math.exp(ratio):10.6f} ± {math.exp(ratio) * ratio_error:10.6f}",
        f"Mean PPL(Q)-PPL(base)         : {values[0] - values[1]:10.6f} ± {math.sqrt(max(spread, 0)):10.6f}",
    ]


_SHARES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
_SHARES_OF_P = (*_SHARES[:4], 75.0, 50.0, 25.0, *_SHARES[5:])


def _kl_lines(c: Comparison) -> list[str]:
    mean, error = _mean_and_error(c.kl)
    return [
        "====== KL divergence statistics ======",
        f"Mean    KLD: {mean:10.6f} ± {error:10.6f}",
        f"Maximum KLD: {c.kl.max():10.6f}",
        *(f"{_share(share)}KLD: {np.percentile(c.kl, share):10.6f}" for share in _SHARES),
        f"Minimum KLD: {c.kl.min():10.6f}",
    ]


def _probability_lines(c: Comparison) -> list[str]:
    difference, same = 100 * c.p_difference, c.top_agreement
    mean, error = _mean_and_error(difference)
    square, square_error = _mean_and_error(difference**2)
    root = math.sqrt(square)
    return [
        "====== Token probability statistics ======",
        f"Mean    Δp: {mean:6.3f} ± {error:5.3f} %",
        f"Maximum Δp: {difference.max():6.3f}%",
        *(f"{_share(share)}Δp: {np.percentile(difference, share):6.3f}%" for share in _SHARES_OF_P),
        f"Minimum Δp: {difference.min():6.3f}%",
        f"RMS Δp    : {root:6.3f} ± {square_error / (2 * root) if root else 0:5.3f} %",
        f"Same top p: {100 * same:6.3f} ± {100 * math.sqrt(same * (1 - same) / max(c.kl.size - 1, 1)):5.3f} %",
    ]


def _share(share: float) -> str:
    return f"{'Median' if share == 50 else f'{share:4.1f}%':<8}"
