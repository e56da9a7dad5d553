"""Text to token ids and back, from the metadata of a GGUF file alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, overload

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.gguf.metadata import Metadata
from rocforge.text.detokenizer import Detokenizer
from rocforge.text.encoding import BatchEncoding, as_ids, batch_encoding
from rocforge.text.kinds import KINDS
from rocforge.text.marks import without_surrogates
from rocforge.text.recommended import recommended_sampling
from rocforge.text.special_tokens import Span, SpecialTokens
from rocforge.text.vocabulary import BYTE, BYTE_TOKEN, CONTROL, UNKNOWN, USER_DEFINED, FillInTokens, Vocabulary

if TYPE_CHECKING:
    from rocforge.text.chat.prompts import ChatPrompts

_SPECIAL = (CONTROL, UNKNOWN, USER_DEFINED)
_NO_VARIABLES = {"return_tensors", "return_dict", "padding", "truncation", "max_length", "continue_final_message"}
"""Arguments of Hugging Face's `apply_chat_template` that are not for the template."""


class Tokenizer:
    """The tokenizer of an open GGUF file: ids as llama.cpp gives them, names as Hugging Face has them.

    `file` is anything with the file's `metadata` (`tokenizer.ggml.*`, `tokenizer.chat_template*`). The models known are
    those of `rocforge.text.kinds`.
    `vocab_size` is how many tokens the model knows, which may be padded: ids past the file's tokens have no text.

    Attributes: `vocab_size`; `bos_token`, `eos_token`, `unk_token` and `pad_token`, the texts of special tokens, and
    `bos_token_id` and so on, their ids, each None where the file has none; `eog_token_ids`, all tokens that end
    generation; `separator_ids`, those between two texts that are judged together; `recommended_sampling`, what the file
    says of that, by the names of SamplingParams.

    Raises GGUFError where the metadata is missing, invalid or contradictory, UnsupportedModelError for an unknown
    tokenizer model or pre-tokenizer.

    >>> tokenizer = rf.Tokenizer(rf.open_gguf("model.gguf"))
    >>> tokenizer
    Tokenizer(gpt2, vocab_size=4096, bos_token='<|endoftext|>', eos_token='<|endoftext|>')
    >>> tokenizer("def f(x):").input_ids
    [0, 323, 282, 8, 88, 320]
    """

    def __init__(self, file: Any, vocab_size: int | None = None):
        if not hasattr(file, "metadata"):
            raise TypeError(f"file is {file!r}; allowed is an open file: rf.Tokenizer(rf.open_gguf(path))")
        self._metadata: Mapping[str, Any] = file.metadata
        self._vocab_size = vocab_size
        self._phi3 = Metadata(file.metadata).string("general.architecture", default=None) == "phi3"
        metadata = Metadata(file.metadata, "tokenizer.ggml.")
        model = metadata.string("model", default=None)
        if model not in KINDS:
            raise UnsupportedModelError(f"tokenizer.ggml.model is {model!r}; supported are {', '.join(KINDS)}")
        self._model, self._kind = model, (kind := KINDS[model])
        self._vocabulary = Vocabulary(metadata, vocab_size)
        self.unk_token_id = self._vocabulary.special_id("unknown", kind.unk)
        self.bos_token_id = self._vocabulary.special_id("bos", self._vocabulary.special_id("cls", kind.bos))
        self.eos_token_id = self._vocabulary.special_id("eos", kind.eos)
        self.pad_token_id = self._vocabulary.special_id("padding", kind.pad)
        sep = self._vocabulary.special_id("seperator", kind.sep)
        ids = (self.bos_token_id, self.eos_token_id, self.unk_token_id, self.pad_token_id)
        texts = (None if id is None else self._vocabulary.texts[id] for id in ids)
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = texts
        eos_ids = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eog_token_ids: frozenset[int] = self._vocabulary.end_of_generation.union(eos_ids)
        self._encode_text, add_bos = kind.encoding(self._vocabulary, metadata, self.unk_token_id)
        asked = kind.adds_space is None
        self._adds_space = metadata.flag("add_space_prefix", True) if asked else bool(kind.adds_space)
        self._merges_spaces = asked and metadata.flag("remove_extra_whitespaces", False)
        if kind.always_begins:
            self._prefix_ids = _added(Metadata({}), "bos", True, self.bos_token_id)
        else:
            self._prefix_ids = _added(metadata, "bos", add_bos and self.bos_token_id is not None, self.bos_token_id)
        if kind.ends_with_sep:
            self._suffix_ids = self.separator_ids = [] if sep is None else [sep]
        else:
            self._suffix_ids = _added(metadata, "eos", kind.add_eos, self.eos_token_id)
            self.separator_ids = [*self._suffix_ids, *_added(metadata, "sep", False, sep)]
        self._pieces: dict[int, bytes] = {}
        self.recommended_sampling = recommended_sampling(file.metadata)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Any, ...]]:
        """Pickled as the metadata that it was made of."""
        kept = {
            key: value for key, value in self._metadata.items() if key.startswith(("tokenizer.", "general.sampling."))
        }
        kept["general.architecture"] = self._metadata.get("general.architecture")
        return Tokenizer, (SimpleNamespace(metadata=kept), self._vocab_size)

    def __repr__(self) -> str:
        special = "".join(f", {name}={text!r}" for name, text in self.special_tokens_map.items())
        return f"Tokenizer({self._model}, vocab_size={self.vocab_size}{special})"

    @property
    def vocab_size(self) -> int:
        """The number of tokens; `len(tokenizer)` is the same."""
        return len(self._vocabulary.texts)

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(
        self,
        text: str | Iterable[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """The ids of a text, or of several: `tokenizer(texts)["input_ids"]`, as Hugging Face's tokenizers give them.

        Models here take sequences one after another, without padding; what is padded is for other programs.

        Args:
            text: a text, or several.
            add_special_tokens: as in `encode`.
            padding: True or "longest": as many ids for each text as the longest has; "max_length": that many. It comes
                after the text, with pad_token_id, or eos_token_id where the file has none.
            truncation: leave out what is past max_length ids.
            max_length: of truncation and padding.
            return_tensors: "np" for arrays of shape (texts, ids), int64; None for lists.

        >>> tokenizer(["import os", "def f(x):"]).input_ids
        [[0, 871, 1257], [0, 323, 282, 8, 88, 320]]
        """
        if not isinstance(text, Iterable) or isinstance(text, bytes):
            raise TypeError(f"text is {text!r:.80}; allowed are a str, or several")
        sequences = [self.encode(part, add_special_tokens) for part in ([text] if isinstance(text, str) else text)]
        if truncation:
            if max_length is None:
                raise ValueError("truncation=True needs max_length")
            end = self._suffix_ids if add_special_tokens else []
            kept = max(0, max_length - len(end))
            sequences = [ids if len(ids) <= max_length else ids[:kept] + end for ids in sequences]
        pad_id = next((id for id in (self.pad_token_id, self.eos_token_id) if id is not None), 0)
        encoded = batch_encoding(sequences, padding, max_length, pad_id, return_tensors)
        if return_tensors or not isinstance(text, str):
            return encoded
        return BatchEncoding({name: rows[0] for name, rows in encoded.items()})

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

        >>> tokenizer.encode("import os")
        [0, 871, 1257]
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}; tokenizer(texts) takes several")
        text = without_surrogates(text)
        ids = list(self._prefix_ids) if add_special_tokens else []
        after_special = True
        for part in (self._all_special if parse_special_tokens else self._user_defined).split(text, literal):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_text(self._marked(part, after_special) if self._kind.marks_spaces else part)
            after_special = isinstance(part, int)
        return ids + self._suffix_ids if add_special_tokens else ids

    def decode(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`, or of one: what is not UTF-8 becomes U+FFFD. Where `encode` puts a space before the text
        that begins and that follows a special token (`tokenizer.ggml.add_space_prefix`), that space is taken off again.
        `skip_special_tokens` leaves control tokens out. Raises ValueError for an id outside the vocabulary.

        >>> tokenizer.decode([0, 871, 1257], skip_special_tokens=True)
        'import os'
        """
        detokenizer = self.detokenizer(skip_special_tokens)
        return "".join([detokenizer.add(id) for id in as_ids(ids)]) + detokenizer.finish()

    def batch_decode(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False) -> list[str]:
        """The texts of several sequences of ids; as `decode`.

        >>> tokenizer.batch_decode(tokenizer(["import os", "x = 1"]).input_ids, skip_special_tokens=True)
        ['import os', 'x = 1']
        """
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of `text` as the vocabulary writes them: in byte-level BPE a space is "Ġ", else "▁".
        `to_str_tokens` gives their texts.

        >>> tokenizer.tokenize("import os")
        ['import', 'Ġos']
        """
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens))

    def to_str_tokens(self, text: str | Iterable[int]) -> list[str]:
        """The text of each token, alone, of a text (encoded with special tokens) or of ids; to label axes with, say.

        >>> tokenizer.to_str_tokens("import os")
        ['<|endoftext|>', 'import', ' os']
        """
        ids = self.encode(text) if isinstance(text, str) else as_ids(text)
        return [self.token_bytes(id).decode("utf-8", "replace") for id in ids]

    def get_vocab(self) -> dict[str, int]:
        """The id of each token, as the vocabulary writes it.

        >>> tokenizer.get_vocab()["import"]
        871
        """
        return dict(self._vocabulary.ids)

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str | list[str]:
        """The tokens of ids, or of one, as the vocabulary writes them. `skip_special_tokens` leaves control tokens out.
        Raises ValueError for an id outside the vocabulary.

        >>> tokenizer.convert_ids_to_tokens([871, 1257])
        ['import', 'Ġos']
        """
        tokens = [self._token(id) for id in as_ids(ids) if not (skip_special_tokens and self._is_control(id))]
        return tokens if isinstance(ids, Iterable) else tokens[0]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """The ids of tokens, or of one, as the vocabulary writes them; unk_token_id of one that is unknown, where the
        file has it.

        Raises:
            ValueError: an unknown token, where there is no unk_token_id.

        >>> tokenizer.convert_tokens_to_ids("import")
        871
        """
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self._vocabulary.ids.get(tokens, self.unk_token_id)
        if id is None:
            raise ValueError(f"{tokens!r} is not in the vocabulary; tokenize and encode split a text into tokens")
        return id

    def detokenizer(self, skip_special_tokens: bool = False, previous_id: int | None = None) -> Detokenizer:
        """A streaming `decode`. `previous_id` is the token that the stream continues: after text, the space that begins
        the stream belongs to it.

        >>> stream = tokenizer.detokenizer()
        >>> [stream.add(id) for id in tokenizer.encode("é")], stream.finish()
        (['<|endoftext|>', '', 'é'], '')
        """
        token_bytes = self._text_bytes if skip_special_tokens else self.token_bytes
        return Detokenizer(token_bytes, self._drops_space_after, previous_id)

    @overload
    def apply_chat_template(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        chat_template: str | None = None,
        tokenize: Literal[True] = True,
        **variables: Any,
    ) -> list[int]: ...
    @overload
    def apply_chat_template(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        chat_template: str | None = None,
        tokenize: Literal[False],
        **variables: Any,
    ) -> str: ...
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

        >>> template = "{% for message in messages %}# {{ message.content }}{% endfor %}"
        >>> messages = [{"role": "user", "content": "add two numbers"}]
        >>> tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        '# add two numbers'
        """
        if wrong := sorted(_NO_VARIABLES & variables.keys()):
            raise TypeError(f"apply_chat_template() takes no {wrong[0]!r}; it gives a list of ids, or a text")
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
        `literal`.

        >>> tokenizer.render_chat([{"role": "user", "content": "hi"}], chat_template="{{ messages[0].content }}")
        ('hi', [])
        """
        return self._chat_prompts.render(messages, tools, add_generation_prompt, chat_template, variables)

    @property
    def chat_template(self) -> str | None:
        """The source of the file's default chat template, or None."""
        return self._chat_prompts.templates.sources.get("default")

    @property
    def rerank_template(self) -> str | None:
        """The prompt of a reranker, with "{query}" and "{document}" in it, or None where the file has none."""
        return self._chat_prompts.templates.sources.get("rerank")

    @property
    def fill_in_tokens(self) -> FillInTokens | None:
        """The tokens that ask for the text between two texts; None of a model that was not trained for that.

        >>> print(tokenizer.fill_in_tokens)
        None
        """
        return self._vocabulary.fill_in_tokens

    @property
    def tool_template(self) -> str | None:
        """The source of the file's chat template for messages with tools: `tool_use`, or else the default one."""
        return self._chat_prompts.templates.sources.get("tool_use", self.chat_template)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text and id of the tokens that `encode` finds in text only where it parses special tokens."""
        return self._ids_of((CONTROL, UNKNOWN))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens that the file names: "bos_token", "eos_token", "unk_token" and "pad_token", with their
        texts."""
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        return {name: text for name in names if (text := getattr(self, name)) is not None}

    @cached_property
    def _chat_prompts(self) -> ChatPrompts:
        from rocforge.text.chat.prompts import ChatPrompts  # it loads what makes processes

        return ChatPrompts(self._metadata, self._vocabulary, self.special_tokens_map, leading_space=self._phi3)

    @cached_property
    def _all_special(self) -> SpecialTokens:
        ids = self._ids_of(_SPECIAL)
        rstrip: list[int] = []
        if self._phi3 and self._model == "llama":
            # Phi-3's added tokens swallow white space after them; GGUF has no field that says so.
            rstrip = [id for text, id in ids.items() if text not in ("<unk>", "<s>", "<|endoftext|>")]
        return SpecialTokens(ids, rstrip)

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        return SpecialTokens(self._ids_of((USER_DEFINED,)))

    def _ids_of(self, kinds: tuple[int, ...]) -> dict[str, int]:
        types = self._vocabulary.types
        return {text: id for text, id in self._vocabulary.ids.items() if types[id] in kinds}

    def _marked(self, text: str, after_special: bool) -> str:
        if self._merges_spaces:
            text = re.sub(" +", " ", text.strip(" "))
        return (" " * (self._adds_space and after_special) + text).replace(" ", "▁")

    def _drops_space_after(self, id: int | None) -> bool:
        return self._adds_space and (id is None or self._vocabulary.types[id] in _SPECIAL)

    def _text_bytes(self, id: int) -> bytes:
        piece = self.token_bytes(id)
        return b"" if self._is_control(id) else piece

    def _is_control(self, id: int) -> bool:
        return 0 <= id < self.vocab_size and self._vocabulary.types[id] in (CONTROL, UNKNOWN)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` stands for. Raises ValueError for an id outside the vocabulary.

        >>> tokenizer.token_bytes(1257)
        b' os'
        """
        if id not in self._pieces:
            self._pieces[id] = self._make_bytes(self._token(id), self._vocabulary.types[id])
        return self._pieces[id]

    def _token(self, id: int) -> str:
        """The token as the vocabulary writes it."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary of {self.vocab_size} tokens")
        return self._vocabulary.texts[id]

    def _make_bytes(self, text: str, kind: int) -> bytes:
        if kind in _SPECIAL:
            return self._kind.special_piece(text)
        if kind == BYTE and (match := BYTE_TOKEN.fullmatch(text)):
            return bytes.fromhex(match[1])
        return self._kind.piece(text)


def _added(metadata: Metadata, name: str, usual: bool, id: int | None) -> list[int]:
    """The begin or end token, where the file asks for it."""
    wanted = metadata.flag(f"add_{name}_token", default=usual)
    if not wanted:
        return []
    if id is None:
        raise GGUFError(f"tokenizer.ggml.add_{name}_token is true, but there is no tokenizer.ggml.{name}_token_id")
    return [id]
