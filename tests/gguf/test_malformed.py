"""Malformed GGUF files: each raises a GGUFError that names the field and its byte offset."""

import os
import struct
import time

import pytest
from gguf import GGMLQuantizationType
from gguf_files import image, pair, string, tensor

from rocforge.errors import GGUFError
from rocforge.gguf.file import open_gguf

F32, Q4_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_0
U64 = struct.Struct("<Q").pack


def array_of(item_type: int, count: int) -> bytes:
    """The start of a metadata pair "a" that says it is an array of `count` items."""
    return string("a") + struct.pack("<IIQ", 9, item_type, count)


def alignment(kind: str, value) -> bytes:
    return image([pair("general.alignment", kind, value)])


METADATA = {
    "empty": (b"", "magic at byte 0: the file is empty"),
    "short magic": (b"GG", "magic at byte 0: needs 4 bytes"),
    "magic": (b"GGML" + bytes(40), "magic at byte 0: 47 47 4d 4c is not 47 47 55 46, GGUF: not a GGUF file"),
    "no version": (b"GGUF", "version at byte 4: needs 4 bytes"),
    "version 0": (image(version=0), "version at byte 4: GGUF version 0 is not supported"),
    "version 1": (image(version=1), "version at byte 4: GGUF version 1 is not supported; supported are 2 and 3"),
    "version 4": (image(version=4, order=">"), "version at byte 4: GGUF version 4 is not supported"),
    "tensor_count": (image(counts=(2**62, 0)), f"tensor_count at byte 8: {2**62} entries of"),
    "metadata_kv_count": (image(counts=(0, 2**62)), f"metadata_kv_count at byte 16: {2**62} entries of"),
    "pairs missing": (image([pair("a", "int8", 1)], counts=(0, 2)), "metadata key 1 length at byte 38: is 0; at"),
    "key length": (image([U64(2**40) + bytes(20)]), "metadata key 0 length at byte 24: .* exceeds the limit of 65535"),
    "key past the end": (image([U64(60000) + bytes(20)]), "metadata key 0 at byte 32: needs 60000 bytes"),
    "key not UTF-8": (image([pair(b"a\xff", "int8", 1)]), "metadata key 0 at byte 33: not UTF-8"),
    "key twice": (image([pair("a", "int8", 1)] * 2), "metadata key 'a' at byte 38: already set at byte 24"),
    "value type": (image([string("a") + struct.pack("<IQ", 13, 0)]), "'a' value type at byte 33: is 13; allowed"),
    "value missing": (image([string("abc") + struct.pack("<I", 10)])[:39], "'abc' at byte 39: needs 8 bytes"),
    "bool": (image([string("a") + struct.pack("<IB", 7, 2)]), "'a' at byte 37: a bool is 0 or 1, not 2"),
    "bools": (image([array_of(7, 3) + b"\1\0\2"]), "'a' at byte 51: a bool is 0 or 1"),
    "string length": (
        image([string("a") + struct.pack("<IQ", 8, 2**63), bytes(50)]),
        "'a' length at byte 37: 9223372036854775808 exceeds the limit of 67108864 bytes",
    ),
    "string past the end": (image([string("a") + struct.pack("<IQ", 8, 5000)]), "'a' at byte 45: needs 5000 bytes"),
    "item type": (image([array_of(99, 0)]), "'a' item type at byte 37: is 99; allowed"),
    "item count": (image([array_of(0, 2**60)]), f"'a' length at byte 41: {2**60} entries of 1 bytes or more, but 15"),
    "numbers missing": (image([array_of(10, 2)]), "'a' length at byte 41: 2 entries of 8 bytes or more, but 15"),
    "item length": (
        image([array_of(8, 2) + string("b") + U64(2**64 - 1)]),
        r"'a'\[1\] length at byte 58: 18446744073709551615 exceeds",
    ),
    "strings missing": (image([array_of(8, 2) + string("b" * 20)])[:80], r"'a'\[1\] length at byte 77: the file ends"),
    "nesting": (image([pair("a", "[[[[[[int8]]]]]]", [[[[[[1]]]]]])]), r"'a'(\[0\])+ at byte \d+: arrays nest more"),
    "alignment 0": (alignment("uint32", 0), "'general.alignment' at byte 24: is 0; allowed are powers"),
    "alignment 4": (alignment("uint32", 4), "'general.alignment' at byte 24: is 4; allowed are powers"),
    "alignment 48": (alignment("uint32", 48), "'general.alignment' at byte 24: is 48; allowed are powers"),
    "alignment -8": (alignment("int32", -8), "'general.alignment' at byte 24: is -8; allowed are powers"),
    "alignment text": (alignment("string", "32"), "'general.alignment' at byte 24: must be an integer, not str"),
    "alignment true": (alignment("bool", True), "'general.alignment' at byte 24: must be an integer, not bool"),
    "split array": (image([pair("split.count", "[int8]", [3])]), "'split.count' at byte 24: must be an integer"),
}


