"""Every kernel compiles with AMD's hiprtc for the supported cards, to the machine code that was meant; and with
NVIDIA's NVRTC.

A plain run compiles each variant of each source for one target, in turn, of eight that stand for all sets of
instructions, and each source for all eight. All variants for all targets, as they are compiled each night, are twelve
times as many:

    EVERY_TARGET=1 pytest tests/test_offline.py

`python tests/test_offline.py > docs/registers.md` writes down what each kernel takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import nvidia_compiler
import offline
import pytest
from offline import (
    REPRESENTATIVES,
    SOURCES,
    Case,
    amd_compiler,
    code_objects,
    compilation,
    needs_amd_compiler,
    needs_nvrtc,
    targets,
    variants,
)

from rocforge.device.cards import AMD
from rocforge.device.kernels import PREFIX, is_for
from rocforge.formats.planar import PLANAR

pytestmark = pytest.mark.slow

NVIDIA = ("compute_75", "compute_90")
"""The oldest generation that is supported, and the first whose launches overlap."""
PTXAS = ("attention.hip", "attention_prefill.hip", "experts.hip", "matvec.hip", "peers.hip", "wide.hip")
"""Sources of which a plain run makes machine code for Hopper: between them they have most instructions written as PTX,
which ptxas alone reads."""
STACK_LIMIT = 128
"""Bytes of a thread's stack on Hopper: a few registers that are spilled, but no array."""
EVERY_FORMAT = ("matvec.hip", "repack.hip")
"""Sources of which NVIDIA's compiler sees every format: between them, all of a format's code."""
LDS_LIMIT = 64 << 10
VGPR_LIMIT = 256
"""A lane's registers on RDNA; CDNA has 512, of which a kernel past 256 leaves only one wave a SIMD."""
CASES = list(offline.every_case() if offline.EVERY_TARGET else offline.covering_cases())


def parameters(chosen: Iterable[Case]) -> list[Any]:
    """Parameters source, defines and target of a test."""
    return [pytest.param(*case, id="-".join([case[0], *(value for _, value in case[1]), case[2]])) for case in chosen]


def cases_of(source: str, **values: Iterable[str]) -> list[Any]:
    """The cases of a source whose defines have one of these values each, as parameters."""
    return parameters(
        (name, defines, target)
        for name, defines, target in CASES
        if name == source and all(dict(defines).get(define) in allowed for define, allowed in values.items())
    )


def covering(source: str, formats: bool) -> Iterator[offline.Defines]:
    """As few of a source's variants as have each value of each define; without `formats`, of each but QTYPE."""
    seen: set[tuple[str, str]] = set()
    for number, defines in enumerate(variants(source)):
        values = {(name, value) for name, value in defines if formats or name != "RF_QTYPE"}
        if not number or not values <= seen:
            seen |= values
            yield defines


def nvidia_cases() -> list[Any]:
    """Variants with each value of each define for one generation, and one of each source for the other, which has all
    each night, as that one has every format of every source."""
    return parameters(
        (source, defines, target)
        for source in SOURCES
        for target in NVIDIA
        if is_for(source, target.replace("compute", "sm"))
        for defines in _nvidia_variants(source, target)
    )


def _nvidia_variants(source: str, target: str) -> list[offline.Defines]:
    if target == NVIDIA[-1]:
        return list(covering(source, offline.EVERY_TARGET or source in EVERY_FORMAT))
    return list(covering(source, formats=False)) if offline.EVERY_TARGET else variants(source)[:1]


@pytest.fixture(scope="module", autouse=True)
def compiled_ahead(request):
    """Compiles on all processors what the chosen tests will ask for."""
    for item in request.session.items:
        if item.path == request.path and hasattr(item, "callspec") and not skipped(item):
            compilation(*(item.callspec.params[name] for name in ("source", "defines", "target")))
    yield
    offline.stop()


def skipped(item: pytest.Item) -> bool:
    return any(mark.args[0] for mark in item.iter_markers("skipif"))


@needs_nvrtc
@pytest.mark.parametrize(("source", "defines", "target"), nvidia_cases())
def test_compiles_for_nvidia(source, defines, target):
    """It compiles, and what begins early waits.

    A float16 comes in a word: in a register of 16 bits, ptxas makes an integer of its value where a byte is stored.
    """
    text = compilation(source, defines, target).result().ptx
    assert "cvt.rn.f16.f32 %" not in text.replace("\t", " ")
    assert ".entry" in text and ("griddepcontrol.wait" in text) == (target == "compute_90")


@needs_nvrtc
@pytest.mark.parametrize(
    ("source", "defines", "target"),
    [case for case in nvidia_cases() if case.values[0] == "attention_prefill.hip" and case.values[2] == "compute_90"],
)
def test_prompts_on_warpgroups(source, defines, target):
    """Hopper multiplies heads of whole 64s by warpgroups, all others by waves."""
    text, wide = compilation(source, defines, target).result().ptx, int(dict(defines)["RF_HEAD_DIM"]) % 64 == 0
    assert ("wgmma.mma_async" in text) == wide and ("mma.sync" in text) != wide


