"""Sampling of a batch, on the host or device where its logits are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rocforge.device.arrays import asnumpy, get_array_module
from rocforge.device.libraries import cupy_module
from rocforge.engine.request import Request
from rocforge.errors import NonFiniteError
from rocforge.ops.device.sampling import Sampler, count_tokens, logprobs_device
from rocforge.ops.embedding import embedding
from rocforge.ops.sampling import NOT_FINITE, Logprobs, SamplingParams, check_finite, logprobs, sample

_NO_REQUEST = SamplingParams(temperature=0, seed=0)


class SampledToken(NamedTuple):
    """The next token of a request, with its log-probabilities if requested; -1 and the error if it failed."""

    token: int
    logprobs: Logprobs | None = None
    error: Exception | None = None


def sample_tokens(logits: Any, requests: Sequence[Request]) -> list[SampledToken]:
    """The next token of each request.

    On a device they are drawn there, but for requests with a constraint, which masks logits on the host.

    Args:
        logits: float32, shape (requests, vocabulary).
        requests: in the order of the rows.
    """
    if get_array_module(logits) is np:
        return [_sample_on_host(row, request) for row, request in zip(logits, requests, strict=True)]
    free = [i for i, request in enumerate(requests) if request.constraint is None]
    sampled = {}
    if free:
        rows = logits if len(free) == len(requests) else embedding(np.array(free, np.int32), logits)
        drawn = [requests[i] for i in free]
        tokens = device_sampler(drawn, rows.shape[1])(rows)
        tokens_drawn = sampled_tokens(drawn, tokens.get(), *map(asnumpy, logprob_arrays(rows, tokens, drawn)))
        sampled = dict(zip(free, tokens_drawn, strict=True))
    rest = [i for i in range(len(requests)) if i not in sampled]
    sampled.update((i, _sample_on_host(asnumpy(logits[i]), requests[i])) for i in rest)
    return [sampled[i] for i in range(len(requests))]


def _sample_on_host(logits: np.ndarray, request: Request) -> SampledToken:
    params, constraint = request.params, request.constraint
    try:
        allowed = logits
        if constraint is not None:
            check_finite(logits)  # before the mask hides what is not
            allowed = logits.copy()
            constraint.mask(allowed)
        token = sample(allowed, params, request.prompt, request.output)
        if constraint is not None:
            constraint.accept(token)
    except Exception as error:
        return SampledToken(-1, error=error)
    return SampledToken(token, None if params.logprobs is None else logprobs(logits, token, params.logprobs))


def device_sampler(requests: Sequence[Request], vocabulary: int, rows: int = 0, room: int = 0) -> Sampler:
    """How the requests are sampled, a row each; up to `rows` more rows, and room for biases, are left unused."""
    spare = max(0, rows - len(requests))
    params = [request.params for request in requests] + [_NO_REQUEST] * spare
    steps = [len(request.output) for request in requests] + [0] * spare
    counted = [i for i, p in enumerate(params) if p.counts_tokens]
    if not counted:
        return Sampler(params, steps, room=room)
    counts = np.zeros((len(params), vocabulary), np.int32)
    for i in counted:
        counts[i] = count_tokens(requests[i].prompt, requests[i].output, vocabulary)
    counts_rows = [i if p.counts_tokens else -1 for i, p in enumerate(params)]
    return Sampler(params, steps, counts_rows, cupy_module().asarray(counts), room)


def logprob_arrays(logits: Any, tokens: Any, requests: Sequence[Request]) -> tuple[Any, ...]:
    """The result of `logprobs_device` for as many tokens as any of the requests wants; () if none wants any."""
    wanted = [request.params.logprobs for request in requests if request.params.logprobs is not None]
    return logprobs_device(logits, tokens, min(max(wanted), logits.shape[1])) if wanted else ()


def sampled_tokens(requests: Sequence[Request], tokens: np.ndarray, *reported: np.ndarray) -> list[SampledToken]:
    """The sampled tokens from host arrays of tokens, and of what `logprob_arrays` returned."""
    sampled = []
    for row, request in enumerate(requests):
        token, count, report = int(tokens[row]), request.params.logprobs, None
        if token < 0:
            sampled.append(SampledToken(token, error=NonFiniteError(NOT_FINITE)))
            continue
        if count is not None:
            chosen, ids, values = (array[row] for array in reported)
            report = Logprobs(float(chosen), dict(zip(ids[:count].tolist(), values[:count].tolist(), strict=True)))
        sampled.append(SampledToken(token, report))
    return sampled
