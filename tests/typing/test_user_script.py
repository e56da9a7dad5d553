"""A user's script is type-checked against the installed wheel, whose py.typed says that it has types, by mypy and by
pyright."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("user_script.py")
NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The Python of an environment that holds the wheel, beside the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    return folder / "bin" / "python"


def output_of(command, folder):
    """What a type checker says, in a folder outside the project."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def problems_of(python, script, folder):
    """What mypy, strict, says of a script."""
    command = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={python}", "--config-file="]
    output = output_of([*command, f"--cache-dir={folder / 'cache'}", script], folder)
    return [line for line in output.splitlines() if ": error:" in line]


def pyright_problems_of(python, folder):
    """What pyright says of the scripts in a folder: errors, and ignores of what is none."""
    settings = {
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportUnusedExpression": "none",  # which a notebook shows
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "-p", folder, f"--pythonpath={python}", "--outputjson"]
    found = json.loads(output_of(command, folder))["generalDiagnostics"]
    return [(Path(one["file"]).name, one["range"]["start"]["line"] + 1, one["message"]) for one in found]


def test_public_names_have_types(environment, tmp_path):
    """Each `assert_type` holds, and each error that the script expects is found: an ignore too many is an error."""
    assert problems_of(environment, SCRIPT, tmp_path) == []


def test_pyright_agrees(environment, tmp_path):
    """On the script, and on the code of the notebooks, which nobody annotated for it."""
    shutil.copy(SCRIPT, tmp_path)
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        (tmp_path / f"{path.stem}.py").write_text("\n".join(code))
    assert pyright_problems_of(environment, tmp_path) == []


def test_without_py_typed(environment, tmp_path):
    """The first test proves something: without the marker mypy knows nothing of the package."""
    (marker,) = environment.parents[1].glob("lib/python*/site-packages/rocforge/py.typed")
    marker.rename(tmp_path / "py.typed")
    try:
        problems = problems_of(environment, SCRIPT, tmp_path)
    finally:
        (tmp_path / "py.typed").rename(marker)
    assert any("py.typed" in problem for problem in problems)
