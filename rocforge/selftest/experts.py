"""Mixtures of experts: which experts a token goes to, and the products with them."""

from __future__ import annotations

import functools

import numpy as np

from rocforge.device.libraries import cupy_module
from rocforge.ops.moe import experts, group_by_expert, route
from rocforge.ops.types import Matrices
from rocforge.selftest.check import Check, Error, Outcome, Sizes, exact
from rocforge.selftest.products import EXACT, HALF, INT8, floats, label
from rocforge.selftest.weights import random_weight, relative_error

MIXTURES = {
    "Q4_K, Q6_K": (("Q4_K", "Q4_K", "Q6_K"), "swiglu", False),
    "MXFP4 with biases": (("MXFP4", "MXFP4", "MXFP4"), "swiglu_oai", True),
    "Q8_0, geglu": (("Q8_0", "Q8_0", "Q8_0"), "geglu", False),
    "F16": (("F16", "F16", "F16"), "swiglu", False),
}
"""Formats of gate, up and down, the gated unit, and whether there are biases."""


def checks(sizes: Sizes) -> list[Check]:
    tokens = tuple(n for n in sizes.tokens if n != 2)
    return [
        Check("route", functools.partial(_route, sizes.prompt)),
        *(Check(name, functools.partial(_experts, name, sizes.experts, tokens)) for name in MIXTURES),
    ]


def _route(tokens: int, rng: np.random.Generator) -> Outcome:
    logits, errors = 3 * floats(rng, tokens, 128), {}
    there = cupy_module().asarray(logits)
    for before in (True, False):
        ids, weights = route(logits, 8, before)
        ids_there, weights_there = route(there, 8, before)
        kind = f"softmax {'before' if before else 'after'}"
        errors[f"experts, {kind}"] = exact(ids_there.get(), ids.astype(np.int32))
        errors[f"weights, {kind}"] = Error(relative_error(weights_there, weights), EXACT)
    for name, mine, theirs in zip(
        ("order", "rank", "offsets"), group_by_expert(ids, 128), group_by_expert(ids_there, 128), strict=True
    ):
        errors[name] = exact(theirs.get(), mine)
    return Outcome(errors)


def _experts(name: str, shape: tuple[int, int, int, int], tokens: tuple[int, ...], rng: np.random.Generator) -> Outcome:
    (qtypes, activate, biased), (count, used, dim, ffn) = MIXTURES[name], shape
    asarray, host, device = cupy_module().asarray, [], []
    for qtype, rows, columns in zip(qtypes, (ffn, ffn, dim), (dim, dim, ffn), strict=True):
        weight = random_weight(rng, qtype, (count, rows, columns))
        weight.keep_float32 = True
        bias = floats(rng, count, rows) if biased else None
        host.append(Matrices(weight, bias))
        device.append(Matrices(weight.to_device("gpu"), None if bias is None else asarray(bias)))
    (gate, up, down), (gate_there, up_there, down_there) = host, device
    # so that gates are of some units, and float16 holds what comes of them
    small, errors = np.float32(1 / np.linalg.norm(gate.weight[0].dequantize(), axis=1).mean()), {}
    for n in tokens:
        x, logits = small * floats(rng, n, dim), floats(rng, n, count)
        ids, weights = route(logits, used)
        routed = asarray(x), asarray(ids.astype(np.int32)), asarray(weights)
        y = experts(*routed, gate_there, up_there, down_there, activate)
        bound = INT8 if n <= 8 and qtypes[0] != "F16" else 3 * HALF
        expected = experts(x, ids, weights, gate, up, down, activate)
        errors[label(n)] = Error(relative_error(y, expected), bound)
    return Outcome(errors)
