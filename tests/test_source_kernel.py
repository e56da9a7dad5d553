"""What rf.Kernel reads of a source, which needs no device."""

import doctest

import pytest
from offline import amd_compiler, card_with, code_objects, needs_amd_compiler, needs_nvrtc, nvidia_compiler

import rocforge as rf
from rocforge.device.compiler import options
from rocforge.device.kernels import defined, with_includes

SOURCE = """
#include "target/platform.h"
// RF_KERNEL(64) f(int commented) {
RF_KERNEL(64) rocforge_f(const rocforge_type* t, unsigned int n) {
}
extern "C" __global__ void g(const float* __restrict__ x, half *y, long long count, void* any) {
}
"""
EXAMPLE = doctest.DocTestParser().get_examples(rf.Kernel.__doc__)[1].source.split("'''")[1]


def test_parameters():
    """They are told by their types; a pointer to what NumPy does not know takes any array."""
    assert repr(rf.Kernel(SOURCE, "rocforge_f")) == "Kernel rocforge_f(void* t, uint32 n)"
    assert repr(rf.Kernel(SOURCE, "g")) == "Kernel g(float32* x, float16* y, int64 count, void* any)"


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (SOURCE, "h", "no kernel 'h'; those that it does: rocforge_f, g"),
        ("__global__ void f(int n) {}", "f", 'f is found by its plain name: .* extern "C"'),
        ("", "f", "no kernel 'f'; those that it does: none"),
        ("RF_KERNEL(64) f(Part part) {}", "f", "f: the parameter 'Part part'; allowed are pointers, and .*float"),
        ("RF_KERNEL(64) f(float** rows) {}", "f", r"the parameter 'float\*\* rows'"),
        ('#include "formats/none.h"\nRF_KERNEL(64) f(int n) {}', "f", "no header formats/none.h; .*formats/rows.h"),
    ],
)
def test_wrong_sources(source, name, message):
    """A kernel that is not there, parameters and headers of other kinds are ValueErrors that say what there is."""
    with pytest.raises(ValueError, match=message):
        rf.Kernel(source, name)


def program(qtype):
    """The docstring's example for a format, as it is compiled."""
    return defined(with_includes(EXAMPLE, "example.hip", set()), {"RF_QTYPE": qtype})


@needs_amd_compiler
@pytest.mark.parametrize(("target", "qtype"), [("gfx942", "Q4_K"), ("gfx1100", "Q6_K"), ("gfx1201", "IQ2_S")])
def test_the_example_compiles_for_amd(target, qtype):
    """Without a warning, a spill or scratch memory."""
    code, log = amd_compiler.compile_program(program(qtype), (*options(card_with(target)), "-Wall", "-Wno-unused"))
    kernel = code_objects.kernels_of(code, target)["row_products"]
    assert not log and not kernel.spills + kernel.scratch


@needs_nvrtc
def test_the_example_compiles_for_nvidia():
    """By NVRTC."""
    code = nvidia_compiler.compile_program(program("Q4_K"), options(card_with("sm_90"), "compute_90a"))
    assert ".entry row_products" in code.ptx