@needs_nvrtc
@pytest.mark.parametrize(
    ("source", "defines", "target"),
    [
        pytest.param(source, defines, target.replace("compute", "sm"), id=case.id.replace("compute", "sm"))
        for case in nvidia_cases()
        for source, defines, target in [case.values]
        if offline.EVERY_TARGET or (source in PTXAS and target == NVIDIA[-1] and defines == variants(source)[0])
    ],
)
def test_machine_code_for_nvidia(source, defines, target):
    """NVRTC makes it as on a card, and ptxas takes all that is written as PTX; on Hopper no array lies in memory."""
    frames = re.findall(r"(\d+) bytes stack frame", compilation(source, defines, target).result().log)
    assert frames and (target != "sm_90" or max(map(int, frames)) <= STACK_LIMIT)


@needs_nvrtc
def test_nvrtc_refuses():
    """What does not compile for NVIDIA is an error, that says where."""
    with pytest.raises(nvidia_compiler.CompileError, match=r'program.hip\(2\): error: identifier "nothing"'):
        nvidia_compiler.compile_program("__global__ void f(int* x) {\n*x = nothing; }", ["-arch=compute_90"])


def within_limits(kernel: code_objects.Kernel) -> bool:
    """Whether a kernel has registers and LDS enough, with no spill and no scratch."""
    return not kernel.spills + kernel.scratch and kernel.vgprs <= VGPR_LIMIT and kernel.lds <= LDS_LIMIT


@needs_amd_compiler
@pytest.mark.parametrize(("source", "defines", "target"), parameters(CASES))
def test_no_kernel_spills(source, defines, target):
    """It compiles without a warning; every kernel keeps within registers and LDS, with no spill and no scratch, and the
    compiler knows of each access whether it goes to LDS or to memory."""
    kernels = compilation(source, defines, target).result()
    assert kernels and all(name.startswith(PREFIX) for name in kernels)
    for name, kernel in kernels.items():
        assert within_limits(kernel), (name, figures(kernel))
        assert not re.search(r"^\t(flat|scratch)_", kernel.text, re.M), name


DOT = r"\bv_dot4_i32_iu8|\bv_dot4c?_i32_i8"
WEIGHTS = r"global_load_(?:dwordx4|b128) .* (?:nt|slc dlc|glc slc|slc|th:TH_LOAD_NT)\n"
"""Loads of 16 bytes that are not kept in the first-level cache."""


def matrix_unit(target: str) -> str:
    """The instruction that multiplies matrices, or, on RDNA 2, pairs of numbers."""
    return {"gfx9": "v_mfma_f32_16x16x16", "gfx103": "v_dot2"}.get(offline.family(target), "v_wmma_f32_16x16x16")


@needs_amd_compiler
@pytest.mark.parametrize(
    ("source", "defines", "target"), cases_of("matvec.hip", RF_QTYPE=PLANAR, RF_QTYPE_LAST=[None], RF_TOKENS="12")
)
def test_matvec_instructions(source, defines, target):
    """Products use the int8 dot instruction, and all loads of a cell's codes are 16 bytes, before the first product."""
    kernels, qtype, columns = compilation(source, defines, target).result(), defines[0][1], int(defines[1][1])
    rows_of = {"matvec": columns, "matvec_gated": 2}
    if columns == 1:
        rows_of["matvec_then_norm"] = 1
    for kernel, rows in rows_of.items():
        before, *products = re.split(DOT, kernels[PREFIX + kernel].text)
        assert len(products) >= 32 * rows * columns
        assert len(re.findall(WEIGHTS, before)) >= PLANAR[qtype][0] * rows


@needs_amd_compiler
@pytest.mark.parametrize(("source", "defines", "target"), cases_of("experts.hip", RF_QTYPE=PLANAR))
def test_expert_instructions(source, defines, target):
    """Products with experts use the int8 dot instruction."""
    texts = [kernel.text for kernel in compilation(source, defines, target).result().values()]
    assert sum(len(re.findall(DOT, text)) for text in texts) >= 96


@needs_amd_compiler
@pytest.mark.parametrize(("source", "defines", "target"), cases_of("experts_prefill.hip", RF_QTYPE=PLANAR))
def test_expert_prefill_instructions(source, defines, target):
    """Products of many tokens with experts use the matrix unit."""
    texts = [kernel.text for kernel in compilation(source, defines, target).result().values()]
    assert sum(text.count(matrix_unit(target)) for text in texts) >= 56


def end_of_loop(kernel: code_objects.Kernel, inside: int) -> int:
    """Where, in a kernel's text, the last jump ends that leads from behind a place in it to before that."""
    lines, place = kernel.text.splitlines(keepends=True), kernel.starts[kernel.text.count("\n", 0, inside)]
    end = 0
    for number, (start, line) in enumerate(zip(kernel.starts, lines, strict=True), 1):
        jump = re.match(r"\ts_c?branch\S* (\d+)\n", line)
        # by a signed number of words of 4 bytes, from the instruction after it
        if jump and start > place >= start + 4 + 4 * ((int(jump[1]) + 0x8000) % 0x10000 - 0x8000):
            end = sum(map(len, lines[:number]))
    return end