def table(*rows: bytes, data: int = 0) -> bytes:
    """A file of these tensors and `data` zero bytes."""
    return image([], rows, bytes(data))


W = tensor("w", [32], F32, 0)
TENSORS = {
    "name empty": (table(tensor("", [1], F32, 0)), "tensor 0 name length at byte 24: is 0; at least 1 byte"),
    "name not UTF-8": (table(tensor(b"\x80", [1], F32, 0)), "tensor 0 name at byte 32: not UTF-8"),
    "name twice": (table(W, W, data=128), r"tensor name 'w' at byte 57: already used at byte 24"),
    "n_dims": (table(tensor("w", [1] * 5, F32, 0)), "tensor 'w' n_dims at byte 33: is 5; allowed are 0 to 4"),
    "items": (table(tensor("w", [2**32] * 2, F32, 0)), "tensor 'w' dimensions at byte 37: .* too many items"),
    "zero hides": (table(tensor("w", [0, 2**62], F32, 0)), "tensor 'w' dimensions at byte 37: .* too many items"),
    "row": (table(tensor("w", [48, 2], Q4_0, 0)), "'w' dimensions at byte 37: rows of 48 .* Q4_0's block of 32"),
    "scalar blocks": (table(tensor("w", [], Q4_0, 0)), "'w' dimensions at byte 37: rows of 1 items"),
    "table ends": (table(W)[:50], "tensor 'w' offset at byte 49: needs 8 bytes"),
    "misaligned": (
        table(tensor("w", [2], F32, 4), data=64),
        "'w' offset at byte 24: 4 is not a multiple of the alignment",
    ),
    "past the end": (table(W, data=127), "'w' offset at byte 24: data at 64, size 128, ends past the file's 191"),
    "far off": (table(tensor("w", [2], F32, 2**64 - 32), data=64), "'w' offset at byte 24: data at"),
    "unknown type far off": (table(tensor("w", [2], 99, 2**40)), "'w' offset at byte 24: data at .*, size unknown"),
    "overlap": (
        table(W, tensor("v", [8], F32, 96), data=256),
        "tensor 'v' offset at byte 57: 96 lies inside tensor 'w', 128 bytes from 0",
    ),
}
MALFORMED = {**METADATA, **TENSORS}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_raises_with_field_and_offset(tmp_path, case):
    data, message = MALFORMED[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=message) as raised:
        open_gguf(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("item_type", "count"), [(8, 2**24), (9, 2**16)])
def test_too_many_items_are_refused_before_they_are_read(tmp_path, item_type, count):
    """A gigabyte of zeros would be 134 million empty strings, or 89 million empty arrays: the limit stops them."""
    path = tmp_path / "m.gguf"
    path.write_bytes(image([array_of(item_type, count)]))
    os.truncate(path, 2**30)
    start = time.process_time()
    with pytest.raises(GGUFError, match="'a' length at byte 41: metadata arrays have more than 8388608 items in all"):
        open_gguf(path)
    assert time.process_time() - start < 0.5


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in [tmp_path, tmp_path / "pipe"]:
        with pytest.raises(GGUFError, match="not a regular file"):
            open_gguf(path)
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")
