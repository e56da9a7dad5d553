"""A checkpoint's tokenizer as GGUF's metadata: tokenizer.model or tokenizer.json, special tokens, the chat template."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rocforge.checkpoints.pre_tokenizers import pre_tokenizer_name
from rocforge.checkpoints.sentencepiece import read_sentencepiece
from rocforge.errors import CheckpointError
from rocforge.gguf.values import KeyValues
from rocforge.text.vocabulary import BYTE, BYTE_TOKEN, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

_LOWEST, _ADDED = -10000.0, -1000.0
"""Scores of ids without a token, and of tokens that were added to a SentencePiece model."""
_SPACE = "▁"
_ADDS = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; {} where there is no file. Raises CheckpointError where it holds something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; it should be an object")
    return value


def tokenizer_metadata(folder: Path, architecture: str, size: int) -> KeyValues:
    """The `tokenizer.*` keys of a checkpoint.

    Args:
        folder: with tokenizer.model or tokenizer.json, and perhaps tokenizer_config.json, chat_template.jinja, ...
        architecture: GGUF's name of it.
        size: rows of the embedding; ids without a token get unused ones.

    Raises:
        CheckpointError: there is no tokenizer, or it is malformed.
        UnsupportedModelError: the pre-tokenizer is unknown.
    """
    try:
        if (folder / "tokenizer.model").is_file():
            metadata = _of_sentencepiece(folder, size)
        elif (folder / "tokenizer.json").is_file():
            metadata = _of_json(folder, size)
        else:
            raise CheckpointError(f"{folder} has no tokenizer.json and no tokenizer.model")
        metadata |= _special_tokens(folder, architecture, metadata["tokenizer.ggml.model"] == "gpt2", size)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error!r}") from error
    _add_other_ends(metadata, read_json(folder / "generation_config.json").get("eos_token_id"))
    return metadata


def _special_tokens(folder: Path, architecture: str, merges: bool, size: int) -> dict[str, Any]:
    """Keys of special tokens and merges, without the remarks that the gguf package makes on usual files."""
    logger, writer = logging.getLogger("gguf.vocab"), gguf.GGUFWriter(None, architecture)
    was, logger.disabled = logger.disabled, True
    try:
        gguf.SpecialVocab(folder, load_merges=merges, n_vocab=size).add_to_gguf(writer, quiet=True)
    finally:
        logger.disabled = was
    return {key: value.value for key, value in writer.kv_data[0].items() if key.startswith("tokenizer.")}


def _add_other_ends(metadata: dict[str, Any], ends: Any) -> None:
    """Tokens that end a turn or a message, which generation_config.json lists beside the end of a text."""
    known = metadata.get("tokenizer.ggml.eos_token_id")
    others = [id for id in ends if id != known] if isinstance(ends, list) else []
    for key, id in zip(("eot", "eom"), others, strict=False):
        metadata.setdefault(f"tokenizer.ggml.{key}_token_id", id)


class _Tokens:
    """Texts, scores and types by id, of `size` ids."""

    def __init__(self, size: int):
        self.texts = [f"[PAD{i}]" for i in range(size)]
        self.scores = np.full(size, _LOWEST, np.float32)
        self.types = np.full(size, UNUSED, np.int32)

    def set(self, id: int, text: str, score: float, kind: int) -> None:
        """One token; an id that no row of the embedding has is left out."""
        if 0 <= id < len(self.texts):
            self.texts[id], self.scores[id], self.types[id] = text, score, kind

    def add(self, id: int, text: str, special: bool) -> None:
        """A token that was added to the model's own."""
        special = special or _looks_special(text)
        text = text if special else text.replace(_SPACE, " ")
        self.set(id, text, _ADDED, CONTROL if special else USER_DEFINED)

    def metadata(self, model: str, pre: str) -> KeyValues:
        keys = {"model": model, "pre": pre, "tokens": self.texts, "token_type": self.types}
        if model == "llama":
            keys["scores"] = self.scores
        return KeyValues({f"tokenizer.ggml.{key}": value for key, value in keys.items()})


