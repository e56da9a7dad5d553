"""Structs that kernels take by value: read from the sources, checked by field, laid out as compilers do."""

import ctypes
import re

import numpy as np
import pytest
from offline import amd_compiler, code_for, needs_amd_compiler

from rocforge.device import kernels
from rocforge.device.kernel_arguments import Packed
from rocforge.device.kernels import source_folder, source_text
from rocforge.device.params import assertions, dtype_of, kernel_structs, struct_fields

SOURCE = """
struct Part {
    const void* w;
    RF_NULLABLE const float *bias, *more;  // of one row
    u32 rows;
};
struct Params {
    i32 count;
    RF_NULLABLE f16* out;
    float scale;
    Part parts[2];
    Part last;
    u64 stride;
    i32 flag;
};
RF_KERNEL(256) rf_some(Params p) { wait_for_previous(); }
RF_KERNEL(256) rf_other(const float* x, u32 n) {}
"""


def test_fields():
    """Scalars, pointers, arrays of structs and structs, in order, with what None is allowed for."""
    fields = struct_fields(SOURCE, "Params")
    assert [(field.name, field.kind) for field in fields] == [
        ("count", "int32"),
        ("out", "float16*?"),
        ("scale", "float32"),
        ("parts", ""),
        ("last", ""),
        ("stride", "uint64"),
        ("flag", "int32"),
    ]
    part = fields[3]
    assert part.length == 2 and fields[4].length == 0 and part.parts == fields[4].parts
    assert [(f.name, f.kind) for f in part.parts] == [
        ("w", "void*"),
        ("bias", "float32*?"),
        ("more", "float32*?"),
        ("rows", "uint32"),
    ]
    assert kernel_structs(SOURCE) == {"some": "Params"}


class Part(ctypes.Structure):
    _fields_ = (
        ("w", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("more", ctypes.c_void_p),
        ("rows", ctypes.c_uint32),
    )


class Params(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("out", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("parts", Part * 2),
        ("last", Part),
        ("stride", ctypes.c_uint64),
        ("flag", ctypes.c_int32),
    )


def test_packed_as_c_lays_it_out():
    """Each number is where a C compiler's struct has it, with the struct's size; None is a null pointer."""
    text = SOURCE.replace("const void* w", "RF_NULLABLE const void* w")
    fields = struct_fields(text, "Params")
    assert dtype_of(fields).itemsize == ctypes.sizeof(Params)
    none = (None, None, None)
    values = {"count": -3, "out": None, "scale": 1.5, "stride": 1 << 40, "flag": 7}
    (packed,) = Packed(fields).checked({**values, "parts": [(*none, 5), (*none, 6)], "last": (*none, 8)}, 0)
    seen = Params.from_buffer_copy(packed.tobytes())
    assert {name: getattr(seen, name) for name in values} == values
    assert [seen.parts[0].rows, seen.parts[1].rows, seen.last.rows, seen.last.w] == [5, 6, 8, None]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"count": 1.5}, TypeError, "count: expected int32, got float"),
        ({"count": 1 << 40}, ValueError, "count: .*too large|count: .*out of bounds"),
        ({"out": np.zeros(3, np.float16)}, TypeError, "out: expected a CuPy array of float16, got ndarray"),
        ({"more": 1}, TypeError, "missing or unknown: more"),
        ({"parts": [(None, None, None, 0)] * 2}, TypeError, "parts: 0: w: expected a CuPy array of any dtype"),
        ({"parts": []}, TypeError, "parts: expected 2 structs, got 0"),
        ({"parts": [(None, None)] * 2}, TypeError, "parts: 0: expected 4 fields, got 2"),
    ],
)
def test_wrong_fields(change, error, words):
    """The field is named, and what is wrong with it."""
    packing = Packed(struct_fields(SOURCE.replace("    Part last;\n", ""), "Params"))
    values = {"count": 1, "out": None, "scale": 0.0, "parts": [], "stride": 1, "flag": 0}
    with pytest.raises(error, match=words):
        packing.checked({**values, **change}, 0)


@pytest.mark.parametrize(
    "declaration", ["bool yes;", "float values[3];", "Row row;", "u8 byte;", "float** p;", "int f() { return 1; }"]
)
def test_fields_that_host_and_device_do_not_share(declaration):
    """Are an error, that names the struct or the declaration."""
    with pytest.raises(ValueError, match="struct "):
        struct_fields(f"struct Params {{\n    {declaration}\n}};", "Params")


SOURCES = {path.name: source_text(path.name) for path in sorted(source_folder().glob("*.hip"))}
STRUCTS = [(source, name) for source, text in SOURCES.items() for name in sorted(set(kernel_structs(text).values()))]


@pytest.mark.parametrize(("source", "name"), STRUCTS)
def test_structs_of_the_sources(source, name):
    """The program that is compiled asserts the size of each, and where each field lies."""
    fields, text = struct_fields(SOURCES[source], name), kernels.with_defines(source, {})
    assert f"sizeof({name}) == {dtype_of(fields).itemsize}," in text
    assert all(f"RF_OFFSET({name}, {field.name}) ==" in text for field in fields)


@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_has_more_than_a_dozen_arguments(source):
    """More are a struct."""
    for kernel, parameters in re.findall(r"\brf_(\w+)\(([^()]*)\)\s*\{", SOURCES[source]):
        assert parameters.count(",") < 12, kernel


@needs_amd_compiler
def test_a_struct_laid_out_otherwise_does_not_compile(monkeypatch):
    """The assertions are the compiler's: a field that the host believes elsewhere is an error."""
    text = assertions(SOURCES["rope.hip"])
    wrong = text.replace("RF_OFFSET(RopeStoreParams, eps) == ", "RF_OFFSET(RopeStoreParams, eps) == 4 + ")
    assert wrong != text
    monkeypatch.setattr(kernels, "assertions", lambda source: wrong)
    with pytest.raises(amd_compiler.CompileError, match=r"RopeStoreParams\.eps as on the host"):
        code_for("rope.hip", (("RF_HEAD_DIM", "64"), ("RF_BLOCK_SIZE", "32")), "gfx1100")
