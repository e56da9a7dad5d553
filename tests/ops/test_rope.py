"""rope: the rotation against complex multiplication, and each scaling against its published formula."""

import math

import numpy as np
import pytest

from rocforge.ops.rope import rope, rope_frequencies


def rotate_complex(x, positions, frequencies, neox, magnitude=1.0):
    """The rotation as multiplication of pairs, as complex numbers, by exp(i * position * frequency)."""
    pairs = len(frequencies)
    x = x.astype(np.float64)
    first, second = (
        (x[..., :pairs], x[..., pairs : 2 * pairs]) if neox else (x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2])
    )
    turned = (first + 1j * second) * np.exp(1j * positions[:, None] * frequencies)[:, None] * magnitude
    y = x.copy()
    if neox:
        y[..., :pairs], y[..., pairs : 2 * pairs] = turned.real, turned.imag
    else:
        y[..., 0 : 2 * pairs : 2], y[..., 1 : 2 * pairs : 2] = turned.real, turned.imag
    return y


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize("rotated", [16, 64])
def test_rotation(rng, neox, rotated):
    """Both pairings, the whole head and a part of it, at small and large positions."""
    x = rng.standard_normal((6, 3, 64)).astype(np.float32)
    positions = np.array([0, 1, 2, 100, 5000, 131071])
    plain = 10000.0 ** (-np.arange(0, rotated, 2) / rotated)
    y = rope(x, positions, rope_frequencies(rotated, neox=neox))
    np.testing.assert_allclose(y, rotate_complex(x, positions, plain, neox), atol=2e-6)


def test_default_rotates_the_whole_head(rng):
    """Without frequencies the base alone decides."""
    x, positions = rng.standard_normal((4, 2, 32)).astype(np.float32), np.arange(4)
    assert (rope(x, positions, base=500.0) == rope(x, positions, rope_frequencies(32, 500.0))).all()


def test_linear_divides_positions():
    """Linear scaling by s turns position p as p / s."""
    assert np.allclose(
        rope_frequencies(64, scaling="linear", scale=4).frequencies * 4, rope_frequencies(64).frequencies
    )


def test_factors_divide_frequencies(rng):
    """Per-pair factors, as in rope_freqs.weight."""
    factors = rng.uniform(1, 8, 32)
    assert np.allclose(rope_frequencies(64, factors=factors).frequencies * factors, rope_frequencies(64).frequencies)


def test_llama3_matches_its_formula():
    """Wavelengths under a quarter of the context stay, those over it are divided by 8, smoothly between."""
    scaled = rope_frequencies(128, 500000.0, scaling="llama3", scale=8, original_context=8192).frequencies
    for got, plain in zip(scaled, rope_frequencies(128, 500000.0).frequencies, strict=True):
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192:
            expected = plain / 8
        else:
            smooth = (8192 / wavelength - 1) / 3
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert got == pytest.approx(expected, rel=1e-12)


def test_yarn_keeps_fast_and_scales_slow():
    """The fastest pairs stay, the slowest are divided by the scale, and the magnitude is 1 + 0.1 ln(scale)."""
    plain = rope_frequencies(128).frequencies
    yarn = rope_frequencies(128, scaling="yarn", scale=16, original_context=4096)
    turns = 4096 * plain / (2 * math.pi)
    ratio = plain / yarn.frequencies
    assert (ratio[turns > 40] == 1).all() and np.allclose(ratio[turns < 0.9], 16)
    assert (np.diff(ratio) >= -1e-12).all()
    assert yarn.magnitude == pytest.approx(1 + 0.1 * math.log(16))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dimensions": 7}, "dimensions is 7"),
        ({"dimensions": 8, "scaling": "ntk"}, "'ntk'"),
        ({"dimensions": 8, "factors": np.ones(3)}, "3 factors for 4"),
    ],
)
def test_bad_arguments(arguments, message):
    """Each names what is wrong."""
    with pytest.raises(ValueError, match=message):
        rope_frequencies(**arguments)


def test_misfits(rng):
    """Positions of another length, and more rotated elements than a head has."""
    x = rng.standard_normal((4, 2, 32))
    with pytest.raises(ValueError, match=r"\(3,\).*\(4, 2, 32\)"):
        rope(x, np.arange(3))
    with pytest.raises(ValueError, match="64 elements are rotated, and a head has 32"):
        rope(x, np.arange(4), rope_frequencies(64))
