"""Text to token ids and back, from the metadata of a GGUF file alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.gguf.metadata import Metadata
from rocforge.text.bpe import byte_level_bpe, byte_of_char, sentencepiece_bpe
from rocforge.text.detokenizer import Detokenizer
from rocforge.text.marks import Marks, searched_texts, without_surrogates
from rocforge.text.pretokenizers import find_pre_tokenizer
from rocforge.text.special_tokens import Span, SpecialTokens
from rocforge.text.vocabulary import BYTE, BYTE_TOKEN, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from rocforge.text.chat.templates import ChatTemplates

_SPECIAL = (CONTROL, UNKNOWN, USER_DEFINED)


class Tokenizer:
    """The tokenizer of an open GGUF file, ids as llama.cpp gives them.

    `file` is anything with the file's `metadata` (`tokenizer.ggml.*`, `tokenizer.chat_template*`). Two models are
    known: "llama" (SentencePiece BPE) and "gpt2" (byte-level BPE, with the pre-tokenizers of
    `rocforge.text.pretokenizers`).
    `vocab_size` is how many tokens the model knows, which may be padded: ids past the file's tokens have no text.

    Attributes: `vocab_size`; `bos_token_id`, `eos_token_id`, `unk_token_id` and `pad_token_id`, each None where the
    file has none; `eog_token_ids`, all tokens that end generation.

    Raises GGUFError where the metadata is missing, invalid or contradictory, UnsupportedModelError for an unknown
    tokenizer model or pre-tokenizer.
    """

    def __init__(self, file: Any, vocab_size: int | None = None):
        self._metadata: Mapping[str, Any] = file.metadata
        self._vocab_size = vocab_size
        self._phi3 = Metadata(file.metadata).string("general.architecture", default=None) == "phi3"
        metadata = Metadata(file.metadata, "tokenizer.ggml.")
        model = metadata.string("model", default=None)
        if model not in ("llama", "gpt2"):
            raise UnsupportedModelError(f"tokenizer.ggml.model is {model!r}; supported are gpt2 and llama")
        self._sentencepiece = model == "llama"
        self._vocabulary = Vocabulary(metadata, vocab_size)
        # SentencePiece's trainer gives <unk>, <s> and </s> these ids, and files written early rely on it.
        unk, bos, eos = (0, 1, 2) if self._sentencepiece else (None, None, None)
        self.unk_token_id = self._vocabulary.special_id("unknown", unk)
        self.bos_token_id = self._vocabulary.special_id("bos", bos)
        self.eos_token_id = self._vocabulary.special_id("eos", eos)
        self.pad_token_id = self._vocabulary.special_id("padding")
        eos_ids = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eog_token_ids: frozenset[int] = self._vocabulary.end_of_generation.union(eos_ids)
        if self._sentencepiece:
            self._encode_text = sentencepiece_bpe(self._vocabulary, self.unk_token_id)
            add_bos = self.bos_token_id is not None
        else:
            pre_tokenizer = find_pre_tokenizer(metadata.string("pre", default="default"))
            self._encode_text = byte_level_bpe(self._vocabulary, metadata.array("merges", str), pre_tokenizer)
            add_bos = pre_tokenizer.add_bos and self.bos_token_id is not None
        spaces = {"add_space_prefix": True, "remove_extra_whitespaces": False}
        self._add_space_prefix, self._remove_extra_whitespaces = (
            metadata.flag(name, default) and self._sentencepiece for name, default in spaces.items()
        )
        self._prefix_ids = _added(metadata, "bos", add_bos, self.bos_token_id)
        self._suffix_ids = _added(metadata, "eos", False, self.eos_token_id)
        self._pieces: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Any, ...]]:
        """Pickled as the metadata that it was made of."""
        kept = {key: value for key, value in self._metadata.items() if key.startswith("tokenizer.")}
        kept["general.architecture"] = self._metadata.get("general.architecture")
        return Tokenizer, (SimpleNamespace(metadata=kept), self._vocab_size)

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return len(self._vocabulary.texts)

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        parse_special_tokens: bool = True,
        literal: Sequence[Span] = (),
    ) -> list[int]:
        """The ids of `text`.

        `add_special_tokens` puts the begin and end tokens around it that the file asks for. `parse_special_tokens`
        turns a control token's text into that token; without it, it is text like any other. User-defined tokens always
        count, but in the `literal` spans, (start, stop) in order, which are plain text. Lone surrogates, which no UTF-8
        text holds, are read as U+FFFD.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}")
        text = without_surrogates(text)
        ids = list(self._prefix_ids) if add_special_tokens else []
        after_special = True
        for part in (self._all_special if parse_special_tokens else self._user_defined).split(text, literal):
            if isinstance(part, int):
                ids.append(part)
            elif self._sentencepiece:
                ids += self._encode_text(self._escape(part, after_special))
            else:
                ids += self._encode_text(part)
            after_special = isinstance(part, int)
        return ids + self._suffix_ids if add_special_tokens else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`: what is not UTF-8 becomes U+FFFD. Where `encode` puts a space before the text that begins
        and that follows a special token (`tokenizer.ggml.add_space_prefix`), that space is taken off again.
        `skip_special_tokens` leaves control tokens out. Raises ValueError for an id outside the vocabulary."""
        detokenizer = self.detokenizer(skip_special_tokens)
        return "".join([detokenizer.add(id) for id in ids]) + detokenizer.finish()

    def detokenizer(self, skip_special_tokens: bool = False, previous_id: int | None = None) -> Detokenizer:
        """A streaming `decode`. `previous_id` is the token that the stream continues: after text, the space that begins
        the stream belongs to it."""
        token_bytes = self._text_bytes if skip_special_tokens else self.token_bytes
        return Detokenizer(token_bytes, self._drops_space_after, previous_id)

    def apply_chat_template(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        chat_template: str | None = None,
        tokenize: bool = True,
        **variables: Any,
    ) -> list[int] | str:
        """`messages` (dicts with "role" and "content") as a prompt: its ids, or with `tokenize=False` its text.

        `tools` are JSON schemas of functions; `add_generation_prompt` ends with the header of the assistant's turn;
        `chat_template` is a template, or the name of one of the file's; further `variables` go to the template. As in
        Hugging Face's `apply_chat_template`, the template writes the begin token itself, so none is added. Special
        tokens are the template's alone: what messages, tools and variables spell is text. Raises ChatTemplateError
        where there is no template or where it fails.
        """
        text, literal = self.render_chat(messages, tools, add_generation_prompt, chat_template, **variables)
        return self.encode(text, add_special_tokens=False, literal=literal) if tokenize else text

    def render_chat(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> tuple[str, list[Span]]:
        """The text of `apply_chat_template`, and the spans of special tokens that messages spell, as `encode` takes in
        `literal`."""
        templates = self._chat_templates
        marks = Marks(self._markup, leading_space=self._phi3)
        searched = searched_texts(templates.source(chat_template, with_tools=bool(tools)))
        kept = {text for text in searched if self._vocabulary.kind_of(text) == USER_DEFINED}
        text = templates.render(
            chat_template,
            messages=[_hidden(message, marks, kept) for message in messages],
            tools=marks.hide(tools),
            add_generation_prompt=add_generation_prompt,
            **{**self._special_texts, **marks.hide(variables)},
        )
        return marks.show(text)

    @property
    def chat_template(self) -> str | None:
        """The source of the file's default chat template, or None."""
        return self._chat_templates.sources.get("default")

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text and id of the tokens that `encode` finds in text only where it parses special tokens."""
        return self._ids_of((CONTROL, UNKNOWN))

    @cached_property
    def _chat_templates(self) -> ChatTemplates:
        from rocforge.text.chat.templates import ChatTemplates  # it loads what makes processes

        return ChatTemplates(self._metadata)

    @cached_property
    def _markup(self) -> SpecialTokens:
        return SpecialTokens(self._vocabulary.markup)

    @cached_property
    def _special_texts(self) -> dict[str, str]:
        names = ("bos", "eos", "unk", "pad")
        ids = {f"{name}_token": getattr(self, f"{name}_token_id") for name in names}
        return {name: self._vocabulary.texts[id] for name, id in ids.items() if id is not None}

    @cached_property
    def _all_special(self) -> SpecialTokens:
        ids = self._ids_of(_SPECIAL)
        rstrip: list[int] = []
        if self._sentencepiece and self._phi3:
            # Phi-3's added tokens swallow white space after them; GGUF has no field that says so.
            rstrip = [id for text, id in ids.items() if text not in ("<unk>", "<s>", "<|endoftext|>")]
        return SpecialTokens(ids, rstrip)

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        return SpecialTokens(self._ids_of((USER_DEFINED,)))

    def _ids_of(self, kinds: tuple[int, ...]) -> dict[str, int]:
        types = self._vocabulary.types
        return {text: id for text, id in self._vocabulary.ids.items() if types[id] in kinds}

    def _escape(self, text: str, after_special: bool) -> str:
        if self._remove_extra_whitespaces:
            text = re.sub(" +", " ", text.strip(" "))
        return (" " * (self._add_space_prefix and after_special) + text).replace(" ", "▁")

    def _drops_space_after(self, id: int | None) -> bool:
        return self._add_space_prefix and (id is None or self._vocabulary.types[id] in _SPECIAL)

    def _text_bytes(self, id: int) -> bytes:
        piece = self.token_bytes(id)
        return b"" if self._vocabulary.types[id] in (CONTROL, UNKNOWN) else piece

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` stands for."""
        if id not in self._pieces:
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size} tokens")
            self._pieces[id] = self._make_bytes(self._vocabulary.texts[id], self._vocabulary.types[id])
        return self._pieces[id]

    def _make_bytes(self, text: str, kind: int) -> bytes:
        if kind in _SPECIAL:
            return text.encode("utf-8", "surrogateescape")
        if kind == BYTE and (match := BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(match[1])
        if self._sentencepiece:
            return text.replace("▁", " ").encode("utf-8", "surrogateescape")
        table = byte_of_char()
        if all(char in table for char in text):
            return bytes(table[char] for char in text)
        return text.encode("utf-8", "surrogateescape")


def _hidden(message: Any, marks: Marks, kept: Collection[str]) -> Any:
    """A message without special tokens; the assistant's content keeps those in `kept`, such as </think>, which the
    template searches for."""
    hidden = marks.hide(message)
    if isinstance(message, Mapping) and message.get("role") == "assistant" and "content" in message:
        hidden["content"] = marks.hide(message["content"], kept)
    return hidden


def _added(metadata: Metadata, name: str, usual: bool, id: int | None) -> list[int]:
    """The begin or end token, where the file asks for it."""
    wanted = metadata.flag(f"add_{name}_token", default=usual)
    if not wanted:
        return []
    if id is None:
        raise GGUFError(f"tokenizer.ggml.add_{name}_token is true, but there is no tokenizer.ggml.{name}_token_id")
    return [id]
