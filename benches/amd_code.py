"""What a kernel's machine code says of its speed: instructions a weight, loads, registers, cycles of a lone wave.

For AMD's targets that code is what AMD's own hiprtc makes (tests/offline.py); for NVIDIA's nvcc's, as nvdisasm has it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rocforge.device.compiler import COMPLETE
from rocforge.device.kernels import PREFIX

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from offline import Defines, card_with, code_for
from offline import program as program_for

PRODUCTS = re.compile(r"v_dot4|IDP\.4A")
"""Instructions that multiply four weights a lane."""
MATRIX = re.compile(r"v_mfma|v_wmma|HMMA")
SCHEDULES = {"gfx950": "gfx942"}
"""Targets that llvm-mca 19 does not know, and those whose schedule stands in."""


class Instruction(NamedTuple):
    """An instruction: where it lies, its text, and the address that it jumps to if it is a branch."""

    address: int
    text: str
    target: int | None = None

    @property
    def name(self) -> str:
        return self.text.split(maxsplit=1)[0]


class Code(NamedTuple):
    """A kernel, or a loop of it.

    Attributes:
        instructions: all of it, in order.
        registers: vector registers of a lane.
        lds: bytes a block.
    """

    instructions: list[Instruction]
    registers: int
    lds: int

    def count(self, pattern: re.Pattern) -> int:
        return sum(bool(pattern.match(i.name)) for i in self.instructions)

    @property
    def vector(self) -> int:
        """Vector instructions; on NVIDIA all, which share the vector units' scheduler."""
        return sum(i.name.startswith("v_") or i.name[0].isupper() for i in self.instructions)

    @property
    def weights(self) -> int:
        """Weights that a lane multiplies."""
        return 4 * self.count(PRODUCTS)

    @property
    def waits(self) -> int:
        """How often it waits for loads before it asks for more; the last such wait counts too."""
        count, waited = 0, True
        for i in self.instructions:
            if i.name.startswith("global_load"):
                count, waited = count + waited, False
            elif i.name == "s_wait_loadcnt" or (i.name == "s_waitcnt" and "vmcnt" in i.text):
                waited = True
        return count

    def loop(self, pattern: re.Pattern = PRODUCTS) -> Code | None:
        """Of the innermost loops, the one with the most instructions of a pattern; None where none has any."""
        found = [self._between(*span) for span in _innermost(self.instructions)]
        best = max(found, key=lambda code: code.count(pattern), default=None)
        return best if best is not None and best.count(pattern) else None

    def _between(self, start: int, end: int) -> Code:
        return self._replace(instructions=[i for i in self.instructions if start <= i.address <= end])


