"""benches/amd.py: what it counts in machine code is what is there, and docs/amd.md says what it computes."""

import re
import shutil
from pathlib import Path

import amd
import amd_code
import pytest
from amd_cards import CARDS, H200
from amd_code import PRODUCTS, Code, Instruction, counted, counts, kernels, key_of
from amd_model import occupancy, times_of
from amd_steps import MODELS, RECIPES, step
from gguf import GGMLQuantizationType
from offline import code_for, needs_amd_compiler

from rocforge.device import tuning
from rocforge.device.cards import AMD
from rocforge.device.geometry import GEMV_RUN, then_norm_log_lanes
from rocforge.formats.planar import CELL, PLANAR, planar_row_nbytes
from rocforge.selftest.synthetic import tensors_of

PAGE = (Path(__file__).parent.parent / "docs" / "amd.md").read_text()
MATVEC = {q: (("RF_QTYPE", q), ("RF_TOKENS", "1")) for q in PLANAR}

needs_mca = pytest.mark.skipif(not shutil.which("llvm-mca-19"), reason="needs llvm-mca-19 (Debian's llvm-19)")
needs_nvidia = pytest.mark.skipif(
    not (shutil.which("nvcc") and amd_code.nvdisasm()), reason="needs nvcc and nvdisasm (nvidia-cuda-nvdisasm)"
)


def test_innermost_loop():
    """Of loops within loops the inner one with the most products counts, from its first instruction to its branch."""
    text = ["s_nop", "v_dot4_i32_i8", "v_dot4_i32_i8", "v_add", "s_cbranch", "v_mul", "s_cbranch", "v_dot4_i32_i8"]
    code = [Instruction(4 * i, name) for i, name in enumerate(text)]
    code[4], code[6] = code[4]._replace(target=8), code[6]._replace(target=4)
    loop = Code(code, 0, 0).loop()
    assert [i.address for i in loop.instructions] == [8, 12, 16] and (loop.vector, loop.weights) == (2, 4)
    assert Code(code[5:], 0, 0).loop() is None


@needs_amd_compiler
@pytest.mark.parametrize("target", ["gfx942", "gfx1030", "gfx1201"])
@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_counts_of_products(qtype, target):
    """A lane's iteration is a cell of each row; it loads each plane of the cells and of x, all before its one wait."""
    for name, rows in (("matvec", 1), ("matvec_then_norm", 1), ("matvec_gated", 2)):
        loop = kernels("matvec.hip", MATVEC[qtype], target)[name].loop()
        wide = sum(bool(re.match(r"global_load_(dwordx4|b128)", i.name)) for i in loop.instructions)
        # a tail of 16 bytes, where it has one; of x the values, their scales, and sums where the format needs them
        own, of_x = PLANAR[qtype][0] + (qtype == "Q4_K"), 9 + (qtype != "Q8_0")
        assert loop.weights == CELL * rows and loop.waits == 1, name
        assert wide == rows * own + of_x, name
        assert loop.count(PRODUCTS) < loop.vector < len(loop.instructions), name


@needs_amd_compiler
@pytest.mark.parametrize("target", [target for target, wave in AMD.items() if wave == 64])
def test_wide_blocks(target):
    """Blocks of 1,024 threads are launched on those targets for which the kernel allows them."""
    most = code_for("matvec.hip", MATVEC["Q6_K"], target)["rf_matvec_then_norm"].threads
    tuned = tuning.shipped(target)
    assert GEMV_RUN << then_norm_log_lanes(tuned, 32, 64, 2) == most
    assert GEMV_RUN << then_norm_log_lanes(tuned, 64, 64, 2) == 512


@needs_amd_compiler
@needs_mca
def test_a_lone_wave_takes_longer_than_its_instructions():
    """A vector unit of RDNA begins an instruction a cycle, one of CDNA one in four."""
    for target, cycles in (("gfx942", 4), ("gfx1100", 1)):
        code = counted("matvec.hip", MATVEC["Q4_K"], target, "matvec")
        assert cycles * code.vector < code.cycles < 4 * cycles * code.vector


