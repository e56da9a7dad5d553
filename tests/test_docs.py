"""What README and docs say runs: Python blocks as written, on the demo model; commands by their parsers; links."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from golden import demo
from threadpoolctl import threadpool_limits

from rocforge.device.libraries import import_cupy

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def python_blocks(page: Path) -> list[str]:
    """Those that need no server, which tests/server has, and no GPU that there is not."""
    blocks = [code for kind, code in FENCED.findall(page.read_text()) if kind == "python"]
    gpu = import_cupy()[0] is not None
    return [code for code in blocks if "http://127.0.0.1:8000" not in code and (gpu or "import cupy" not in code)]


def commands(page: Path) -> list[str]:
    """Lines of code blocks, without comments, that call this project's commands; each part of a pipe or list."""
    text = page.read_text()
    blocks = [code for kind, code in FENCED.findall(text) if not kind] + INDENTED.findall(FENCED.sub("", text))
    lines = [part.strip() for block in blocks for line in block.splitlines() for part in re.split("&&|[|] ", line)]
    words = ("rocforge ", "python benches", "python examples", "python docs", "python tests", "pip install ")
    return [line.partition(" #")[0] for line in lines if line.startswith(words)]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """In order, in one namespace, from a folder whose model.gguf is the demo model, with its text heldout.txt."""
    (tmp_path / "model.gguf").symlink_to(demo.bundled())
    (tmp_path / "heldout.txt").symlink_to(demo.bundled().parent / "heldout.txt")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__docs__"}
    with threadpool_limits(1):  # other tests have the other cores
        for number, code in enumerate(python_blocks(page), 1):
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_commands_parse(page):
    """Commands of rocforge exist and take these options; files that Python runs are there; extras are declared."""
    from typer.main import get_command

    from rocforge.cli.app import app

    rocforge = get_command(app)
    for line in commands(page):
        program, *words = shlex.split(line.partition(" > ")[0])
        if program == "rocforge":
            command = rocforge.commands[words[0]]
            command.make_context(words[0], words[1:])
        elif program == "python":
            assert (ROOT / words[0]).is_file(), line
        elif sys.version_info >= (3, 11):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            asked = re.search(r"\[(.*)\]", line)
            assert set(asked[1].split(",") if asked else ()) <= set(extras), line


def test_the_commands_found():
    """The README's own commands are among those that are checked."""
    found = commands(ROOT / "README.md")
    assert "pip install -e '.[rocm]'" in found and any("generate.py" in command for command in found)
    assert any(line.startswith("rocforge serve") for line in found)


def test_every_command_is_described():
    """docs/cli.md has a section for each."""
    from typer.main import get_command

    from rocforge.cli.app import app

    text = (ROOT / "docs" / "cli.md").read_text()
    missing = [name for name in get_command(app).commands if not re.search(rf"^### `rocforge {name}\b", text, re.M)]
    assert not missing


def test_what_fits(capsys):
    """The tables of docs/choosing.md are those that docs/make/memory.py computes."""
    runpy.run_path(str(ROOT / "docs" / "make" / "memory.py"), run_name="__main__")
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2 and all(table in (ROOT / "docs" / "choosing.md").read_text() for table in tables)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.stem)
def test_links(page):
    """Files that the pages beside docs/ link to are there; MkDocs checks those in docs/."""
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert all((page.parent / target).exists() for target in targets), targets