@needs_amd_compiler
@pytest.mark.parametrize(
    ("source", "defines", "target"), cases_of("tiles.hip", RF_QTYPE=["Q4_K", "IQ4_XS"], RF_TOKENS="8")
)
def test_tile_instructions(source, defines, target):
    """Loads are in use 32 elements later at the soonest, and no weight passes through LDS."""
    kernel = compilation(source, defines, target).result()["rf_tile_products"]
    body, unit, qtype = kernel.text, matrix_unit(target), defines[0][1]
    a_run = {"gfx11": 2, "gfx12": 4}.get(target[:5], 8)
    assert len(re.findall(unit, body)) == 4 * a_run
    before, loop = body[: body.index(unit)], body[body.index(unit) : end_of_loop(kernel, body.rindex(unit))]
    loads = list(re.finditer(WEIGHTS, loop))
    assert len(re.findall(WEIGHTS, before)) >= 2 and len(loads) >= PLANAR[qtype][0]
    for load in loads:
        first, after = int(re.search(r"v\[(\d+):", load[0])[1]), loop[load.end() :]
        until_used = re.split(rf"\bv(?:{first}|{first + 1}|{first + 2}|{first + 3})\b|\bv\[{first}:", after, maxsplit=1)
        assert len(until_used) == 1 or until_used[0].count(unit) >= a_run
    assert not re.search(r"\b(ds_write|ds_store)", body[: body.rindex(unit)])


@needs_amd_compiler
@pytest.mark.parametrize(("source", "defines", "target"), cases_of("attention.hip", RF_GROUP="12478"))
def test_attention_instructions(source, defines, target):
    """Scores of up to 8 heads are exchanged by one choice of two each: as choices of an index they are chains.

    Of packed rows there are twice as many at a time; of large heads, of which a wave serves fewer, choices are those of
    what rotates their elements. Some ten are of the sum of splits.
    """
    texts, given = [kernel.text for kernel in compilation(source, defines, target).result().values()], dict(defines)
    more = "RF_KEY_TYPE" in given or int(given["RF_HEAD_DIM"]) * int(given["RF_GROUP"]) >= 2048
    assert sum(text.count("v_cndmask") for text in texts) < (200 if more else 110)


PAGE = """# Registers

What each kernel takes, as `python tests/test_offline.py > docs/registers.md` writes it from the code objects of ROCm \
{rocm}'s hiprtc (`tests/hipsim/amd_compiler.py`):

VGPRs / bytes of LDS / bytes of scratch / registers spilled / instructions

Allowed are {vgpr} VGPRs a lane and {lds:,} bytes of LDS a block, no scratch and no spill; what is beyond that is bold.
Behind a kernel's name are the values that its source is compiled with, of the defines in its `// variants:` lines.

Others of their families, which may differ in a few registers, are compiled and held to the same limits by \
`tests/test_offline.py`: {others}.
"""


def print_page() -> None:
    """What each kernel takes on each of the representatives, as a page in Markdown."""
    others = ", ".join(target for target in AMD if target not in REPRESENTATIVES)
    print(PAGE.format(rocm=amd_compiler.ROCM, vgpr=VGPR_LIMIT, lds=LDS_LIMIT, others=others))
    every: dict[str, list[code_objects.Kernel]] = {target: [] for target in REPRESENTATIVES}
    for source in SOURCES:
        chosen = [target for target in REPRESENTATIVES if target in targets(source)]
        if not chosen:
            continue
        print(f"## {source}\n\n{table_head('kernel')}")
        under_way = {
            defines: [compilation(source, defines, target) for target in chosen] for defines in variants(source)
        }
        for defines, futures in under_way.items():
            used = {target: future.result() for target, future in zip(chosen, futures, strict=True)}
            for name in used[chosen[0]]:
                cells = [figures(used[target][name]) if target in used else "" for target in REPRESENTATIVES]
                print(table_row(" ".join([f"`{name}`", *(value for _, value in defines)]), cells))
            for target, kernels in used.items():
                every[target] += kernels.values()
        print()
    print(f"## The most of any kernel\n\n{table_head('')}")
    most = [" / ".join(map(str, map(max, *map(numbers, every[target])))) for target in REPRESENTATIVES]
    print(table_row(f"{len(every[REPRESENTATIVES[0]])} kernels", most))
    offline.stop()


def table_head(first: str) -> str:
    return table_row(first, REPRESENTATIVES) + "\n" + "|---" * (len(REPRESENTATIVES) + 1) + "|"


def table_row(first: str, cells: Iterable[str]) -> str:
    return " | ".join(["| " + first, *cells]) + " |"


def numbers(kernel: code_objects.Kernel) -> tuple[int, ...]:
    return kernel.vgprs, kernel.lds, kernel.scratch, kernel.spills, kernel.instructions


def figures(kernel: code_objects.Kernel) -> str:
    text = " / ".join(map(str, numbers(kernel)))
    return text if within_limits(kernel) else f"**{text}**"


if __name__ == "__main__":
    print_page()
