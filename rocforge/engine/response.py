"""RequestStream: the streamed text of one request of an engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rocforge import html
from rocforge.engine.breakers import with_breakers
from rocforge.engine.engine import Engine
from rocforge.engine.request import Request, Token
from rocforge.ops.sampling import Logprobs, SamplingParams
from rocforge.text.stream import TextStream
from rocforge.text.tokenizer import Tokenizer


class GeneratedText(str):
    """A generated text: a str, which a notebook shows with its lines."""

    def _repr_html_(self) -> str:
        return html.text(self)


@dataclass
class Stats:
    """Counts and timings of a request.

    Attributes:
        prompt_tokens, generated_tokens: counts.
        time_to_first_token: seconds from the request to its first token.
        generation_seconds: seconds from the first token to the last.
        peak_memory: peak bytes of the process (CPU), or of CuPy's pools when a token came (GPU).
        device: "cpu" or "gpu:N".
    """

    prompt_tokens: int
    device: str
    generated_tokens: int = 0
    time_to_first_token: float = 0.0
    generation_seconds: float = 0.0
    peak_memory: int = 0
    _start: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.time_to_first_token if self.time_to_first_token else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first."""
        return (self.generated_tokens - 1) / self.generation_seconds if self.generation_seconds else 0.0

    def count(self, memory: int) -> None:
        """Count a token, and the bytes reserved."""
        now = time.perf_counter() - self._start
        self.generated_tokens += 1
        if self.generated_tokens == 1:
            self.time_to_first_token = now
        self.generation_seconds = now - self.time_to_first_token
        self.peak_memory = max(self.peak_memory, memory)

    def __str__(self) -> str:
        return (
            f"prompt: {self.prompt_tokens} tokens, {self.prompt_tokens_per_second:.1f} tokens/s; "
            f"generation: {self.generated_tokens} tokens, {self.tokens_per_second:.1f} tokens/s; "
            f"first token after {self.time_to_first_token:.3f} s; "
            f"peak memory {self.peak_memory / 2**20:.0f} MiB; device {self.device}"
        )


@dataclass(frozen=True)
class GenerationResponse:
    """One piece of a generation.

    Attributes:
        text: the text that became final since the previous piece; may be empty.
        token: the token's id.
        finish_reason: None, or on the last piece "stop" (end-of-generation token, or stop string) or "length".
        logprobs: where asked for.
        stats: of the generation so far.
        stop: the stop string that ended it, or None.

    >>> *_, last = rf.stream_generate(model, tokenizer, "import ", max_tokens=3)
    >>> last.finish_reason, last.stats.generated_tokens
    ('length', 3)
    """

    text: str
    token: int
    finish_reason: str | None
    logprobs: Logprobs | None
    stats: Stats
    stop: str | None = None

    def _repr_html_(self) -> str:
        rows = [("text", repr(self.text)), ("token", self.token), ("finish reason", self.finish_reason)]
        if self.logprobs:
            rows += [("log-probability", f"{self.logprobs.token:.4f}")]
            rows += [(f"of token {id}", f"{value:.4f}") for id, value in self.logprobs.top.items()]
        return html.table(rows) + html.text(str(self.stats))


class ResponseStream:
    """The text of one request, and its stats, from its tokens.

    Args:
        tokenizer: of the model.
        prompt: token ids.
        params: how they are continued.
        device: that the model is on, as in Stats.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams, device: str):
        self.text = TextStream(tokenizer, params.stop, prompt[-1] if prompt else None)
        self.stats = Stats(len(prompt), device)

    def add(self, token: int, finish_reason: str | None, logprobs: Logprobs | None, memory: int) -> GenerationResponse:
        """The response for the next token. One that completes a stop string has the finish reason "stop", also where
        the engine gave none: the request is to be cancelled then.

        Args:
            token: its id.
            finish_reason, logprobs: as in `Token`.
            memory: bytes reserved.
        """
        self.stats.count(memory)
        text = "" if finish_reason == "stop" else self.text.add(token)
        if finish_reason and self.text.stopped is None:
            text += self.text.finish()
        reason = finish_reason if self.text.stopped is None else "stop"
        return GenerationResponse(text, token, reason, logprobs, self.stats, self.text.stopped)


class RequestStream:
    """A request of an engine that is kept open, with its text and its stats.

    Args:
        engine: the request is added to it; its tokens come from `engine.step()`.
        tokenizer: of its model.
        prompt: token ids.
        params: how to continue it.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams):
        self._engine, self._stream = engine, ResponseStream(tokenizer, prompt, params, engine.model.device)
        self.request: Request = engine.add(prompt, with_breakers(params, tokenizer))

    def add(self, token: Token) -> GenerationResponse:
        """The response for a token of this request; one that completes a stop string ends the request.

        Raises:
            Exception: the token's error.
        """
        if token.error:
            raise token.error
        memory = self._engine.memory_reserved
        response = self._stream.add(token.id, token.finish_reason, token.logprobs, memory)
        if response.finish_reason:
            self._engine.cancel(self.request)
        return response
