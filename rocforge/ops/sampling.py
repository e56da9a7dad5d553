"""Sampling: SamplingParams, and choosing the next token from logits on the host.

Each draw depends on the request's seed and on how many tokens it has, and on nothing else: the same request gives
the same text in any batch, and after being preempted.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, TypedDict, cast

import numpy as np

from rocforge.errors import NonFiniteError
from rocforge.names import SAMPLING, checked_names
from rocforge.ops.mirostat import Mirostat
from rocforge.ops.types import HostArray

LONGEST_BREAKER = 40
"""Characters of a text that ends repetitions."""
_MASK = (1 << 64) - 1
NOT_FINITE = "the highest logit is no finite number: the model's weights, or what it computes with them, are not finite"
NOTHING_ALLOWED = "the constraint leaves no token whose logit is a finite number"
XTC_SEED = 0x58544358544358
"""Changes a seed to that of XTC's draws."""
GREEDY_BELOW = 1e-5
"""Temperatures under this one count as 0: what they leave is the most likely token, and logits over them overflow."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request's tokens are chosen; names and meanings are the OpenAI API's where it has them.

    Applied in this order: repetition, frequency and presence penalties, logit_bias, DRY, temperature, and then
    top_n_sigma, top_k, typical_p, top_p, min_p, XTC; or mirostat in place of these.

    Attributes:
        max_tokens: stop after this many tokens; None: when the model's context is full.
        temperature: divides the logits, 0 to 2; 0 takes the most likely token, and what is below 1e-5 becomes 0.
        top_k: keep that many of the most likely tokens; 0 for all.
        top_p: keep the most likely tokens that reach this probability together, over 0 to 1.
        min_p: keep tokens at least this share as likely as the most likely one, 0 to 1.
        top_n_sigma: keep tokens whose logit is at most so many standard deviations of all finite ones below the highest
            (Tang et al., https://arxiv.org/abs/2411.07641), 0 to 1e6; 0 for all.
        typical_p: keep the tokens whose surprise is nearest to the expected one that reach this probability together
            (Meister et al., https://arxiv.org/abs/2202.00666), over 0 to 1.
        xtc_probability: how often XTC leaves out the likeliest tokens, 0 to 1: of those with xtc_threshold of the
            probability or more, all but the least likely (https://github.com/oobabooga/text-generation-webui/pull/6335).
        xtc_threshold: 0 to 1; over 0.5 nothing is left out.
        mirostat: 1 or 2: keep as many tokens as give the text a surprise of mirostat_tau bits a token (Basu et al.,
            https://arxiv.org/abs/2007.14966); 0 for none.
        mirostat_tau: 0 to 1e3.
        mirostat_eta: how fast mirostat adapts, 0 to 1e3.
        dry_multiplier: how much DRY subtracts from the logits of tokens that would make a repetition longer than
            dry_allowed_length (https://github.com/oobabooga/text-generation-webui/pull/5677), 0 to 1e6; 0 for nothing.
        dry_base: for each token more that is repeated, up to 256, the penalty is so many times as large, 1 to 1e6.
        dry_allowed_length: tokens, from 1.
        dry_penalty_last_n: how many of the last tokens are searched, of prompt and text, up to 8192; -1 for these.
        dry_sequence_breakers: texts that end repetitions, of up to 40 characters. Who runs an Engine alone gives token
            ids of a sequence in place of each, as `rocforge.engine.breakers` does.
        repetition_penalty: divides positive logits of tokens in the prompt or the text, and multiplies negative ones
            (Keskar et al., https://arxiv.org/abs/1909.05858), 1e-6 to 1e6; 1 for none.
        presence_penalty: subtracted from the logits of tokens in the text, -2 to 2.
        frequency_penalty: subtracted from a token's logit for each time it is in the text, -2 to 2.
        logit_bias: token id -> added to its logit, -100 to 100.
        seed: of the draws, any integer; None for a random one.
        stop: strings that end the text, and are not part of it.
        stop_token_ids: tokens that end the text as end-of-generation tokens do, and are not part of it.
        min_tokens: before so many tokens, none that ends the text is drawn; a string of `stop` ends it all the same.
        logprobs: how many of the most likely tokens to report with each token, 0 to 20 (the chosen one is always
            among them); None for no report.
        lora: the name of the adapter, one of `model.adapters`, that the request's tokens have; None for none.
        ignore_eos: go on past end-of-generation tokens, for measuring.

    Raises:
        ValueError: a value outside its range.
        TypeError: an unknown name, or a value of another type. NumPy's numbers are taken as Python's; True and False
            are no numbers.

    >>> params = rf.SamplingParams(max_tokens=8, temperature=0, stop="\\n")
    >>> params.top_p, params.stop
    (1.0, ('\\n',))
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_n_sigma: float = 0.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Sequence[str | Sequence[int]] = ("\n", ":", '"', "*")
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    lora: str | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (number_of, low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            number, over = number_of(name, value), name in ("top_p", "typical_p")  # of none at all no token is kept
            if not low <= value <= high or (over and value == 0):
                bounds = f"{'over' if over else 'from'} {low:g}" + ("" if math.isinf(high) else f" to {high:g}")
                raise ValueError(f"{name} is {value!r}; allowed is {bounds}")
            object.__setattr__(self, name, number)
        if self.temperature < GREEDY_BELOW:
            object.__setattr__(self, "temperature", 0.0)
        if self.seed is not None:
            object.__setattr__(self, "seed", _integer("seed", self.seed))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if not isinstance(self.stop, Sequence) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; allowed are strings that are not empty")
        object.__setattr__(self, "stop_token_ids", _checked_ids(self.stop_token_ids))
        object.__setattr__(self, "dry_sequence_breakers", _checked_breakers(self.dry_sequence_breakers))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}; allowed is up to max_tokens, {self.max_tokens}")
        if self.lora is not None and not isinstance(self.lora, str):
            raise TypeError(f"lora is {self.lora!r}; allowed are names of adapters, and None")
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(63))

    @property
    def drawn_seed(self) -> int:
        """The seed: random where none was given."""
        return cast(int, self.seed)

    @property
    def chained(self) -> bool:
        """Whether top_n_sigma, typical_p or XTC may leave tokens out."""
        return self.top_n_sigma > 0 or self.typical_p < 1 or (self.xtc_probability > 0 and self.xtc_threshold <= 0.5)

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens so far change the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


SamplingParams.__init__ = checked_names(SAMPLING)(SamplingParams.__init__)  # type: ignore[method-assign]


class SamplingOptions(TypedDict, total=False):
    """The fields of SamplingParams, as type checkers know them in `rf.generate(..., **sampling)`."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    top_n_sigma: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str | Sequence[int]]
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    min_tokens: int
    logprobs: int | None
    ignore_eos: bool


