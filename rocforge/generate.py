"""generate and stream_generate: the engine, for one call."""

from __future__ import annotations

import numbers
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, cast, overload

from rocforge.engine.engine import Engine
from rocforge.engine.request import Request
from rocforge.engine.response import GenerationResponse, Prompt, RequestStream
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import SamplingParams
from rocforge.text.tokenizer import Tokenizer

Adapter = str | None | Sequence[str | None]
"""The name of an adapter for all prompts, or of one for each."""
MOST_TOGETHER = 256
"""Prompts of one call that share a step, at most."""


def stream_generate(
    model: Transformer, tokenizer: Tokenizer, prompt: Prompt, *, lora: str | None = None, **sampling: Any
) -> Generator[GenerationResponse, None, None]:
    """Continue a prompt, token by token.

    Args:
        model, tokenizer: from `rf.load`.
        prompt: text (encoded with special tokens) or token ids.
        lora: the name of an adapter, one of `model.adapters`.
        sampling: the fields of SamplingParams, by name.

    Raises:
        ValueError: a sampling parameter outside its range, or a prompt that is empty or too long.
    """
    with Engine(model, tokenizer.eog_token_ids, max_requests=1) as engine:
        stream = RequestStream(engine, tokenizer, prompt, SamplingParams(**sampling, lora=lora))
        while engine.busy:
            for token in engine.step():
                yield stream.add(token)


@overload
def generate(
    model: Transformer, tokenizer: Tokenizer, prompt: Prompt, *, lora: Adapter = None, **sampling: Any
) -> str: ...
@overload
def generate(
    model: Transformer, tokenizer: Tokenizer, prompt: Sequence[Prompt], *, lora: Adapter = None, **sampling: Any
) -> list[str]: ...
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: Prompt | Sequence[Prompt],
    *,
    lora: Adapter = None,
    **sampling: Any,
) -> str | list[str]:
    """Continue one prompt, or many of them at once, which share the model's steps.

    Args:
        model, tokenizer: from `rf.load`.
        prompt: text or token ids; or a list of those.
        lora: the name of an adapter, one of `model.adapters`; or a list with one, or None, for each prompt.
        sampling: the fields of SamplingParams, by name.

    Returns:
        The text that follows the prompt; a list for a list.

    Raises:
        ValueError: a sampling parameter outside its range, or a prompt that is empty or too long.
    """
    many = not isinstance(prompt, str) and len(prompt) > 0 and not isinstance(prompt[0], numbers.Integral)
    prompts = cast("Sequence[Prompt]", prompt if many else [prompt])
    params = SamplingParams(**sampling)
    with Engine(model, tokenizer.eog_token_ids, max_requests=max(1, min(len(prompts), MOST_TOGETHER))) as engine:
        pairs = zip(prompts, _adapters(lora, len(prompts)), strict=True)
        streams = [RequestStream(engine, tokenizer, p, replace(params, lora=name)) for p, name in pairs]
        by_request = {stream.request: stream for stream in streams}
        texts: dict[Request, list[str]] = {stream.request: [] for stream in streams}
        while engine.busy:
            for token in engine.step():
                texts[token.request].append(by_request[token.request].add(token).text)
    pieces = ["".join(texts[stream.request]) for stream in streams]
    return pieces if many else pieces[0]


def _adapters(lora: Adapter, prompts: int) -> Sequence[str | None]:
    """The adapter of each prompt."""
    if lora is None or isinstance(lora, str):
        return [lora] * prompts
    if len(lora) != prompts:
        raise ValueError(f"lora has {len(lora)} names for {prompts} prompts; allowed is one for each, or one for all")
    return lora
