"""The whole job on machines without ROCm's development package, and with two cards of one compute capability.

Simulated: no hipcc is on the path, so CuPy's own compile path fails there, as it does on such a machine.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "demo_model" / "demo-11M-Q8_0.gguf"
RUN = [sys.executable, str(ROOT / "tests" / "hipsim" / "run"), "--no-hipcc", "--arch", "gfx1030,gfx1036"]
PROMPT, OPTIONS = "def fibonacci(n):", ["--max-tokens", "12", "--temperature", "0", "--quiet"]

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("cupy_backends") is None or bool(os.environ.get("HIPSIM_ARCH")),
        reason="needs cupy-rocm-7-0, and to start the simulator itself",
    ),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A machine on which nothing has been compiled yet."""
    return {**os.environ, "ROCFORGE_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


def generated(environment, device, *command):
    words = [*command, "-m", "rocforge", "generate", str(DEMO), PROMPT, *OPTIONS, "--device", device]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.fixture(scope="module")
def expected(environment):
    """What the CPU writes."""
    return generated(environment, "cpu", sys.executable)


def test_no_hipcc(environment):
    """The simulated machine has none, and CuPy can compile nothing there."""
    code = "import shutil, cupy; print(shutil.which('hipcc')); cupy.arange(3) + 1"
    done = subprocess.run([*RUN, "python", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "None" and done.returncode and "ROCM_HOME" in done.stderr


@pytest.mark.parametrize("device", ["gpu:0", "gpu:1"])
def test_generate(environment, expected, device):
    """Either card writes what the CPU does, with code of its own: the other's would be refused by the runtime."""
    files = set(Path(environment["ROCFORGE_CACHE_DIR"]).glob("*"))
    assert generated(environment, device, *RUN, "python") == expected
    assert set(Path(environment["ROCFORGE_CACHE_DIR"]).glob("*")) - files


def test_serve(environment, expected):
    """A server on the second card answers with the same text."""
    small = ["--max-batch-tokens", "32", "--max-requests", "1"]  # what it prepares for takes long in software
    command = [*RUN, "python", "-m", "rocforge", "serve", str(DEMO), "--device", "gpu:1", "--port", "0", *small]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            lines = iter(server.stderr.readline, "")
            address = next(match[0] for line in lines if (match := re.search(r"http://[\d.]+:\d+", line)))
            body = {"model": DEMO.stem, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
            request = urllib.request.Request(
                f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=240) as reply:
                text = json.load(reply)["choices"][0]["text"]
        finally:
            server.terminate()
            server.stderr.read()
    assert text.strip() == expected.removeprefix(PROMPT).strip()
