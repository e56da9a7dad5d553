"""The vocabulary of a GGUF file: token texts, kinds, scores, and the tokens with a meaning of their own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from rocforge.errors import GGUFError

# tokenizer.ggml.token_type, as GGUF numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Converters often mark these as ordinary tokens, and few files name every token that ends generation, so llama.cpp goes
# by the text; so do we, with the same names.
_END_OF_GENERATION = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "</s>",
    # Fill-in-the-middle: padding, a new repository and a new file end what was asked for.
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
)  # fmt: skip
_CONTROL_BY_NAME = _END_OF_GENERATION + (
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
    "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>",
    "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>",
)  # fmt: skip
# gpt-oss's channels are part of what the model says, so they are text.
_USER_DEFINED_BY_NAME = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_END_OF_GENERATION_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id",
                           "fim_sep_token_id")  # fmt: skip


class Vocabulary:
    """Tokens by id, from GGUF metadata (`tokenizer.ggml.*`).

    `texts`: the token texts as stored; `types`: their kinds; `ids`: text -> id; `pieces`: of these the tokens that
    plain text can become, which the file's control tokens are not; `end_of_generation`: the ids that end generation.
    Raises GGUFError where a field is missing, too short or points outside the vocabulary.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        texts = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
            raise GGUFError("the file has no vocabulary: tokenizer.ggml.tokens is not a list of strings, or empty")
        self.texts: list[str] = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        self.ids: dict[str, int] = dict(zip(self.texts, range(len(texts)), strict=True))
        self.types: list[int] = self._per_token("token_type") or [NORMAL] * len(self.texts)
        self.pieces = self._pieces()
        self.end_of_generation = self._apply_names()

    @cached_property
    def scores(self) -> list[float]:
        """The SentencePiece score of each token: the higher, the earlier it is merged."""
        return self._per_token("scores") or [0.0] * len(self.texts)

    def special_id(self, name: str, default: int | None = None) -> int | None:
        """The id in `tokenizer.ggml.<name>_token_id`, or `default` (where the vocabulary reaches that far)."""
        key = f"tokenizer.ggml.{name}_token_id"
        id = self._metadata.get(key)
        if id is None:
            return default if default is not None and default < len(self.texts) else None
        if not isinstance(id, int) or not 0 <= id < len(self.texts):
            raise GGUFError(f"{key} = {id!r} lies outside the vocabulary of {len(self.texts)} tokens")
        return id

    def _per_token(self, name: str) -> list:
        values = self._metadata.get(f"tokenizer.ggml.{name}")
        if values is None:
            return []
        if len(values) < len(self.texts):
            raise GGUFError(f"tokenizer.ggml.{name} has {len(values)} entries for {len(self.texts)} tokens")
        return values.tolist() if hasattr(values, "tolist") else list(values)

    def _pieces(self) -> dict[str, int]:
        pieces = dict(self.ids)
        for text, kind in zip(self.texts, self.types, strict=False):
            if kind in (CONTROL, UNKNOWN):
                pieces.pop(text, None)
        try:
            "".join(pieces).encode()
        except UnicodeEncodeError:  # tokens that are not UTF-8, which no text contains
            return {text: id for text, id in pieces.items() if text.encode(errors="replace").decode() == text}
        return pieces

    def _apply_names(self) -> frozenset[int]:
        """Corrects the kinds of well-known tokens and returns those that end generation."""
        for kind, names in ((CONTROL, _CONTROL_BY_NAME), (USER_DEFINED, _USER_DEFINED_BY_NAME)):
            for name in names:
                if name in self.ids:
                    self.types[self.ids[name]] = kind
        ends = {self.ids[name] for name in _END_OF_GENERATION if name in self.ids}
        ends |= {self.special_id(key.removesuffix("_token_id")) for key in _END_OF_GENERATION_KEYS} - {None}
        # In gpt-oss and Solar "<|end|>" ends a message, after which the same turn goes on.
        if {"<|return|>", "<|call|>"} <= self.ids.keys() or {"<|calls|>", "<|flush|>"} <= self.ids.keys():
            end = self.ids.get("<|end|>")
            if end is not None:
                ends.discard(end)
                self.types[end] = USER_DEFINED
        return frozenset(ends)