def _integer(name: str, value: Any) -> int:
    """An integer as Python's own."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; allowed are integers")
    return int(value)


def _real(name: str, value: Any) -> float:
    """A number as Python's own float."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; allowed are numbers")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is {value!r}, which is more than a float holds") from None


_NUMBERS: dict[str, tuple[Callable[[str, Any], float], float, float]] = {
    "max_tokens": (_integer, 1, math.inf),
    "min_tokens": (_integer, 0, math.inf),
    "temperature": (_real, 0, 2),
    "top_k": (_integer, 0, math.inf),
    "top_p": (_real, 0, 1),
    "min_p": (_real, 0, 1),
    "top_n_sigma": (_real, 0, 1e6),
    "typical_p": (_real, 0, 1),
    "xtc_probability": (_real, 0, 1),
    "xtc_threshold": (_real, 0, 1),
    "mirostat": (_integer, 0, 2),
    "mirostat_tau": (_real, 0, 1e3),
    "mirostat_eta": (_real, 0, 1e3),
    "dry_multiplier": (_real, 0, 1e6),
    "dry_base": (_real, 1, 1e6),
    "dry_allowed_length": (_integer, 1, math.inf),
    "dry_penalty_last_n": (_integer, -1, math.inf),
    "repetition_penalty": (_real, 1e-6, 1e6),
    "presence_penalty": (_real, -2, 2),
    "frequency_penalty": (_real, -2, 2),
    "logprobs": (_integer, 0, 20),
}
"""Fields in a range: integers or floats, the least and the most."""
_OPTIONAL = ("max_tokens", "logprobs")


