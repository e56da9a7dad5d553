"""The examples run as a user runs them: as commands, with their output, their statistics and their errors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from golden import demo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
GENERATE = [sys.executable, str(ROOT / "examples" / "generate.py")]


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_generate_streams_code_and_ends_with_statistics():
    """The README's command: prompt and text on stdout; counts, rates, memory and device on stderr, but no bar."""
    done = run([*GENERATE, "def fibonacci(n):", "--max-tokens", "32", "--seed", "1"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def fibonacci(n):") and len(done.stdout) > 40
    assert "loading" not in done.stderr
    closing = done.stderr.strip().splitlines()[-1]
    for part in ("prompt:", "tokens/s", "generation: ", "first token after", "peak memory", "device "):
        assert part in closing
    assert "device cpu" not in closing or "(no GPU: " in closing


def test_the_readmes_completion():
    """The README's command ends by itself with code that Python parses, and says that it is a completion of code."""
    done = run([*GENERATE, "def binary_search(items, target):", "--temperature", "0", "--device", "cpu"])
    assert "return" in done.stdout and ast.parse(done.stdout)
    assert "A completion of code by the demo model" in done.stderr and "Cut off" not in done.stderr


def test_generate_reads_stdin_and_repeats_itself():
    """The prompt from standard input; the same seed gives the same text; --quiet says nothing else."""
    options = ["--device", "cpu", "--max-tokens", "12", "--seed", "5", "--quiet"]
    first, second = (run([*GENERATE, *options], input="import sys\n") for _ in range(2))
    assert first.stdout == second.stdout and first.stdout.startswith("import sys\n")
    assert first.stderr == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["x", "--model", "/nowhere/model.gguf"], "no such file: /nowhere/model.gguf"),
        (["x", "--model", __file__], "magic"),
        (["x", "--temperature", "5"], "temperature is 5.0; allowed is from 0 to 2"),
        (["x", "--device", "tpu"], "device is 'tpu'"),
        (["x" * 20000], "the limit is 1024"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    """A mistake ends with one line that says what is wrong, exit code 1, and no traceback."""
    done = run([*GENERATE, "--quiet", *arguments])
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_interactive_tour(tmp_path):
    """The tour runs through, prints what it promises, and saves its plot where matplotlib is there."""
    command = [sys.executable, str(ROOT / "examples" / "interactive.py"), demo.bundled(), "--plot", tmp_path / "a.png"]
    done = run(command)
    assert done.returncode == 0, done.stderr
    for part in ("QuantizedArray(", "x @ w.T: (3, ", "Llama()", "blk.3: ", "head 0, from the last token"):
        assert part in done.stdout
    assert (tmp_path / "a.png").exists() or "matplotlib is not installed" in done.stdout
