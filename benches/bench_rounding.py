"""What rounding of activations and weights does to logits: the forms in which a matrix unit could multiply prompts.

    python benches/bench_rounding.py model.gguf

Runs a prompt of random tokens on the CPU, with all products of the blocks rounded in a form, and compares the logits
with those of float32 products. Forms are of activations / weights:

- float16 / float16: what prompts are multiplied in.
- int8 / packed: what decoding multiplies in; an activation's scale is that of 32 elements, and weights are exact.
- int8 / int8 and fp8 / fp8 (e4m3): a scale for a token and for a row, as the matrix unit takes them at twice the rate
  of float16; and int8 with a scale for each 128 elements of both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rocforge as rf
from rocforge.load import load_model
from rocforge.nn import Linear, Module

Round = Callable[[np.ndarray], np.ndarray]


def fp16(x: np.ndarray) -> np.ndarray:
    """To float16."""
    return x.astype(np.float16).astype(np.float32)


def exact(x: np.ndarray) -> np.ndarray:
    """Not at all."""
    return x


def int8(group: int | None = None) -> Round:
    """To int8 with a scale for each so many elements of a row; None: for the row."""

    def rounded(x: np.ndarray) -> np.ndarray:
        parts = x.reshape(len(x), -1, group or x.shape[1])
        scale = np.maximum(np.abs(parts).max(axis=2, keepdims=True) / 127, 1e-30)
        return (np.rint(parts / scale) * scale).reshape(x.shape)

    return rounded


def fp8(x: np.ndarray) -> np.ndarray:
    """To e4m3, whose largest number is 448, with a scale for each row."""
    scale = np.maximum(np.abs(x).max(axis=1, keepdims=True) / 448, 1e-30)
    mantissa, exponent = np.frexp(x / scale)
    unit = np.ldexp(1.0, np.maximum(exponent, -5) - 4)  # three bits behind the first; below 2**-6 the steps stay
    return (np.rint(np.ldexp(mantissa, exponent) / unit) * unit * scale).astype(np.float32)


FORMS: dict[str, tuple[Round, Round]] = {
    "float16 / float16": (fp16, fp16),
    "int8 of 32 / packed": (int8(32), exact),
    "int8 of 128 / int8 of 128": (int8(128), int8(128)),
    "int8 of a token / int8 of a row": (int8(), int8()),
    "fp8 of a token / fp8 of a row": (fp8, fp8),
}


class RoundedLinear(Module):
    """A Linear whose input and weight are rounded."""

    def __init__(self, linear: Linear, of_x: Round, of_weight: Round):
        self.linear, self.of_x = linear, of_x
        self.rounded = of_weight(linear.weight.dequantize()).T.copy()

    def forward(self, x: Any) -> Any:
        return self.of_x(np.asarray(x, np.float32)) @ self.rounded


def with_rounding(path: Path, form: tuple[Round, Round] | None, tokens: np.ndarray) -> np.ndarray:
    """Logits of the tokens, with the products of all blocks rounded."""
    with rf.open_gguf(path) as file:
        model = load_model(file, "cpu")
    for block in model.blk if form else ():
        for name, module in list(block.named_modules()):
            if type(module) is Linear:
                owner, _, leaf = name.rpartition(".")
                setattr(dict(block.named_modules())[owner] if owner else block, leaf, RoundedLinear(module, *form))
    return model(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file with packed weights")
    parser.add_argument("--tokens", type=int, default=64, help="of the prompt")
    options = parser.parse_args()
    with rf.open_gguf(options.model) as file:
        vocabulary = load_model(file, "cpu").config.vocabulary
    tokens = np.random.default_rng(0).integers(0, vocabulary, options.tokens)
    reference = with_rounding(options.model, None, tokens)
    for name, form in FORMS.items():
        moved = np.linalg.norm(with_rounding(options.model, form, tokens) - reference, axis=1)
        error = np.median(moved / np.linalg.norm(reference, axis=1))
        print(f"{name:34} relative error of logits {error:.2e}", flush=True)


if __name__ == "__main__":
    main()
