"""Writes GGUF files of published shapes with random weights, for measuring speed and memory.

    python benches/random_gguf.py llama-3.1-8b Q4_K_M model.gguf
    python benches/random_gguf.py gemma-4-26b-a4b Q4_K_M model.gguf --vocabulary 32000

Tensors are those of rocforge.selftest.synthetic, or of published.py. The tokenizer is byte-level BPE with random
merges, of the published number of tokens, or of fewer, which are made sooner.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from published import PUBLISHED, Published

from rocforge.quant import QuantizedArray
from rocforge.selftest.synthetic import RECIPES, SHAPES, Shape, metadata, random_tensors
from rocforge.text.bpe import byte_of_char

ALL: dict[str, Shape | Published] = {**SHAPES, **PUBLISHED}


def random_merges(count: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Tokens of a byte-level BPE, `count` of them, 256 single bytes first; and the merges that make the rest."""
    tokens, merges = list(byte_of_char()), []
    known = set(tokens)
    while len(tokens) < count:
        first, second = (tokens[i] for i in (rng.random(2) ** 2 * len(tokens)).astype(int))
        if len(first + second) > 16 or first + second in known:
            continue
        tokens.append(first + second)
        known.add(first + second)
        merges.append(f"{first} {second}")
    return tokens, merges


def write(path: Path, shape: Shape | Published, recipe: str, context: int = 8192) -> None:
    """Write the file of a shape and a recipe."""
    w = gguf.GGUFWriter(path, shape.arch)
    add = {float: w.add_float32, int: w.add_uint32, str: w.add_string, list: w.add_array}
    is_published = isinstance(shape, Published)
    for key, value in (shape.metadata(context) if is_published else metadata(shape, context)).items():
        if key != "general.architecture":
            add[type(value)](key, value)
    tokens, merges = random_merges(shape.vocabulary, np.random.default_rng(0))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    w.add_token_merges(merges)
    w.add_eos_token_id(len(tokens) - 1)  # what structured output needs
    w.add_add_bos_token(False)
    for name, values in shape.random_tensors(recipe) if is_published else random_tensors(shape, recipe):
        if isinstance(values, QuantizedArray):
            w.add_tensor(name, values.data, raw_shape=values.data.shape, raw_dtype=values.qtype)
        else:
            w.add_tensor(name, values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=ALL)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--vocabulary", type=int, help="tokens, in place of the published number")
    parser.add_argument("--context", type=int, default=8192, help="tokens that the model is said to be trained on")
    options = parser.parse_args()
    shape = ALL[options.shape]
    if options.vocabulary is not None:
        shape = shape._replace(vocabulary=options.vocabulary)
    write(options.path, shape, options.recipe, options.context)


if __name__ == "__main__":
    main()
