"""Sampling of a batch, on the host or device where its logits are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from rocforge.device.streams import Download, Stream, shared_array
from rocforge.engine.request import Request, Status
from rocforge.errors import NonFiniteError
from rocforge.ops.device.sampling import NONE_ALLOWED, Sampler, count_tokens, logprobs_device
from rocforge.ops.sampling import NOT_FINITE, NOTHING_ALLOWED, Logprobs, biases, logprobs, masked, sample

Watched: TypeAlias = list[tuple[int, Request]]


class SampledToken(NamedTuple):
    """The next token of a request, with its log-probabilities if requested; -1 and the error if it failed."""

    token: int
    logprobs: Logprobs | None = None
    error: Exception | None = None


def sample_tokens(logits: np.ndarray, requests: Sequence[Request]) -> list[SampledToken]:
    """The next token of each request, on the host.

    Args:
        logits: float32, shape (requests, vocabulary).
        requests: in the order of the rows.
    """
    return [_sample_on_host(row, request) for row, request in zip(logits, requests, strict=True)]


def _sample_on_host(logits: np.ndarray, request: Request) -> SampledToken:
    top = request.params.logprobs
    try:
        token = _chosen(logits, request)
        request.accept(token)
    except Exception as error:
        return SampledToken(-1, error=error)
    return SampledToken(token, None if top is None else logprobs(logits, token, top))


def _chosen(logits: np.ndarray, request: Request) -> int:
    """The next token of a request, on the host."""
    allowed = logits if request.constraint is None else masked(logits, request.constraint.bits())
    text = (request.params, request.prompt, request.output, request.ends)
    return sample(allowed, *text, request.penalties(), request.mirostat)


class DeviceSampler:
    """Samples on a device, each request in a slot that it keeps while it runs.

    Args:
        stream: on the device, which must be the current one.
        vocabulary: how many tokens it has.
        slots: how many there are.
    """

    def __init__(self, stream: Stream, vocabulary: int, slots: int):
        self._stream, self._vocabulary = stream, vocabulary
        self._sampler = Sampler(vocabulary, slots)
        self._holders: list[Callable[[], Request | None]] = [_nobody] * slots
        self._steps = [0] * slots  # that the next launch has to be of, for the counts to be right
        self._watched = np.zeros(slots, bool)  # requests that follow their text, or want log-probabilities
        # of a step and the one after it, which is queued before the host reads the first one's
        self._host_tokens = [shared_array((slots,), np.int32) for _ in range(2)]

    @property
    def last_tokens(self) -> Any:
        """int32 CuPy array (slots,): the last token of each slot."""
        return self._sampler.last_tokens

    def launch(
        self, logits: Any, requests: Sequence[Request], slots: Sequence[int], steps: Sequence[int]
    ) -> PendingTokens:
        """Queue the sampling of a token for each request. Waits for the masks of their constraints. The tokens have to
        be read before the launch after the next.

        Args:
            logits: float32 CuPy array, a row for each request, and any more rows.
            requests: `output` has all tokens of one that comes to a slot, or comes back to it, or repeats a step.
            slots: of the requests.
            steps: how many tokens each has so far, with those that are not on the host yet.

        Raises:
            ValueError: a token that has to be known is not.
        """
        for request, slot, step in zip(requests, slots, steps, strict=True):
            if self._holders[slot]() is not request or self._steps[slot] != step:
                self._begin(request, slot, step, slots)
            self._steps[slot] = step + 1
        watched = [(row, requests[row]) for row in np.flatnonzero(self._watched[np.asarray(slots, int)]).tolist()]
        masks, errors = self._masks(logits, watched)
        for row, request in watched:
            chosen = request.mirostat is not None  # on the host, with these penalties
            if request.breakers is not None and not chosen and request.status is not Status.FINISHED:
                bias = biases(request.params, request.ends, len(request.output), request.penalties())
                self._sampler.set_biases(slots[row], bias)
        self._host_tokens.reverse()
        host_tokens, there = self._host_tokens[0]
        self._sampler(logits, slots, steps, masks, there, self._stream.upload)
        tokens = self._stream.written(host_tokens[: len(requests)])
        return PendingTokens(tokens, watched, self._reports(logits, watched, slots), errors)

    def restart(self) -> None:
        """Keep nothing of the last launch, of which the logits are."""
        self._sampler.restart()

    def _begin(self, request: Request, slot: int, step: int, slots: Sequence[int]) -> None:
        params, counts = request.params, None
        if len(request.output) != step:
            raise ValueError(f"sampling: step {step} of a request of which {len(request.output)} tokens are known")
        self._holders[slot] = _nobody
        if params.counts_tokens:
            self._end_all_but(slots)
            counts = count_tokens(request.prompt, request.output, self._vocabulary)
        self._sampler.begin(slot, params, counts, self._stream.upload, request.ends)
        self._watched[slot] = request.follows_text or params.logprobs is not None
        self._holders[slot] = weakref.ref(request)

    def _end_all_but(self, slots: Sequence[int]) -> None:
        """Take back the counts of requests that do not run, unless a launch is of them."""
        for slot in {*range(len(self._holders))}.difference(slots):
            holder = self._holders[slot]()
            if holder is None or holder.status is not Status.RUNNING:
                self._sampler.end(slot)
                self._holders[slot] = _nobody

    def _masks(self, logits: Any, watched: Watched) -> tuple[dict[int, np.ndarray], dict[int, Exception]]:
        """What the constraints of requests allow next, and the errors of those that failed, by their rows. Of one with
        mirostat it is the token that the host has chosen."""
        masks, errors = {}, {}
        for row, request in watched:
            try:
                if request.status is Status.FINISHED:
                    continue
                if request.mirostat is not None:
                    token = _chosen(self._stream.download(logits[row]).get(), request)
                    masks[row] = _only(token, self._vocabulary)
                elif request.constraint is not None:
                    masks[row] = request.constraint.bits()
            except Exception as error:
                errors[row] = error
        return masks, errors

    def _reports(self, logits: Any, watched: Watched, slots: Sequence[int]) -> list[Download]:
        """The results of `logprobs_device` for the requests that want any, in order; none if none does."""
        wanted = [(row, request.params.logprobs) for row, request in watched if request.params.logprobs is not None]
        if not wanted:
            return []
        places = self._stream.upload(np.array([(row, slots[row]) for row, _ in wanted], np.int32).T)
        count = min(max(count for _, count in wanted), self._vocabulary)
        return [*map(self._stream.download, logprobs_device(logits, self.last_tokens, count, places))]


class PendingTokens:
    """Tokens that are queued.

    Args:
        tokens: as a Sampler writes them.
        watched: the requests that have a constraint or want log-probabilities, with their rows.
        reports: of `logprobs_device`, for those that want them.
        errors: of constraints that have failed already, by their rows.
    """

    def __init__(self, tokens: Download, watched: Watched, reports: Sequence[Download], errors: dict[int, Exception]):
        self._tokens, self._watched, self._reports, self._errors = tokens, watched, reports, errors

    def get(self) -> list[SampledToken]:
        """The token of each request, which its constraint has been told; waits for the tokens. To be called once."""
        tokens = self._tokens.get()
        sampled = list(map(SampledToken, tokens.tolist()))
        for row in np.flatnonzero(tokens < 0).tolist():
            sampled[row] = SampledToken(-1, error=_failure(sampled[row].token))
        reports = zip(*(array.get() for array in self._reports), strict=True)
        for row, request in self._watched:
            count = request.params.logprobs
            report = None if count is None else _logprobs(count, *next(reports))
            error = self._errors.get(row) or sampled[row].error or _refusal(request, sampled[row].token)
            sampled[row] = sampled[row]._replace(logprobs=report) if error is None else SampledToken(-1, error=error)
        return sampled


def _nobody() -> None:
    """The request of a slot without one."""


def _only(token: int, vocabulary: int) -> np.ndarray:
    """The mask that allows one token."""
    mask = np.zeros(-(-vocabulary // 32), np.uint32)
    mask[token // 32] = 1 << token % 32
    return mask


def _refusal(request: Request, token: int) -> Exception | None:
    """Tell a request's constraint, if any, of its token; the error of that."""
    if request.status is not Status.FINISHED:
        try:
            request.accept(token)
        except Exception as error:
            return error
    return None


def _failure(token: int) -> NonFiniteError:
    """What a number in place of a token means."""
    return NonFiniteError(NOTHING_ALLOWED if token == NONE_ALLOWED else NOT_FINITE)


def _logprobs(count: int, chosen: Any, ids: np.ndarray, values: np.ndarray) -> Logprobs:
    return Logprobs(float(chosen), dict(zip(ids[:count].tolist(), values[:count].tolist(), strict=True)))
