"""rms_norm and layer_norm against their definitions in float64."""

import numpy as np
import pytest

from rocforge.ops.norm import add_normed, layer_norm, rms_norm, rms_norms
from rocforge.ops.types import NextNorm


@pytest.mark.parametrize("shape", [(7,), (1, 64), (3, 5, 33)])
def test_rms_norm(rng, shape):
    """`x / sqrt(mean(x**2) + eps) * weight`, any leading shape, to float32 accuracy."""
    x, weight = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape[-1]).astype(np.float32)
    exact = x.astype(np.float64)
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(rms_norm(x, weight, 1e-3), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rms_norm(x, None, 1e-3) * weight, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0, 100])
def test_layer_norm(rng, offset):
    """Mean and variance are taken out, also of values far from zero, then weight and bias applied."""
    x = (rng.standard_normal((4, 65)) + offset).astype(np.float32)
    weight, bias = rng.standard_normal((2, 65)).astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(layer_norm(x, weight, bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_add_normed(rng, count):
    """What each gives goes through its norm, of two their sum through a third; the stream is scaled in the end."""
    x, *ys = rng.standard_normal((1 + count, 3, 16)).astype(np.float32)
    norms = [NextNorm(rng.standard_normal(16).astype(np.float32), 0.1 * i, ()) for i in range(2 * count - 1)]
    total, normed = add_normed(x, ys, norms, np.array([0.5], np.float32), ())
    added = [rms_norm(y, norm.weight, norm.eps) for y, norm in zip(ys, norms, strict=False)]
    added = added[0] if count == 1 else rms_norm(sum(added), norms[2].weight, norms[2].eps)
    np.testing.assert_allclose(total, (x + added) / 2, rtol=1e-5, atol=1e-6)
    assert normed is None
    plain = NextNorm(None, 0.0, (), normalizes=False)
    scaled, same = rms_norms(x, [norms[0]._replace(scale=0.25), plain])
    np.testing.assert_allclose(scaled, rms_norm(x, norms[0].weight, norms[0].eps) / 4, rtol=1e-6)
    assert same is x


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_misfit_names_shapes(rng, norm):
    """A weight of another length is a ValueError, not a broadcast."""
    with pytest.raises(ValueError, match=r"\(1,\).*\(2, 8\)"):
        norm(rng.standard_normal((2, 8)), np.ones(1))
