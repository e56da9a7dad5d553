"""llama.cpp's vocabularies with texts and the ids that it gives them, where they are there to read."""

from pathlib import Path

import pytest

from rocforge.gguf.file import open_gguf
from rocforge.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "vocab"


def with_ids(name: str) -> tuple[Tokenizer, list[tuple[str, list[int]]]]:
    """The tokenizer of a vocabulary, and its texts with their ids; skips the test where there is none."""
    path = FOLDER / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"no {path}")
    texts = (FOLDER / f"{path.name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    ids = [[int(id) for id in line.split()] for line in (FOLDER / f"{path.name}.out").open()]
    assert len(texts) == len(ids) > 40
    return Tokenizer(open_gguf(path)), list(zip(texts, ids, strict=True))