def _innermost(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last address of each loop that holds no other."""
    loops = {(i.target, i.address) for i in code if i.target is not None and i.target <= i.address}
    return [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]


@functools.cache
def kernels(source: str, defines: Defines, target: str) -> dict[str, Code]:
    """The kernels of a source, by their names without the prefix."""
    code = (_nvidia if target.startswith("sm_") else _amd)(source, defines, target)
    return {name.removeprefix(PREFIX): kernel for name, kernel in code.items()}


def _amd(source: str, defines: Defines, target: str) -> dict[str, Code]:
    found = code_for(source, defines, target)
    return {name: Code(_of_amd(k.text, k.starts), k.vgprs, k.lds) for name, k in found.items()}


def _of_amd(text: str, starts: tuple[int, ...]) -> list[Instruction]:
    """Instructions of LLVM's text of a function; a branch counts words of four bytes from the instruction after it."""
    code = []
    for start, line in zip(starts, text.splitlines(), strict=True):
        jump = re.match(r"\s*s_c?branch\w* (\d+)", line)
        words = int(jump[1]) - (int(jump[1]) >> 15 << 16) if jump else 0
        code.append(Instruction(start, line.strip(), start + 4 + 4 * words if jump else None))
    return code


def nvdisasm() -> str | None:
    """NVIDIA's disassembler: on the path, or of the wheel nvidia-cuda-nvdisasm."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations]
    wheel = next((str(path) for folder in folders for path in folder.glob("cu*/bin/nvdisasm")), None)
    return shutil.which("nvdisasm") or wheel


def _nvidia(source: str, defines: Defines, target: str) -> dict[str, Code]:
    with tempfile.TemporaryDirectory() as folder:
        program, cubin = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        program.write_text(program_for(source, defines, card_with(target)))
        command = [
            "nvcc",
            "-cubin",
            f"-arch={COMPLETE.get(target, target)}",
            "-std=c++17",
            "-DRF_WAVE=32",
            "-ftz=true",
            "-Xptxas=-v",
            "-w",
        ]
        command += ["-o", str(cubin), str(program)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        shown = subprocess.run([nvdisasm(), "-c", cubin], capture_output=True, text=True, check=True).stdout
    found = {}
    for entry in log.split("Compiling entry function '")[1:]:
        smem = re.search(r"(\d+) bytes smem", entry)
        found[entry[: entry.index("'")]] = int(re.search(r"Used (\d+)", entry)[1]), int(smem[1]) if smem else 0
    parts = re.split(r"^\.text\.(\w+):$", shown, flags=re.M)
    return {name: Code(_of_sass(body), *found[name]) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _of_sass(body: str) -> list[Instruction]:
    """Instructions of nvdisasm's text of a function, without the padding behind its end."""
    lines, labels, found = body.splitlines(), {}, []
    for line in lines:
        if label := re.match(r"\.(L_x_\d+):", line):
            labels[label[1]] = 16 * len(found)
        elif text := re.match(r"\s+/\*\w+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z].*?)\s*;", line):
            found.append(Instruction(16 * len(found), text[1]))
    code = []
    for i in found:
        jump = re.match(r"BRA.*`\(\.(L_x_\d+)\)", i.text)
        code.append(i._replace(target=labels.get(jump[1])) if jump else i)
    return [i for i in code if i.name != "NOP" and i.target != i.address]


class Counts(NamedTuple):
    """What a prediction needs of a kernel.

    Attributes:
        instructions: all, each once.
        registers, lds: as of Code.
        loop: instructions of an iteration of its innermost loop of products; 0 where it has none.
        vector: those of them that take a vector unit.
        weights: that a lane multiplies in an iteration.
        waits: for loads, one after another, in an iteration; on NVIDIA 1 is taken for granted.
        cycles: that a lone wave takes for an iteration once its loads are there; 0 on NVIDIA.
    """

    instructions: int
    registers: int
    lds: int
    loop: int = 0
    vector: int = 0
    weights: int = 0
    waits: int = 1
    cycles: float = 0.0


NVIDIA_COUNTS = Path(__file__).with_name("amd_sm_90.json")
"""Counts for the H200, by source, defines and kernel: not every machine has nvcc and nvdisasm."""


@functools.cache
def counts(source: str, defines: Defines, target: str, kernel: str) -> Counts:
    if target.startswith("sm_"):
        return Counts(*json.loads(NVIDIA_COUNTS.read_text())[key_of(source, defines, kernel)])
    return counted(source, defines, target, kernel)


def key_of(source: str, defines: Defines, kernel: str) -> str:
    return " ".join([source, *(f"{name}={value}" for name, value in defines), kernel])


def counted(source: str, defines: Defines, target: str, kernel: str) -> Counts:
    """The counts of a kernel, compiled now."""
    code = kernels(source, defines, target)[kernel]
    loop, size = code.loop(), (len(code.instructions), code.registers, code.lds)
    if loop is None:
        return Counts(*size)
    inside = len(loop.instructions), loop.vector, loop.weights
    if target.startswith("sm_"):
        return Counts(*size, *inside)
    return Counts(*size, *inside, loop.waits, lone_wave_cycles(loop, target))


def lone_wave_cycles(loop: Code, target: str) -> float:
    """Cycles that a wave alone on its vector unit takes for an iteration of a loop, its loads being there.

    By llvm-mca, whose cycles for gfx9 are of four clocks.
    """
    skipped = r"global_|s_wait|s_delay_alu|s_clause|s_c?branch|s_barrier|s_nop"
    text = "\n".join(i.text for i in loop.instructions if not re.match(skipped, i.name))
    command = ["llvm-mca-19", "-mtriple=amdgcn", f"-mcpu={SCHEDULES.get(target, target)}", "-iterations=1"]
    shown = subprocess.run(command, input=text, capture_output=True, text=True)
    if shown.returncode:
        raise RuntimeError(f"llvm-mca-19 on a loop for {target}: {shown.stderr}")
    return int(re.search(r"Total Cycles: +(\d+)", shown.stdout)[1]) * (4 if target.startswith("gfx9") else 1)
