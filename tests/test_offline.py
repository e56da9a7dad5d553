"""Every kernel compiles for the AMD targets with clang alone, and its machine code is what was meant; and with nvcc.

`python tests/test_offline.py` prints what each kernel takes, of which docs/kernels.md shows some.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rocforge.kernels import source_folder

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


def variants(source: str) -> list[dict[str, str]]:
    """The sets of defines that a source names in its `// variants: NAME=value,value ...` lines."""
    lines = re.findall(r"^// variants: (.+)$", (source_folder() / source).read_text(), re.M)
    found = []
    for line in lines:
        axes = [(name, values.split(",")) for name, values in (axis.split("=") for axis in line.split())]
        names = [name for name, _ in axes]
        found += [dict(zip(names, values, strict=True)) for values in itertools.product(*(v for _, v in axes))]
    return found or [{}]


def targets(source: str) -> list[str]:
    """The targets that a source is for: those of its `// targets: ...` line, or all."""
    line = re.search(r"^// targets: (.+)$", (source_folder() / source).read_text(), re.M)
    return line[1].split() if line else list(TARGETS)


def compiled(source: str, target: str, defines: tuple[tuple[str, str], ...]) -> str:
    if target.startswith("sm_"):
        command = [NVCC, "-x", "cu", f"-arch={target}", "-ptx", "-std=c++17", "-DWAVE=32"]
    else:
        command = [CLANG, "-x", "hip", "--cuda-device-only", f"--offload-arch={target}", "-nogpuinc", "-nogpulib"]
        command += ["-O3", "-std=c++17", "-Wall", "-Werror", "-Wno-unused", f"-DWAVE={TARGETS[target]}", "-S"]
    command += [f"-D{name}={value}" for name, value in defines]
    command += ["-o", "-", str(source_folder() / source)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def compilation(*args: Any) -> Future[str]:
    return THREADS.submit(compiled, *args)


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
        body = text[text.index(f"\n{name}:") :]
        kernels[name]["instructions"] = len(re.findall(r"^\t[a-z]", body[: body.index(".Lfunc_end")], re.M))
    return kernels


def cases(targets_of: Callable[[str], list[str]]) -> list[Any]:
    """(source, defines, target) of each variant of each source."""
    return [
        pytest.param(source, tuple(defines.items()), target, id="-".join([source, *defines.values(), target]))
        for source in SOURCES
        for defines in variants(source)
        for target in targets_of(source)
    ]


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize(("source", "defines", "target"), cases(lambda source: ["sm_75", "sm_90"]))
def test_compiles_for_nvidia(source, defines, target):
    """The oldest generation that is supported, and the first whose launches overlap."""
    text = assembly(source, target, defines)
    assert ".entry" in text and ("griddepcontrol.wait" in text) == (target == "sm_90")


@needs_clang
@pytest.mark.parametrize(("source", "defines", "target"), cases(targets))
def test_no_kernel_spills(source, defines, target):
    """It compiles without a warning; every kernel keeps within registers and LDS, with no spill and no scratch, and the
    compiler knows of each access whether it goes to LDS or to memory."""
    text = assembly(source, target, defines)
    kernels = resources(text)
    assert kernels and not re.search(r"^\s(flat|scratch)_", text, re.M)
    for name, used in kernels.items():
        assert used["spills"] == used["sgpr_spills"] == used["scratch"] == 0, (name, used)
        assert used["vgpr"] <= VGPR_LIMIT and used["lds"] <= LDS_LIMIT, (name, used)


@needs_clang
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("qtype", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4"])
def test_matvec_instructions(qtype, target):
    """Products use the int8 dot instruction, and all loads of a cell's codes are 16 bytes, before the first product."""
    text = assembly("matvec.hip", target, (("QTYPE", qtype), ("COLUMNS", "1"), ("ROWS", "1")))
    body = text[text.index("\nmatvec:") :]
    body = body[: body.index("s_endpgm")]
    dot = r"v_dot4_i32_iu8|v_dot4c?_i32_i8"
    assert len(re.findall(dot, body)) >= 32
    wide = r"global_load_(?:dwordx4|b128)"
    loads_before = re.split(dot, body, maxsplit=1)[0]
    planes = {"Q4_0": 4, "Q8_0": 8, "Q4_K": 5, "Q6_K": 6, "MXFP4": 4}[qtype]
    assert len(re.findall(wide, loads_before)) >= planes


@needs_clang
@pytest.mark.parametrize("target", TARGETS)
def test_expert_instructions(target):
    """Products with experts use the int8 dot instruction or the matrix unit."""
    few, many = (assembly(source, target, (("QTYPE", "Q4_K"),)) for source in ("experts.hip", "experts_prefill.hip"))
    assert len(re.findall(r"v_dot4_i32_iu8|v_dot4c?_i32_i8", few)) >= 96
    unit = {64: "v_mfma_f32_16x16x16", 32: "v_wmma_f32_16x16x16"}[TARGETS[target]]
    assert len(re.findall("v_dot2" if target == "gfx1030" else unit, many)) >= 56


@needs_clang
@pytest.mark.parametrize("target", targets("tiles.hip"))
@pytest.mark.parametrize("qtype", ["Q4_K", "MXFP4"])
def test_tile_instructions(qtype, target):
    """A cell's loads are all issued before it is multiplied, and no weight passes through LDS."""
    text = assembly("tiles.hip", target, (("QTYPE", qtype), ("COLUMNS", "8"), ("ROW_WAVES", "1")))
    body = text[text.index("\ntile_products:") :]
    body = body[: body.index("s_endpgm")]
    unit = {64: "v_mfma_f32_16x16x16", 32: "v_wmma_f32_16x16x16"}[TARGETS[target]]
    assert len(re.findall(unit, body)) == {"gfx1100": 8, "gfx1201": 16}.get(target, 32)
    loads = list(re.finditer(r"global_load_(?:dwordx4|b128) .* (nt|slc dlc|glc slc|th:TH_LOAD_NT)\n", body))
    assert len(loads) >= 4
    assert unit not in body[loads[0].start() : loads[-1].end()]
    assert not re.search(r"\b(ds_write|ds_store)", body[: body.rindex(unit)])


@needs_clang
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("head_dim", "group"), [("64", "2"), ("128", "8")])
def test_attention_instructions(head_dim, group, target):
    """Scores are exchanged by one choice of two each: as choices of an index they are chains, of hundreds."""
    text = assembly("attention.hip", target, (("HEAD_DIM", head_dim), ("GROUP", group), ("BLOCK_SIZE", "32")))
    assert text.count("v_cndmask") < 80


def print_table() -> None:
    """VGPRs, bytes of LDS and instructions of each kernel and target."""
    print("| kernel | " + " | ".join(TARGETS) + " |\n|---" * (len(TARGETS) + 1) + "|")
    for source in SOURCES:
        for defines in variants(source):
            under_way = [(target, compilation(source, target, tuple(defines.items()))) for target in targets(source)]
            columns = {target: resources(future.result()) for target, future in under_way}
            label = " ".join(f"{value}" for value in defines.values())
            for name in next(iter(columns.values())):
                used = [columns[target][name] if target in columns else None for target in TARGETS]
                cells = [f"{u['vgpr']}, {u['lds']} B, {u['instructions']}" if u else "-" for u in used]
                print(f"| {Path(source).stem}: {name} {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(print_table())
