"""MoE routing and the weighted sum of experts, against the definition one token at a time."""

import numpy as np
import pytest

from rocforge.ops.activation import geglu
from rocforge.ops.moe import Matrices, experts, experts_by_logits, route


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("softmax_before, normalize", [(True, True), (True, False), (False, False)])
def test_route(rng, softmax_before, normalize):
    """The highest logits win; weights are over all experts, renormalized, or over the chosen alone."""
    logits = rng.standard_normal((9, 8)).astype(np.float32)
    ids, weights = route(logits, 3, softmax_before, normalize)
    for token in range(9):
        chosen = np.argsort(-logits[token])[:3]
        assert (ids[token] == chosen).all()
        expected = softmax(logits[token])[chosen] if softmax_before else softmax(logits[token][chosen])
        if normalize:
            expected = expected / expected.sum()
        np.testing.assert_allclose(weights[token], expected, rtol=1e-5)


def test_scale_and_limits(rng):
    """The scale multiplies every weight; a token goes to at least one expert and at most all."""
    logits = rng.standard_normal((3, 6)).astype(np.float32)
    for softmax_before in (True, False):
        plain, scaled = (route(logits, 2, softmax_before, scale=scale)[1] for scale in (1.0, 2.5))
        np.testing.assert_allclose(scaled, 2.5 * plain, rtol=1e-6)
    for used in (0, 7):
        with pytest.raises(ValueError, match="1 to 6"):
            route(logits, used)


@pytest.mark.parametrize("biased", [False, True])
def test_experts_sum(rng, biased):
    """Every token gets the weighted sum of its own experts and the residual, whatever the others use."""
    x, residual = (rng.standard_normal((7, 5)).astype(np.float32) for _ in range(2))
    gate, up, down = (rng.standard_normal(shape).astype(np.float32) for shape in [(4, 3, 5), (4, 3, 5), (4, 5, 3)])
    biases = [rng.standard_normal(w.shape[:2]).astype(np.float32) if biased else None for w in (gate, up, down)]
    logits = rng.standard_normal((7, 4)).astype(np.float32)
    ids, weights = route(logits, 2)
    matrices = [Matrices(*pair) for pair in zip((gate, up, down), biases, strict=True)]
    out = experts(x, ids, weights, *matrices, "geglu", residual)
    by_logits = experts_by_logits(x, logits, (2,), *matrices, "geglu")
    np.testing.assert_array_equal(by_logits, experts(x, ids, weights, *matrices, "geglu"))
    gate_bias, up_bias, down_bias = [np.zeros(w.shape[:2]) if b is None else b for w, b in matrices]
    for token in range(7):
        expected = residual[token].astype(np.float64)
        for i, weight in zip(ids[token], weights[token], strict=True):
            hidden = geglu(gate[i] @ x[token] + gate_bias[i], up[i] @ x[token] + up_bias[i])
            expected += weight * (down[i] @ hidden + down_bias[i])
        np.testing.assert_allclose(out[token], expected, rtol=1e-4, atol=1e-4)
