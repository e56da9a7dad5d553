"""Products with weights of every format, for one token to many, and what is fused with them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rocforge.device import tuning
from rocforge.device.arrays import asnumpy
from rocforge.device.libraries import cupy_module
from rocforge.ops.activation import geglu, swiglu, swiglu_oai
from rocforge.ops.device.operands import quantized
from rocforge.ops.device.plan import OperandForm, Product, form_for, product_for
from rocforge.ops.device.weights import format_of
from rocforge.ops.linear import gated_linear, linear, linear_then_norm, linears
from rocforge.ops.norm import rms_norm
from rocforge.selftest.check import Check, Error, Outcome, Sizes
from rocforge.selftest.weights import half_steps, product_error, random_weight, relative_error, values_of

EXACT, HALF, INT8 = 1e-5, 1e-3, 3e-2
"""Bounds: of float32 sums, of float16 factors, and of activations that were rounded to int8, twice perhaps."""
USUAL = ("Q4_K", "Q6_K", "Q8_0")


def checks(sizes: Sizes) -> list[Check]:
    tokens = sizes.tokens
    every = [
        Check(f"linear {name} {shape[0]} x {shape[1]}", functools.partial(_linear, name, shape, tokens))
        for shape, names in ((sizes.matrix, sizes.formats), (sizes.deep, USUAL))
        for name in names
    ]
    return [
        Check("activations in int8", functools.partial(_rounding, sizes.matrix[1])),
        *every,
        Check("q, k and v of two formats", functools.partial(_three, sizes.matrix, tokens)),
        *(
            Check(f"gated product, {activate}", functools.partial(_gated, activate, sizes.matrix, tokens))
            for activate in GATED
        ),
        Check("feed-forward with norms", functools.partial(_feed_forward, sizes.matrix, tokens)),
    ]


GATED = {"swiglu": swiglu, "geglu": geglu, "swiglu_oai": swiglu_oai}


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def label(tokens: int) -> str:
    return f"{tokens} token{'s' * (tokens > 1)}"


def _rounding(columns: int, rng: np.random.Generator) -> Outcome:
    x = floats(rng, 3, columns) * rng.uniform(0.01, 100, (3, 1)).astype(np.float32)
    values = values_of(quantized(cupy_module().asarray(x)))[:, :columns]
    return Outcome({"values": beyond_half_steps(values, x)})


def beyond_half_steps(values: np.ndarray, x: np.ndarray) -> Error:
    """Of int8 values, which stand for x: the share of those that are off by more than rounding explains."""
    return Error(float(np.mean(np.abs(values - x) > half_steps(x) + 1e-5 * np.abs(x))), 0.0)


def _as_multiplied(x: np.ndarray, weight: Any) -> tuple[np.ndarray, float]:
    """What x is for the kernel that multiplies it with a weight on the device, and how far its products may be off."""
    product = product_for(format_of(weight), len(x), tuning.current())
    if product is Product.GEMV_INT8:
        return values_of(quantized(cupy_module().asarray(x)))[:, : x.shape[1]], EXACT
    return x, EXACT if product is Product.GEMV_FLOAT else HALF


def _linear(qtype: str, shape: tuple[int, int], tokens: tuple[int, ...], rng: np.random.Generator) -> Outcome:
    weight, asarray = random_weight(rng, qtype, shape), cupy_module().asarray
    there, values, errors = weight.to_device("gpu"), weight.dequantize(), {}
    for n in tokens:
        x, bias, residual = floats(rng, n, shape[1]), floats(rng, shape[0]), floats(rng, n, shape[0])
        y = linear(asarray(x), there, asarray(bias), asarray(residual))
        factor, bound = _as_multiplied(x, there)
        errors[label(n)] = Error(product_error(y, factor, values, bias, residual), bound)
    return Outcome(errors)


def _three(shape: tuple[int, int], tokens: tuple[int, ...], rng: np.random.Generator) -> Outcome:
    """In one launch, of few tokens."""
    rows, columns = shape
    weights = [
        random_weight(rng, name, (n, columns)) for name, n in zip(("Q4_K", "Q4_K", "Q6_K"), (rows, 8, 24), strict=True)
    ]
    there, errors = [weight.to_device("gpu") for weight in weights], {}
    for n in tokens:
        x = floats(rng, n, columns)
        factor, bound = _as_multiplied(x, there[0])
        ys = linears(cupy_module().asarray(x), there)
        worst = max(product_error(y, factor, w.dequantize()) for y, w in zip(ys, weights, strict=True))
        errors[label(n)] = Error(worst, bound)
    return Outcome(errors)


def _gated(activate: str, shape: tuple[int, int], tokens: tuple[int, ...], rng: np.random.Generator) -> Outcome:
    """Gates of some units each way."""
    gate, up = (random_weight(rng, "Q4_K", shape) for _ in range(2))
    biases, asarray, errors = [floats(rng, shape[0]) for _ in range(2)], cupy_module().asarray, {}
    there = gate.to_device("gpu"), up.to_device("gpu"), asarray(biases[0]), asarray(biases[1])
    small = np.float32(2 / np.linalg.norm(gate.dequantize(), axis=1).mean())
    for n in tokens:
        x = small * floats(rng, n, shape[1])
        y = gated_linear(asarray(x), *there, activate)
        factor, bound = _as_multiplied(x, there[0])
        sums = [factor @ w.dequantize().T.astype(np.float64) + b for w, b in zip((gate, up), biases, strict=True)]
        errors[label(n)] = Error(relative_error(y, GATED[activate](*sums)), bound if bound == EXACT else 3 * HALF)
    return Outcome(errors)


def _feed_forward(shape: tuple[int, int], tokens: tuple[int, ...], rng: np.random.Generator) -> Outcome:
    """Gate and up, down with a residual and the next norm, and the product after that: fused as in a layer's decode."""
    ffn, dim = shape[0] // 32 * 32 * 4, shape[1]
    shapes = {"gate": (ffn, dim), "up": (ffn, dim), "down": (dim, ffn), "after": (shape[0], dim)}
    host = {name: random_weight(rng, "Q8_0", size) for name, size in shapes.items()}
    scale = {name: np.float32(1 / np.linalg.norm(w.dequantize(), axis=1).mean()) for name, w in host.items()}
    device, errors = {name: w.to_device("gpu") for name, w in host.items()}, {}
    norm, asarray = floats(rng, dim), cupy_module().asarray
    for n in tokens:
        x, residual = floats(rng, n, dim) * scale["gate"], floats(rng, n, dim) / scale["down"]
        y = _layer(x, residual, norm, host)
        there = _layer(asarray(x), asarray(residual), asarray(norm), device)
        int8 = form_for([device["after"]], n) is OperandForm.INT8
        errors[label(n)] = Error(relative_error(there, y), INT8 if int8 else 3 * HALF)
    return Outcome(errors)


def _layer(x: Any, residual: Any, norm: Any, weights: dict[str, Any]) -> Any:
    hidden = gated_linear(x, weights["gate"], weights["up"], consumer=weights["down"])
    after = [weights["after"]]
    y, normed = linear_then_norm(hidden, weights["down"], None, residual, norm, 1e-5, after)
    return asnumpy(linear(rms_norm(y, norm, 1e-5) if normed is None else normed, *after))
