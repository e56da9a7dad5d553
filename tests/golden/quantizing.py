"""Inputs for quantizers, the same on every machine, and the errors that ggml's own quantizers make on them.

From tests/, `python -m golden.quantizing` prints rocforge's errors beside them, and
`python -m golden.quantizing path/to/libggml-base.so` stores them anew in quantizing.json. Those there come from ggml
0.25.3.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from golden.blocks import Source

ROWS, COLUMNS = 8, 2048
STORED = Path(__file__).with_suffix(".json")
CASES = ("normal", "heavy", "normal, importance", "heavy, importance")


def inputs() -> dict[str, np.ndarray]:
    """Weights, float32 (ROWS, COLUMNS): nearly normal, and with heavy tails."""
    normal = Source("quantizing", "normal").normal(ROWS, COLUMNS)
    tails = Source("quantizing", "tails").normal(ROWS, COLUMNS)
    return {"normal": normal.astype(np.float32), "heavy": (0.02 * normal * (1 + tails**2)).astype(np.float32)}


def importance() -> np.ndarray:
    """Mean squares of activations, float32 (COLUMNS,), of which some are a thousand times others."""
    return (Source("quantizing", "importance").normal(COLUMNS) ** 2 + 0.001).astype(np.float32)


def error(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> float:
    """The weighted norm of y - x over that of x."""
    weight = np.ones(x.shape[-1]) if weight is None else weight.astype(np.float64)
    return float(np.sqrt((weight * (y.astype(np.float64) - x) ** 2).sum() / (weight * x.astype(np.float64) ** 2).sum()))


def _ggml_error(ggml: ctypes.CDLL, name: str, x: np.ndarray, weight: np.ndarray | None) -> float:
    from rocforge.formats.blocks import dequantize

    qtype = GGMLQuantizationType[name]
    elements, nbytes = GGML_QUANT_SIZES[qtype]
    packed = np.empty((ROWS, COLUMNS // elements * nbytes), np.uint8)
    pointer = None if weight is None else ctypes.c_void_p(weight.ctypes.data)
    ggml.ggml_quantize_chunk(
        int(qtype),
        ctypes.c_void_p(x.ctypes.data),
        ctypes.c_void_p(packed.ctypes.data),
        *map(ctypes.c_int64, (0, ROWS, COLUMNS)),
        pointer,
    )
    return error(x, dequantize(packed, qtype, COLUMNS), weight)


def make(library: str) -> None:
    """Store the errors, by format, input and whether importance weights were given."""
    ggml = ctypes.CDLL(library)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    needs = ggml.ggml_quantize_requires_imatrix
    needs.restype = ctypes.c_bool
    names = (
        "Q1_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S "
        "IQ3_XXS IQ3_S IQ4_NL IQ4_XS MXFP4 NVFP4"
    )
    errors = {
        name: {
            f"{kind}{', importance' if weight is not None else ''}": round(_ggml_error(ggml, name, x, weight), 7)
            for kind, x in inputs().items()
            for weight in (None, importance())
            if weight is not None or not needs(int(GGMLQuantizationType[name]))
        }
        for name in names.split()
    }
    STORED.write_text(json.dumps(errors, indent=1) + "\n")


def table() -> str:
    """Markdown: each format's bits and errors, in percent, and how many times ggml's they are, at most."""
    import rocforge as rf

    lines = [f"| format | bits | {' | '.join(CASES)} | of ggml's |", "|---|" + "---:|" * 6]
    for name, expected in json.loads(STORED.read_text()).items():
        errors = {}
        for case in expected:
            kind, _, weighted = case.partition(", ")
            x, weight = inputs()[kind], importance() if weighted else None
            packed = rf.quantize(x, name, weight)
            errors[case] = error(x, packed.dequantize(), weight)
        cells = [f"{100 * errors[case]:.2f}" if case in errors else "" for case in CASES]
        ratio = max(errors[case] / expected[case] for case in errors)
        lines.append(f"| {name} | {8 * packed.nbytes / packed.size:.4g} | {' | '.join(cells)} | {ratio:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        make(*sys.argv[1:])
    else:
        print(table())
