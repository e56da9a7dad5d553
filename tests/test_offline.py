"""Every kernel compiles for the AMD targets with clang alone, and its machine code is what was meant; and with nvcc.

`python tests/test_offline.py > docs/registers.md` writes down what each kernel takes.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from rocforge.kernels import source_folder, variants
from rocforge.ops.dequantize import PLANAR

NVIDIA = {"sm_75": False, "sm_90": True}
"""The oldest generation that is supported, and the first whose launches overlap; whether every format is compiled."""
TARGETS = {"gfx90a": 64, "gfx942": 64, "gfx1030": 32, "gfx1100": 32, "gfx1201": 32}
CLANG, NVCC = shutil.which("clang++-19"), shutil.which("nvcc")
SOURCES = sorted(path.name for path in source_folder().glob("*.hip"))
LDS_LIMIT = 64 << 10
VGPR_LIMIT = 256
"""A lane's registers on RDNA; CDNA has 512, of which a kernel past 256 leaves only one wave a SIMD."""

THREADS = ThreadPoolExecutor(os.cpu_count())
ENVIRONMENT = dict(os.environ)
"""A copy, since pytest changes the process's own before each test, and a thread may be starting a process with it."""

needs_clang = pytest.mark.skipif(CLANG is None, reason="needs clang++-19 with the AMDGPU target (Debian's clang-19)")


def targets(source: str) -> list[str]:
    """The targets that a source is for: those of its `// targets: ...` line, or all."""
    line = re.search(r"^// targets: (.+)$", (source_folder() / source).read_text(), re.M)
    return line[1].split() if line else list(TARGETS)


