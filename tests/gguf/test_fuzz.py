"""Fuzzing rocforge.gguf.file: a damaged file opens and reads whole, or raises GGUFError; in bounded time and memory."""

import contextlib
import itertools
import struct
import time
import tracemalloc

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import SCALARS, image, pair, string, tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rocforge.errors import GGUFError, UnsupportedModelError
from rocforge.gguf.file import open_gguf
from rocforge.quant import QuantizedArray

CASES = 450  # for each of the five tests below
SECONDS = 2.0  # of CPU time; a case takes some milliseconds
BYTES = 16 << 20  # the files have under 16 KiB


def sample(order: str, version: int, alignment: int) -> tuple[bytes, int]:
    """A small file with every kind of value and tensor, and the size of its header."""
    pairs = [
        pair("general.architecture", "string", "llama", order),
        pair("general.alignment", "uint32", alignment, order),
        pair("split.no", "uint16", 0, order),
        pair("split.count", "uint16", 1, order),
        pair("tokens", "[string]", ["<s>", "Ġthe", b"\xff", ""], order),
        pair("nested", "[[int16]]", [[1, 2], [], [3]], order),
        *(pair(f"one.{kind}", kind, 1, order) for kind in SCALARS),
        *(pair(f"many.{kind}", f"[{kind}]", [0, 1, 1], order) for kind in SCALARS),
    ]
    rows, offset = [], 0
    for qtype in [*GGMLQuantizationType, 4711]:
        block, size = GGML_QUANT_SIZES.get(qtype, (1, 4))
        rows.append(tensor(f"t{int(qtype)}", [block, 2], qtype, offset, order))
        offset += -(-2 * size // alignment) * alignment
    pairs.append(pair("split.tensors.count", "int32", len(rows), order))
    data = np.random.default_rng(0).integers(0, 256, offset, np.uint8).tobytes()
    whole = image(pairs, rows, data, version, order, alignment)
    return whole, len(whole) - len(data)


SAMPLES = [sample("<", 3, 32), sample(">", 3, 64), sample("<", 2, 8)]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """A function that writes a file of the given bytes and holds `opens` to the bounds; True if it opened."""
    folder, numbers = tmp_path_factory.mktemp("fuzz"), itertools.count()

    def check(data: bytes) -> bool:
        path = folder / f"{next(numbers)}.gguf"  # a fresh file: one still mapped must not be cut short
        path.write_bytes(data)
        start = time.process_time()
        tracemalloc.start()
        try:
            opened = opens(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            path.unlink()
        assert time.process_time() - start < SECONDS
        assert peak < BYTES
        return opened

    return check


def opens(path) -> bool:
    """Open a file, print it, and read every tensor; False if it raised GGUFError."""
    try:
        f = open_gguf(path)
    except GGUFError:
        return False
    repr(f).encode()
    for name in f:
        with contextlib.suppress(UnsupportedModelError):
            read(f[name])
    return True


def read(array: np.ndarray | QuantizedArray) -> None:
    """Touch every byte of a tensor."""
    (array.data if isinstance(array, QuantizedArray) else array).tobytes()


def fuzz(*strategies):
    """Run a test on CASES examples; the function-scoped folder is meant to be shared by them."""
    options = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
    return lambda test: options(given(*strategies)(test))


samples = st.sampled_from(SAMPLES)
# Values that length, count, type and offset fields lie with: small, near the sizes of words, huge, and random.
lies = st.one_of(
    st.integers(0, 70),
    st.sampled_from([2**k + d for k in (7, 8, 16, 20, 31, 32, 48, 60, 62, 63) for d in (-1, 0, 1)]),
    st.integers(0, 2**64 - 1),
)


@pytest.mark.parametrize("whole", [whole for whole, _ in SAMPLES])
def test_the_samples_themselves_open(check, whole):
    """Without damage each sample opens, so that what follows starts from good files."""
    assert check(whole)


@fuzz(samples, st.data())
def test_truncations(check, sample, data):
    """A file cut anywhere: inside the header it never opens."""
    whole, header_size = sample
    size = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, header_size))
    opened = check(whole[:size])
    assert not (opened and size < header_size - 64)  # 64: the padding after the header


@fuzz(samples, st.data())
def test_bit_flips(check, sample, data):
    """One to eight bits flipped, most of them in the header."""
    whole, header_size = sample
    bits = st.integers(0, 8 * header_size - 1) | st.integers(0, 8 * len(whole) - 1)
    damaged = bytearray(whole)
    for bit in data.draw(st.lists(bits, min_size=1, max_size=8)):
        damaged[bit // 8] ^= 1 << bit % 8
    check(bytes(damaged))


@fuzz(samples, st.data(), lies, st.sampled_from("QIB"))
def test_lying_fields(check, sample, data, value, width):
    """A number written over any place of the header, field or not."""
    whole, header_size = sample
    order = "<" if whole[4] else ">"
    field = struct.pack(f"{order}{width}", value % (1 << 8 * struct.calcsize(width)))
    at = data.draw(st.integers(0, header_size))
    check(whole[:at] + field + whole[at + len(field) :])


@fuzz(samples, st.data(), st.binary(max_size=40))
def test_spliced_headers(check, sample, data, piece):
    """A stretch of the header replaced by other bytes, its own or random ones, so that all later fields shift."""
    whole, header_size = sample
    start, stop = sorted(data.draw(st.tuples(*[st.integers(4, header_size)] * 2)))
    origin = data.draw(st.integers(0, header_size))
    piece = data.draw(st.sampled_from([piece, whole[origin : origin + 60]]))
    check(whole[:start] + piece + whole[min(stop, start + 60) :])


texts = st.sampled_from([b"", b"a", b"general.alignment", b"split.count", b"\xff", "Ġ".encode()])
numbers = st.one_of(lies.map(struct.Struct("<Q").pack), st.integers(0, 50).map(struct.Struct("<I").pack))
fragments = st.one_of(
    texts.map(string),
    numbers,
    st.builds(lambda key, code: string(key) + struct.pack("<I", code), texts, st.integers(0, 13)),
    st.builds(
        tensor,
        texts,
        st.lists(lies, max_size=5),
        st.integers(0, max(GGMLQuantizationType) + 1),
        lies,
    ),
    st.binary(max_size=30),
)


@fuzz(st.integers(0, 5), st.integers(0, 5), st.lists(fragments, max_size=12))
def test_headers_of_random_fragments(check, tensor_count, pair_count, parts):
    """A good start, then strings, numbers, rows and noise in any order."""
    check(image(parts, counts=(tensor_count, pair_count), data=bytes(512)))
