"""rms_norm and layer_norm against their definitions in float64."""

import numpy as np
import pytest

from rocforge.ops.norm import layer_norm, rms_norm


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


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_misfit_names_shapes(rng, norm):
    """A weight of another length is a ValueError, not a broadcast."""
    with pytest.raises(ValueError, match=r"\(1,\).*\(2, 8\)"):
        norm(rng.standard_normal((2, 8)), np.ones(1))
