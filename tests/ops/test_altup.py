"""Alternating updates against the sums as they are written, a token at a time, in float64."""

import numpy as np
import pytest

from rocforge.ops import altup


@pytest.fixture
def streams(rng):
    return rng.standard_normal((3, 5, 7)).astype(np.float32)


def test_predict(rng, streams):
    coefs = rng.standard_normal((5, 9)).astype(np.float32)
    expected = streams.astype(np.float64)
    for t, j, i in np.ndindex(5, 3, 3):
        expected[j, t] += coefs[t, 3 * j + i].astype(np.float64) * streams[i, t]
    np.testing.assert_allclose(altup.predict(streams, coefs), expected, rtol=1e-5, atol=1e-6)


def test_correct(rng, streams):
    activated, coefs = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 7), (5, 3)))
    expected = streams.astype(np.float64)
    for t, j in np.ndindex(5, 3):
        expected[j, t] += (1 + coefs[t, j].astype(np.float64)) * (activated[t] - streams[1, t])
    np.testing.assert_allclose(altup.correct(streams, activated, coefs, 1), expected, rtol=1e-5, atol=1e-6)


def test_streams_of_one(rng, streams):
    """The first stream is what it was; the others have its length, and get what is added."""
    x, *others = streams
    expanded = altup.expand(x, others)
    np.testing.assert_array_equal(expanded[0], x)
    np.testing.assert_allclose(
        np.linalg.norm(expanded, axis=-1), np.tile(np.linalg.norm(x, axis=-1), (3, 1)), rtol=1e-6
    )
    for y, other in zip(expanded[1:], others, strict=True):
        np.testing.assert_allclose(y / other, np.broadcast_to((y / other)[:, :1], y.shape), rtol=1e-5)
    added = altup.add_to_others(streams, x)
    np.testing.assert_array_equal(added, np.stack([x, *(other + x for other in others)]))