def _looks_special(text: str) -> bool:
    """Whether a token is special whatever its file says, as some do of theirs."""
    brackets = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    named = text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return named or any(text.startswith(begin) and text.endswith(end) for begin, end in brackets)


def _of_sentencepiece(folder: Path, size: int) -> KeyValues:
    model, tokens = read_sentencepiece(folder / "tokenizer.model"), _Tokens(size)
    for id, piece in enumerate(model.pieces):
        tokens.set(id, piece.text, piece.score, piece.kind)
    for text, id in read_json(folder / "added_tokens.json").items():
        tokens.set(id, text, _ADDED, USER_DEFINED)
    config = read_json(folder / "tokenizer_config.json")
    for id, token in config.get("added_tokens_decoder", {}).items():
        tokens.add(int(id), token["content"], bool(token.get("special")))
    metadata = tokens.metadata("llama", "default")
    prefix = model.space_prefix and config.get("add_prefix_space")
    if not model.space_prefix or prefix is not None:
        metadata["tokenizer.ggml.add_space_prefix"] = bool(prefix)
    return metadata


def _of_json(folder: Path, size: int) -> KeyValues:
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    model, tokens = tokenizer["model"], _Tokens(size)
    if model.get("type") == "WordPiece":
        return _of_wordpiece(tokenizer, size)
    if model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path} is of type {model['type']}; supported are BPE and WordPiece")
    pieces = bool(model.get("byte_fallback"))  # SentencePiece's, converted
    ranks = _merge_ranks(model.get("merges", [])) if pieces else {}
    for text, id in model["vocab"].items():
        kind = BYTE if pieces and BYTE_TOKEN.fullmatch(text) else NORMAL
        tokens.set(id, text, -float(ranks.get(text, len(ranks))), kind)
    for token in tokenizer.get("added_tokens", []):
        tokens.add(token["id"], token["content"], bool(token.get("special")))
    if not pieces:
        metadata = tokens.metadata("gpt2", pre_tokenizer_name(path, tokenizer))
        # nothing is added, unless a template of the post-processor says so, which is read with the special tokens
        return KeyValues({**metadata, **dict.fromkeys(_ADDS, False)})
    if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
        tokens.types[unknown] = UNKNOWN
    metadata = tokens.metadata("llama", "default")
    if not _has_space_prefix(tokenizer):
        metadata["tokenizer.ggml.add_space_prefix"] = False
    return metadata


def _of_wordpiece(tokenizer: dict[str, Any], size: int) -> KeyValues:
    """GGUF marks the tokens that begin a word with "▁", and not the others with "##"."""
    tokens, continues = _Tokens(size), tokenizer["model"].get("continuing_subword_prefix", "##")
    for text, id in tokenizer["model"]["vocab"].items():
        text = text.removeprefix(continues) if text.startswith(continues) else _SPACE + text
        tokens.set(id, text, 0.0, NORMAL)
    for token in tokenizer.get("added_tokens", []):
        tokens.add(token["id"], token["content"], bool(token.get("special")))
    metadata, normalizer = tokens.metadata("bert", "default"), tokenizer.get("normalizer") or {}
    for name in ("lowercase", "strip_accents"):
        if normalizer.get(name) is not None:
            metadata[f"tokenizer.ggml.normalizer.{name}"] = bool(normalizer[name])
    return metadata


def _merge_ranks(merges: list[Any]) -> dict[str, int]:
    """Token -> the first merge that makes it. SentencePiece merges by score, which the order of merges stands for."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(first + second, rank)
    return ranks


def _has_space_prefix(tokenizer: dict[str, Any]) -> bool:
    """Whether a text gets a space before it."""
    parts = [tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}]
    parts += [each for part in parts for key in ("normalizers", "pretokenizers") for each in part.get(key, [])]
    prepends = any(part.get("type") == "Prepend" for part in parts)
    metaspace = [part for part in parts if part.get("type") == "Metaspace"]
    return prepends or any(part.get("prepend_scheme", "always") != "never" for part in metaspace)
