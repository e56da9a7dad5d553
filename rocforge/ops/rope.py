"""Rotary position embedding: frequencies with their scalings, and the rotation.

Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rocforge.device.arrays import Constant, get_array_module
from rocforge.ops.arguments import check_axes, check_integers, operands
from rocforge.ops.device import rope as device
from rocforge.ops.types import Array, HostArray

MAX_POSITION = (1 << 31) - 1


class Rotation(NamedTuple):
    """Angles of some tokens: float32 cosines and sines, shape (tokens, pairs), and the style of pairing."""

    cos: Array
    sin: Array
    neox: bool


@dataclass(frozen=True, eq=False)
class RopeFrequencies:
    """The angle that each pair of elements turns by per position, with the style of pairing.

    Attributes:
        frequencies: float64, shape (pairs,), radians per position; 2 * pairs elements of a head are rotated.
        magnitude: factor on the rotated elements (YaRN's and LongRoPE's attention factor).
        neox: True pairs element i with i + pairs (GPT-NeoX), False pairs 2i with 2i + 1 (GPT-J, GGUF's "normal").
    """

    frequencies: HostArray
    magnitude: float = 1.0
    neox: bool = False

    @functools.cached_property
    def constant(self) -> Constant:
        """The frequencies, which launches read."""
        return Constant(np.asarray(self.frequencies, np.float64))

    def cos_sin(self, positions: Array) -> tuple[Array, Array]:
        """float32 cosines and sines, each of shape (*positions.shape, pairs), times the magnitude."""
        if get_array_module(positions) is not np:
            return device.cos_sin(self.constant.on_current_device(), positions, self.magnitude)
        angles = positions[..., None] * self.frequencies
        return (
            (np.cos(angles) * self.magnitude).astype(np.float32),
            (np.sin(angles) * self.magnitude).astype(np.float32),
        )


def rope_frequencies(
    dimensions: int,
    base: float = 10000.0,
    *,
    neox: bool = False,
    factors: HostArray | None = None,
    scaling: str = "none",
    scale: float = 1.0,
    original_context: int = 0,
    magnitude: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    low_frequency: float = 1.0,
    high_frequency: float = 4.0,
) -> RopeFrequencies:
    """Frequencies `base ** (-2 i / dimensions)`, scaled for contexts beyond the training length.

    Args:
        dimensions: elements of a head that are rotated, even.
        base: the frequency base, theta.
        neox: the style of pairing; see RopeFrequencies.
        factors: shape (dimensions / 2,); each frequency is divided by its factor (rope_freqs.weight, LongRoPE).
        scaling: "none", "linear" (all frequencies over `scale`), "yarn" or "llama3".
        scale: by how much the context grew, at least 1.
        original_context: positions in training, for yarn and llama3.
        magnitude: factor on the rotated elements; yarn multiplies it by `1 + 0.1 ln(scale)`.
        beta_fast, beta_slow: yarn: turns in the original context from which a frequency is kept, or wholly scaled.
        low_frequency, high_frequency: llama3: likewise, wholly scaled below and kept above.

    Raises:
        ValueError: an unknown scaling, odd dimensions, or factors of another length.

    Source: linear: Chen et al., https://arxiv.org/abs/2306.15595; yarn: Peng et al.,
    https://arxiv.org/abs/2309.00071; llama3: the Llama 3.1 release, https://github.com/meta-llama/llama-models.

    >>> frequencies = rf.rope_frequencies(64, 10000.0)
    >>> cos, sin = frequencies.cos_sin(np.arange(3))
    >>> cos.shape
    (3, 32)
    """
    if dimensions % 2:
        raise ValueError(f"rope: dimensions is {dimensions}; it must be even")
    frequencies = float(base) ** (-np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    if factors is not None:
        if len(factors) != len(frequencies):
            raise ValueError(f"rope: {len(factors)} factors for {len(frequencies)} frequencies")
        frequencies = frequencies / np.asarray(factors, np.float64)
    if scaling == "linear":
        frequencies = frequencies / scale
    elif scaling == "yarn":
        keep = _yarn_kept(dimensions, base, original_context, beta_fast, beta_slow)
        frequencies = frequencies * (keep + (1 - keep) / scale)
        magnitude *= 1 + 0.1 * math.log(scale)
    elif scaling == "llama3":
        turns = original_context * frequencies / (2 * math.pi)
        keep = np.clip((turns - low_frequency) / (high_frequency - low_frequency), 0, 1)
        frequencies = frequencies * (keep + (1 - keep) / scale)
    elif scaling != "none":
        raise ValueError(f'rope: scaling is {scaling!r}; allowed are "none", "linear", "yarn" and "llama3"')
    return RopeFrequencies(frequencies, magnitude, neox)


def _yarn_kept(dimensions: int, base: float, context: int, beta_fast: float, beta_slow: float) -> HostArray:
    """How much of each frequency YaRN keeps, 0 to 1: a ramp between pairs turning beta_fast and beta_slow times."""

    def pair_of(turns: float) -> float:
        return dimensions * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0, math.floor(pair_of(beta_fast)))
    high = min(dimensions - 1, math.ceil(pair_of(beta_slow)))
    ramp = (np.arange(dimensions // 2) - low) / max(0.001, high - low)
    return 1 - np.clip(ramp, 0, 1)


def rope(x: Array, positions: Array, frequencies: RopeFrequencies | None = None, base: float = 10000.0) -> Array:
    """Rotate the leading elements of each head by its token's position.

    Args:
        x: floats, shape (tokens, heads, head_dim).
        positions: integers from 0 to 2**31 - 1, shape (tokens,). With x on a device they may be on the host or there;
            what they are is not looked at there, which would wait for it.
        frequencies: from `rope_frequencies`; None: unscaled, over the whole head, with `base`.
        base: the frequency base where `frequencies` is None.

    Returns:
        float32, the shape of x.

    Raises:
        ValueError: the shapes do not fit, more elements are rotated than a head has, or a position out of range.
        TypeError: positions that are no integers.

    >>> q = np.ones((3, 8, 64), np.float32)  # tokens, heads, head_dim
    >>> rf.rope(q, np.arange(3), rf.rope_frequencies(64, 10000.0)).shape
    (3, 8, 64)
    """
    (module, x), (of_positions, positions) = operands("rope", x=x), operands("rope", positions=positions)
    on_host = of_positions is np
    if not on_host:
        operands("rope", x=x, positions=positions)  # of one side
    check_integers("rope", "positions", positions)
    check_axes("rope", "x", x, "tokens, heads, head_dim")
    if x.shape[:1] != positions.shape:
        raise ValueError(
            f"rope: positions of shape {positions.shape} do not fit x of shape {x.shape}; allowed is {x.shape[:1]}"
        )
    if frequencies is None:
        frequencies = _unscaled(x.shape[-1], base)
    if on_host and (bad := positions[(positions < 0) | (positions > MAX_POSITION)]).size:
        raise ValueError(f"rope: a position is {bad[0]}; allowed are 0 to {MAX_POSITION}")
    positions = module.asarray(positions)
    return rotate(x, *frequencies.cos_sin(positions), neox=frequencies.neox)


@functools.lru_cache(maxsize=64)
def _unscaled(dimensions: int, base: float) -> RopeFrequencies:
    return rope_frequencies(dimensions, base)


def rotate(x: Array, cos: Array, sin: Array, neox: bool) -> Array:
    """Rotate the leading pairs of x (tokens, heads, head_dim) by angles whose cos and sin are (tokens, pairs)."""
    pairs = cos.shape[-1]
    if 2 * pairs > x.shape[-1]:
        raise ValueError(f"rope: {2 * pairs} elements are rotated, and a head has {x.shape[-1]}")
    if get_array_module(x) is not np:
        return device.rotate(x, cos, sin, neox)
    first, second = _pair_slices(pairs, neox)
    cos, sin = cos[:, None, :], sin[:, None, :]
    y = np.empty(x.shape, np.float32)
    y[..., 2 * pairs :] = x[..., 2 * pairs :]
    a, b = x[..., first], x[..., second]
    y[..., first] = a * cos - b * sin
    y[..., second] = b * cos + a * sin
    return y


def _pair_slices(pairs: int, neox: bool) -> tuple[slice, slice]:
    if neox:
        return slice(0, pairs), slice(pairs, 2 * pairs)
    return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
