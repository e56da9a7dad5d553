"""Log-probabilities in the shapes of the two APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rocforge.engine.response import GenerationResponse
from rocforge.ops.sampling import Logprobs
from rocforge.text.tokenizer import Tokenizer


def _name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; where it is part of a character, its bytes, as in "bytes:\\xe2\\x82"."""
    piece = tokenizer.token_bytes(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _reported(pieces: Sequence[GenerationResponse], tokenizer: Tokenizer) -> list[tuple[GenerationResponse, Logprobs]]:
    """Those with log-probabilities; not the end-of-generation token, which is no part of the text."""
    return [(p, p.logprobs) for p in pieces if p.logprobs and p.token not in tokenizer.eog_token_ids]


def chat_logprobs(tokenizer: Tokenizer, pieces: Sequence[GenerationResponse]) -> dict[str, Any]:
    """Of tokens of a chat completion."""

    def entry(token: int, value: float) -> dict[str, Any]:
        return {"token": _name(tokenizer, token), "logprob": value, "bytes": list(tokenizer.token_bytes(token))}

    content = [
        {
            **entry(piece.token, logprobs.token),
            "top_logprobs": [entry(token, value) for token, value in logprobs.top.items()],
        }
        for piece, logprobs in _reported(pieces, tokenizer)
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(tokenizer: Tokenizer, prompt: Sequence[int], scores: np.ndarray, text: str) -> dict[str, Any]:
    """Of a prompt's tokens, in the form of `completion_logprobs`; its first one has none.

    Args:
        tokenizer: of the model.
        prompt: its ids.
        scores: of all but the first, as `Engine.score` has them.
        text: as it is echoed; begin tokens that stand before it are at its beginning.
    """
    stream = tokenizer.detokenizer()
    pieces = [stream.add(id) for id in prompt]
    offset = len(text) - sum(map(len, pieces)) - len(stream.finish())
    top = scores.shape[1] // 2
    report: dict[str, Any] = {"tokens": [_name(tokenizer, id) for id in prompt], "token_logprobs": [None]}
    report |= {"top_logprobs": [None], "text_offset": []}
    for piece in pieces:
        report["text_offset"].append(max(0, offset))
        offset += len(piece)
    for value, *likeliest in scores.tolist():
        report["token_logprobs"].append(value)
        named = zip(likeliest[:top], likeliest[top:], strict=True)
        report["top_logprobs"].append({_name(tokenizer, int(id)): p for id, p in named})
    return report


def completion_logprobs(tokenizer: Tokenizer, pieces: Sequence[GenerationResponse], offset: int) -> dict[str, Any]:
    """Of tokens of a completion; `offset` is where their text begins, in characters."""
    report: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece, logprobs in _reported(pieces, tokenizer):
        report["tokens"].append(_name(tokenizer, piece.token))
        report["token_logprobs"].append(logprobs.token)
        report["top_logprobs"].append({_name(tokenizer, token): p for token, p in logprobs.top.items()})
        report["text_offset"].append(offset)
        offset += len(piece.text)
    return report
