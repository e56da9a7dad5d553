"""MoE routing and the weighted sum of experts, against the definition one token at a time."""

import numpy as np
import pytest

from rocforge.ops.moe import experts, route


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


def test_experts_sum(rng):
    """Every token gets the weighted sum of its own experts, whatever the others use."""
    x, matrices = rng.standard_normal((7, 5)).astype(np.float32), rng.standard_normal((4, 5, 5)).astype(np.float32)
    ids, weights = route(rng.standard_normal((7, 4)).astype(np.float32), 2)
    out = experts(x, ids, weights, lambda index, rows: rows @ matrices[index])
    for token in range(7):
        expected = sum(w * (x[token] @ matrices[i]) for i, w in zip(ids[token], weights[token], strict=True))
        np.testing.assert_allclose(out[token], expected, rtol=1e-4, atol=1e-5)
