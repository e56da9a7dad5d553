"""Train the byte-level BPE vocabulary on a corpus and encode the corpus with it.

    python encode.py CORPUS [--tokenizer OTHER/tokenizer.json]

reads `train.jsonl` and `heldout.jsonl` (data.py makes them) and writes `tokenizer.json`, `train.bin` and `heldout.bin`:
uint16 token ids, every document preceded by <|endoftext|>, which is beginning and end of text at once. With
--tokenizer no vocabulary is trained.

The pre-tokenizer is GPT-2's (`tokenizer.ggml.pre` = "gpt-2"). It never joins punctuation and the line break after it,
so a prompt that ends in "):" ends where a token ends in the training text too.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
VOCABULARY_TEXT_BYTES = 96_000_000
CUT_SHARE = 0.2
BATCH = 2048


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """A byte-level BPE of VOCABULARY tokens: END_OF_TEXT is 0, then the 256 bytes, then the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sample(texts: list[str], size: int, rng: random.Random) -> Iterator[str]:
    """Texts in random order, up to about `size` characters in all."""
    for index in rng.sample(range(len(texts)), len(texts)):
        if size <= 0:
            return
        size -= len(texts[index])
        yield texts[index]


def encode(tokenizer: Tokenizer, texts: list[str], cut_share: float, rng: random.Random) -> np.ndarray:
    """All texts as one array of uint16 ids, END_OF_TEXT before each.

    A share of the texts is cut in two, at a random character or after a line break, and the halves are encoded apart,
    as happens to a text whose first half is a prompt: so the model has met tokens that end where a prompt may end.
    """
    pieces: list[tuple[bool, str]] = []
    for text in texts:
        cut = rng.randrange(1, len(text)) if rng.random() < cut_share else len(text)
        if rng.random() < 0.5:
            cut = text.find("\n", cut) + 1 or len(text)
        pieces.append((True, text[:cut]))
        if cut < len(text):
            pieces.append((False, text[cut:]))
    chunks = []
    for first in range(0, len(pieces), BATCH):
        batch = pieces[first : first + BATCH]
        encodings = tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
        for (opens, _), encoding in zip(batch, encodings, strict=True):
            chunks.append(np.array(([0] if opens else []) + encoding.ids, dtype=np.uint16))
    return np.concatenate(chunks)


def read_texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    arguments = parser.parse_args()
    corpus = arguments.corpus
    rng = random.Random(0)
    train, heldout = read_texts(corpus / "train.jsonl"), read_texts(corpus / "heldout.jsonl")
    rng.shuffle(train)
    if arguments.tokenizer:
        tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    else:
        tokenizer = train_tokenizer(sample(train, VOCABULARY_TEXT_BYTES, rng))
    tokenizer.save(str(corpus / "tokenizer.json"))
    for name, texts, cut_share in (("train", train, CUT_SHARE), ("heldout", heldout, 0.0)):
        ids = encode(tokenizer, texts, cut_share, rng)
        ids.tofile(corpus / f"{name}.bin")
        print(
            f"{name}: {len(texts)} documents, {len(ids)} tokens, {sum(map(len, texts)) / len(ids):.3f} characters each"
        )


if __name__ == "__main__":
    main()
