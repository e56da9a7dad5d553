"""generate and stream_generate: the engine, for one call."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, overload

from rocforge.engine.capacity import MAX_REQUESTS
from rocforge.engine.defaults import file_defaults
from rocforge.engine.engine import Engine
from rocforge.engine.request import Request
from rocforge.engine.response import GeneratedText, GenerationResponse, RequestStream
from rocforge.nn.transformer import Transformer
from rocforge.ops.sampling import SamplingOptions, SamplingParams
from rocforge.text.encoding import as_ids
from rocforge.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

Prompt = str | Sequence[int]
Adapter = str | None | Sequence[str | None]
"""The name of an adapter for all prompts, or of one for each."""


def stream_generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    lora: str | None = None,
    **sampling: Unpack[SamplingOptions],
) -> Generator[GenerationResponse, None, None]:
    """Continue a prompt, token by token.

    Args:
        model, tokenizer: from `rf.load`.
        prompt: text (encoded with special tokens) or token ids.
        lora: the name of an adapter, one of `model.adapters`.
        sampling: the fields of SamplingParams, by name; what is left out is as the file recommends, where it does.

    Raises:
        ValueError: a sampling parameter outside its range, or a prompt that is empty or too long.
        TypeError: an unknown sampling parameter, or a prompt that is neither text nor ids.

    >>> for response in rf.stream_generate(model, tokenizer, "import ", max_tokens=3, temperature=0):
    ...     print(response.text, end="|")
    ate|x|it|
    """
    _check_loaded(model, tokenizer)
    return _stream(model, tokenizer, _ids_of(tokenizer, prompt), _params(tokenizer, {**sampling, "lora": lora}))


def _stream(
    model: Transformer, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams
) -> Generator[GenerationResponse, None, None]:
    with Engine(model, tokenizer.eog_token_ids, max_requests=1) as engine:
        stream = RequestStream(engine, tokenizer, prompt, params)
        while engine.busy:
            for token in engine.step():
                yield stream.add(token)


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a sequence of strs, too
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    lora: Adapter = None,
    **sampling: Unpack[SamplingOptions],
) -> str: ...
@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: Sequence[Prompt],
    *,
    lora: Adapter = None,
    **sampling: Unpack[SamplingOptions],
) -> list[str]: ...
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: Prompt | Sequence[Prompt],
    *,
    lora: Adapter = None,
    **sampling: Unpack[SamplingOptions],
) -> str | list[str]:
    """Continue one prompt, or many of them at once, which share the model's steps.

    Args:
        model, tokenizer: from `rf.load`.
        prompt: text or token ids; or a list of those.
        lora: the name of an adapter, one of `model.adapters`; or a list with one, or None, for each prompt.
        sampling: the fields of SamplingParams, by name; what is left out is as the file recommends, where it does.

    Returns:
        The text that follows the prompt, which notebooks show as it is; a list for a list.

    Raises:
        ValueError: a sampling parameter outside its range, or a prompt that is empty or too long.
        TypeError: an unknown sampling parameter, or a prompt that is neither text nor ids.

    >>> rf.generate(model, tokenizer, ["import numpy as", "import "], max_tokens=2, temperature=0, stop="\\n")
    [' np', 'atex']
    """
    _check_loaded(model, tokenizer)
    params = _params(tokenizer, sampling)
    many = _is_many(prompt)
    prompts = [_ids_of(tokenizer, p) for p in cast("Sequence[Prompt]", prompt if many else [prompt])]
    adapters = _adapters(lora, len(prompts))
    if not prompts:
        return []
    with Engine(model, tokenizer.eog_token_ids, max_requests=min(len(prompts), MAX_REQUESTS)) as engine:
        pairs = zip(prompts, adapters, strict=True)
        streams = [RequestStream(engine, tokenizer, ids, replace(params, lora=name)) for ids, name in pairs]
        by_request = {stream.request: stream for stream in streams}
        texts: dict[Request, list[str]] = {stream.request: [] for stream in streams}
        while engine.busy:
            for token in engine.step():
                texts[token.request].append(by_request[token.request].add(token).text)
    pieces: list[str] = [GeneratedText("".join(texts[stream.request])) for stream in streams]
    return pieces if many else pieces[0]


def _params(tokenizer: Tokenizer, given: Mapping[str, Any]) -> SamplingParams:
    return SamplingParams(**{**file_defaults(tokenizer), **given})


def _is_many(prompt: Any) -> bool:
    """Whether it is a sequence of prompts; an empty list is one without any."""
    if isinstance(prompt, (list, tuple)) and not prompt:
        return True
    return _is_sequence(prompt) and len(prompt) > 0 and not isinstance(prompt[0], numbers.Real)


def _is_sequence(value: Any) -> bool:
    """Whether it can be token ids: a sequence, or an array."""
    return not isinstance(value, (str, bytes)) and (isinstance(value, Sequence) or hasattr(value, "__array__"))


def _ids_of(tokenizer: Tokenizer, prompt: Any) -> list[int]:
    """The ids of a prompt: of text, with special tokens."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        raise TypeError(f'prompt is a {type(prompt).__name__}; pass its ids: prompt["input_ids"]')
    if not _is_sequence(prompt):
        raise TypeError(f"prompt is {prompt!r:.80}; allowed are a str, token ids, or a list of these")
    return as_ids(prompt)


def _check_loaded(model: Any, tokenizer: Any) -> None:
    if not isinstance(tokenizer, Tokenizer) or isinstance(model, (Tokenizer, str)):
        problem = f"got {type(model).__name__} and {type(tokenizer).__name__}"
        raise TypeError(f"the first two arguments are what rf.load gives, model and tokenizer; {problem}")


def _adapters(lora: Adapter, prompts: int) -> Sequence[str | None]:
    """The adapter of each prompt."""
    if lora is None or isinstance(lora, str):
        return [lora] * prompts
    if len(lora) != prompts:
        raise ValueError(f"lora has {len(lora)} names for {prompts} prompts; allowed is one for each, or one for all")
    return lora


def _show_sampling(function: Any) -> None:
    """`help` and completion list the fields of SamplingParams among the arguments."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = (inspect.signature(SamplingParams).parameters[name] for name in SamplingOptions.__annotations__)
    function.__signature__ = inspect.Signature([*own, *fields])


_show_sampling(stream_generate)
_show_sampling(generate)
