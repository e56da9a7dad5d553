"""Each matrix unit's own path of the kernels, on simulated devices whose instructions have the lane maps of the ISA.

The tests of tests/device/ run on one MFMA and one WMMA target; here a few of them, which multiply tiles in the three
ways that kernels have, run on the others, and on a target without such a unit. Two lanes swapped in the sources' own
maps must show in all of them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_program import RUN, needs_wheel

pytestmark = [needs_wheel, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
TESTS = [
    "test_tiles.py::test_products[Q4_K]",
    "test_attention.py::test_prefill[8-2-128]",
    "test_moe.py::test_experts[Q8_0-swiglu-2-150]",
]


def outcomes(arch: str, folder: Path) -> list[str]:
    """pytest's line on each of TESTS with the rocforge/ and rawkernels/ that lie in `folder`."""
    names = [str(ROOT / "tests" / "device" / name) for name in TESTS]
    options = ["-q", "-rA", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}"]
    command = [sys.executable, str(RUN), "--arch", arch, "pytest", *options, *names]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED", "ERROR"))]
    assert len(lines) == len(TESTS), done.stdout
    return lines


OTHERS = ["gfx950", "gfx1201", *(["gfx90a", "gfx1030"] if os.environ.get("EVERY_TARGET") else [])]


@pytest.mark.parametrize("arch", OTHERS)
def test_other_targets(arch):
    for line in outcomes(arch, ROOT):
        assert line.startswith("PASSED")


@pytest.mark.parametrize("arch", ["gfx942", "gfx1100", "gfx1201"])
def test_two_lanes_swapped(arch, tmp_path):
    for name in ("rocforge", "rawkernels"):
        shutil.copytree(ROOT / name, tmp_path / name)
    fragments = tmp_path / "rawkernels" / "target" / "fragments.h"
    text = fragments.read_text()
    for place in ("tile + lane() % 16 * stride", "part_row(u32) { return lane() % 16; }"):
        assert place in text
        text = text.replace(place, place.replace("lane() % 16", "(lane() % 16 ^ (lane() % 16 < 2))"))
    fragments.write_text(text)
    for line in outcomes(arch, tmp_path):
        assert line.startswith("FAILED") and "assert " in line
