"""Finding, putting together and checking kernels, as far as that needs no device."""

import re
import shutil

import numpy as np
import pytest

from rocforge.device import kernels
from rocforge.device.kernel_arguments import check_of
from rocforge.device.kernels import Kernel, source_folder, source_text
from rocforge.formats.blocks import QTYPES, lattice
from rocforge.formats.planar import PLANAR


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package folder in the place of rocforge's."""
    folder = tmp_path / "rocforge"
    folder.mkdir()
    monkeypatch.setattr(kernels, "__file__", str(folder / "device" / "kernels.py"))
    source_text.cache_clear()
    yield folder
    source_text.cache_clear()


def test_sources_of_the_checkout():
    """In a checkout the sources are those beside the package."""
    assert (source_folder() / "matvec.hip").exists() and source_folder().name == "rawkernels"


def test_sources_of_a_wheel_come_first(package):
    """In a wheel they lie in the package, and that wins over a folder beside it."""
    for folder in (package, package.parent):
        (folder / "rawkernels" / "target").mkdir(parents=True)
        (folder / "rawkernels" / "target" / "platform.h").touch()
    assert source_folder() == package / "rawkernels"
    shutil.rmtree(package / "rawkernels")
    assert source_folder() == package.parent / "rawkernels"


def test_no_sources(package):
    """Without sources, the error says where they were looked for."""
    with pytest.raises(FileNotFoundError, match=re.escape(str(package))):
        source_folder()


def test_includes_are_put_in_once(package):
    """An include is replaced by the file, once however often it is named, and line numbers stay the files'."""
    folder = package / "rawkernels"
    (folder / "target").mkdir(parents=True)
    (folder / "target" / "platform.h").touch()
    (folder / "p.h").write_text("#pragma once\nint p;\n")
    (folder / "quants.h").write_text('#include "p.h"\nint q;\n')
    (folder / "k.hip").write_text('#include "p.h"\n#include "quants.h"\nint k;\n')
    lines = source_text("k.hip").splitlines()
    assert [line for line in lines if line.startswith("int")] == ["int p;", "int q;", "int k;"]
    assert not any("include" in line or "pragma" in line for line in lines)
    assert lines[-2:] == ['#line 3 "k.hip"', "int k;"]


def test_every_source_is_whole():
    """No include is left in any source."""
    for path in source_folder().glob("*.hip"):
        assert "#include" not in source_text(path.name) and "RF_KERNEL" in source_text(path.name)


def test_defines_come_first():
    """Macros are defined before the source, in an order that does not depend on how they were given; lines stay."""
    text = kernels.with_defines("repack.hip", {"RF_QTYPE": "Q4_K", "RF_TOKENS": 2})
    assert text == "#define RF_QTYPE Q4_K\n#define RF_TOKENS 2\n" + source_text("repack.hip")
    assert kernels.with_defines("repack.hip", {}) == source_text("repack.hip")


def test_numbers_are_cast():
    """A number becomes the declared type; what does not fit it is an error, as is a float for an integer."""
    check = check_of("int32")
    assert type(check(7, 0)) is np.int32 and check(np.int64(7), 0) == 7
    for wrong in (1.5, "1", True, None):
        with pytest.raises(TypeError, match="int32"):
            check(wrong, 0)
    with pytest.raises(ValueError):
        check(1 << 40, 0)
    assert type(check_of("float32")(3, 0)) is np.float32


def test_only_device_arrays():
    """A NumPy array, or none where none is allowed, is refused; an optional one may be missing."""
    for wrong in (np.zeros(3, np.float32), None, 3):
        with pytest.raises(TypeError, match="CuPy array of float32"):
            check_of("float32*")(wrong, 0)
    assert check_of("float32*?")(None, 0) == 0


def test_repr():
    """A kernel says where it comes from."""
    assert repr(Kernel("matvec.hip", "matvec", "int32", RF_QTYPE="Q8_0")) == "Kernel(matvec.hip, matvec, RF_QTYPE=Q8_0)"


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_lattices(name):
    """The points in rawkernels/formats/grids.h are the gguf package's."""
    points = lattice(QTYPES[name])[0, 0].astype(int)
    text, table = (source_folder() / "formats" / "grids.h").read_text(), name.replace("IQ1_S", "IQ1")
    listed = re.search(rf"\b{table}_POINTS\[{len(points)}\] = \{{(.*?)\}}", text, re.S)[1]
    codes = np.array([int(word, 16) for word in re.findall("0x[0-9a-f]+", listed)])
    bits = 2 if points.shape[1] == 8 else 3
    values = codes[:, None] >> bits * np.arange(points.shape[1]) & (1 << bits) - 1
    assert np.array_equal(np.unique(points)[values], points)


BEGINNINGS = ("accumulate<", "product<", "block_sums<", "multiply_parts<", "gated_product\\(", "multiply_pairs\\(")
BEGINNINGS += ("add_normed<", "rehearsed\\(")
BESIDE = r"(wait_unless_beside|\bdecode)\(.*wait_beside\(\);\n\}"
"""What a kernel does that may run beside another: it waits at first, or else at its end."""
WAITS = "|".join([r"wait_for_previous\(\)", *(rf"\b{name}" for name in BEGINNINGS), BESIDE])
"""What a kernel does at first: it waits, or calls what loads weights and then waits."""


@pytest.mark.parametrize("path", sorted(source_folder().glob("*.hip")), ids=lambda path: path.name)
def test_every_kernel_waits(path):
    """Launches of a captured graph overlap, so a kernel that did not wait would read what is not yet written."""
    _, *bodies = re.split(r"^(?: {4})?(?=RF_(?:KERNEL|MATVEC)\w*\b)", path.read_text(), flags=re.MULTILINE)
    assert bodies and all(re.search(WAITS, body, re.DOTALL) for body in bodies)


@pytest.mark.parametrize("path", sorted(source_folder().rglob("*.h*")), ids=lambda path: path.name)
def test_no_generic_lambdas(path):
    """NVRTC takes those for functions of the host, and refuses them; nvcc and hiprtc do not."""
    assert not re.search(r"\]\s*\([^)]*\bauto\b", path.read_text())


def test_variants_of_all_formats(package):
    """PLANAR and BLOCKS among variants are the formats with planes and those without, together all there are."""
    folder = package / "rawkernels"
    (folder / "target").mkdir(parents=True)
    (folder / "target" / "platform.h").touch()
    (folder / "k.hip").write_text(
        "// variants: RF_QTYPE=PLANAR,Floats<f16> RF_TOKENS=1,2\n// variants: RF_QTYPE=BLOCKS\n"
    )
    found = kernels.variants("k.hip")
    planar = [f for f in found if "RF_TOKENS" in f]
    assert [f["RF_TOKENS"] for f in planar] == ["1", "2"] * (len(PLANAR) + 1)
    assert [f["RF_QTYPE"] for f in planar[::2]] == [*PLANAR, "Floats<f16>"]
    assert sorted([*PLANAR, *(f["RF_QTYPE"] for f in found if f not in planar)]) == sorted(QTYPES)
