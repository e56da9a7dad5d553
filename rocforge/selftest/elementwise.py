"""Norms, rope and activations: each op on the card against the same op on the host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.ops import activation
from rocforge.ops.device import norm as device_norm
from rocforge.ops.device.plan import OperandForm
from rocforge.ops.norm import add_normed, layer_norm, rms_norm
from rocforge.ops.rope import rope, rope_frequencies
from rocforge.ops.types import NextNorm
from rocforge.selftest.check import Check, Error, Outcome, Sizes
from rocforge.selftest.products import EXACT, HALF, beyond_half_steps, floats, label
from rocforge.selftest.weights import relative_error, values_of

Make = Callable[[np.random.Generator, int], Sequence[np.ndarray]]


def checks(sizes: Sizes) -> list[Check]:
    tokens, width = (1, 2, 64, sizes.prompt), sizes.width

    def rows(rng: np.random.Generator, n: int) -> np.ndarray:
        return 3 * floats(rng, n, width)

    def weighted(rng: np.random.Generator, n: int) -> Sequence[np.ndarray]:
        return rows(rng, n), floats(rng, width)

    def same(name: str, op: Callable[..., Any], make: Make) -> Check:
        return Check(name, functools.partial(_same, op, make, tokens))

    one: Make = lambda rng, n: [rows(rng, n)]  # noqa: E731
    two: Make = lambda rng, n: [rows(rng, n), rows(rng, n)]  # noqa: E731
    return [
        same("rms_norm", rms_norm, weighted),
        same(
            "rms_norm with residual",
            lambda x, w, r: rms_norm(x, w, 1e-6, r),
            lambda g, n: [*weighted(g, n), rows(g, n)],
        ),
        *(same(f"norms behind {count}", _added, functools.partial(_normed, width, count)) for count in (1, 2)),
        same("layer_norm", layer_norm, lambda rng, n: [*weighted(rng, n), floats(rng, width)]),
        Check("rms_norm in float16 and int8", functools.partial(_rounded_norms, width)),
        *(same(name, getattr(activation, name), one) for name in ("silu", "gelu", "softmax")),
        *(same(name, getattr(activation, name), two) for name in ("swiglu", "geglu", "swiglu_oai", "add")),
        same("softcap", lambda x: activation.softcap(x, 30.0), one),
        same("scale", lambda x: activation.scale(x, 0.37), one),
        *(
            Check(f"rope, {'neox' if neox else 'pairs'}", functools.partial(_rope, neox, sizes))
            for neox in (False, True)
        ),
    ]


def _same(op: Callable[..., Any], make: Make, tokens: Sequence[int], rng: np.random.Generator) -> Outcome:
    errors = {}
    for n in tokens:
        arrays = make(rng, n)
        y = op(*map(cupy_module().asarray, arrays))
        errors[label(n)] = Error(relative_error(y, op(*arrays)), EXACT)
    return Outcome(errors)


def _normed(width: int, count: int, rng: np.random.Generator, n: int) -> Sequence[np.ndarray]:
    """Streams, what that many layers give, and the weights of the norms behind these."""
    return [floats(rng, n, width) for _ in range(1 + count)] + [floats(rng, width) for _ in range(2 * count - 1)]


def _added(x: Any, *arrays: Any) -> Any:
    count = 1 if len(arrays) == 2 else 2
    ys, weights = arrays[:count], arrays[count:]
    return add_normed(x, ys, [NextNorm(weight, 1e-5, ()) for weight in weights], None, ())[0]


def _rounded_norms(width: int, rng: np.random.Generator) -> Outcome:
    """As the products that follow take them."""
    x, y, weight = floats(rng, 70, width), floats(rng, 70, width), floats(rng, width)
    a, b, w = map(cupy_module().asarray, (x, y, weight))
    expected, (total, fp16) = rms_norm(x, weight), device_norm.rms_norm_of_sum(a, b, None, w, 1e-5)
    int8, float16 = (device_norm.rms_norm(a, w, 1e-5, form=form) for form in (OperandForm.INT8, OperandForm.FP16))
    return Outcome(
        {
            "float16": Error(relative_error(float16, expected), HALF),
            "int8": beyond_half_steps(values_of(int8)[:, :width], expected),
            "a sum": Error(relative_error(total, x + y), EXACT),
            "its norm": Error(relative_error(fp16, rms_norm(x + y, weight)), HALF),
        }
    )


def _rope(neox: bool, sizes: Sizes, rng: np.random.Generator) -> Outcome:
    """Positions reach 131,071, where a float32 angle would be wrong in the third digit."""
    errors = {}
    for _, heads, head_dim in sizes.attention:
        x, positions = floats(rng, 70, heads, head_dim), rng.integers(0, 131072, 70).astype(np.int32)
        frequencies = rope_frequencies(head_dim, 500000.0, neox=neox)
        y = rope(cupy_module().asarray(x), cupy_module().asarray(positions), frequencies)
        errors[f"heads of {head_dim}"] = Error(relative_error(y, rope(x, positions, frequencies)), EXACT)
    return Outcome(errors)