def compiled(source: str, target: str, defines: tuple[tuple[str, str], ...]) -> str:
    if target.startswith("sm_"):
        command = [NVCC, "-x", "cu", f"-arch={target}", "-ptx", "-std=c++17", "-DRF_WAVE=32"]
        command += ["-Xcicc", "-O0"]  # nothing is asked of the code but that it is there
    else:
        command = [CLANG, "-x", "hip", "--cuda-device-only", f"--offload-arch={target}", "-nogpuinc", "-nogpulib"]
        command += ["-O3", "-std=c++17", "-Wall", "-Werror", "-Wno-unused", f"-DRF_WAVE={TARGETS[target]}", "-S"]
    command += [f"-D{name}={value}" for name, value in defines]
    command += ["-o", "-", str(source_folder() / source)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def compilation(*args: Any) -> Future[str]:
    return THREADS.submit(compiled, *args)


def covering(found: list[dict[str, str]], formats: bool = True) -> list[dict[str, str]]:
    """As few of a source's variants as have each value of each define; without `formats`, of each but QTYPE."""
    seen, kept = set(), []
    for defines in found:
        values = {(name, value) for name, value in defines.items() if formats or name != "RF_QTYPE"}
        if not kept or not values <= seen:
            seen |= values
            kept.append(defines)
    return kept


def assembly(source: str, target: str, defines: tuple[tuple[str, str], ...]) -> str:
    """The assembly text of a source, with the resources of its kernels at the end."""
    return compilation(source, target, defines).result()


@pytest.fixture(scope="module", autouse=True)
def compiled_ahead(request):
    """Compiles on all processors what the chosen tests will ask for."""
    for item in request.session.items:
        if item.path == request.path and "source" in item.callspec.params and not skipped(item):
            compilation(*(item.callspec.params[name] for name in ("source", "target", "defines")))
    yield
    THREADS.shutdown(cancel_futures=True)


def skipped(item: pytest.Item) -> bool:
    return any(mark.args[0] for mark in item.iter_markers("skipif"))


def resources(text: str) -> dict[str, dict[str, int]]:
    """Kernel name -> its instructions, registers, spills, LDS and scratch, from an assembly text."""
    kernels = {}
    for part in re.split(r"^  - \.a", text[text.index("amdhsa.kernels:") :], flags=re.M)[1:]:
        name = re.search(r"^    \.name: +(\S+)", part, re.M)[1]
        kernels[name] = {
            key: int(re.search(rf"^    \.{field}: +(\d+)", part, re.M)[1])
            for key, field in {
                "vgpr": "vgpr_count",
                "sgpr": "sgpr_count",
                "spills": "vgpr_spill_count",
                "sgpr_spills": "sgpr_spill_count",
                "lds": "group_segment_fixed_size",
                "scratch": "private_segment_fixed_size",
            }.items()
        }
        kernels[name]["instructions"] = len(re.findall(r"^\t[a-z]", body_of(text, name), re.M))
    return kernels


def body_of(text: str, name: str) -> str:
    """A kernel's instructions, from an assembly text."""
    body = text[text.index(f"\n{name}:") :]
    return body[: body.index(".Lfunc_end")]


def within_limits(used: dict[str, int]) -> bool:
    """Whether a kernel has registers and LDS enough, with no spill and no scratch."""
    lacking = used["spills"] + used["sgpr_spills"] + used["scratch"]
    return not lacking and used["vgpr"] <= VGPR_LIMIT and used["lds"] <= LDS_LIMIT


def cases(chosen: Iterable[tuple[str, dict[str, str], str]]) -> list[Any]:
    """Parameters source, defines and target of a test."""
    return [
        pytest.param(source, tuple(defines.items()), target, id="-".join([source, *defines.values(), target]))
        for source, defines, target in chosen
    ]


def every_case() -> Iterator[tuple[str, dict[str, str], str]]:
    """Each variant of each source, for each of its targets."""
    for source in SOURCES:
        yield from ((source, *case) for case in itertools.product(variants(source), targets(source)))


def nvidia_cases() -> Iterator[tuple[str, dict[str, str], str]]:
    """Variants with each value of each define; formats for one generation alone, since no format's code knows it."""
    for source in SOURCES:
        for target, formats in NVIDIA.items():
            yield from ((source, defines, target) for defines in covering(variants(source), formats))


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize(("source", "defines", "target"), cases(nvidia_cases()))
def test_compiles_for_nvidia(source, defines, target):
    """It compiles, and what begins early waits."""
    text = assembly(source, target, defines)
    assert ".entry" in text and ("griddepcontrol.wait" in text) == (target == "sm_90")


@needs_clang
@pytest.mark.parametrize(("source", "defines", "target"), cases(every_case()))
def test_no_kernel_spills(source, defines, target):
    """It compiles without a warning; every kernel keeps within registers and LDS, with no spill and no scratch, and the
    compiler knows of each access whether it goes to LDS or to memory."""
    text = assembly(source, target, defines)
    kernels = resources(text)
    assert kernels and not re.search(r"^\s(flat|scratch)_", text, re.M)
    for name, used in kernels.items():
        assert within_limits(used), (name, used)


DOT = r"\bv_dot4_i32_iu8|\bv_dot4c?_i32_i8"
WEIGHTS = r"global_load_(?:dwordx4|b128) .* (?:nt|slc dlc|glc slc|slc|th:TH_LOAD_NT)\n"
"""Loads of 16 bytes that are not kept in the first-level cache."""


@needs_clang
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("qtype", PLANAR)
@pytest.mark.parametrize(
    ("kernel", "columns"),
    [("matvec", 1), ("matvec_gated", 1), ("matvec_then_norm", 1), ("matvec", 2), ("matvec_gated", 2)],
)
def test_matvec_instructions(kernel, columns, qtype, target):
    """Products use the int8 dot instruction, and all loads of a cell's codes are 16 bytes, before the first product."""
    text = assembly("matvec.hip", target, (("RF_QTYPE", qtype), ("RF_COLUMNS", str(columns)), ("RF_ROWS", str(columns))))
    rows = 2 if kernel == "matvec_gated" else columns
    before, *products = re.split(DOT, body_of(text, kernel))
    assert len(products) >= 32 * rows * columns
    assert len(re.findall(WEIGHTS, before)) >= PLANAR[qtype][0] * rows


@needs_clang
@pytest.mark.parametrize("target", TARGETS)
def test_expert_instructions(target):
    """Products with experts use the int8 dot instruction or the matrix unit."""
    few, many = (assembly(source, target, (("RF_QTYPE", "Q4_K"),)) for source in ("experts.hip", "experts_prefill.hip"))
    assert len(re.findall(r"v_dot4_i32_iu8|v_dot4c?_i32_i8", few)) >= 96
    unit = {64: "v_mfma_f32_16x16x16", 32: "v_wmma_f32_16x16x16"}[TARGETS[target]]
    assert len(re.findall("v_dot2" if target == "gfx1030" else unit, many)) >= 56


@needs_clang
@pytest.mark.parametrize("target", targets("tiles.hip"))
@pytest.mark.parametrize("qtype", ["Q4_K", "MXFP4"])
def test_tile_instructions(qtype, target):
    """Loads are in use 32 elements later at the soonest, and no weight passes through LDS."""
    text = assembly("tiles.hip", target, (("RF_QTYPE", qtype), ("RF_COLUMNS", "8"), ("RF_ROW_WAVES", "1")))
    body = body_of(text, "tile_products")
    unit = {64: "v_mfma_f32_16x16x16", 32: "v_wmma_f32_16x16x16"}[TARGETS[target]]
    a_run = {"gfx1100": 2, "gfx1201": 4}.get(target, 8)
    assert len(re.findall(unit, body)) == 4 * a_run
    before, loop = body[: body.index(unit)], body[body.index(unit) :]
    loads = list(re.finditer(WEIGHTS, loop))
    assert len(re.findall(WEIGHTS, before)) >= 2 and len(loads) >= PLANAR[qtype][0]
    for load in loads:
        first, after = int(re.search(r"v\[(\d+):", load[0])[1]), loop[load.end() :]
        until_used = re.split(rf"\bv(?:{first}|{first + 1}|{first + 2}|{first + 3})\b|\bv\[{first}:", after, maxsplit=1)
        assert len(until_used) == 1 or until_used[0].count(unit) >= a_run
    assert not re.search(r"\b(ds_write|ds_store)", body[: body.rindex(unit)])


@needs_clang
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("head_dim", "group"), [("64", "2"), ("128", "8")])
def test_attention_instructions(head_dim, group, target):
    """Scores are exchanged by one choice of two each: as choices of an index they are chains, of hundreds."""
    text = assembly("attention.hip", target, (("RF_HEAD_DIM", head_dim), ("RF_GROUP", group), ("RF_BLOCK_SIZE", "32")))
    assert text.count("v_cndmask") < 100