def _checked_ids(ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise TypeError(f"stop_token_ids is {ids!r}; allowed is a list of token ids")
    return tuple(_integer("a token id of stop_token_ids", id) for id in ids)


def _checked_breakers(breakers: Any) -> tuple[str | tuple[int, ...], ...]:
    if not isinstance(breakers, Sequence) or isinstance(breakers, str):
        raise TypeError(f"dry_sequence_breakers is {breakers!r}; allowed is a list of texts")
    checked: list[str | tuple[int, ...]] = []
    for breaker in breakers:
        if not isinstance(breaker, Sequence) or not 0 < len(breaker) <= LONGEST_BREAKER:
            raise ValueError(
                f"dry_sequence_breakers has {breaker!r:.80}; allowed are texts of 1 to {LONGEST_BREAKER} characters"
            )
        name = "a token id of dry_sequence_breakers"
        checked.append(breaker if isinstance(breaker, str) else tuple(_integer(name, id) for id in breaker))
    return tuple(checked)


def _checked_bias(logit_bias: Any) -> dict[int, float]:
    if not isinstance(logit_bias, Mapping):
        raise TypeError(f"logit_bias is {logit_bias!r}; allowed is a mapping of token ids to numbers")
    checked = {}
    for token, bias in logit_bias.items():
        token, bias = _integer("a token id of logit_bias", token), _real("a logit_bias", bias)
        if not -100 <= bias <= 100:
            raise ValueError(f"logit_bias of token {token} is {bias!r}; allowed is from -100 to 100")
        checked[token] = bias
    return checked


@dataclass(frozen=True)
class Logprobs:
    """Natural-log probabilities at one step, of the unchanged logits: of the token, and of the most likely ones."""

    token: float
    top: dict[int, float]


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1), float32-representable, from a seed and a step; the same on every device.

    Source: splitmix64, Steele, Lea and Flood, https://doi.org/10.1145/2714064.2660195, with the step as its counter.
    """
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 40) / (1 << 24)


def biases(
    params: SamplingParams, ends: Collection[int], step: int, penalties: Mapping[int, float] = MappingProxyType({})
) -> Mapping[int, float]:
    """What is added to the logits of tokens at a step: logit_bias, less the penalties, and -inf to those that end a
    text too early."""
    if step >= params.min_tokens and not penalties:
        return params.logit_bias
    changed = {token: params.logit_bias.get(token, 0.0) - penalty for token, penalty in penalties.items()}
    early = dict.fromkeys(ends, -math.inf) if step < params.min_tokens else {}
    return {**params.logit_bias, **changed, **early}


def sample(
    logits: HostArray,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    ends: Collection[int] = (),
    penalties: Mapping[int, float] = MappingProxyType({}),
    mirostat: Mirostat | None = None,
) -> int:
    """Choose the next token of one request.

    Args:
        logits: float32, shape (vocabulary,); not changed.
        params: how to choose.
        prompt, output: the request's token ids so far; the draw is the one of step len(output).
        ends: tokens that end its text.
        penalties: what else is subtracted from the logits of tokens.
        mirostat: its state, where the params have mirostat.

    Raises:
        NonFiniteError: the highest logit is NaN or infinite.
    """
    if params.counts_tokens:
        logits = _penalized(logits, params, prompt, output)
    if bias := biases(params, ends, len(output), penalties):
        logits = logits.copy()
        logits[list(bias)] += np.fromiter(bias.values(), np.float32)
    check_finite(logits)
    if params.temperature == 0:
        return int(logits.argmax())
    return _draw(logits, params, len(output), mirostat)


def masked(logits: HostArray, bits: HostArray) -> HostArray:
    """Logits with -inf for the tokens that may not come next.

    Args:
        logits: float32, shape (vocabulary,); not changed.
        bits: uint32, a bit for each token from the least significant on, set where it may come. Those past its end may
            not.

    Raises:
        NonFiniteError: the highest logit is NaN or infinite, with the mask or without.
    """
    check_finite(logits)  # before the mask hides what is not
    allowed = np.unpackbits(bits.view(np.uint8), bitorder="little").view(bool)[: len(logits)]
    result = np.full(len(logits), -np.inf, np.float32)
    np.copyto(result[: len(allowed)], logits[: len(allowed)], where=allowed)
    if result.max() == -np.inf:
        raise NonFiniteError(NOTHING_ALLOWED)
    return result


def check_finite(logits: HostArray) -> None:
    """Raise a NonFiniteError where no token can be chosen: the highest logit is NaN or infinite."""
    if not math.isfinite(logits.max()):
        raise NonFiniteError(NOT_FINITE)


def _penalized(logits: HostArray, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> HostArray:
    logits = logits.copy()
    seen = np.unique(np.concatenate([np.asarray(prompt, np.int64), np.asarray(output, np.int64)]))
    factor = np.float32(params.repetition_penalty)
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
    if len(output):
        written, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
        logits[written] -= counts.astype(np.float32) * np.float32(params.frequency_penalty)
        logits[written] -= np.float32(params.presence_penalty)
    return logits


def _draw(logits: HostArray, params: SamplingParams, step: int, mirostat: Mirostat | None) -> int:
    """The token at a random quantile of the distribution of the kept tokens, taken in the order of their ids."""
    scaled, u = logits / np.float32(params.temperature), uniform(params.drawn_seed, step)
    gaps = scaled.max() - scaled
    weights = np.exp(-gaps, dtype=np.float64)
    if mirostat is not None:
        ids: HostArray | None = np.sort(mirostat.kept(gaps, step))
    elif params.chained:
        ids = _kept_by_chain(gaps, weights, params, step)
    else:
        ids = _kept(weights, params)
    kept = weights if ids is None else weights[ids]
    cumulative = np.cumsum(kept)
    index = min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(cumulative) - 1)
    if mirostat is not None:
        mirostat.observe(float(kept[index] / cumulative[-1]))
    return index if ids is None else int(ids[index])


def _kept(weights: HostArray, params: SamplingParams) -> HostArray | None:
    """Ids, ascending, that top_k, top_p and min_p keep; of equally likely ones the lowest first. None for all."""
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return None
    threshold, total = params.min_p * weights.max(), weights.sum()
    if params.top_k:
        kept = np.sort(_largest(weights, params.top_k))
        threshold, total = max(threshold, kept[0]), kept.sum()  # the share is of what top_k keeps, before min_p
    if params.top_p < 1:
        # no token as light as this one is kept: all that come after it have less than 1 - top_p together
        threshold = max(threshold, 0.999 * (1 - params.top_p) * total / len(weights))
    ids = _descending(weights, threshold)[: params.top_k or None]
    if params.top_p < 1:
        sums = np.cumsum(weights[ids])
        ids = ids[sums - weights[ids] < params.top_p * total]
    return np.sort(ids)


def _kept_by_chain(gaps: HostArray, weights: HostArray, params: SamplingParams, step: int) -> HostArray:
    """Ids, ascending, that all truncations keep, each of what the one before has kept; as llama.cpp's samplers.

    Args:
        gaps: float32 (vocabulary,): how far each logit over the temperature is below the highest.
        weights: exp(-gaps).
    """
    ids = np.argsort(-weights, kind="stable")
    if params.top_n_sigma:
        ids = ids[gaps[ids] <= params.top_n_sigma * gaps[np.isfinite(gaps)].std(dtype=np.float64)]
    ids = ids[weights[ids] > 0][: params.top_k or None]
    if params.typical_p < 1:
        shares = weights[ids] / weights[ids].sum()
        surprise = np.abs(gaps[ids] - np.float32(shares @ gaps[ids]))  # less the expected one
        order = np.argsort(surprise, kind="stable")
        last = int(np.searchsorted(np.cumsum(shares[order]), params.typical_p))
        ids = ids[surprise <= surprise[order[min(last, len(order) - 1)]]]
    if params.top_p < 1:
        sums = np.cumsum(weights[ids])
        ids = ids[sums - weights[ids] < params.top_p * sums[-1]]
    ids = ids[weights[ids] >= params.min_p * weights[ids[0]]]
    if params.xtc_threshold <= 0.5 and uniform(params.drawn_seed ^ XTC_SEED, step) < np.float32(params.xtc_probability):
        likely = np.count_nonzero(weights[ids] >= params.xtc_threshold * weights[ids].sum())
        ids = ids[max(likely - 1, 0) :]
    return np.sort(ids)


def _largest(values: HostArray, count: int) -> HostArray:
    """The `count` largest values, or all, in any order."""
    return np.partition(values, -count)[-count:] if count < len(values) else values


def _descending(values: HostArray, least: float) -> HostArray:
    """Ids of the values from `least` on, the largest first, of equal ones the lowest id first."""
    ids = np.flatnonzero(values >= least)
    return ids[np.argsort(-values[ids], kind="stable")]


def logprobs(logits: HostArray, token: int, count: int) -> Logprobs:
    """Log-probabilities of a token and of the `count` most likely ones, from unchanged logits (vocabulary,)."""
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    top = _descending(values, _largest(values, count).min())[:count] if count else ()
    return Logprobs(float(values[token]), {int(i): float(values[i]) for i in top})
