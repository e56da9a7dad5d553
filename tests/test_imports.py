"""The import graph: arrows go down the tree only, and there are no circles, imports within functions included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    "errors names html",
    "formats row_index",
    "quant",
    "gguf",
    "text",
    "checkpoints",
    "device",
    "ops",
    "lora",
    "nn",
    "models",
    "engine",
    "loading",
    "load generate evaluate embed imatrix",
    "card",
    "rocforge",
    "server selftest",
    "tune",
    "cli",
    "__main__",
]
"""The packages and modules of rocforge from the bottom up, itself in their midst, since it gives the public names.
Those of one line know nothing of each other."""


def modules():
    """Name -> path of every module of rocforge."""
    found = {}
    for path in sorted((ROOT / "rocforge").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path):
    """The modules of rocforge that a file imports anywhere, as those that hold what is imported."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by relative names"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from [name for name in (whole, node.module) if name in MODULES][:1]


GRAPH = {name: sorted(set(imports_of(path))) for name, path in MODULES.items()}


def layer_of(module):
    name = package_of(module).rpartition(".")[2]
    return next(i for i, layer in enumerate(LAYERS) if name in layer.split())


def package_of(module):
    return ".".join(module.split(".")[:2])


def goes_down(module, other):
    return package_of(other) == package_of(module) or layer_of(other) < layer_of(module)


@pytest.mark.parametrize("module", GRAPH)
def test_arrows_go_down(module):
    """A module imports from its own package and from those below it."""
    wrong = [other for other in GRAPH[module] if not goes_down(module, other)]
    assert not wrong, f"{module} imports {wrong}"


def test_no_circles():
    """No modules import each other, by whatever way."""
    assert circles(GRAPH) == []


def circles(graph):
    """The strongly connected components of more than one module (Tarjan's algorithm)."""
    order, low, stack, found = {}, {}, [], []

    def visit(module):
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in graph[module]:
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            members = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(members) > 1 or module in graph[module]:
                found.append(sorted(members))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def test_circles_are_found():
    """Of two modules, of one with itself, and of three; a diamond is none."""
    graph = {"a": ["b"], "b": ["a", "c"], "c": ["c"], "d": ["e", "f"], "e": ["g"], "f": ["g"], "g": []}
    assert sorted(circles(graph)) == [["a", "b"], ["c"]]
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"]}) == [["a", "b", "c"]]
