"""Golden models and their reference logits: see README.md in this folder."""

from pathlib import Path

import numpy as np

from golden.models import CASES, build

__all__ = ["BOUNDS", "CASES", "FOLDER", "build", "load", "relative_error"]

FOLDER = Path(__file__).parent
# Bounds on relative_error against llama.cpp, which rounds activations to int8 before it multiplies quantized weights.
BOUNDS = {"F32": 2e-5, "Q8_0": 8e-2, "Q4_K_M": 8e-2, "MIXED": 8e-2}


def load(variant: str, recipe: str) -> dict[str, np.ndarray]:
    """llama.cpp's results for one of CASES.

    `tokens` int32: the 64 tokens of the prompt and then those that llama.cpp chose greedily, each of them fed back.
    `rows` int32: the positions whose logits are stored. `logits` float32 (rows, vocab): those after the token at each
    of these positions, so tokens[i + 1] is the argmax after position i from the prompt's last token on.
    """
    with np.load(FOLDER / f"{variant}-{recipe}.npz") as f:
        return dict(f)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖ / ‖b‖ in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
