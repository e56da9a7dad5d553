"""The vocabulary of a GGUF file: token texts, kinds, scores and special tokens."""

from __future__ import annotations

import math
import re
from functools import cached_property
from typing import Any, NamedTuple

from rocforge.gguf.metadata import Metadata

# tokenizer.ggml.token_type, as GGUF numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
LONGEST_SPECIAL = 1024
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")

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
# gpt-oss's channels are part of what the model says, so they are text.
_USER_DEFINED_BY_NAME = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_END_OF_GENERATION_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id",
                           "fim_sep_token_id")  # fmt: skip


_FILL_IN = {
    "prefix": ("fim_pre", "prefix"), "suffix": ("fim_suf", "suffix"), "middle": ("fim_mid", "middle"),
    "repository": ("fim_rep",), "file": ("fim_sep",),
}  # fmt: skip
"""A token of FillInTokens -> its names in metadata, the later one that of older files."""
_FILL_IN_BY_TEXT = {
    "prefix": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
               "<|code_prefix|>", "<|prefix|>"),
    "suffix": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
               "<|code_suffix|>", "<|suffix|>"),
    "middle": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
               "<|code_middle|>", "<|middle|>"),
    "repository": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "file": ("<|file_sep|>",),
}  # fmt: skip
"""The same -> its texts, where the metadata does not name it; as llama.cpp knows them."""
_CONTROL_BY_NAME = (
    *_END_OF_GENERATION, *_FILL_IN_BY_TEXT["prefix"], *_FILL_IN_BY_TEXT["suffix"], *_FILL_IN_BY_TEXT["middle"],
)  # fmt: skip


class FillInTokens(NamedTuple):
    """The tokens that stand before what is given to a model that fills in what is between.

    Attributes:
        prefix, suffix: before the text before the gap, and before the text after it.
        middle: where the text of the gap begins.
        repository, file: before the name of a repository, and before a file's name and text; None where there is none.
    """

    prefix: int
    suffix: int
    middle: int
    repository: int | None
    file: int | None


class Vocabulary:
    """Tokens by id, from GGUF metadata (`tokenizer.ggml.*`).

    `texts`: the token texts as stored; `types`: their kinds; `ids`: text -> id; `markup`: of these the special tokens,
    which mean something beside their text; `pieces`: those that plain text can become; `end_of_generation`: the ids
    that end generation. Tokens past the file's, up to `size`, which are rows of the model for which there is no token,
    are unused and without text.

    Raises GGUFError where a field is missing, too short or of another type, or where there are more tokens than `size`.
    """

    def __init__(self, metadata: Metadata, size: int | None = None):
        self._metadata = metadata
        texts = metadata.array("tokens", str)
        if not texts or len(texts) > (size or len(texts)):
            raise metadata.error("tokens", f"1 to {size} tokens, the rows of the embedding" if size else "1 and more")
        self._count = len(texts)
        self.texts: list[str] = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
        self.ids: dict[str, int] = dict(zip(self.texts, range(len(texts)), strict=True))
        self.types: list[int] = self._per_token("token_type", int) or [NORMAL] * len(texts)
        unused = (size or len(texts)) - len(texts)
        self.texts += [""] * unused
        self.types[len(texts) :] = [UNUSED] * unused
        self.end_of_generation = self._apply_names()
        self.markup = {text: id for text, id in self.ids.items() if self._is_markup(text, self.types[id])}
        if (longest := max(map(len, self.markup), default=0)) > LONGEST_SPECIAL:
            problem = f"special tokens of at most {LONGEST_SPECIAL} characters, not of {longest}"
            raise metadata.error("tokens", problem)
        self.pieces = self._pieces()

    @cached_property
    def scores(self) -> list[float]:
        """The SentencePiece score of each of the file's tokens: the higher, the earlier it is merged."""
        scores = self._per_token("scores", float) or [0.0] * self._count
        if any(map(math.isnan, scores)):
            raise self._metadata.error("scores", "arrays of numbers")
        return scores

    def special_id(self, name: str, default: int | None = None) -> int | None:
        """The id in `tokenizer.ggml.<name>_token_id`; `default` where there is none or it lies outside the vocabulary,
        which files say of tokens that they lack."""
        id = self._metadata.integer(f"{name}_token_id", default=None)
        found = default if id is None or not 0 <= id < self._count else id
        return None if found is None or found >= self._count else found

    @cached_property
    def fill_in_tokens(self) -> FillInTokens | None:
        """Those that fill in the middle, where the vocabulary has them."""
        found = {kind: self._fill_in_token(kind) for kind in _FILL_IN}
        if any(found[kind] is None for kind in ("prefix", "suffix", "middle")):
            return None
        return FillInTokens(**found)

    def _fill_in_token(self, kind: str) -> Any:
        named = [self.special_id(name) for name in _FILL_IN[kind]]
        known = [self.ids[text] for text in _FILL_IN_BY_TEXT[kind] if text in self.ids]
        return next((id for id in (*named, *known) if id is not None), None)

    def kind_of(self, text: str) -> int | None:
        """The kind of the token of that text, if there is one."""
        return self.types[self.ids[text]] if text in self.ids else None

    @staticmethod
    def _is_markup(text: str, kind: int) -> bool:
        """User-defined white space is how a vocabulary writes text."""
        return kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and not text.replace("▁", " ").isspace())

    def _per_token(self, name: str, kind: type) -> list[Any]:
        values = self._metadata.array(name, kind, default=[])
        if values and len(values) < self._count:
            raise self._metadata.error(name, f"arrays of {self._count}, one for each token, not of {len(values)}")
        return values

    def _pieces(self) -> dict[str, int]:
        pieces = {
            text: id
            for text, id in self.ids.items()
            if text not in self.markup and not (self.types[id] == BYTE and BYTE_TOKEN.fullmatch(text))
        }
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
        named = [self.special_id(key.removesuffix("_token_id")) for key in _END_OF_GENERATION_KEYS]
        ends.update(id for id in named if id is not None)
        # In gpt-oss and Solar "<|end|>" ends a message, after which the same turn goes on.
        if {"<|return|>", "<|call|>"} <= self.ids.keys() or {"<|calls|>", "<|flush|>"} <= self.ids.keys():
            end = self.ids.get("<|end|>")
            if end is not None:
                ends.discard(end)
                self.types[end] = USER_DEFINED
        # in Gemma 4 "</s>" is HTML
        if {"<|tool_response>", "</s>"} <= self.ids.keys():
            ends.discard(self.ids["</s>"])
            self.types[self.ids["</s>"]] = NORMAL
        return frozenset(ends)
