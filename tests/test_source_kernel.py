"""What rf.Kernel reads of a source, which needs no device."""

import pytest

import rocforge as rf

SOURCE = """
#include "target/platform.h"
// RF_KERNEL(64) f(int commented) {
RF_KERNEL(64) rocforge_f(const rocforge_type* t, unsigned int n) {
}
extern "C" __global__ void g(const float* __restrict__ x, half *y, long long count, void* any) {
}
"""


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
        ('#include "formats/none.h"\nRF_KERNEL(64) f(int n) {}', "f", "none.h; rocforge has .*formats/rows.h"),
    ],
)
def test_wrong_sources(source, name, message):
    """A kernel that is not there, parameters and headers of other kinds are ValueErrors that say what there is."""
    with pytest.raises(ValueError, match=message):
        rf.Kernel(source, name)
