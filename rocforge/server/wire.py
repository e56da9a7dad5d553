"""What the processes of a server say to each other: msgpack arrays, the first entry of which names the message.

A front end says
    submit, ticket, keys, prompts, params, grammar, timeout, submitted     keys: of each prompt with each of params
    cancel, keys
    embed, ticket, prompts, lora, top       top: None, or of scores how many of the likeliest tokens
    forget, ticket                          of an embed, whose answer nobody waits for
    ask, ticket, question, argument
    answer, ticket, answer
and the engine's process
    ready, tokenizer, limit, device, pooling
    accepted, ticket, keys
    refused, ticket, error
    embedded, ticket, vectors               or scores: float32, one after another
    tokens, memory, keys, tokens, more      a step's; `more` has what few tokens have
    ask, ticket, question, argument         of another front end, and to it the answer
    asked, ticket, how many were
    answer, ticket, answer

A ticket is a number of the sender's. Params and grammars are JSON, which knows integers of any size.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Sequence
from typing import Any

import msgpack

from rocforge.engine.core import Event
from rocforge.engine.reply import (
    CancelledError,
    DeadlineError,
    QueueFullError,
    ServiceError,
    StepError,
)
from rocforge.errors import NonFiniteError
from rocforge.ops.sampling import Logprobs, SamplingParams
from rocforge.server.grammars import GrammarSource
from rocforge.text.grammar import GrammarError
from rocforge.text.tokenizer import Tokenizer

LARGEST = 1 << 30
"""Bytes of a message."""
_KINDS: tuple[type[Exception], ...] = (
    ValueError,
    CancelledError,
    DeadlineError,
    GrammarError,
    NonFiniteError,
    QueueFullError,
    ServiceError,
    StepError,
)
_KIND_OF = {kind.__name__: kind for kind in _KINDS}
_DEFAULTS = SamplingParams(seed=0)
_SENT = [
    f.name for f in dataclasses.fields(SamplingParams) if f.name != "stop"
]  # the front end knows where a text ends


def pack(*message: Any) -> bytes:
    """A message as bytes; messages may follow each other without a break."""
    return msgpack.packb(message, unicode_errors="surrogatepass")


def unpacker() -> msgpack.Unpacker:
    """Gives messages from the bytes it is fed."""
    return msgpack.Unpacker(max_buffer_size=LARGEST, strict_map_key=False, unicode_errors="surrogatepass")


def pack_params(params: Sequence[SamplingParams]) -> str:
    return json.dumps(
        [{name: v for name in _SENT if (v := getattr(p, name)) != getattr(_DEFAULTS, name)} for p in params]
    )


def unpack_params(text: str) -> list[SamplingParams]:
    found = []
    for fields in json.loads(text):
        bias = {int(token): value for token, value in fields.pop("logit_bias", {}).items()}
        found.append(SamplingParams(**{"seed": _DEFAULTS.seed, **fields}, logit_bias=bias))
    return found


def pack_grammar(grammar: GrammarSource | None) -> str | None:
    return None if grammar is None else json.dumps(grammar)


def unpack_grammar(text: str | None) -> GrammarSource | None:
    return None if text is None else GrammarSource(*json.loads(text))


def pack_tokenizer(tokenizer: Tokenizer) -> bytes:
    """The engine's process alone sends it: it is unpickled."""
    return pickle.dumps(tokenizer)


def unpack_tokenizer(data: bytes) -> Tokenizer:
    return pickle.loads(data)


def pack_error(error: BaseException) -> tuple[str, str]:
    for kind in type(error).__mro__:
        if kind.__name__ in _KIND_OF:
            return kind.__name__, str(error)
    return type(error).__name__, str(error)


def unpack_error(kind: str, message: str) -> Exception:
    known = _KIND_OF.get(kind)
    return known(message) if known else RuntimeError(f"{kind}: {message}")


def pack_events(memory: int, events: Sequence[tuple[int, Event]]) -> bytes:
    """The events of a step, each with its key at the receiver."""
    more = {
        index: _pack_more(event)
        for index, (_, event) in enumerate(events)
        if event.finish_reason or event.cached_tokens or event.logprobs or event.error
    }
    return pack("tokens", memory, [key for key, _ in events], [event.token for _, event in events], more)


def unpack_events(keys: list[int], tokens: list[int | None], more: dict[int, Any]) -> list[Event]:
    events = list(map(Event, keys, tokens))
    for index, (reason, cached, logprobs, error) in more.items():
        events[index] = Event(
            keys[index],
            tokens[index],
            reason,
            logprobs and Logprobs(*logprobs),
            cached,
            error and unpack_error(*error),
        )
    return events


def _pack_more(event: Event) -> tuple[Any, ...]:
    logprobs = event.logprobs and (event.logprobs.token, event.logprobs.top)
    return event.finish_reason, event.cached_tokens, logprobs, event.error and pack_error(event.error)
