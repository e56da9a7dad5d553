"""The wheel: built from the checkout, installed in a fresh environment elsewhere, it holds all it needs."""

import os
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
GENERATE = """
import sys
from pathlib import Path
import rocforge as rf
from rocforge.device.kernels import source_folder
from rocforge.selftest.model import demo_model
assert not Path(rf.__file__).is_relative_to(sys.argv[2]), rf.__file__
assert (source_folder() / "target" / "platform.h").is_file()
assert demo_model().is_relative_to(Path(rf.__file__).parent)
model, tokenizer = rf.load(sys.argv[1], device="cpu")
print(repr(rf.generate(model, tokenizer, "def fibonacci(n):", max_tokens=16, temperature=0)))
"""


def test_contents(wheel):
    """Modules, the chat page, the marker of types, kernels, the demo model for the selftest, licences; no tests."""
    names = zipfile.ZipFile(wheel).namelist()
    sources = [path for kind in ("*.py", "py.typed") for path in (ROOT / "rocforge").rglob(kind)]
    sources += [path for path in (ROOT / "rocforge" / "server" / "static").rglob("*") if path.is_file()]
    modules = {f"rocforge/{path.relative_to(ROOT / 'rocforge')}" for path in sources}
    kernels = {f"rocforge/{path.relative_to(ROOT)}" for path in (ROOT / "rawkernels").rglob("*") if path.is_file()}
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == modules | kernels | {"rocforge_command.py", "rocforge/selftest/demo-11M-Q8_0.gguf"}
    licences = {name.rpartition("/")[2] for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "markdown-it.LICENSE", "purify.LICENSE", "highlight.LICENSE"}


def test_installed_elsewhere(wheel, tmp_path):
    """In a fresh environment of at most 300 MB, without the extras: the demo model writes, and so does the command."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    files = [path for path in environment.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 300e6  # all but CuPy, pip included
    (model,) = (ROOT / "examples" / "demo_model").glob("*.gguf")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", GENERATE, model, ROOT], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(eval(done.stdout)) > 8
    command = [environment / "bin" / "rocforge"]
    options = {"cwd": tmp_path, "env": variables, "capture_output": True, "text": True}
    done = subprocess.run([*command, "generate", model, "def f(", "--max-tokens", "2", "--quiet"], **options)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    done = subprocess.run([*command, "serve", model], **options)
    assert done.returncode == 1 and "rocforge[server]" in done.stderr and len(done.stderr.splitlines()) == 2
