"""Log-probabilities in the shapes of the two APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rocforge.generate import GenerationResponse
from rocforge.tokenizer import Tokenizer


def _reported(pieces: Sequence[GenerationResponse], tokenizer: Tokenizer) -> list[GenerationResponse]:
    """Those with a report; not the token that ends the text, which is no part of it."""
    return [piece for piece in pieces if piece.logprobs and piece.token not in tokenizer.eog_token_ids]


def chat_logprobs(tokenizer: Tokenizer, pieces: Sequence[GenerationResponse]) -> dict[str, Any]:
    """Of tokens of a chat completion."""

    def entry(token: int, value: float) -> dict[str, Any]:
        piece = tokenizer.token_bytes(token)
        return {"token": piece.decode(errors="replace"), "logprob": value, "bytes": list(piece)}

    content = [
        {
            **entry(piece.token, piece.logprobs.token),
            "top_logprobs": [entry(token, value) for token, value in piece.logprobs.top.items()],
        }
        for piece in _reported(pieces, tokenizer)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, pieces: Sequence[GenerationResponse], offset: int) -> dict[str, Any]:
    """Of tokens of a completion; `offset` is where their text begins, in characters."""
    report: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    shown = _reported(pieces, tokenizer)
    for piece in shown:
        text = tokenizer.token_bytes(piece.token).decode(errors="replace")
        top = {
            tokenizer.token_bytes(token).decode(errors="replace"): value for token, value in piece.logprobs.top.items()
        }
        report["tokens"].append(text)
        report["token_logprobs"].append(piece.logprobs.token)
        report["top_logprobs"].append(top)
        report["text_offset"].append(offset)
        offset += len(piece.text)
    return report