PAGE = """# Registers

What each kernel takes on each target, as `python tests/test_offline.py > docs/registers.md` writes it, by {compiler}:

VGPRs / bytes of LDS / bytes of scratch / registers spilled / instructions

Allowed are {vgpr} VGPRs a lane and {lds:,} bytes of LDS a block, no scratch and no spill; what is beyond that is bold.
Behind a kernel's name are the values that its source is compiled with, of the defines in its `// variants:` lines.
"""


def print_page() -> None:
    """What each kernel takes on each target, as a page in Markdown."""
    compiler = subprocess.run([CLANG, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    print(PAGE.format(compiler=compiler, vgpr=VGPR_LIMIT, lds=LDS_LIMIT))
    every = {target: [] for target in TARGETS}
    for source in SOURCES:
        print(f"## {source}\n\n{table_row('kernel', TARGETS)}\n" + "|---" * (len(TARGETS) + 1) + "|")
        for defines in variants(source):
            under_way = {target: compilation(source, target, tuple(defines.items())) for target in targets(source)}
            used = {target: resources(future.result()) for target, future in under_way.items()}
            for name in next(iter(used.values())):
                cells = [figures(used[target][name]) if target in used else "" for target in TARGETS]
                print(table_row(" ".join([f"`{name}`", *defines.values()]), cells))
            for target, kernels in used.items():
                every[target] += kernels.values()
        print()
    print(f"## The most of any kernel\n\n{table_row('', TARGETS)}\n" + "|---" * (len(TARGETS) + 1) + "|")
    most = [{key: max(used[key] for used in every[target]) for key in every[target][0]} for target in TARGETS]
    print(table_row(f"{len(every['gfx942'])} kernels", map(figures, most)))


def table_row(first: str, cells: Iterable[str]) -> str:
    return " | ".join(["| " + first, *cells]) + " |"


def figures(used: dict[str, int]) -> str:
    numbers = used["vgpr"], used["lds"], used["scratch"], used["spills"] + used["sgpr_spills"], used["instructions"]
    text = " / ".join(map(str, numbers))
    return text if within_limits(used) else f"**{text}**"


if __name__ == "__main__":
    print_page()
