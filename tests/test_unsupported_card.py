"""A card that rocforge has no kernels for: refused in one sentence that names it and what is supported."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("cupy_backends") is None or bool(os.environ.get("HIPSIM_ARCH")),
        reason="needs cupy-rocm-7-0, and to start the simulator itself",
    ),
    pytest.mark.slow,
]


def simulated(arch, *words):
    command = [sys.executable, str(ROOT / "tests" / "hipsim" / "run"), "--arch", arch, "python", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("device", [[], ["--device", "gpu"], ["--device", "gpu:0"]])
def test_refused_at_load(device):
    """By the command: a line and a hint, no compiler's log; whether the card was asked for or is the only one."""
    done = simulated("gfx906", "-m", "rocforge", "generate", str(DEMO), "def", "--quiet", *device)
    assert done.returncode == 1 and done.stdout == ""
    line, hint = done.stderr.strip().splitlines()
    assert "gfx906" in line and "not supported" in line and "gfx1100 to gfx1103" in line and "sm_75" in line
    assert hint.startswith("hint: rocforge info")


def test_told():
    """`info` says in one line that no GPU is of use, and goes on with the CPU."""
    done = simulated("gfx1010", "-m", "rocforge", "info", "--json")
    device = json.loads(done.stdout)["device"]
    assert device["device"] == "cpu" and "gfx1010" in device["reason"] and "\n" not in device["reason"]


def test_the_first_supported_card_is_taken():
    """Beside one that is not supported, as an old integrated one, the next is the GPU."""
    code = "import rocforge as rf; print(rf.device_info().device, rf.device_info().arch)"
    assert simulated("gfx906,gfx1100", "-c", code).stdout.split() == ["gpu:1", "gfx1100"]
    done = simulated("gfx906,gfx1100", "-c", "import rocforge as rf; rf.to_device([1.0], 'gpu:0')")
    assert "UnsupportedCardError: gpu:0, AMD" in done.stderr
