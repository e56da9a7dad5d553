"""Random tensors, float or quantized, that are the same bytes on every machine and NumPy version.

Values come from PCG64's raw words, whose stream NumPy keeps for good, through integer arithmetic and correctly rounded
products alone. Quantized tensors hold random blocks: valid codes with sane scales.
"""

import math
import zlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

# Per type: byte offset of each float16 scale with its factor (the minimum is set so that weights have mean zero), and
# the standard deviation of the weights of random blocks whose first scale is 1.
BLOCK_SCALES = {
    T.Q4_0: ({0: 1.0}, 4.66),
    T.Q4_1: ({0: 1.0, 2: -7.5}, 4.66),
    T.Q5_0: ({0: 1.0}, 9.33),
    T.Q5_1: ({0: 1.0, 2: -15.5}, 9.33),
    T.Q8_0: ({0: 1.0}, 74.8),
    T.Q2_K: ({80: 1.0, 82: 1.5}, 14.0),
    T.Q3_K: ({108: 1.0}, 43.8),
    T.Q4_K: ({0: 1.0, 2: 7.5}, 262.0),
    T.Q5_K: ({0: 1.0, 2: 15.5}, 532.0),
    T.Q6_K: ({208: 1.0}, 1379.0),
    T.IQ2_XXS: ({0: 1.0}, 54.1),
    T.IQ2_XS: ({0: 1.0}, 56.4),
    T.IQ2_S: ({0: 1.0}, 56.6),
    T.IQ3_XXS: ({0: 1.0}, 144.0),
    T.IQ3_S: ({0: 1.0}, 142.0),
    T.IQ1_S: ({0: 1.0}, 7.26),
    T.IQ4_NL: ({0: 1.0}, 67.9),
    T.IQ4_XS: ({0: 1.0}, 1265.0),
    T.TQ1_0: ({52: 1.0}, 0.82),
    T.TQ2_0: ({64: 1.0}, 0.72),
}


class Source:
    """Random numbers that depend on the seed and these names alone."""

    def __init__(self, *names: str, seed: int = 0):
        self.words = np.random.PCG64([seed, *(zlib.crc32(n.encode()) for n in names)])

    def bytes(self, *shape: int) -> np.ndarray:
        count = math.prod(shape)
        return self.words.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)

    def uniform(self, *shape: int) -> np.ndarray:
        """Float64 in [0, 1), 16 bits of it random."""
        return self.bytes(*shape, 2).view("<u2")[..., 0] / 65536.0

    def normal(self, *shape: int) -> np.ndarray:
        """Nearly normal float64, mean 0 and standard deviation 1: the sum of four 16-bit uniforms."""
        total = self.bytes(*shape, 8).view("<u2").sum(axis=-1, dtype=np.int64)
        return (total - 2 * 65535) * (1 / 37837.0)


def _blocks(source: Source, qtype: T, count: int, std: float) -> np.ndarray:
    """`count` random blocks of a quantized type, uint8, whose weights have about this standard deviation."""
    blocks = source.bytes(count, gguf.GGML_QUANT_SIZES[qtype][1]).copy()
    spread = 0.75 + 0.5 * source.uniform(count)
    if qtype in BLOCK_SCALES:
        fields, unit = BLOCK_SCALES[qtype]
        for offset, factor in fields.items():
            blocks[:, offset : offset + 2] = _half(spread * (std / unit) * factor)
        if qtype is T.TQ2_0:  # the code 3 is not used
            low, high = blocks[:, :64] & 0x55, blocks[:, :64] & 0xAA
            blocks[:, :64] = low | (high & ~(low << 1))
    elif qtype is T.IQ1_M:  # the float16 scale lies in the top four bits of each of four 16-bit words
        scale = _half(spread * (std / 7.3)).view("<u2").astype(np.uint16)
        nibbles = (scale >> np.array([0, 4, 8, 12], np.uint16)) & 0xF
        blocks[:, 49::2] = (blocks[:, 49::2] & 0x0F) | (nibbles << 4).astype(np.uint8)
    elif qtype is T.MXFP4:  # a power of two
        blocks[:, 0] = 127 + round(math.log2(std / 4.6)) + blocks[:, 0] % 2
    elif qtype is T.NVFP4:  # four scales of 4 bits exponent, 3 bits mantissa
        blocks[:, :4] = (blocks[:, :4] & 7) + 8 * (7 + round(math.log2(std / 5.8)))
    return blocks


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype("<f2")[:, None].view(np.uint8)


def random_tensor(source: Source, qtype: T, shape: tuple, mean: float, std: float) -> np.ndarray:
    """Values of a tensor as the GGUF writer wants them: float32, float16, or rows of packed bytes."""
    if qtype in (T.F32, T.F16, T.BF16):
        x = (mean + std * source.normal(*shape)).astype(np.float32)
        if qtype is T.BF16:
            return (x.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        return x.astype(np.float16) if qtype is T.F16 else x
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    blocks = _blocks(source, qtype, math.prod(shape) // block, std)
    return blocks.reshape(*shape[:-1], shape[-1] // block * size)
