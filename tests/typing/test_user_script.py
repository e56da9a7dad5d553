"""A user's script is type-checked against the installed wheel, whose py.typed says that it has types."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("user_script.py")


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


def problems_of(python, script, folder):
    """What mypy, strict, says of a script outside the project."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    command = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={python}", "--config-file="]
    done = subprocess.run(
        [*command, f"--cache-dir={folder / 'cache'}", script],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def test_public_names_have_types(environment, tmp_path):
    """Each `assert_type` holds, and each error that the script expects is found: an ignore too many is an error."""
    assert problems_of(environment, SCRIPT, tmp_path) == []


def test_without_py_typed(environment, tmp_path):
    """The first test proves something: without the marker mypy knows nothing of the package."""
    (marker,) = environment.parents[1].glob("lib/python*/site-packages/rocforge/py.typed")
    marker.rename(tmp_path / "py.typed")
    try:
        problems = problems_of(environment, SCRIPT, tmp_path)
    finally:
        (tmp_path / "py.typed").rename(marker)
    assert any("py.typed" in problem for problem in problems)