def test_occupancy():
    """Waves of a vector unit, of the registers' file, its granule and its places; blocks by LDS."""
    mi300x, navi31 = CARDS[0], CARDS[2]
    code = counts("matvec.hip", MATVEC["Q4_K"], "sm_90", "matvec")
    for card, registers, threads, blocks in [
        (mi300x, 129, 256, 3),
        (mi300x, 128, 256, 4),
        (mi300x, 20, 256, 8),
        (navi31, 97, 128, 6),
        (navi31, 96, 128, 8),
    ]:
        assert occupancy(card, code._replace(registers=registers), threads) == blocks
    assert occupancy(mi300x, code._replace(registers=20, lds=20 << 10), 256) == 3


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", ["Llama 3.2 1B", "Llama 3.1 8B"])
def test_launches_read_and_multiply_all_weights(model, recipe):
    """Five launches a layer and seven; each matrix of the file is read once, but for rows of the embedding."""
    shape = MODELS[model].shape
    launches = step(MODELS[model], recipe, H200)
    assert len(launches) == 5 * shape.layers + 7
    sizes = [size for name, _, size in tensors_of(shape) if len(size) == 2 and (shape.tied or "token" not in name)]
    assert sum(launch.weights for launch in launches) == sum(rows * columns for rows, columns in sizes)
    if recipe == "Q8_0":
        nbytes = sum(rows * planar_row_nbytes(columns, GGMLQuantizationType.Q8_0) for rows, columns in sizes)
        assert nbytes == sum(launch.nbytes for launch in launches if launch.weights)


def test_a_launch_takes_what_holds_it_longest():
    """Bytes over the rate of reads where blocks are many; the latency of its loads where a lane has little to do."""
    launches = step(MODELS["Llama 3.1 8B"], "Q8_0", H200)
    output = max(launches, key=lambda launch: launch.nbytes)
    times = times_of(H200, output)
    assert times.bound == "bytes" and times.work == output.nbytes / 4.57e12
    small = output._replace(nbytes=1 << 10, weights=1 << 10, blocks=1)
    assert times_of(H200, small).bound == "latency" and times_of(H200, small).work > 0.7e-6


def rows_of(head):
    """The table of docs/amd.md that begins with that cell."""
    table = PAGE[PAGE.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_errors_on_the_h200_are_what_the_page_says():
    """Each prediction, and the range of its errors, is within a tenth of what was measured."""
    said = {row[0].removesuffix(", tokens/s"): row[1:] for row in rows_of("H200")}
    for (model, recipe), measured in amd.MEASURED.items():
        predicted = 1 / amd.decode(H200, model, recipe).seconds
        assert said[f"{model} {recipe}"] == [f"{predicted:,.0f}", f"{measured:,}", f"{predicted / measured - 1:+.1%}"]
    errors = [amd.error(*key) for key in amd.MEASURED]
    assert f"{min(errors):+.1%} to {max(errors):+.1%}" in PAGE and max(map(abs, errors)) < 0.1


def test_measured_figures_are_those_of_the_models_page():
    models = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    for (model, recipe), measured in amd.MEASURED.items():
        name = model.lower().replace(" ", "-")
        assert f"| {name}-{recipe} | 1 | 1 | {measured:,} |" in models


@needs_amd_compiler
@needs_mca
@pytest.mark.parametrize("card", ["MI300X", "RX 7900 XTX"])
def test_the_page_is_of_these_kernels(card):
    """Its prediction for 8B in Q8_0 is, to 2 %, what today's kernels give."""
    chosen = next(c for c in CARDS if c.name == card)
    said = re.search(rf"^\| {card} \| Llama 3.1 8B \| Q8_0 \| ([\d,.]+) \|", PAGE, re.M)[1]
    predicted = 1 / amd.decode(chosen, "Llama 3.1 8B", "Q8_0").seconds
    assert abs(float(said.replace(",", "")) / predicted - 1) < 0.02, "python benches/amd.py > docs/amd.md"


@needs_nvidia
def test_counts_of_the_h200_are_of_these_kernels():
    for kernel in ("matvec", "matvec_gated", "matvec_then_norm"):
        kept = counts("matvec.hip", MATVEC["Q8_0"], "sm_90", kernel)
        assert counted("matvec.hip", MATVEC["Q8_0"], "sm_90", kernel) == kept, key_of("matvec.hip", (), kernel)
