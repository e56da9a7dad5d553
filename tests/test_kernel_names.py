"""Names in rawkernels/ stay clear of what the compilers' headers declare, whatever that is."""

from __future__ import annotations

import re

import offline
import pytest
from offline import SOURCES, amd_compiler, needs_amd_compiler, under_check

from rocforge.device.kernels import PREFIX, source_folder

pytestmark = pytest.mark.slow

FILES = sorted(path for path in source_folder().rglob("*") if path.suffix in (".h", ".hip"))
MACRO = r"^[ \t]*#[ \t]*define[ \t]+(\w+)"
COMMENT_OR_STRING = r"//[^\n]*|\"(?:\\.|[^\"\\\n])*\""
DIRECTIVE = r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*"
NAMESPACE = r"^namespace rocforge \{$.*?^\}  // namespace rocforge$"
CLASH = "rf_clash_t"
TARGETS = ["gfx942", "gfx1030", "gfx1100", "gfx1201"] if offline.EVERY_TARGET else ["gfx942", "gfx1201"]
"""One for each path through the sources."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_but_the_namespace(path):
    """Macros begin with RF_, and all else is in namespace rocforge, for NVIDIA and the host too."""
    text = path.read_text()
    assert all(name.startswith("RF_") for name in re.findall(MACRO, text, re.M))
    outside = re.sub(NAMESPACE, "", text, flags=re.M | re.S)
    assert not re.sub(f"{COMMENT_OR_STRING}|{DIRECTIVE}", "", outside, flags=re.M).strip()


def words() -> list[str]:
    """Every word of the sources but those that may be at global scope: macros, kernels, the namespace."""
    text = re.sub(COMMENT_OR_STRING, "", "\n".join(path.read_text() for path in FILES))
    return sorted(
        word for word in set(re.findall(r"[A-Za-z_]\w*", text)) if not word.startswith(("RF_", PREFIX, "rocforge"))
    )


def hostile_header(target: str) -> str:
    """A header that declares each word, at global scope, as a type that nothing is.

    Left out are those that it may not declare: the language's, and what hiprtc's own header has declared before.
    """
    left = words()
    while True:
        header = '#line 1 "hostile.h"\n' + "".join(f"typedef struct {CLASH} {word};\n" for word in left)
        try:
            amd_compiler.check_program(header, ["-std=c++17", f"--offload-arch={target}", "-ferror-limit=0"])
            return header
        except amd_compiler.CompileError as error:
            refused = {int(line) - 1 for line in re.findall(r"^hostile\.h:(\d+):\d+: error", str(error), re.M)}
            assert refused, error
            left = [word for number, word in enumerate(left) if number not in refused]


@pytest.fixture(scope="module", autouse=True)
def processes_end():
    yield
    offline.stop()


@needs_amd_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_sources_compile_behind_hostile_header(target):
    """Behind that header, and hiprtc's own, no name at global scope is free for ours; each source compiles."""
    header, options = hostile_header(target), [f"--offload-arch={target}"]
    sources = [source for source in SOURCES if target in offline.targets(source)]
    under_way = [under_check(source, offline.variants(source)[0], target, header) for source in sources]
    for declaration in (
        "typedef unsigned u32;",
        "struct Accumulator { int x; };",
        "void lane() {}",
        "struct half2 {};",
    ):
        with pytest.raises(amd_compiler.CompileError, match=r"redefinition|conflicts"):
            amd_compiler.check_program(header + declaration, options)
    for future in under_way:
        future.result()
